"""The what-if page: its pictures follow its controls, and pins are compared, four at most."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from app import plan_view as view
from app.dashboard import answers, session
from app.dashboard.question import Pin, Question
from app.dashboard.session import State, written
from app.dashboard.views import whatif
from app.examples import example_names
from dualpath_model.errors import DualPathError
from solvers.alternatives import quick
from solvers.parameters import PARAMETERS, change

SCRIPT = "from app.dashboard.main import run_page; run_page('whatif')"
ASKED = Question(session.DEFAULT)
PIN = "Pin this scenario"


def opened(link: dict[str, str] | None = None) -> AppTest:
    page = AppTest.from_string(SCRIPT, default_timeout=60)
    for name, value in (link or {}).items():
        page.query_params[name] = value
    return page.run()


def link_of(page: AppTest) -> dict[str, str]:
    return {
        name: value[0] if isinstance(value, list) else value
        for name, value in page.query_params.items()
    }


def specs(page: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in page.get("plotly_chart")]


def titles(page: AppTest) -> list[str]:
    """Return the figures' titles, which the frame puts above them."""
    bold = [text.value for text in page.markdown if text.value.startswith("**")]
    return [re.sub(r"\\(.)", r"\1", text.strip("*")) for text in bold]


def well(page: AppTest) -> bool:
    return not page.exception and not page.error and not page.warning


def table(page: AppTest) -> list[dict[str, Any]]:
    frame = page.dataframe[0].value
    return [dict(zip(frame.columns, row, strict=True)) for row in frame.to_numpy()]


def pin_button(page: AppTest) -> Any:
    return next(button for button in page.button if button.label == PIN)


def pinned(page: AppTest, name: str = "") -> AppTest:
    page.text_input[0].set_value(name)
    return pin_button(page).click().run()


def removers(page: AppTest) -> list[Any]:
    return [button for button in page.button if (button.key or "").startswith("_unpin")]


# ---- two parameters --------------------------------------------------------------------------------


def test_it_opens_with_a_map_and_a_tornado() -> None:
    page = opened()
    assert well(page)
    heat, tornado = titles(page)
    assert heat.startswith("Most: ") and "prefill nodes" in heat
    assert tornado.startswith("Most depends on ")
    shown = " ".join(text.value for text in page.markdown)
    assert "Most" in shown


def test_another_axis_is_another_picture_and_in_the_link() -> None:
    page = opened()
    before = titles(page)[0]
    page.selectbox(key="whatif.x").set_value("snic_bytes_per_s")
    page.selectbox(key="whatif.y").set_value("hit_rate").run()
    assert well(page)
    assert titles(page)[0] != before and "rate of a storage NIC" in titles(page)[0]
    layout = specs(page)[0]["layout"]
    assert layout["xaxis"]["title"]["text"] == "rate of a storage NIC, Gbps"
    assert layout["yaxis"]["title"]["text"] == "hit rate, %"
    again = opened(link_of(page))
    assert titles(again) == titles(page)
    assert again.selectbox(key="whatif.y").value == "hit_rate"


def test_the_map_has_as_many_cells_as_asked() -> None:
    link = {"whatif.x": "append_tokens", "whatif.y": "context_tokens"}
    for cells in whatif.CELLS:
        heat = specs(opened(link | {"whatif.cells": str(cells)}))[0]["data"][0]
        assert (len(heat["x"]), len(heat["y"])) == (cells, cells)


@pytest.mark.parametrize("what", ["speedup", "split", "per_node", "bottleneck"])
def test_everything_that_can_be_shown(what: str) -> None:
    page = opened()
    before = titles(page)[0]
    page.selectbox(key="whatif.show").set_value(what).run()
    assert well(page)
    assert titles(page)[0] != before


@pytest.mark.parametrize("base", example_names())
def test_every_example_is_marked_where_it_stands(base: str) -> None:
    page = opened({"scenario": base})
    assert well(page)
    (mark,) = (t for t in specs(page)[0]["data"] if t.get("name") == "this scenario")
    rate = answers.plan_of(Question(base)).throughput_requests_per_s
    assert f"<br>{rate:,.1f} requests/s" in mark["text"][0]


