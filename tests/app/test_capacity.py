"""``dualpath capacity`` as a user calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.test_cli import dualpath, json_of
from tests.conftest import ROOT

SHORT = ("--warmup", "200", "--measure", "200", "--tolerance", "0.1")
WORDS = ("capacity", "deepseek-660b-2p4d", *SHORT)


@pytest.mark.slow
def test_json_has_the_rate_its_interval_and_the_probes() -> None:
    found = json_of(*WORDS, "--replications", "2")
    assert found["low_aps"] < found["rate_aps"] < found["high_aps"]
    assert found["rate_aps"] == pytest.approx(sum(found["rates_aps"]) / 2)
    assert found["limit"] in ("ttft", "tpot")
    assert found["scenario"] == "DeepSeek 660B, 2P4D, the paper's 64K agents"
    assert found["constants"]["source"] == "fitted"
    assert found["interrupted"] is False
    for seed, rate in enumerate(found["rates_aps"]):
        mine = [probe for probe in found["probes"] if probe["seed"] == seed]
        assert max(p["rate_aps"] for p in mine if p["holds"]) <= rate
        assert min(p["rate_aps"] for p in mine if not p["holds"]) >= rate


@pytest.mark.slow
def test_one_seed_has_no_interval() -> None:
    done = dualpath(*WORDS, "--replications", "1", "--statistic", "p50")
    assert done.returncode == 0, done.stderr
    assert "one seed has no interval" in done.stdout
    assert "limited by" in done.stdout
    assert "p50 TTFT 4 s" in done.stdout


@pytest.mark.slow
def test_no_rate_meets_the_slo(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "deepseek-660b-2p4d.yaml").read_text()
    path = tmp_path / "strict.yaml"
    path.write_text(text.replace("ttft: 4 s", "ttft: 10 ms"))
    done = dualpath("capacity", str(path), "--warmup", "0", "--measure", "2000")
    assert done.returncode == 1
    assert done.stdout == ""
    # progress stands before it where the machine is slow
    assert "no rate meets the SLO" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--policy", "dual", "policy 'dual' is unknown"),
        ("--replications", "0", "replications"),
        ("--tolerance", "0.9", "tolerance"),
        ("--measure", "0", "measure"),
        ("--statistic", "p95", "statistic"),
        ("--constants", "nowhere.yaml", "no such file"),
    ],
)
def test_bad_options_are_refused(option: str, value: str, words: str) -> None:
    done = dualpath("capacity", "deepseek-660b-2p4d", option, value)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
