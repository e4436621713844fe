"""Every page but the plan: it loads with every example, follows its inputs, and says what is wrong."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
from plotly import graph_objects
from streamlit.testing.v1 import AppTest

from app.dashboard import answers, frames, session
from app.dashboard.jobs import Job, Stage
from app.dashboard.question import Question
from app.dashboard.uploads import Kind, keep
from app.dashboard.views import deploy, simulate
from app.examples import example_names
from app.output import dump
from dualpath_model.errors import InputError
from dualpath_model.export import export, parse_plan, target_named
from solvers.deployment import plan_document
from tests.conftest import ROOT

TRACED = "recorded-sessions"
PAGES = ("whatif", "workload", "simulate", "calibration", "deploy", "paper")


def opened(name: str, **link: str) -> AppTest:
    page = AppTest.from_string(
        f"from app.dashboard.main import run_page; run_page('{name}')", default_timeout=90
    )
    for key, value in link.items():
        page.query_params[key.replace("__", ".")] = value
    return page.run()


def fine(page: AppTest) -> None:
    assert not page.exception
    assert not page.error, [error.value for error in page.error]


def pressed(page: AppTest, label: str) -> AppTest:
    return next(b for b in page.button if b.label.startswith(label)).click().run()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("base", ["deepseek-660b-2p4d", "mixed-traffic", "paper-mean-turn"])
def test_each_page_loads(name: str, base: str) -> None:
    fine(opened(name, scenario=base))


@pytest.mark.parametrize("base", example_names())
def test_the_workload_page_with_every_example(base: str) -> None:
    fine(opened("workload", scenario=base))


@pytest.mark.parametrize("name", [page for page in PAGES if page not in ("paper", "calibration")])
def test_what_cannot_be_served_says_why(name: str) -> None:
    page = opened(name, decode_nodes="1", decode_gpu="a100-40gb-sxm")
    assert not page.exception
    if name != "workload":  # sessions can be looked at all the same
        assert "Move a knob" in " ".join(warning.value for warning in page.warning)


# ---- what-if ---------------------------------------------------------------------------------------


def titles(page: AppTest) -> list[str]:
    return [text.value for text in page.markdown if text.value.startswith("**")]


def test_another_axis_is_another_map() -> None:
    page = opened("whatif")
    before = titles(page)
    page.selectbox(key="whatif.x").set_value("snic_bytes_per_s").run()
    fine(page)
    assert titles(page)[0] != before[0]
    assert titles(page)[1:] == before[1:]
    page.selectbox(key="whatif.y").set_value("snic_bytes_per_s").run()
    assert "same parameter" in page.info[0].value


@pytest.mark.parametrize("what", ["throughput", "speedup", "split", "per_node", "bottleneck"])
def test_what_a_map_shows(what: str) -> None:
    page = opened("whatif", whatif__show=what, whatif__cells="10")
    fine(page)
    assert page.selectbox(key="whatif.show").value == what


def test_bad_values_of_a_link_are_ignored() -> None:
    page = opened("whatif", whatif__x="speed", whatif__cells="13", whatif__share='"x"', pins="AAAA")
    fine(page)
    assert page.selectbox(key="whatif.x").value == "decode_nodes"


def test_four_scenarios_can_be_pinned_and_removed() -> None:
    page = opened("whatif", whatif__cells="10")
    for count in range(4):
        page.slider(key="knob.prefill_nodes").set_value(2 + count)
        page.run()
        page.text_input[0].set_value(f"<b>pin {count}</b>")
        pressed(page, "Pin this scenario")
        fine(page)
    assert next(b for b in page.button if b.label.startswith("Pin")).disabled
    table = page.dataframe[-1].value
    assert len(table) == 5
    assert table["scenario"][0] == "<b>pin 0</b>"
    link = {k: v[0] if isinstance(v, list) else v for k, v in page.query_params.items()}
    again = opened("whatif", **{name.replace(".", "__"): value for name, value in link.items()})
    fine(again)
    assert again.dataframe[-1].value.equals(table)
    page.button(key="_unpin 0").click().run()
    assert len(page.dataframe[-1].value) == 4


# ---- simulate --------------------------------------------------------------------------------------


class Stub:
    """Jobs that do what a test says."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.job: Job | None = None

    def start(self, content: dict[str, Any]) -> str:
        self.asked.append(content)
        self.job = Job("key", "", Stage.RUNNING, share=0.4, text="basic: 10 s simulated")
        return "key"

    def look(self, key: str) -> Job | None:
        return self.job

    def going(self, keys: Collection[str]) -> list[Job]:
        return [self.job] if self.job is not None and not self.job.stage.ended and keys else []

    def cancel(self, key: str) -> None:
        assert self.job is not None
        self.job.stage = Stage.CANCELLED


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    found = Stub()
    monkeypatch.setattr(simulate, "jobs", lambda: found)
    yield found