def test_a_cell_is_what_the_changed_scenario_gets() -> None:
    scenario = answers.scenario_of(ASKED)
    found = whatif._grid(ASKED, "snic_bytes_per_s", "prefill_nodes", 4, 10)
    values = {"snic_bytes_per_s": found.x.values[7], "prefill_nodes": found.y.values[3]}
    assert found.throughput[3, 7] == pytest.approx(quick(change(scenario, values)).throughput)


@pytest.mark.parametrize("name", [n for n in PARAMETERS if n != "llm"])
@pytest.mark.parametrize("span", whatif.SPANS)
def test_an_axis_rises_and_has_the_scenarios_own_value(name: str, span: int) -> None:
    scenario = answers.scenario_of(ASKED)
    for cells in (6, *whatif.CELLS):
        values = np.array(whatif.axis(scenario, name, span, cells).values, float)
        assert (np.diff(values) > 0).all() and len(values) <= cells + 1
        now = PARAMETERS[name].now(scenario)
        assert now in values.tolist()
        for value in values.tolist():
            PARAMETERS[name].check(name, value)


def test_scenarios_of_several_kinds_get_a_small_map_and_are_told() -> None:
    page = opened({"scenario": "heterogeneous"})
    assert well(page)
    heat = specs(page)[0]["data"][0]
    assert len(heat["x"]) <= 8 and len(heat["y"]) <= 8
    assert any("linear program" in caption.value for caption in page.caption)


def test_why_cells_are_grey_is_said() -> None:
    page = opened()
    captions = [c.value for c in page.caption if c.value.startswith("Grey")]
    assert len(captions) == 1 and "does not fit" in captions[0]


def test_equal_axes_are_told_and_the_rest_stays() -> None:
    page = opened({"whatif.x": "prefill_nodes"})
    assert well(page)
    assert "same parameter" in page.info[0].value
    (tornado,) = titles(page)
    assert tornado.startswith("Most depends on")


def test_what_a_scenario_does_not_have_is_no_axis() -> None:
    page = opened({"scenario": "deepseek-v3.2-aws-p5", "whatif.x": "snic_bytes_per_s"})
    assert well(page)  # its storage traffic shares the compute NICs
    assert page.selectbox(key="whatif.x").value == "decode_nodes"


@pytest.mark.parametrize(
    "link",
    [
        {"whatif.x": "<b>nonsense</b>"},
        {"whatif.show": "[1]"},
        {"whatif.cells": "-4"},
        {"whatif.cells": "1e9"},
        {"whatif.span": "true"},
        {"whatif.share": "NaN"},
        {"whatif.share": "0"},
        {"whatif.unheard": "of"},
    ],
)
def test_what_a_link_cannot_mean_is_as_usual(link: dict[str, str]) -> None:
    page = opened(link)
    assert well(page)
    assert titles(page) == titles(opened())


def test_what_cannot_be_served_says_why() -> None:
    page = opened({"decode_nodes": "1", "decode_gpu": "a100-40gb-sxm"})
    assert not page.exception and not page.error
    assert "does not fit" in page.warning[0].value
    assert not page.get("plotly_chart")


def test_maps_are_worked_out_once() -> None:
    opened()
    before = whatif._grid.cache_info()
    opened()
    after = whatif._grid.cache_info()
    assert after.misses == before.misses and after.maxsize is not None


# ---- one parameter ---------------------------------------------------------------------------------


def test_a_larger_change_has_larger_effects() -> None:
    page = opened()
    before = specs(page)[1]["layout"]["xaxis"]["range"][1]
    page.button_group(key="whatif.share").set_value(0.5).run()
    assert well(page)
    assert specs(page)[1]["layout"]["xaxis"]["range"][1] > before
    assert link_of(page)["whatif.share"] == "0.5"


# ---- side by side ----------------------------------------------------------------------------------


