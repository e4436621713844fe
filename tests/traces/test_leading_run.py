"""The rule of the leading run against a slow, literal transcription of PROVENANCE.md."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath_model.traces import load_workload
from dualpath_model.traces.calls import SeenBlocks

IDS = st.lists(st.integers(0, 12), max_size=12)


def literal_run(seen: set[int], ids: list[int]) -> int:
    run = 0
    for block in ids:
        if block not in seen:
            break
        run += 1
    for block in ids:
        seen.add(block)
    return run


@st.composite
def growing_prompts(draw: st.DrawFn) -> list[list[int]]:
    """Prompts that mostly continue the one before, sometimes cut or begin anew, as agents' do."""
    prompts: list[list[int]] = []
    current: list[int] = []
    for _ in range(draw(st.integers(1, 10))):
        kept = draw(st.integers(0, len(current)) | st.just(len(current)))
        current = current[:kept] + draw(IDS)
        prompts.append(list(current))
    return prompts


@given(st.lists(IDS, max_size=10) | growing_prompts())
def test_leading_run_is_the_literal_one(prompts: list[list[int]]) -> None:
    fast, slow = SeenBlocks(), set[int]()
    for ids in prompts:
        assert fast.leading(ids, "here") == literal_run(slow, ids)


@settings(deadline=None)  # files are written
@given(
    prompts=st.lists(st.tuples(IDS, st.integers(1, 2000)), min_size=1, max_size=10),
    scope=st.sampled_from(["session", "global", None]),
)
def test_mooncake_hits_are_the_literal_ones(
    tmp_path_factory: pytest.TempPathFactory,
    prompts: list[tuple[list[int], int]],
    scope: str | None,
) -> None:
    rows = [
        {"timestamp": n, "input_length": length, "output_length": 1, "hash_ids": ids}
        for n, (ids, length) in enumerate(prompts)
    ]
    path = tmp_path_factory.mktemp("run") / "trace.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    workload = load_workload(path, scope=scope)
    seen: set[int] = set()
    expected, blocks = [], 0
    for ids, length in prompts:
        run = literal_run(set() if scope == "session" else seen, ids)
        expected.append(min(run * 512, length))
        blocks += run
    assert workload.hit_tokens.tolist() == expected
    assert workload.hit_blocks == blocks
    assert workload.prompt_blocks == sum(len(ids) for ids, _ in prompts)


@settings(deadline=None)
@given(growing_prompts(), st.data())
def test_agentic_hits_are_the_literal_ones(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[list[int]], data: st.DataObject
) -> None:
    lengths = [data.draw(st.integers(1, 900)) for _ in prompts]
    calls = [
        {"in": length, "out": 0, "hash_ids": ids}
        for length, ids in zip(lengths, prompts, strict=True)
    ]
    # some of the calls go into a sub-agent, which keeps its place
    start = data.draw(st.integers(0, len(calls)))
    end = data.draw(st.integers(start, len(calls)))
    nested = [*calls[:start], {"requests": calls[start:end]}, *calls[end:]]
    path = tmp_path_factory.mktemp("run") / "trace.json"
    path.write_text(json.dumps({"block_size": 64, "requests": nested}))
    workload = load_workload(path)
    seen: set[int] = set()
    expected = [
        min(64 * literal_run(seen, ids), length)
        for length, ids in zip(lengths, prompts, strict=True)
    ]
    assert workload.hit_tokens.tolist() == expected
    assert workload.sub_agent_turns == end - start


def test_readme_rule_on_one_example(tmp_path: Path) -> None:
    # 2 is seen, but stands behind a new block: only the leading 1 counts
    path = tmp_path / "trace.json"
    calls = [{"in": 192, "out": 1, "hash_ids": ids} for ids in ([1, 2, 3], [1, 4, 2], [1, 4, 2])]
    path.write_text(json.dumps({"requests": calls}))
    assert load_workload(path).hit_tokens.tolist() == [0, 64, 192]
