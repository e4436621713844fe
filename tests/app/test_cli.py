"""The command line from outside: JSON keys of the stable surface, exit codes, one clear sentence."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.conftest import ROOT

SAMPLE = ROOT / "examples" / "traces" / "agentic_sample"


def dualpath(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a user would."""
    command = [sys.executable, "-m", "app.cli", *map(str, words)]
    # a simulation compiles for a minute or two where nothing is compiled yet
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def json_of(*words: str | Path) -> dict[str, Any]:
    """Return the one JSON object on standard output; fail if there is anything else."""
    done = dualpath(*words, "--json", "-")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def refused(*words: str | Path, code: int = 2) -> str:
    """Return the sentence with which a command refuses."""
    done = dualpath(*words)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# ---- the stable surface --------------------------------------------------------------------------


def test_plan_json_has_the_keys_of_the_stable_surface() -> None:
    plan = json_of("plan", "deepseek-660b-2p4d")
    assert set(plan["bottleneck"]) == {"pool", "resource", "direction"}
    for key in (
        "split",
        "throughput_requests_per_s",
        "throughput_basic_requests_per_s",
        "throughput_oracle_requests_per_s",
        "speedup_over_basic",
    ):
        assert isinstance(plan[key], float), key
    assert {"low", "high", "ratio", "holds"} <= set(plan["bottleneck_free"])
    names = {"pool", "node", "resource", "direction", "basic", "dual_path", "dual_value"}
    assert names <= set(plan["utilisation"][0])
    assert {"prefill_nodes", "decode_nodes"} <= set(plan["neighbours"][0])
    assert {"alpha_tokens", "beta_tokens", "quota_s", "z_factor"} <= set(
        plan["scheduler_parameters"]
    )


def test_plan_of_the_papers_analysis() -> None:
    """[1/7, 7/2], D/(P+D), (P+D)/P through the command line."""
    plan = json_of("plan", "paper-analysis")
    found = plan["bottleneck_free"]
    assert (found["low"], found["high"], found["holds"]) == (1 / 7, 7 / 2, True)
    assert plan["split"] == pytest.approx(4 / 6, rel=1e-9)
    assert plan["speedup_over_basic"] == pytest.approx(3.0, rel=1e-9)
    assert plan["throughput_oracle_requests_per_s"] is None


def test_plan_fits_its_schema() -> None:
    schema = json.loads(dualpath("schema", "plan").stdout)
    for name in ("deepseek-660b-2p4d", "heterogeneous", "paper-analysis", "deepseek-v3.2-aws-p5"):
        jsonschema.validate(json_of("plan", name), schema)


def test_plan_text_says_what_a_planner_asks() -> None:
    done = dualpath("plan", "deepseek-660b-2p4d")
    assert done.returncode == 0
    for words in (
        "limits today (Basic)",
        "prefill snic in",
        "read through decode",
        "compute limit (Oracle)",
        "inside the bottleneck-free range [0.143, 3.5]",
        "What one more unit buys",
        "Neighbouring P/D ratios",
        "alpha",
    ):
        assert words in done.stdout, words


def test_both_solvers_give_one_plan() -> None:
    highs, cbc = (
        json_of("plan", "heterogeneous"),
        json_of("plan", "heterogeneous", "--solver", "cbc"),
    )
    key = "throughput_requests_per_s"
    assert cbc[key] == pytest.approx(highs[key], rel=1e-6)


def test_plan_writes_files(tmp_path: Path) -> None:
    done = dualpath(
        "plan",
        "ds-27b-1p1d",
        *("--json", tmp_path / "plan.json"),
        *("--html", tmp_path / "plan.html"),
        *("--picture", tmp_path / "plan.png"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "plan.json").read_text())["llm"] == "ds-27b"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "plan.html",
        "plan.json",
        "plan.png",
    ]


def test_trace_stats_json() -> None:
    found = json_of("trace", "stats", SAMPLE, "--llm", "deepseek-v3.2", "--llm", "qwen2.5-32b")
    for key in (
        "sessions",
        "model_calls",
        "mean_prompt_tokens",
        "mean_output_tokens",
        "hit_rate",
        "block_hit_rate",
        "percentiles",
    ):
        assert key in found
    for llm in ("deepseek-v3.2", "qwen2.5-32b"):
        assert {"read_bytes", "cache_compute_bytes_per_flop"} <= set(found["llms"][llm])
    assert "GB/PFLOP" in dualpath("trace", "stats", SAMPLE).stdout


def test_llm_cache_compute_json() -> None:
    words = ("llm", "cache-compute", "deepseek-v3.2", "--append", "429")
    found = json_of(*words, "--context", "16K", "--context", "64K")
    rows = found["deepseek-v3.2"]
    assert [row["context_tokens"] for row in rows] == [16_000, 64_000]
    assert set(rows[0]) == {"context_tokens", "append_tokens", "kv_bytes", "flops", "gb_per_pflop"}
    assert rows[0]["gb_per_pflop"] == pytest.approx(13, rel=0.03)
    assert rows[1]["gb_per_pflop"] == pytest.approx(36, rel=0.03)
    assert len(json_of("llm", "cache-compute")) == 5


@pytest.mark.parametrize(
    "words",
    [("llm", "list"), ("llm", "show", "kimi-k2"), ("node", "list"), ("llm", "cache-compute")],
    ids=" ".join,
)
def test_lists_print_json_and_text(words: tuple[str, ...]) -> None:
    assert json_of(*words)
    done = dualpath(*words)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5


