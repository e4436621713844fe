"""The golden figures of the recorded traces (../shared/traces/PROVENANCE.md), read in place."""

import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dualpath_model.traces import load_workload, workload_statistics

TRACES = Path(
    os.environ.get("DUALPATH_TRACES", Path(__file__).resolve().parents[3] / "shared" / "traces")
)


def recorded(name: str) -> Path:
    folder = TRACES / name
    if not folder.is_dir():
        pytest.skip(f"the recorded traces are not at {folder}; set DUALPATH_TRACES to their folder")
    return folder


def test_agentic_coding_has_its_published_figures() -> None:
    folder = recorded("agentic_coding")
    start = time.perf_counter()
    workload = load_workload(folder)
    assert time.perf_counter() - start < 5
    found = workload_statistics(workload)
    assert found["sessions"] == 96
    assert found["model_calls"] == 7_521
    assert found["turns"] == 7_364
    assert found["sub_agents"] == 15
    assert found["sub_agent_calls"] == 157
    assert round(found["mean_prompt_tokens"]) == 127_892
    assert round(found["mean_output_tokens"]) == 436
    assert round(100 * found["hit_rate"], 1) == 96.1
    assert found["percentiles"]["prompt_tokens"]["max"] == 868_539
    assert found["compactions"] > 0
    assert (workload.hit_tokens <= workload.prompt_tokens).all()


def test_mooncake_conversation_trace_has_its_published_figures() -> None:
    workload = load_workload(recorded("mooncake"))
    found = workload_statistics(workload)
    assert found["model_calls"] == found["sessions"] == 12_031
    assert round(found["mean_prompt_tokens"]) == 12_035
    assert round(found["mean_output_tokens"]) == 343
    assert round(100 * found["hit_rate"], 1) == 37.4
    assert round(100 * found["block_hit_rate"], 1) == 36.6
    assert (np.diff(workload.start_s) >= 0).all()


def test_within_a_session_of_one_turn_mooncake_hits_nothing() -> None:
    workload = load_workload(recorded("mooncake"), scope="session")
    assert workload.hit_tokens.sum() == 0
    assert workload.hit_blocks == 0


def test_one_file_is_the_same_session_as_in_its_folder() -> None:
    folder = recorded("agentic_coding")
    together = load_workload(folder)
    for number, path in enumerate(sorted(folder.iterdir())[:5]):
        alone = load_workload(path)
        rows = slice(together.offsets[number], together.offsets[number + 1])
        assert (alone.hit_tokens == together.hit_tokens[rows]).all()
        assert (alone.prompt_tokens == together.prompt_tokens[rows]).all()


def test_reading_all_sessions_takes_little_memory() -> None:
    folder = recorded("agentic_coding")
    tracemalloc.start()
    load_workload(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500e6
