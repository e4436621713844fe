"""The compute quota: packing against a token-by-token oracle, at the quota's very edge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.catalog.llms import llm_names, load_llm
from dualpath_model.compilation import bound
from dualpath_model.errors import InputError
from dualpath_model.scheduler.attention import (
    AttentionTime,
    attention_time,
    batch_seconds,
    chunk_seconds,
)
from dualpath_model.scheduler.packing import least_quota_s, pack

Queue = list[tuple[int, int]]

coefficient = st.just(0.0) | st.floats(1e-9, 1e-3)
models = st.builds(AttentionTime, *[coefficient] * 6, st.just(0.0) | st.integers(1, 200).map(float))
queues = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=6)
token_limits = st.just(0) | st.integers(1, 120)


def arrays(queue: Queue) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array(queue, dtype=np.int64).reshape(-1, 2)
    return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])


def seconds_of(model: AttentionTime, queue: Queue) -> float:
    return batch_seconds(model, *arrays(queue))


def packed(queue: Queue, taken: int, chunk: int) -> Queue:
    return queue[:taken] + ([(queue[taken][0], chunk)] if chunk else [])


def oracle(model: AttentionTime, queue: Queue, quota_s: float, token_limit: int) -> tuple[int, int]:
    """One token more, as long as the whole batch stays within both limits."""
    for index, (cached, remaining) in enumerate(queue):
        done = sum(bsz for _, bsz in queue[:index])
        chunk = 0
        while chunk < remaining:
            grown = [*queue[:index], (cached, chunk + 1)]
            if seconds_of(model, grown) > quota_s or 0 < token_limit < done + chunk + 1:
                return index, chunk
            chunk += 1
    return len(queue), 0


@st.composite
def quotas(draw: st.DrawFn, model: AttentionTime, queue: Queue) -> float:
    """Any quota up to more than the whole queue, or the very sum of some batch and its neighbours."""
    if not queue or draw(st.booleans()):
        return draw(st.floats(0.0, 1.2)) * (seconds_of(model, queue) + 1e-9)
    index = draw(st.integers(0, len(queue) - 1))
    chunk = draw(st.integers(1, queue[index][1]))
    edge = seconds_of(model, packed(queue, index, chunk))
    return float(np.nextafter(edge, draw(st.sampled_from([0.0, edge, np.inf]))))


@given(models, queues, token_limits, st.data())
def test_pack_is_the_oracle(
    model: AttentionTime, queue: Queue, token_limit: int, data: st.DataObject
) -> None:
    quota_s = data.draw(quotas(model, queue))
    got = pack(model, *arrays(queue), quota_s, token_limit)
    assert got == oracle(model, queue, quota_s, token_limit)
    assert [type(part) for part in got] == [int, int]


@given(models, st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**5)), max_size=30))
def test_within_the_quota_and_maximal(model: AttentionTime, queue: Queue) -> None:
    """On real sizes, where the oracle is too slow: the law itself, without tolerance."""
    for share in (0.01, 0.3, 0.9, 1.0):
        quota_s = share * seconds_of(model, queue)
        taken, chunk = pack(model, *arrays(queue), quota_s)
        batch = packed(queue, taken, chunk)
        assert not batch or seconds_of(model, batch) <= quota_s
        if taken < len(queue):
            assert chunk < queue[taken][1]
            assert seconds_of(model, packed(queue, taken, chunk + 1)) > quota_s


@given(models, queues, st.data())
def test_a_queue_does_not_look_behind_the_cut(
    model: AttentionTime, queue: Queue, data: st.DataObject
) -> None:
    """First in, first out: what comes after the request that is cut changes nothing."""
    quota_s = data.draw(quotas(model, queue))
    taken, chunk = pack(model, *arrays(queue), quota_s)
    assert pack(model, *arrays(queue[: taken + 1]), quota_s) == (taken, chunk)


def test_compiled_is_the_same() -> None:
    compiled = bound(pack, compiled=True)
    model = AttentionTime(1e-3, 1e-4, 1e-6, 1e-8, 3e-10, 2e-10, 2048.0)
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(0, 40))
        cached, remaining = rng.integers(0, 60_000, count), rng.integers(1, 3000, count)
        quota_s = float(rng.uniform(0.0, 1.0))
        assert compiled(model, cached, remaining, quota_s) == pack(
            model, cached, remaining, quota_s
        )
        limit = int(rng.integers(1, 20_000))
        assert compiled(model, cached, remaining, quota_s, limit) == pack(
            model, cached, remaining, quota_s, limit
        )


def test_by_hand() -> None:
    """An eighth of a second a token and nothing else: a quota of 1 s is eight tokens."""
    model = AttentionTime(token_s=0.125)
    queue = [(0, 4), (100, 3), (5, 9), (7, 1)]
    assert pack(model, *arrays(queue), 1.0) == (2, 1)
    assert pack(model, *arrays(queue), 0.875) == (2, 0)  # whole requests to the last bit
    assert pack(model, *arrays(queue), 1.0, 7) == (2, 0)
    assert pack(model, *arrays(queue), 1.0, 6) == (1, 2)
    assert pack(model, *arrays(queue), 100.0) == (4, 0)
    assert pack(model, *arrays([]), 1.0) == (0, 0)


def test_nothing_fits() -> None:
    for model in (AttentionTime(fixed_s=2.0), AttentionTime(chunk_s=2.0), AttentionTime(2.0, 2.0)):
        assert pack(model, *arrays([(0, 5), (0, 1)]), 1.0) == (0, 0)


# ---- the least quota ----------------------------------------------------------------------------


@given(models, st.integers(1, 400), st.integers(1, 64), st.data())
def test_with_the_least_quota_every_request_advances_by_a_block(
    model: AttentionTime, context: int, block: int, data: st.DataObject
) -> None:
    quota_s = least_quota_s(model, context, block)
    cached = data.draw(st.integers(0, context - 1))
    remaining = data.draw(st.integers(1, context - cached))
    taken, chunk = pack(model, *arrays([(cached, remaining)]), quota_s)
    assert taken == 1 or chunk >= block


@given(models, st.integers(65, 400))
def test_the_least_quota_is_the_least(model: AttentionTime, context: int) -> None:
    """A bit less, and the last block of the longest context is cut."""
    quota_s = least_quota_s(model, context, 64)
    assert quota_s == model.fixed_s + chunk_seconds(model, context - 64, 64)
    if quota_s > 0.0:
        less = float(np.nextafter(quota_s, 0.0))
        assert pack(model, *arrays([(context - 64, 64)]), less)[0] == 0


@pytest.mark.parametrize("name", llm_names())
def test_the_paper_s_quota_is_enough(name: str) -> None:
    """300 ms on a Hopper GPU at 40 % of its bf16 rate, blocks of 64, the paper's longest contexts."""
    llm = load_llm(name)
    model = attention_time(llm, flop_per_s=0.4 * 989e12, hbm_bytes_per_s=0.8 * 3.35e12)
    assert 0.0 < least_quota_s(model, 65_536, 64) < 0.3


def test_a_quota_that_is_not_enough() -> None:
    """DeepSeek-V3, dense attention in absorbed form, at its longest context: a block takes 0.45 s."""
    llm = load_llm("deepseek-v3")
    model = attention_time(llm, flop_per_s=0.4 * 989e12)
    assert least_quota_s(model, llm.max_context_tokens, 64) > 0.3
    taken, chunk = pack(model, *arrays([(llm.max_context_tokens - 64, 64)]), 0.3)
    assert taken == 0
    assert 0 < chunk < 64


def test_bad_context_and_block() -> None:
    with pytest.raises(InputError, match="max_context_tokens 0 must be at least 1; give a number"):
        least_quota_s(AttentionTime(), 0, 64)
    with pytest.raises(InputError, match="block_tokens 0 must be at least 1; give a number"):
        least_quota_s(AttentionTime(), 1000, 0)