def test_schemas_are_schemas() -> None:
    for kind in ("scenario", "plan"):
        schema = json.loads(dualpath("schema", kind).stdout)
        jsonschema.Draft202012Validator.check_schema(schema)


def test_examples_and_version() -> None:
    assert "deepseek-660b-2p4d" in dualpath("examples").stdout
    assert dualpath("--version").stdout.startswith("dualpath 0.")


# ---- bad input -----------------------------------------------------------------------------------


def test_unknown_example_offers_the_nearest() -> None:
    assert "deepseek-660b-2p4d" in refused("plan", "deepsek-660b")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "there is no such file" in refused("plan", tmp_path / "no.yaml")
    assert "is a folder" in refused("plan", tmp_path)


def test_no_answer_is_exit_code_one(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "deepseek-660b-2p4d.yaml").read_text()
    path = tmp_path / "small.yaml"
    path.write_text(text.replace("count: 2", "count: 1"))
    assert "does not fit" in refused("plan", path, code=1)


def test_nothing_is_written_on_bad_input(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\n")
    refused("plan", bad, "--json", tmp_path / "a.json", "--html", tmp_path / "b.html")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize("option", ["--json", "--html", "--picture"])
def test_places_that_cannot_be_written(tmp_path: Path, option: str) -> None:
    assert str(tmp_path / "no") in refused("plan", "ds-27b-1p1d", option, tmp_path / "no" / "x.png")
    (tmp_path / "x.png").mkdir()
    assert "folder" in refused("plan", "ds-27b-1p1d", option, tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_broken_traces(tmp_path: Path) -> None:
    row = json.dumps({"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]})
    (tmp_path / "cut.jsonl").write_text(f"{row}\n{row[:30]}\n")
    assert "cut.jsonl: line 2 " in refused("trace", "stats", tmp_path / "cut.jsonl")
    whole = gzip.compress(f"{row}\n".encode() * 1000)
    (tmp_path / "half.gz").write_bytes(whole[: len(whole) // 2])
    assert "half.gz" in refused("trace", "stats", tmp_path / "half.gz")
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty.jsonl" in refused("trace", "stats", tmp_path / "empty.jsonl")
    assert "there is no such" in refused("trace", "stats", tmp_path / "nowhere")
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b"0" * 30_000_000))
    assert "bomb.gz" in refused("trace", "stats", tmp_path / "bomb.gz", "--max-bytes", "10 MB")


def test_unknown_llm_and_bad_counts() -> None:
    assert "deepseek-v3" in refused("llm", "show", "deepseek")
    assert "is not a count" in refused("llm", "cache-compute", "--context", "-5")
    assert "is not a count" in refused("llm", "cache-compute", "--append", "many")
    assert "fp8_ds_mla" in refused(
        "llm", "cache-compute", "qwen2.5-32b", "--kv-dtype", "fp8_ds_mla"
    )
    assert "has no unit" in refused("trace", "stats", SAMPLE, "--max-bytes", "5")


def test_a_wrong_option_is_bad_input() -> None:
    done = dualpath("plan", "ds-27b-1p1d", "--colour")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# ---- frameworks ------------------------------------------------------------------------------------


def test_frameworks_are_compared_side_by_side() -> None:
    found = json_of("plan", "deepseek-660b-2p4d", "--compare-frameworks")
    assert found["own"] == "paper"
    rows = {row["framework"]: row for row in found["frameworks"]}
    assert list(rows) == ["paper", "vllm", "vllm-pull", "sglang", "dynamo"]
    for row in rows.values():
        assert set(row["bottleneck"]) == {"pool", "resource", "direction"}
        assert row["throughput_requests_per_s"] > 0
        assert row["first_token"]
    assert rows["paper"]["fraction_of_paper"] == 1.0
    assert rows["sglang"]["split"] is None
    assert "request by request, not layer by layer" in rows["vllm"]["first_token"]
    done = dualpath("plan", "deepseek-660b-2p4d", "--compare-frameworks")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in rows)
    assert "no choice" in done.stdout


def test_the_comparison_has_no_report(tmp_path: Path) -> None:
    words = ("plan", "ds-27b-1p1d", "--compare-frameworks", "--html", tmp_path / "a.html")
    assert "--compare-frameworks has no --html" in refused(*words)


def in_framework(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    text = (ROOT / "examples" / "ds-27b-1p1d.yaml").read_text()
    path.write_text(f"{text}\nframework: {name}\n")
    return path


def test_a_plan_is_of_the_scenarios_framework(tmp_path: Path) -> None:
    found = json_of("plan", in_framework(tmp_path, "sglang"))
    assert found["framework"] == "sglang"
    assert found["bottleneck_free"]["low"] is None
    assert "framework sglang has no bottleneck-free range" in found["bottleneck_free"]["reason"]
    assert "the nearest are vllm" in refused("plan", in_framework(tmp_path, "vlm"))


@pytest.mark.parametrize("command", ["simulate", "capacity"])
def test_the_simulator_says_what_it_cannot_do_for_a_framework(command: str, tmp_path: Path) -> None:
    sentence = refused(command, in_framework(tmp_path, "dynamo"))
    assert "does not model prefill on decode nodes, so ask `dualpath plan`" in sentence
    sentence = refused(command, in_framework(tmp_path, "vllm"), "--layerwise")
    assert "framework vllm loads request by request" in sentence
