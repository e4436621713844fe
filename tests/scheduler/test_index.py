"""The index against a scan of every leaf."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.compilation import bound
from dualpath_model.scheduler.index import NONE, least, least_within, set_value, tree_of

values = st.integers(-4, 4) | st.integers(-(2**40), 2**40) | st.just(NONE)  # few: ties are common
rows = st.lists(st.tuples(values, values, values), max_size=20)


def scan(leaves: list[tuple[int, int, int]], first: int, last: int, most: int, need: int) -> int:
    """Return the leaf that :func:`least_within` must find."""
    best = -1
    for leaf in range(max(0, first), min(last, len(leaves))):
        value, bounded, room = leaves[leaf]
        if value == NONE or bounded > most or room > -need:
            continue
        if best < 0 or value < leaves[best][0]:
            best = leaf
    return best


def trees(leaves: list[tuple[int, int, int]]) -> list[np.ndarray]:
    columns = np.array(leaves, dtype=np.int64).reshape(-1, 3)
    return [tree_of(columns[:, column].copy()) for column in range(3)]


@given(rows, st.integers(0, 20), st.integers(0, 20), values, values)
def test_least_within_is_a_scan(
    leaves: list[tuple[int, int, int]], first: int, last: int, most: int, need: int
) -> None:
    value, bounded, rooms = trees(leaves)
    found = least_within(value, first, last, bounded, most, rooms, need)
    assert found == scan(leaves, first, last, most, need)


@given(st.lists(values, max_size=20), st.integers(0, 20), st.integers(0, 20))
def test_least_is_a_scan(leaves: list[int], first: int, last: int) -> None:
    rows = [(value, 0, 0) for value in leaves]
    tree = tree_of(np.array(leaves, dtype=np.int64))
    assert least(tree, first, last) == scan(rows, first, last, 0, 0)


@given(st.lists(values, min_size=1, max_size=20), st.data())
def test_set_value_makes_the_tree_of_the_new_values(leaves: list[int], data: st.DataObject) -> None:
    tree = tree_of(np.full(len(leaves), NONE, dtype=np.int64))
    changes = st.lists(st.tuples(st.integers(0, len(leaves) - 1), values), max_size=20)
    for leaf, value in [*enumerate(leaves), *data.draw(changes)]:
        set_value(tree, leaf, value)
        leaves[leaf] = value
    assert tree.tolist() == tree_of(np.array(leaves, dtype=np.int64)).tolist()


def test_no_leaves() -> None:
    tree = tree_of(np.array([], dtype=np.int64))
    assert least(tree, 0, 0) == -1


def test_compiled_finds_the_same() -> None:
    compiled = bound(least_within, compiled=True)
    rng = np.random.default_rng(1)
    for _ in range(300):
        count = int(rng.integers(1, 40))
        drawn = rng.integers(-3, 4, size=(count, 3))
        drawn[rng.random((count, 3)) < 0.1] = NONE
        leaves = [tuple(map(int, row)) for row in drawn]
        first, last, most, need = map(int, rng.integers((0, 0, -3, -3), (count, count + 1, 4, 4)))
        value, bounded, rooms = trees(leaves)
        found = compiled(value, first, last, bounded, most, rooms, need)
        assert found == scan(leaves, first, last, most, need)
