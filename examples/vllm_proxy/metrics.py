"""What the proxy has done, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from examples.vllm_proxy.sessions import Sessions

_PATHS = {True: "decode", False: "prefill"}


@dataclass
class Metrics:
    """Counts since the start."""

    requests: Counter[str] = field(default_factory=Counter)
    hit_tokens: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    engines: Counter[tuple[str, str]] = field(default_factory=Counter)
    running: int = 0

    def routed(self, through_decode: bool, hits: int, prefill: str, decode: str) -> None:
        """Count a request that has a route."""
        self.requests[_PATHS[through_decode]] += 1
        self.hit_tokens[_PATHS[through_decode]] += hits
        self.engines["prefill", prefill] += 1
        self.engines["decode", decode] += 1

    def text(self, split: float, sessions: Sessions) -> str:
        """Return everything. ``split``: what the share should be."""
        seen = {_PATHS[through]: count for through, count in sessions.seen.items()}
        lines = ["# TYPE dualpath_proxy_requests_total counter"]
        lines += [
            f'dualpath_proxy_requests_total{{path="{path}"}} {self.requests[path]}'
            for path in _PATHS.values()
        ]
        lines.append("# TYPE dualpath_proxy_outcomes_total counter")
        lines += [
            f'dualpath_proxy_outcomes_total{{outcome="{name}"}} {count}'
            for name, count in sorted(self.outcomes.items())
        ]
        lines.append("# TYPE dualpath_proxy_engine_requests_total counter")
        for (pool, engine), count in sorted(self.engines.items()):
            label = engine.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            lines.append(
                f'dualpath_proxy_engine_requests_total{{pool="{pool}",engine="{label}"}} {count}'
            )
        lines += ["# TYPE dualpath_proxy_running gauge", f"dualpath_proxy_running {self.running}"]
        lines += ["# TYPE dualpath_proxy_plan_split gauge", f"dualpath_proxy_plan_split {split!r}"]
        lines.append("# TYPE dualpath_proxy_split gauge")
        for by, counts in (
            ("requests", self.requests),
            ("sessions", seen),
            ("hit_tokens", self.hit_tokens),
        ):
            total = sum(counts.values())
            if total:
                share = counts["decode"] / total
                lines.append(f'dualpath_proxy_split{{by="{by}"}} {share!r}')
        return "\n".join(lines) + "\n"
