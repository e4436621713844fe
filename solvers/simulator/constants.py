"""The efficiency constants: what a serving engine adds to the roofline, the same for every LLM."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources

from dualpath_model.cluster import Cluster, Node
from dualpath_model.errors import InputError
from dualpath_model.scenario import Scenario

TOKEN_LIMIT = 8192
"""Most tokens of an engine's forward batch where nobody says: SGLang's chunked prefill size."""


@dataclass(frozen=True)
class Constants:
    """What the paper does not give, in seconds per layer of the LLM; 0 is the bare roofline.

    ``batch_layer_s``: of a prefill forward batch, whatever its tokens (launches, all-to-alls, waiting).
    ``step_layer_s``: of a decode step. ``request_layer_s``: what each running request of an engine adds
    to a decode step beside its KV-cache.
    """

    batch_layer_s: float = 0.0
    step_layer_s: float = 0.0
    request_layer_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and 0 <= value <= 60):
                raise InputError(f"constants.{name} is {value}; it must be 0 to 60 seconds")


@cache
def fitted() -> Constants:
    """Return the constants of ``constants.yaml``, which says how they came about."""
    import yaml

    text = resources.files("solvers.simulator").joinpath("constants.yaml").read_text()
    found = yaml.safe_load(text)
    return Constants(**{name: float(found[name]) for name in asdict(Constants())})


def of_scenario(scenario: Scenario) -> Constants:
    """Return the constants of a scenario's cluster: :func:`of_cluster`."""
    return of_cluster(scenario.cluster)


def of_cluster(cluster: Cluster) -> Constants:
    """Return the measured constants where every node of a pool has them, else the fitted ones.

    Of several profiles in a pool the slowest counts. A measured decode step has every request's part in
    it already.
    """
    constants = fitted()
    batch = _slowest(cluster.prefill, "prefill_layer_s")
    step = _slowest(cluster.decode, "decode_layer_s")
    if batch is not None:
        constants = replace(constants, batch_layer_s=batch)
    if step is not None:
        constants = replace(constants, step_layer_s=step, request_layer_s=0.0)
    return constants


def _slowest(nodes: tuple[Node, ...], figure: str) -> float | None:
    found = [None if node.measured is None else node.measured.value(figure) for node in set(nodes)]
    known = [value for value in found if value is not None]
    return max(known) if len(known) == len(found) else None
