"""The plan page: what it shows follows the knobs, the link, and says what is wrong."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from app.dashboard import answers, session
from app.dashboard.question import Question
from app.examples import example_names

SCRIPT = "from app.dashboard.main import run_page; run_page('plan')"


def opened(**link: str) -> AppTest:
    page = AppTest.from_string(SCRIPT, default_timeout=60)
    for name, value in link.items():
        page.query_params[name] = value
    return page.run()


def headline(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def test_it_shows_the_plan() -> None:
    page = opened()
    assert not page.exception and not page.error and not page.warning
    plan = answers.plan_of(Question(session.DEFAULT))
    shown = headline(page)
    assert shown["with both paths"] == f"{plan.throughput_requests_per_s:,.1f} requests/s"
    assert shown["read through decode nodes"] == f"{plan.split:.1%}"
    assert len(page.get("plotly_chart")) == 5


@pytest.mark.parametrize("base", [name for name in example_names() if name != session.DEFAULT])
def test_every_example(base: str) -> None:
    page = opened(scenario=base)
    assert not page.exception and not page.error, [e.value for e in page.error]
    assert "requests/s" in headline(page)["with both paths"]


def test_a_slider_changes_the_headline_and_the_link() -> None:
    page = opened()
    before = headline(page)
    page.slider(key="knob.prefill_nodes").set_value(3).run()
    assert headline(page) != before
    assert page.query_params["prefill_nodes"] in ("3", ["3"])
    page.button[-1].click() if page.button[-1].label.startswith("Back") else next(
        button for button in page.button if button.label.startswith("Back")
    ).click()
    page.run()
    assert headline(page) == before
    assert "prefill_nodes" not in page.query_params


def test_a_link_reproduces_the_view() -> None:
    page = opened()
    page.slider(key="knob.hit_rate").set_value(90.0)
    page.selectbox(key="knob.decode_gpu").set_value("h20-sxm")
    page.run()
    link = {
        name: value[0] if isinstance(value, list) else value
        for name, value in page.query_params.items()
    }
    again = opened(**link)
    assert headline(again) == headline(page)
    assert again.slider(key="knob.hit_rate").value == 90.0
    assert again.selectbox(key="knob.decode_gpu").value == "h20-sxm"


def test_another_example_starts_from_itself() -> None:
    page = opened(prefill_nodes="5")
    page.selectbox(key="_preset").set_value("ds-27b-1p1d").run()
    assert page.slider(key="knob.prefill_nodes").value == 1
    assert page.query_params["scenario"] in ("ds-27b-1p1d", ["ds-27b-1p1d"])


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ({"prefill_nodes": "-4"}, "cannot be chosen here"),
        ({"prefill_nodes": "NaN"}, "cannot be chosen here"),
        ({"decode_gpu": "<b>abacus</b>"}, "cannot be chosen here"),
        ({"scenario": "../../etc/passwd"}, "no shipped scenario"),
        ({"yaml": "AAAA"}, "damaged"),
    ],
)
def test_a_bad_link_is_said_and_changes_nothing(link: dict[str, str], words: str) -> None:
    page = opened(**link)
    assert not page.exception
    assert words in " ".join(warning.value for warning in page.warning)
    assert headline(page) == headline(opened())


def test_what_cannot_be_served_says_why_and_the_knobs_stay() -> None:
    page = opened(slo_tpot="5.0", decode_gpu="h20-sxm", llm="deepseek-v3.2", kv_dtype="bf16")
    assert not page.exception
    if not headline(page):
        assert "Move a knob" in page.warning[0].value
    page = opened(decode_nodes="1", decode_gpu="a100-40gb-sxm")
    assert not page.exception
    assert "Move a knob" in " ".join(warning.value for warning in page.warning)
    assert page.slider(key="knob.decode_nodes").value == 1


def test_measured_nodes_offer_intervals() -> None:
    page = opened(scenario="calibrated-cpu")
    assert not page.dataframe
    page.toggle(key="plan.intervals").set_value(True).run()
    assert not page.exception
    assert page.dataframe
