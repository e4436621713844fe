"""The plan's QoS weights as lanes of a network: virtual lanes of InfiniBand, traffic classes of RoCE.

The paper's appendix A.1: four lanes, KV-cache alone on lane 2, which yields to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dualpath_model.errors import InputError
from dualpath_model.export.plan_file import PlanFile
from dualpath_model.export.target import Dropped

KV_LANE = 2
COLLECTIVE_LANE = 1
LIMIT_BYTES = 4096
"""What one step of the high-priority limit stands for (InfiniBand's VLHighLimit)."""
_MOST = 255


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane. ``high``, ``low``: its weights in the two arbitration tables."""

    number: int
    carries: str
    high: int
    low: int


@dataclass(frozen=True, slots=True)
class Qos:
    """The four lanes, and how much the high-priority table may send before the other gets a turn."""

    lanes: tuple[Lane, ...]
    collective: int
    kv: int
    high_limit: int

    @property
    def low(self) -> tuple[int, ...]:
        """Weights of the lanes in the low-priority table, by number."""
        return tuple(lane.low for lane in self.lanes)


def qos_of(plan: PlanFile) -> Qos:
    """Return the lanes of a plan. Raises InputError for weights that a network does not take."""
    parameters = plan.scheduler_parameters
    collective = _checked("qos_collective_weight", parameters.qos_collective_weight, 1)
    kv = _checked("qos_kv_weight", parameters.qos_kv_weight, 1)
    limit = _checked("qos_high_limit", parameters.qos_high_limit, 0)
    lanes = (
        Lane(0, "what nobody marked, and collectives", collective, collective),
        Lane(COLLECTIVE_LANE, "collectives of model execution", collective, collective),
        Lane(KV_LANE, "KV-cache", 0, kv),
        Lane(3, "collectives of model execution, second lane", collective, collective),
    )
    return Qos(lanes, collective, kv, limit)


def percent_of(weights: Sequence[int]) -> tuple[int, ...]:
    """Return whole percents in proportion to the weights, each at least 1, sum 100.

    Rounded down first; what is left of 100 goes to those that lost most by it (the earlier one of two
    that lost alike). A lane that would get 0 is given 1, taken from the largest.
    """
    total = sum(weights)
    exact = [100 * weight / total for weight in weights]
    found = [int(share) for share in exact]
    by_loss = sorted(range(len(weights)), key=lambda at: (found[at] - exact[at], at))
    for at in by_loss[: 100 - sum(found)]:
        found[at] += 1
    for at, share in enumerate(found):
        if share == 0:
            found[at] = 1
            found[found.index(max(found))] -= 1
    return tuple(found)


def not_of_a_network(plan: PlanFile) -> tuple[Dropped, ...]:
    """Return what no setting of a network expresses."""
    return (
        Dropped(
            f"split x = {plan.split:.3f}: reads through the decode nodes",
            "a network's QoS says which traffic yields, not through which node a hit is read",
            "none on the network; the scheduler's and the engines' files carry it",
        ),
        Dropped(
            "limits of the scheduler: alpha, beta, quota, Z, buffers",
            "they are limits of the scheduler and the engines",
            "none on the network; the scheduler's and the engines' files carry them",
        ),
    )


def _checked(name: str, value: int, least: int) -> int:
    if not least <= value <= _MOST:
        zero = "; 0 would leave its lane without a turn" if least == 1 else ""
        raise InputError(
            f"plan: scheduler_parameters.{name} is {value}, but a virtual lane's weight is one byte: "
            f"{least} to {_MOST}{zero}; change it in the plan file, such as "
            f"{'240' if name == 'qos_high_limit' else '64'}"
        )
    return value
