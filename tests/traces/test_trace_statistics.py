"""Statistics by hand, and the shipped sample."""

import gzip
import json
import runpy
from pathlib import Path

import pytest

from dualpath_model.traces import TABLE_2, generate, load_workload, workload_statistics
from dualpath_model.workload import Session, Turn, from_moments, from_sessions

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "examples" / "traces" / "agentic_sample"


def test_statistics_by_hand() -> None:
    sessions = [
        Session("a", (Turn(100, 0, 10), Turn(200, 64, 20, 1.0), Turn(150, 128, 30, 3.0))),
        Session("b", (Turn(50, 0, 0),)),
    ]
    found = workload_statistics(from_sessions(sessions, "hand"))
    assert found["source"] == "hand"
    assert (found["sessions"], found["model_calls"], found["turns"]) == (2, 4, 4)
    assert found["mean_prompt_tokens"] == 125
    assert found["mean_output_tokens"] == 15
    assert found["mean_append_tokens"] == (100 + 136 + 22 + 50) / 4
    assert found["hit_rate"] == 192 / 500
    assert found["block_hit_rate"] is None
    assert found["compactions"] == 1  # 150 after 200; 50 begins another session
    assert found["percentiles"]["prompt_tokens"]["p50"] == 125
    assert found["percentiles"]["prompt_tokens"]["max"] == 200
    assert found["percentiles"]["turns_per_session"]["max"] == 3
    assert found["percentiles"]["think_time_s"]["max"] == 3.0
    assert set(found["percentiles"]) == {
        "prompt_tokens",
        "append_tokens",
        "output_tokens",
        "think_time_s",
        "turns_per_session",
    }
    assert set(found["percentiles"]["append_tokens"]) == {"p10", "p50", "p90", "p99", "max"}


@pytest.mark.parametrize("workload", [from_moments(90, 10, 5), generate(TABLE_2["32K"])])
def test_statistics_are_plain_json(workload: object) -> None:
    found = workload_statistics(workload)  # type: ignore[arg-type]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["compactions"] == 0


def test_the_shipped_sample_has_what_it_promises() -> None:
    found = workload_statistics(load_workload(SAMPLE))
    assert found["sessions"] == 6
    assert found["sub_agents"] == 3
    assert found["compactions"] == 2
    assert 0.8 < found["hit_rate"] < 1
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) <= 60_000


def test_the_shipped_sample_comes_from_its_script(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "examples" / "traces" / "make_sample.py"))
    script["main"](tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in SAMPLE.iterdir())
    for path in tmp_path.iterdir():
        shipped = gzip.decompress((SAMPLE / path.name).read_bytes())
        assert gzip.decompress(path.read_bytes()) == shipped
