"""The smallest conflict: on requirements whose conflicts are known, and on real clusters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dualpath_model.cluster import Cluster, Node
from dualpath_model.errors import InfeasibleError
from dualpath_model.workload import from_moments
from solvers import linear
from solvers.conflicts import _smallest
from solvers.problem import TrafficClass
from tests.strategies import loads_of

Known = dict[tuple[str, str], float]


def peak_of(conflicts: Known):  # type: ignore[no-untyped-def]
    """Return a peak function: the worst known conflict that the chosen rates and keys contain."""

    def peak(rates: tuple[int, ...], keys: tuple[str, ...]) -> float:
        there = set(map(str, rates)), set(keys)
        found = [p for (r, k), p in conflicts.items() if set(r) <= there[0] and set(k) <= there[1]]
        return max(found, default=0.5)

    return peak


@pytest.mark.parametrize(
    ("conflicts", "expected"),
    [
        ({("0", "b"): 2.0}, ((0,), ("b",))),
        (
            {("0", "b"): 1.5, ("1", "d"): 3.0},
            ((1,), ("d",)),
        ),  # of several the one that allows least
        ({("012", "a"): 9.0, ("1", "b"): 1.05}, ((1,), ("b",))),  # two before four, however bad
        ({("0", "ac"): 1.2, ("01", "abd"): 9.0}, ((0,), ("a", "c"))),
        ({("012", "abd"): 1.1}, ((0, 1, 2), ("a", "b", "d"))),  # nothing can be left out
    ],
)
def test_smallest(conflicts: Known, expected: object) -> None:
    assert _smallest((0, 1, 2), tuple("abcd"), peak_of(conflicts)) == expected  # type: ignore[arg-type]


def test_one_impossible_rate_is_named_alone(paper_node: Node) -> None:
    """Three rates conflict together; a fourth is impossible by itself: two requirements, not four."""
    cluster = Cluster((paper_node,) * 2, (paper_node,) * 4)
    agent = loads_of(cluster, from_moments(1_000, 100, 300))
    batch = loads_of(cluster, from_moments(2_000, 4_000, 10))
    together = 0.45 * linear.solve(agent).value
    classes = [TrafficClass(name, agent, rate=together) for name in ("x", "y", "z")]
    classes.append(TrafficClass("batch", batch, rate=1.05 * linear.solve(batch).value))
    classes.append(TrafficClass("rest", agent, share=1.0))
    with pytest.raises(InfeasibleError) as caught:
        linear.solve_classes(classes)
    message = str(caught.value)
    assert (
        "of 'batch': this conflicts with prefill gpu compute, which allows 95.2% of it" in message
    )


def test_zones_are_named_when_they_are_the_reason(paper_node: Node) -> None:
    cluster = Cluster((paper_node,) * 2, (paper_node,) * 4)
    loads = loads_of(cluster, from_moments(60_000, 200, 50))
    apart = ([0, 0], [1, 1, 1, 1])
    free = linear.solve(loads).value
    rest = TrafficClass("rest", loads, share=1.0)
    classes = [TrafficClass("agents", loads, rate=0.8 * free), rest]
    with pytest.raises(InfeasibleError, match="while decode reads stay in their zones"):
        linear.solve_classes(classes, zones=apart)
    assert linear.solve_classes(classes).class_rates[0] == pytest.approx(0.8 * free)
    too_much = [replace(classes[0], rate=2 * free), rest]
    with pytest.raises(InfeasibleError) as caught:
        linear.solve_classes(too_much, zones=apart)
    assert "zones" not in str(caught.value)  # in conflict anyway
