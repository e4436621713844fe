"""``dualpath simulate`` as a user calls it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app import interrupt, progress, simulate
from dualpath_model import InputError
from solvers.simulator.constants import Constants, fitted
from solvers.simulator.model import Switches
from tests.app.test_cli import dualpath, json_of, refused

KEYS = {
    "jct_s",
    "turns",
    "turns_per_s_simulated",
    "wall_s",
    "ttft_s",
    "ttst_s",
    "tpot_s",
    "snic_max_over_mean",
    "utilisation",
    "seed",
}
slow = pytest.mark.slow
SMALL = ("simulate", "deepseek-660b-2p4d", "--agents", "10", "--seconds", "20")


@slow
def test_json_has_the_stable_keys() -> None:
    done = dualpath(*SMALL, "--json", "-")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert set(found) >= KEYS
    assert {"mean", "p50", "p90", "p99"} <= set(found["ttft_s"])


@slow
def test_text_says_what_happened() -> None:
    done = dualpath(*SMALL, "--rate", "2", "--no-layerwise", "--batch-tokens", "512")
    assert done.returncode == 0
    assert "10 agents at 2 a second" in done.stdout
    for words in ("TTFT", "scheduling", "allocating", "reading", "prefill", "% busy"):
        assert words in done.stdout, words
    assert "efficiency constants: fitted to the paper" in done.stdout


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--policy", "dual", "policy 'dual' is unknown"),
        ("--agents", "0", "agents"),
        ("--rate", "0", "rate"),
        ("--rate", "nan", "rate"),
        ("--seconds", "-1", "seconds"),
        ("--warmup", "-1", "warmup"),
        ("--replications", "0", "replications"),
        ("--sample", "0", "sample"),
    ],
)
def test_bad_options_are_refused(option: str, value: str, words: str) -> None:
    done = dualpath("simulate", "deepseek-660b-2p4d", option, value)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


# ---- constants -----------------------------------------------------------------------------------


def test_constants_are_fitted_none_or_those_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "constants.yaml"
    path.write_text("batch_layer_s: 1e-3\nstep_layer_s: 0\nrequest_layer_s: 2.5e-6\n")
    assert simulate.read_constants(None).constants == fitted()
    assert simulate.read_constants("none").constants == Constants()
    read = simulate.read_constants(str(path))
    assert (read.source, read.constants) == (str(path), Constants(1e-3, 0.0, 2.5e-6))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_layer: 1.0\n", "constants.yaml:1: constant 'batch_layer' is unknown"),
        ("batch_layer_s: fast\n", "constants.yaml:1: constant batch_layer_s is 'fast'"),
        ("step_layer_s: true\n", "give seconds per layer as a number"),
        ("step_layer_s: [1]\n", "give seconds per layer as a number"),
        ("batch_layer_s: 0\nstep_layer_s: 0\n", "request_layer_s is missing"),
        ("batch_layer_s: -1\nstep_layer_s: 0\nrequest_layer_s: 0\n", "must be 0 to 60 seconds"),
        ("batch_layer_s: .nan\nstep_layer_s: 0\nrequest_layer_s: 0\n", "must be 0 to 60"),
        ("", "but it is empty"),
    ],
)
def test_a_file_of_other_things_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "constants.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        simulate.read_constants(str(path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_constants_is_one_sentence(tmp_path: Path) -> None:
    words = ("simulate", "deepseek-660b-2p4d", "--constants", tmp_path / "no.yaml")
    assert "there is no such file" in refused(*words)


@slow
def test_the_bare_roofline_is_faster() -> None:
    fit, bare = json_of(*SMALL), json_of(*SMALL, "--constants", "none")
    assert (fit["constants"]["source"], bare["constants"]["source"]) == ("fitted", "none")
    assert bare["tpot_s"]["mean"] < fit["tpot_s"]["mean"]


# ---- agents, limits, replications ----------------------------------------------------------------


def test_agents_are_those_that_surely_arrive() -> None:
    assert simulate.agents_of(7, 1.0, 100.0) == 7
    assert simulate.agents_of(None, None, 100.0) == 200
    assert simulate.agents_of(None, 1.0, None) == 200
    assert simulate.agents_of(None, 1.0, 100.0) == 140
    assert simulate.agents_of(None, 1e-6, 0.1) == 1


@slow
def test_the_limit_of_a_batch_is_the_simulator_s() -> None:
    assert json_of(*SMALL)["token_limit"] == Switches().token_limit


@slow
def test_replications_are_runs_of_the_next_seeds() -> None:
    words = ("simulate", "deepseek-660b-2p4d", "--agents", "30", "--rate", "2", "--seconds", "60")
    found = json_of(*words, "--seed", "5", "--replications", "3")
    alone = json_of(*words, "--seed", "6")
    runs = found["replications"]
    assert [run["seed"] for run in runs] == [5, 6, 7]
    assert runs[0]["ttft_s"] == found["ttft_s"]
    assert runs[1]["ttft_s"] == alone["ttft_s"]
    assert "replications" not in alone
    assert set(found["interval_95"]) == {
        "jct_s",
        "ttft_mean_s",
        "ttft_p99_s",
        "tpot_mean_s",
        "snic_max_over_mean",
    }
    low, high = found["interval_95"]["ttft_mean_s"]
    means = [run["ttft_s"]["mean"] for run in runs]
    assert (low + high) / 2 == pytest.approx(sum(means) / 3)
    assert high - low > max(means) - min(means)  # Student's t of 2 degrees of freedom is wide


# ---- progress and Ctrl-C -------------------------------------------------------------------------


def test_where_nobody_looks_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 11.0, 12.0, 22.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar("simulating") as tell:
        for done in (0.1, 0.25, 0.3, 0.5):
            tell(done, f"at {done}")
    assert capsys.readouterr().err.splitlines() == [
        "simulating: 25%, about 33 s left; at 0.25",
        "simulating: 50%, about 22 s left; at 0.5",
    ]


def test_telling_notices_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "_asked", True)
    with pytest.raises(KeyboardInterrupt), progress.bar("simulating") as tell:
        tell(0.5, "")


@slow
def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert dualpath(*SMALL).returncode == 0  # compiled from now on
    words = ("simulate", "deepseek-660b-2p4d", "--agents", "100000", "--rate", "0.5")
    command = [sys.executable, "-m", "app.cli", *words, "--json", "-", "--out", str(out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:  # until it says that turns are simulated, or ends
            if "s simulated" in line and ", 0 turns" not in line:
                break
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 130, stderr
    found = json.loads(stdout)
    assert found["interrupted"] is True
    assert found["turns"] > 0
    assert (out / "summary.json").read_text() == stdout
    assert len(list(out.iterdir())) == 5
    assert "Traceback" not in stderr
