"""``dualpath simulate`` as a user calls it."""

from __future__ import annotations

import json

import pytest

from tests.app.test_cli import dualpath

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
pytestmark = pytest.mark.slow
SMALL = ("simulate", "deepseek-660b-2p4d", "--agents", "10", "--seconds", "20")


def test_json_has_the_stable_keys() -> None:
    done = dualpath(*SMALL, "--json", "-")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert set(found) >= KEYS
    assert {"mean", "p50", "p90", "p99"} <= set(found["ttft_s"])


def test_text_says_what_happened() -> None:
    done = dualpath(*SMALL, "--rate", "2", "--no-layerwise", "--batch-tokens", "512")
    assert done.returncode == 0
    assert "10 agents at 2 a second" in done.stdout
    assert "TTFT" in done.stdout
    assert "% busy" in done.stdout


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--policy", "dual", "policy 'dual' is unknown"),
        ("--agents", "0", "agents"),
        ("--rate", "0", "rate"),
        ("--rate", "nan", "rate"),
        ("--seconds", "-1", "seconds"),
    ],
)
def test_bad_options_are_refused(option: str, value: str, words: str) -> None:
    done = dualpath("simulate", "deepseek-660b-2p4d", option, value)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