def test_a_run_is_started_watched_and_cancelled(stub: Stub) -> None:
    page = opened("simulate", simulate__agents="8", prefill_nodes="3")
    pressed(page, "Run")
    fine(page)
    (job,) = stub.asked
    assert (job["kind"], job["agents"], job["policies"]) == ("compare", 8, ["basic", "dualpath"])
    question = Question(session.DEFAULT, knobs=(("prefill_nodes", 3),))
    assert job["yaml"] == answers.yaml_of(question)
    assert next(b for b in page.button if b.label == "Run").disabled
    pressed(page, "Cancel")
    page.run()
    assert "Cancelled" in page.info[0].value
    assert not next(b for b in page.button if b.label == "Run").disabled


def test_other_pages_say_that_a_run_goes_on(stub: Stub) -> None:
    page = opened("simulate", simulate__agents="8")
    pressed(page, "Run")
    assert "1 simulation is going on" in " ".join(text.value for text in page.sidebar.caption)


def test_a_run_that_nobody_waited_for_says_so(stub: Stub) -> None:
    stub.job = Job("key", "", Stage.FORGOTTEN)
    page = opened("simulate")
    assert "no page that asked for it was open" in page.info[0].value


def test_a_flattered_capacity_is_told() -> None:
    plan = answers.plan_of(Question(session.DEFAULT))
    bound = plan.throughput_basic_requests_per_s
    row = {"policy": "basic", "in_transit": False, "turns_per_s": 1.2 * bound}
    assert "more than the" in simulate.flattered([row], plan)[0]
    assert "warm-up" in simulate.flattered([{**row, "in_transit": True}], plan)[0]
    assert not simulate.flattered([{**row, "turns_per_s": bound}], plan)


def test_a_failure_is_a_sentence(stub: Stub) -> None:
    stub.job = Job(
        "key", "", Stage.FAILED, error="<script>several classes</script> are not modelled"
    )
    page = opened("simulate")
    assert not page.exception
    assert "cannot be simulated" in page.error[0].value


@pytest.mark.parametrize("kind", ["curve", "capacity"])
def test_other_questions(stub: Stub, kind: str) -> None:
    page = opened("simulate", simulate__kind=kind, simulate__warmup="60", simulate__measure="120")
    pressed(page, "Run")
    fine(page)
    assert stub.asked[0]["kind"] == kind
    assert (stub.asked[0]["warmup_s"], stub.asked[0]["until_s"]) == (60.0, 180.0)


