"""Quantities: the units the field writes, exact round trips, and nothing guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.errors import InputError
from dualpath_model.quantities import (
    LIMITS,
    Dimension,
    exact,
    parse,
    parse_count,
    parse_duration,
    show,
)

B, RATE, S, FLOP = Dimension.BYTES, Dimension.BYTES_PER_S, Dimension.SECONDS, Dimension.FLOP_PER_S


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("400 Gbps", RATE, 50e9),
        ("400Gb/s", RATE, 50e9),
        ("400 Gbit/s", RATE, 50e9),
        ("50 GB/s", RATE, 50e9),
        ("50 GBps", RATE, 50e9),
        ("1 GiB/s", RATE, 2.0**30),
        ("1 Gibps", RATE, 2.0**30 / 8),
        ("80 GB", B, 80e9),
        ("80 GiB", B, 80 * 2.0**30),
        ("8 Gb", B, 1e9),
        ("1.5e3 B", B, 1500.0),
        ("1_000 kB", B, 1e6),
        ("300 ms", S, 0.3),
        ("2 min", S, 120.0),
        ("7 µs", S, 7e-6),
        ("1.98 PFLOP/s", FLOP, 1.98e15),
        ("989 TFLOPS", FLOP, 989e12),
        (" 4 s ", S, 4.0),
    ],
)
def test_what_people_write(text: str, dimension: Dimension, value: float) -> None:
    assert parse(text, dimension) == pytest.approx(value, rel=1e-15)


def test_bits_and_bytes_and_powers_differ() -> None:
    assert parse("8 Gbps", RATE) * 8 == parse("8 GB/s", RATE)
    assert parse("1 GiB", B) > parse("1 GB", B)


@pytest.mark.parametrize(
    ("text", "dimension", "message"),
    [
        (400, RATE, "400 has no unit"),
        ("400", RATE, "'400' has no unit"),
        ("400 gbps", RATE, "did you mean GBps or Gbps"),
        ("400 GB", RATE, "is in B, but B/s is needed"),
        ("4 s", B, "is in s, but B is needed"),
        ("-1 GB/s", RATE, "out of range"),
        ("0 GB/s", RATE, "out of range"),
        ("1e400 GB/s", RATE, "out of range"),
        ("1e-300 B/s", RATE, "out of range"),
        ("1e300 s", S, "out of range"),
        ("nan GB/s", RATE, "is not a number with a unit"),
        ("inf s", S, "is not a number with a unit"),
        ("fast", RATE, "is not a number with a unit"),
        ("", S, "is not a number with a unit"),
        (True, S, "is not a quantity"),
        (None, S, "is not a quantity"),
        (["1 s"], S, "is not a quantity"),
        ("4 parsec", S, "unknown unit 'parsec'"),
        ("1.2.3 s", S, "unknown unit '.3 s'"),
    ],
)
def test_what_is_refused(text: object, dimension: Dimension, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text, dimension)
    assert message in str(caught.value)


within = st.sampled_from(list(Dimension)).flatmap(
    lambda d: st.tuples(st.floats(*LIMITS[d]), st.just(d))
)


@given(within)
def test_exact_text_gives_back_the_very_same_float(case: tuple[float, Dimension]) -> None:
    value, dimension = case
    assert parse(exact(value, dimension), dimension) == value


@given(st.floats(min_value=1.0, max_value=9e17), st.sampled_from([B, RATE, FLOP]))
def test_shown_text_is_close(value: float, dimension: Dimension) -> None:
    shown = show(value, dimension).replace(",", "")
    assert parse(shown, dimension) == pytest.approx(value, rel=0.006)


def test_shown_for_people() -> None:
    assert show(5e10, RATE) == "50 GB/s"
    assert show(0.3, S) == "300 ms"
    assert show(0.0, B) == "0 B"
    assert show(90.0, S) == "1.5 min"


def test_counts() -> None:
    assert [parse_count(t) for t in ("429", "16K", "64k", "64Ki", "1.5M", 7)] == [
        429,
        16_000,
        64_000,
        65_536,
        1_500_000,
        7,
    ]
    with pytest.raises(InputError, match="is out of range"):
        parse_count("9" * 400 + "G")
    for text in ("-5", "many", "1e3", "", "5 tokens"):
        with pytest.raises(InputError, match="is not a count"):
            parse_count(text)


@pytest.mark.parametrize("text", ["0", " 0 ", "0 s", "0.0 h", "-0ms"])
def test_a_duration_may_be_none_at_all(text: str) -> None:
    assert parse_duration(text) == 0.0


def test_a_duration_is_else_as_seconds_are() -> None:
    assert parse_duration("2 min") == 120.0
    for text in ("0 GB", "-1 s", "3", "soon", 0):
        with pytest.raises(InputError):
            parse_duration(text)