def test_a_pin_is_compared_with_the_present_scenario() -> None:
    page = pinned(opened(), "as shipped")
    page.slider(key="knob.prefill_nodes").set_value(4).run()
    assert well(page)
    then, now = table(page)
    assert (then["scenario"], now["scenario"]) == ("as shipped", "as it stands now")
    plan = answers.plan_of(ASKED)
    assert then["requests/s"] == round(plan.throughput_requests_per_s, 1)
    assert then["limits then"] == view.words(plan.bottleneck)
    assert now["requests/s"] > then["requests/s"]
    assert titles(page)[2].startswith("as it stands now serves most")
    assert [t["name"] for t in specs(page)[2]["data"]][::-1] == [
        "Basic",
        "dual path",
        "compute limit",
    ]


def test_a_pin_is_named_after_what_was_moved() -> None:
    page = opened()
    page.slider(key="knob.prefill_nodes").set_value(4).run()
    pinned(page)
    assert table(page)[0]["scenario"] == f"{session.DEFAULT}: prefill nodes 4"


def test_four_pins_at_most() -> None:
    page = opened()
    for name in "abcd":
        assert not pin_button(page).disabled
        pinned(page, name)
    page.run()
    assert pin_button(page).disabled
    assert [row["scenario"] for row in table(page)] == [*"abcd", "as it stands now"]
    removers(page)[1].click().run()
    assert well(page)
    assert [row["scenario"] for row in table(page)] == [*"acd", "as it stands now"]
    assert not pin_button(page).disabled


def test_the_last_pin_removed_leaves_no_table() -> None:
    page = pinned(opened(), "a")
    removers(page)[0].click().run()
    assert well(page)
    assert not page.dataframe and len(titles(page)) == 2


def test_equal_names_stay_apart() -> None:
    page = pinned(pinned(opened(), "a"), "a")
    assert len(set(specs(page)[2]["data"][0]["y"])) == 3


def test_pins_are_in_the_link() -> None:
    page = pinned(opened(), "<b>mine</b>")
    page.run()
    again = opened(link_of(page))
    assert table(again) == table(page)
    ticks = specs(again)[2]["layout"]["yaxis"]["ticktext"]
    assert ticks[-1] == "&lt;b&gt;mine&lt;/b&gt;"


def test_a_pin_that_has_no_answer_says_why_in_its_row() -> None:
    gone = Pin("gone", Question("no-such-example"))
    small = Pin("too small", Question(session.DEFAULT, knobs=(("prefill_nodes", 1),)))
    page = opened(written(State(pins=(gone, small))))
    assert well(page)
    first, second, now = table(page)
    assert "no" in first["limits today"].lower() and np.isnan(first["requests/s"])
    with pytest.raises(DualPathError):
        answers.plan_of(small.question)
    assert "fit" in second["limits today"]
    assert now["requests/s"] > 0


def test_costs_are_those_of_all_nodes() -> None:
    from dataclasses import replace

    plan, scenario = answers.plan_of(ASKED), answers.scenario_of(ASKED)
    cluster = scenario.cluster
    priced = replace(
        scenario,
        cluster=replace(
            cluster,
            prefill=tuple(replace(n, price_usd_per_hour=36.0) for n in cluster.prefill),
            decode=tuple(replace(n, price_usd_per_hour=18.0) for n in cluster.decode),
        ),
    )
    each_second = (36.0 * len(cluster.prefill) + 18.0 * len(cluster.decode)) / 3600
    row = whatif.figures_of(plan, priced)
    assert row["USD a million requests"] == pytest.approx(
        each_second / plan.throughput_requests_per_s * 1e6, abs=0.01
    )
    one = replace(cluster.decode[0], price_usd_per_hour=None)
    unpriced = replace(
        priced, cluster=replace(priced.cluster, decode=(one, *priced.cluster.decode[1:]))
    )
    assert whatif.figures_of(plan, unpriced)["USD a million requests"] is None


def test_a_mean_append_of_less_than_a_token_has_its_map() -> None:
    text = (
        "name: n\nllm: deepseek-v3.2\ncluster: {prefill: {node: paper-hopper, count: 2}, decode: {node: "
        "paper-hopper, count: 4}}\nworkload: {moments: {hit_tokens: 30000, miss_tokens: 0.4, "
        "output_tokens: 100}}\n"
    )
    asked = Question("", text=text)
    found = whatif.axis(answers.scenario_of(asked), "append_tokens", 2, 10)
    assert (min(found.values), max(found.values)) == pytest.approx((0.2, 0.8))