def test_a_server_that_is_busy_says_so(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(content: dict[str, Any]) -> str:
        raise InputError("20 runs wait on this server already; try again later")

    monkeypatch.setattr(stub, "start", refuse)
    page = pressed(opened("simulate"), "Run")
    assert not page.exception
    assert page.error[0].value.startswith("20 runs wait")
    assert next(b for b in page.button if b.label == "Run")


@pytest.mark.parametrize(
    "link",
    [
        {"simulate__mode": simulate.MODES[1], "simulate__rate": "20.0"},
        {"simulate__kind": "curve", "simulate__most": "20.0"},
    ],
)
def test_no_more_agents_arrive_than_can_be_simulated(stub: Stub, link: dict[str, str]) -> None:
    page = opened("simulate", **link, simulate__warmup="300", simulate__measure="600")
    fine(page)
    assert "18,000 agents arrive in 900 s" in page.info[0].value
    assert not [button for button in page.button if button.label == "Run"]
    link = {name: value.replace("20.0", "2.0") for name, value in link.items()}
    pressed(opened("simulate", **link, simulate__warmup="300", simulate__measure="600"), "Run")
    assert len(stub.asked) == 1


# ---- calibration, deploy, paper --------------------------------------------------------------------


def test_an_uploaded_profile_is_shown_and_compared() -> None:
    text = (ROOT / "examples" / "profiles" / "cpu-2-cores.json").read_text()
    data = json.loads(text)
    data["name"] = "<b onclick=x>evil</b>"
    data["parts"]["memory"]["figures"]["dram_bytes_per_s"]["value"] *= 1.001
    kept = keep("mine.json", json.dumps(data).encode(), Kind.PROFILE)
    files = json.dumps([[kept.name, kept.digest, "profile", kept.size_bytes]])
    page = opened("calibration", files=files)
    fine(page)
    assert page.selectbox(key="calibration.profile").value == "mine.json"
    before = len(page.get("plotly_chart"))
    page.selectbox(key="calibration.other").set_value("cpu-2-cores (shipped)").run()
    fine(page)
    assert len(page.get("plotly_chart")) == before + 1


def test_a_profile_that_is_gone_is_said() -> None:
    files = json.dumps([["mine.json", "0" * 64, "profile", 3]])
    page = opened("calibration", files=files)
    assert not page.exception
    assert "upload it again" in page.error[0].value


def test_the_deploy_page_previews_each_file() -> None:
    page = opened("deploy")
    for label in page.selectbox(key="deploy.file").options:
        page.selectbox(key="deploy.file").set_value(label).run()
        fine(page)
        assert page.get("download_button")
    plan = answers.plan_of(Question(session.DEFAULT))
    page.selectbox(key="deploy.file").set_value("Plan (JSON)").run()
    assert f'"split": {plan.split!r}'[:15] in page.code[0].value


def test_the_deploy_page_offers_what_the_command_line_exports() -> None:
    asked = Question(session.DEFAULT)
    page = opened("deploy", deploy__file="For dualpath reference scheduler (zip)")
    fine(page)
    readme = next(e for e in page.expander if e.label == "README of the folder")
    assert "Roll back" in readme.markdown[0].value
    with zipfile.ZipFile(io.BytesIO(deploy._packed(asked, "scheduler"))) as packed:
        found = {name.removeprefix("scheduler/"): packed.read(name) for name in packed.namelist()}
    plan = parse_plan(
        orjson.loads(dump(plan_document(answers.scenario_of(asked), answers.plan_of(asked))))
    )
    again = export(target_named("scheduler"), plan).files
    assert found == {name: text.encode() for name, text in again.items()}


def test_files_are_made_only_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Question] = []
    real = answers.bundle_of

    def watched(asked: Question) -> tuple[str, bytes]:
        made.append(asked)
        return real(asked)

    monkeypatch.setattr(answers, "bundle_of", watched)
    page = opened("deploy")
    fine(page)
    assert not made
    page.selectbox(key="deploy.file").set_value("Scenario (YAML)").run()
    fine(page)
    assert len(made) == 1, "its preview"
    traced = opened("deploy", scenario=TRACED, deploy__file="Scenario (YAML)")
    fine(traced)
    assert f"Download {TRACED}.zip" in str(traced.get("download_button")[-1].proto)
    assert len(made) == 1


def test_a_title_is_taken_out_once_however_many_draw_the_figure() -> None:
    figure = graph_objects.Figure(layout={"title": {"text": "A &amp; B"}, "margin": {"t": 90}})
    with ThreadPoolExecutor(8) as pool:
        titles = list(pool.map(frames._title, [figure] * 200))
    assert set(titles) == {"A & B"}
    assert (figure.layout.title.text, figure.layout.margin.t) == ("", 60)


def test_the_papers_figures_can_be_filtered() -> None:
    page = opened("paper")
    fine(page)
    everything = len(page.dataframe[0].value)
    off = opened("paper", paper__how="off")
    assert 0 < len(off.dataframe[0].value) < everything
