"""The routing rule: shares, stickiness, how little moves, and the reference scheduler behind it."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.routing import (
    LiveRoutes,
    PlanRoutes,
    Route,
    RoutingFile,
    other_weights,
    read_routing,
    reads_through_decode,
    rendezvous,
    unit_hash,
)
from dualpath_model.scheduler.events import Limits, NodeJoined, Settings
from dualpath_model.scheduler.file import SchedulerFile, read_scheduler
from tests.export.plans import made

SESSIONS = [f"session-{number}" for number in range(4000)]


def bounds(share: float, count: int) -> float:
    """Return five standard errors of a share: one test in 3.5 million is beyond by chance."""
    return 5.0 * math.sqrt(share * (1.0 - share) / count) + 1e-12


@cache
def routing(decode: tuple[tuple[float, float], ...] = ((0.5, 0.5), (0.5, 0.5)), **more: Any) -> Any:
    data = {
        "format": "dualpath-routing",
        "version": 1,
        "scenario": "test",
        "decode_reads": "p2p",
        "split": 0.6,
        "alpha_s": 3.0,
        "beta_s": 5.0,
        "scheduler": "scheduler.json",
        "prefill": [engine("p", 0, 0.75, 0.25), engine("p", 1, 0.25, 0.75)],
        "decode": [engine("d", number, *weights) for number, weights in enumerate(decode)],
    }
    return {**data, **more}


def engine(pool: str, number: int, read: float, other: float) -> dict[str, Any]:
    found: dict[str, Any] = {
        "engine": f"{pool}{number}/0",
        "node": f"{pool}{number}",
        "url": f"http://{pool}{number}:8000",
        "data_parallel_rank": None,
        "read_weight": read,
        "other_weight": other,
    }
    if pool == "d":
        found["p2p"] = {"host": f"{pool}{number}", "port": 7777}
    return found


def written(tmp_path: Path, data: Any) -> Path:
    path = tmp_path / "routing.json"
    path.write_text(json.dumps(data))
    return path


def read(tmp_path: Path, **more: Any) -> RoutingFile:
    return read_routing(written(tmp_path, {**routing(), **more}))


# ---- hashing ---------------------------------------------------------------------------------------


@given(st.floats(0.0, 1.0), st.text(max_size=5))
def test_the_share_of_sessions_is_the_split(split: float, salt: str) -> None:
    tagged = sum(reads_through_decode(f"{salt}{name}", split) for name in SESSIONS)
    assert abs(tagged / len(SESSIONS) - split) <= bounds(split, len(SESSIONS))


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_change_of_the_split_moves_no_session_more_than_it_must(one: float, other: float) -> None:
    low, high = sorted((one, other))
    before = {name for name in SESSIONS if reads_through_decode(name, low)}
    after = {name for name in SESSIONS if reads_through_decode(name, high)}
    assert before <= after
    moved, wanted = (len(after) - len(before)) / len(SESSIONS), high - low
    assert abs(moved - wanted) <= bounds(wanted, len(SESSIONS))


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.05, 1.0), min_size=1))
def test_each_engine_gets_sessions_in_proportion_to_its_weight(weights: dict[str, float]) -> None:
    chosen = [rendezvous(name, weights) for name in SESSIONS[:1500]]
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(chosen.count(name) / 1500 - share) <= bounds(share, 1500)


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.05, 1.0), min_size=2),
    st.floats(0.0, 3.0),
    st.data(),
)
def test_a_change_of_one_weight_moves_sessions_only_to_or_from_it(
    weights: dict[str, float], factor: float, data: st.DataObject
) -> None:
    changed = data.draw(st.sampled_from(sorted(weights)))
    after = weights | {changed: weights[changed] * factor}
    for name in SESSIONS[:500]:
        old, new = rendezvous(name, weights), rendezvous(name, after)
        if old != new:
            assert changed == (new if factor > 1.0 else old)


def test_engines_without_weight_get_nothing() -> None:
    assert {rendezvous(name, {"a": 0.0, "b": 0.2}) for name in SESSIONS} == {"b"}
    with pytest.raises(ValueError, match="no weight is above 0"):
        rendezvous("x", {"a": 0.0})


def test_parts_of_a_name_do_not_run_together() -> None:
    assert unit_hash("ab", "c") != unit_hash("a", "bc")
    assert 0.0 < unit_hash("\ud800") < 1.0  # what JSON may hold and UTF-8 may not


@given(
    st.lists(st.tuples(st.floats(0.05, 1.0), st.floats(0.0, 1.0)), min_size=2, max_size=6),
    st.floats(0.0, 1.0),
)
def test_other_weights_even_out_the_work(parts: list[tuple[float, float]], share: float) -> None:
    work = {str(n): part / sum(w for w, _ in parts) for n, (part, _) in enumerate(parts)}
    total = sum(r for _, r in parts)
    reads = {
        str(n): part / total if total > 0 else work[str(n)] for n, (_, part) in enumerate(parts)
    }
    rest = other_weights(work, reads, share)
    assert sum(rest.values()) == pytest.approx(1.0)
    fits = all(share * reads[node] <= work[node] for node in work)
    if fits and share < 0.999:
        for node, part in work.items():
            assert share * reads[node] + (1.0 - share) * rest[node] == pytest.approx(part)


# ---- by the plan -----------------------------------------------------------------------------------


def test_routes_by_the_plan(tmp_path: Path) -> None:
    file = read(tmp_path, **routing(((0.8, 0.1), (0.2, 0.9))))
    routes = PlanRoutes(file)
    found = {name: routes.route(name) for name in SESSIONS}
    tagged = [route for route in found.values() if route.through_decode]
    others = [route for route in found.values() if not route.through_decode]
    assert abs(len(tagged) / len(SESSIONS) - 0.6) <= bounds(0.6, len(SESSIONS))
    for group, share in ((tagged, 0.8), (others, 0.1)):
        first = sum(route.decode == "d0/0" for route in group) / len(group)
        assert abs(first - share) <= bounds(share, len(group))
    # prefill engines: in proportion to the weights of what is outstanding; reads are 0.75 and 0.25
    by_reads = PlanRoutes(dataclasses.replace(file, split=0.0))
    chosen = [by_reads.route(name).prefill for name in SESSIONS]
    assert chosen.count("p0/0") / len(chosen) == pytest.approx(0.75, abs=0.001)
    for name in SESSIONS[:200]:
        again = routes.route(name)
        assert (again.decode, again.through_decode) == (
            found[name].decode,
            found[name].through_decode,
        )


def test_what_is_finished_is_outstanding_no_more(tmp_path: Path) -> None:
    routes = PlanRoutes(read(tmp_path))
    under_way = [(routes.route(name, 10), 10) for name in SESSIONS[:50]]
    assert sum(routes.outstanding.values()) == 500
    for route, tokens in under_way:
        routes.prefill_finished(route, tokens)
    assert set(routes.outstanding.values()) == {0}


def test_idle_engines_are_taken_in_turn(tmp_path: Path) -> None:
    routes = PlanRoutes(dataclasses.replace(read(tmp_path), split=0.0))
    chosen = []
    for name in SESSIONS[:400]:
        route = routes.route(name)
        chosen.append(route.prefill)
        routes.prefill_finished(route)
    assert chosen.count("p0/0") == 300  # weights 0.75 and 0.25


def test_without_decode_reads_nothing_is_tagged(tmp_path: Path) -> None:
    routes = PlanRoutes(read(tmp_path, decode_reads="none"))
    assert not any(routes.route(name).through_decode for name in SESSIONS)


# ---- the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is not 'dualpath-routing'"),
        ({"version": 2}, "version is 2, but this dualpath knows 1"),
        ({"split": 1.5}, "split: .*less than or equal to 1"),
        ({"prefill": []}, "prefill has no engines"),
        ({"decode": [engine("p", 0, 1.0, 1.0)]}, "an engine has no p2p address"),
        ({"decode_reads": "sometimes"}, "decode_reads: "),
        ({"decode": [engine("d", 0, 1.0, 1.0) | {"p2p": {"host": "h", "port": 70000}}]}, "port: "),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path, {**routing(), **change})
    with pytest.raises(InputError, match=message):
        read_routing(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_routing(tmp_path / "none.json")
    (tmp_path / "text").write_text("not JSON")
    with pytest.raises(InputError, match="is not JSON"):
        read_routing(tmp_path / "text")


# ---- by live queues --------------------------------------------------------------------------------


def live(alpha: int = 1000, *more: NodeJoined, **settings: Any) -> LiveRoutes:
    """Return routes over 1P1D with one engine each."""
    limits = Limits(alpha_tokens=alpha, beta_tokens=10_000, hbm_tokens=10_000)
    nodes = (
        NodeJoined("p0", "prefill", "P", ("p0/0",), limits),
        NodeJoined("d0", "decode", "D", ("d0/0",), limits),
        *more,
    )
    return LiveRoutes(
        SchedulerFile(
            format="dualpath-scheduler",
            version=1,
            scenario="test",
            split=0.5,
            alpha_s=3.0,
            beta_s=5.0,
            quota_s=0.3,
            settings=Settings(**settings),
            nodes=nodes,
        )
    )


def test_hits_go_through_the_side_with_the_shorter_queue() -> None:
    routes = live()
    assert routes.submit("a", 100, 80) == {"a": Route("p0/0", "d0/0", through_decode=False)}
    assert routes.submit("b", 100, 80)["b"].through_decode  # P has 80 tokens to read, D none
    assert routes.prefill_finished("b") == {}
    assert routes.submit("c", 100, 80)["c"].through_decode  # D is free again
    routes.prefill_finished("a")
    routes.prefill_finished("c")
    assert routes.report({"p0": 500}) == {}  # as measured: P's queue is long
    assert routes.submit("d", 100, 80)["d"].through_decode
    assert routes.submit("e", 100, 80)["e"].through_decode
    assert routes.report({"p0": 0, "d0": 500}) == {}
    assert not routes.submit("f", 100, 80)["f"].through_decode


def test_a_request_waits_for_room_and_is_told_when_there_is_some() -> None:
    routes = live()
    assert set(routes.submit("a", 9000, 0)) == {"a"}
    assert routes.submit("b", 9000, 0) == {}  # D holds 10,000
    assert routes.submit("c", 9000, 0) == {}
    assert routes.finished("b") == {}  # a client that waits no longer
    assert set(routes.finished("a")) == {"c"}
    assert routes.finished("c") == {}
    assert not routes.scheduler.requests
    with pytest.raises(InputError, match="more than the 10000"):
        routes.submit("large", 20_000, 0)


def test_every_request_leaves_the_scheduler_wherever_it_ends() -> None:
    routes = live()
    for number, end in enumerate(("placed", "prefilled") * 20):
        name = f"r{number}"
        routes.submit(name, 200, 100)
        if end == "prefilled":
            routes.prefill_finished(name)
        routes.finished(name)
    assert not routes.scheduler.requests
    assert routes.submit("last", 10_000, 9000)["last"].prefill == "p0/0"


def test_prefill_groups_share_what_comes_by_their_engines() -> None:
    limits = Limits(alpha_tokens=1000, beta_tokens=10_000, hbm_tokens=10_000)
    wide = NodeJoined("p1", "prefill", "Q", ("p1/0", "p1/1", "p1/2"), limits)
    routes = live(1000, wide)
    chosen = [routes.submit(f"r{number}", 10, 0)[f"r{number}"].prefill for number in range(64)]
    assert chosen.count("p0/0") == 16  # one of four engines
    for number in range(64):
        routes.finished(f"r{number}")
    later = []
    for number in range(64, 128):  # one at a time: no queue tells them apart
        later.append(routes.submit(f"r{number}", 10, 0)[f"r{number}"].prefill)
        routes.finished(f"r{number}")
    assert later.count("p0/0") == 16


def test_prefill_groups_of_an_export_share(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(made("vllm", "heterogeneous").files["scheduler.json"])
    file = read_scheduler(path)
    routes = LiveRoutes(file)
    groups: dict[str, int] = {}
    of = {engine: node.group for node in file.nodes for engine in node.engines}
    for number in range(64):
        route = routes.submit(f"r{number}", 1000, 900)[f"r{number}"]
        groups[of[route.prefill]] = groups.get(of[route.prefill], 0) + 1
    assert groups == {"prefill-0": 32, "prefill-1": 32}


def test_a_lost_engine_gets_nothing_until_it_is_back(tmp_path: Path) -> None:
    limits = Limits(alpha_tokens=1000, beta_tokens=10_000, hbm_tokens=10_000)
    routes = live(1000, NodeJoined("p1", "prefill", "Q", ("p1/0",), limits))
    first = routes.submit("a", 100, 80)["a"]
    assert set(routes.engine_lost(first.prefill)) == {"a"}  # placed again
    for number in range(6):
        route = routes.submit(f"b{number}", 100, 0)[f"b{number}"]
        assert route.prefill != first.prefill
    assert routes.engine_joined(first.prefill) == {}
    assert routes.engine_joined(first.prefill) == {}  # once is enough
    assert {routes.submit(f"c{n}", 100, 0)[f"c{n}"].prefill for n in range(6)} >= {first.prefill}
    for name in ["a", *(f"{letter}{n}" for letter in "bc" for n in range(6))]:
        routes.finished(name)
    assert not routes.scheduler.requests
    assert set(routes.engine_lost("d0/0")) == set()
    assert routes.submit("waits", 100, 0) == {}
    assert set(routes.engine_joined("d0/0")) == {"waits"}
    by_plan = PlanRoutes(read(tmp_path))
    before = {name: by_plan.route(name).decode for name in SESSIONS[:300]}
    by_plan.lost.add("d0/0")
    during = {name: by_plan.route(name).decode for name in SESSIONS[:300]}
    assert set(during.values()) == {"d1/0"}
    by_plan.lost.clear()
    assert {name: by_plan.route(name).decode for name in SESSIONS[:300]} == before
    by_plan.lost |= {"p0/0", "p1/0"}
    with pytest.raises(InfeasibleError, match="no prefill engine can be reached"):
        by_plan.route("x")


def test_reports_of_unknown_nodes_are_refused() -> None:
    with pytest.raises(InputError, match="node 'x' is unknown"):
        live().report({"x": 1})


def test_the_split_policy_counts_as_the_side_that_reads_more() -> None:
    routes = live(policy="split")
    first = routes.submit("a", 6400, 6400 - 64)["a"]
    routes.report({"p0": 100_000})
    second = routes.submit("b", 640, 576)["b"]
    assert (first.prefill, second.through_decode) == ("p0/0", True)
