"""Make examples/traces/agentic_sample: six small sessions in the agentic_coding format.

All of it is drawn from a seeded generator; nothing comes from the recorded data. Run it again with

    python examples/traces/make_sample.py [FOLDER]
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

BLOCK_TOKENS = 64
SESSIONS = 6
SEED = 20260224

Request = dict[str, Any]


class Agent:
    """An agent whose context grows turn by turn; new blocks get the session's next free ids."""

    def __init__(self, rng: random.Random, first_prompt: int, next_id: list[int]) -> None:
        """Begin with ``first_prompt`` tokens and no block yet."""
        self.rng = rng
        self.next_id = next_id
        self.prompt = first_prompt
        self.hash_ids: list[int] = []
        self.time_s = 0.0

    def call(self) -> Request:
        """Return one model call and go on to the context of the next one."""
        rng = self.rng
        while len(self.hash_ids) < self.prompt // BLOCK_TOKENS:
            self.hash_ids.append(self.next_id[0])
            self.next_id[0] += 1
        output = round(rng.lognormvariate(5.0, 0.8)) + 1
        api_s = round(0.8 + 0.02 * output, 2)
        think_s = round(rng.lognormvariate(1.5, 1.0), 1) if self.time_s else 0.0
        self.time_s += think_s
        request = {
            "t": round(self.time_s, 2),
            "type": "n",
            "model": "sample",
            "in": self.prompt,
            "out": output,
            "hash_ids": list(self.hash_ids),
            "stop": "tool_use",
            "api_time": api_s,
            "think_time": think_s,
        }
        self.time_s += api_s
        self.prompt += output + round(rng.lognormvariate(5.8, 0.9)) + 1
        return request

    def compact(self) -> None:
        """Keep the first blocks (system prompt and tools) and replace the rest by a summary."""
        kept = len(self.hash_ids) // 10
        self.hash_ids = self.hash_ids[:kept]
        self.prompt = kept * BLOCK_TOKENS + self.rng.randint(800, 1500)


def session(rng: random.Random, number: int, turns: int) -> dict[str, Any]:
    """Return a session of ``turns`` calls; even ones have a sub-agent, every third a compaction."""
    next_id = [1]
    agent = Agent(rng, rng.randint(6_000, 12_000), next_id)
    requests: list[Request] = []
    for turn in range(turns):
        if number % 3 == 0 and turn == turns * 2 // 3:
            agent.compact()
        if number % 2 == 0 and turn == turns // 2:
            requests.append(sub_agent(rng, agent))
        requests.append(agent.call())
    requests[-1]["stop"] = "end_turn"
    return {
        "id": f"sample_{number:04d}",
        "models": ["sample"],
        "block_size": BLOCK_TOKENS,
        "hash_id_scope": "local",
        "requests": requests,
    }


def sub_agent(rng: random.Random, parent: Agent) -> Request:
    """Return a sub-agent that starts from the parent's first blocks, before its next call."""
    child = Agent(rng, 0, parent.next_id)
    child.hash_ids = parent.hash_ids[:20]
    child.prompt = len(child.hash_ids) * BLOCK_TOKENS + rng.randint(500, 2_000)
    start_s = parent.time_s
    requests = [child.call() for _ in range(rng.randint(3, 5))]
    parent.time_s += child.time_s
    return {"t": round(start_s, 2), "type": "subagent", "requests": requests}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(SEED)
    for number in range(SESSIONS):
        text = json.dumps(session(rng, number, rng.randint(8, 22)), separators=(",", ":"))
        # no time stamp, so that the same seed makes the same file
        packed = gzip.compress(text.encode(), mtime=0)
        (folder / f"sample_{number:04d}.json.gz").write_bytes(packed)


if __name__ == "__main__":
    here = Path(__file__).parent / "agentic_sample"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else here)
