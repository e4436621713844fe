"""An index over engines: a tournament tree of minima, so that a choice need not look at each of them.

A tree of ``n`` values is one int64 array of length ``2 * size``, ``size`` the power of two at or
above ``n``: leaf ``i`` is at ``size + i``, node ``k`` holds the minimum of ``2 k`` and ``2 k + 1``, the
root is 1. Unused leaves hold :data:`NONE`. Changing a leaf costs at most log2(size) steps; so does the
least of a range. With conditions on top the search is branch and bound: logarithmic while good
values meet the conditions, and linear in the range at worst (``benchmarks.scheduler`` measures both).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dualpath_model.compilation import compilable

IntArray = npt.NDArray[np.int64]

NONE = 2**62
"""The value of a leaf that must never be chosen, above every real one."""

_DEEPEST = 64  # levels of any tree that fits into memory, one pending sibling each


def tree_of(values: IntArray) -> IntArray:
    """Return a new tree over ``values``, shape (n,)."""
    size = 1
    while size < len(values):
        size *= 2
    tree = np.full(2 * size, NONE, dtype=np.int64)
    tree[size : size + len(values)] = values
    while size > 1:
        size //= 2
        tree[size : 2 * size] = tree[2 * size : 4 * size].reshape(-1, 2).min(axis=1)
    return tree


@compilable
def set_value(tree: IntArray, leaf: int, value: int) -> None:
    """Change one leaf."""
    place = tree.shape[0] // 2 + leaf
    tree[place] = value
    place //= 2
    while place >= 1:
        least_below = min(tree[2 * place], tree[2 * place + 1])
        if tree[place] == least_below:
            break
        tree[place] = least_below
        place //= 2


@compilable
def least_within(
    values: IntArray,
    first: int,
    last: int,
    bounded: IntArray,
    most: int,
    rooms: IntArray,
    need: int,
) -> int:
    """Return the leaf in [first, last) with the least value, the lowest leaf among equals, or -1.

    Only leaves count that have a value at all, ``bounded`` at most ``most``, and room for ``need``;
    ``rooms`` holds the negative of each room, so that all three trees are trees of minima.
    """
    size = values.shape[0] // 2
    best, best_value = -1, NONE
    pending = np.empty((_DEEPEST, 3), dtype=np.int64)  # node, first leaf below it, leaves below it
    pending[0, 0], pending[0, 1], pending[0, 2] = 1, 0, size
    waiting = 1
    while waiting > 0:
        waiting -= 1
        node, start, count = pending[waiting, 0], pending[waiting, 1], pending[waiting, 2]
        value = values[node]
        if start >= last or start + count <= first:
            continue
        if value > best_value or (value == best_value and start > best):
            continue
        if bounded[node] > most or rooms[node] > -need:
            continue
        if count == 1:
            best, best_value = start, value
            continue
        half = count // 2
        # the side with the lesser value is searched first (popped last in), the left one among equals
        right_first = 1 if values[2 * node + 1] < values[2 * node] else 0
        for turn in range(2):
            right = turn ^ 1 ^ right_first
            pending[waiting, 0] = 2 * node + right
            pending[waiting, 1] = start + right * half
            pending[waiting, 2] = half
            waiting += 1
    return best


@compilable
def least(values: IntArray, first: int, last: int) -> int:
    """Return the leaf in [first, last) with the least value, the lowest among equals, or -1."""
    return least_within(values, first, last, values, NONE, values, -NONE)
