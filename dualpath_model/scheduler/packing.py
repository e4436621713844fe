"""The compute quota: which requests, and how much of the last one, go into a forward batch.

The paper (section 6): all ranks of an engine group wait for the slowest in every layer, so each
fills its batch up to the same predicted attention time; first in, first out, with the request that
would exceed it cut by binary search (chunked prefill).
"""

from __future__ import annotations

from dualpath_model.compilation import compilable
from dualpath_model.errors import InputError
from dualpath_model.scheduler.attention import AttentionTime, TokenCounts, chunk_seconds

_NO_LIMIT = 2**62


@compilable
def pack(
    model: AttentionTime,
    cached: TokenCounts,
    remaining: TokenCounts,
    quota_s: float,
    token_limit: int = 0,
) -> tuple[int, int]:
    """Return how many whole requests of the queue fit, and the tokens of the next one (0: none).

    Request i, in FIFO order, has ``cached[i]`` tokens and still ``remaining[i]`` >= 1 to compute.
    ``token_limit``: most tokens of a batch, an engine's ``max_num_batched_tokens`` (0: no limit).

    ``batch_seconds`` of the chunks is at most ``quota_s`` to the last bit, because it is summed here as
    it is there. The chunk is the largest: with one token more it would exceed the quota or the token
    limit. Binary search finds it because ``chunk_seconds`` never falls as the chunk grows.

    ``(0, 0)``: nothing to do, or not even one token of the first request fits. An engine must then run
    one block of the head of the queue alone, or the queue never moves; a quota of
    :func:`least_quota_s` or more rules this out.
    """
    total = model.fixed_s
    room = token_limit if token_limit > 0 else _NO_LIMIT
    for index in range(len(remaining)):
        start, wanted = int(cached[index]), int(remaining[index])
        most = min(wanted, room)
        if most < 1:
            return index, 0
        seconds = total + chunk_seconds(model, start, most)
        if seconds <= quota_s:
            if most < wanted:
                return index, most
            total = seconds
            room -= most
            continue
        fits, exceeds = 0, most
        while exceeds - fits > 1:
            middle = (fits + exceeds) // 2
            if total + chunk_seconds(model, start, middle) <= quota_s:
                fits = middle
            else:
                exceeds = middle
        return index, fits
    return len(remaining), 0


def least_quota_s(model: AttentionTime, max_context_tokens: int, block_tokens: int) -> float:
    """Return the smallest quota with which the head of the queue always advances by a block.

    That is the time of a batch of one chunk, the last block of the longest context; any other block,
    and any rest shorter than a block, takes at most as long. Check a configured quota against it.
    With a smaller quota :func:`pack` cuts chunks below a block, the unit of storage, and can answer
    ``(0, 0)``: the engine should then run one block of the head alone, over quota, and say so.

    Raises InputError for a context or a block of less than one token.
    """
    for field, value in (
        ("max_context_tokens", max_context_tokens),
        ("block_tokens", block_tokens),
    ):
        if value < 1:
            raise InputError(f"{field} {value} must be at least 1; give a number of tokens")
    block = min(block_tokens, max_context_tokens)
    return model.fixed_s + chunk_seconds(model, max_context_tokens - block, block)
