"""YAML that is refused: one sentence with file, line, field, value and remedy, and little work."""

from __future__ import annotations

import sys

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from dualpath_model import yaml_lines
from dualpath_model.errors import InputError
from dualpath_model.yaml_lines import Document

DOUBLING = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 26)
)
NESTED = "x0: &x0 [1]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}, 1]\n" for i in range(1, 800))


class Shape(BaseModel):
    count: int = 0
    word: str = ""
    names: list[str] = []


def complaint(text: str) -> str:
    with pytest.raises(InputError) as caught:
        yaml_lines.parse(text, "f.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!bool x", ":1: a: 'x' is not true or false; correct it, or put it in quotes"),
        ("a:\n- 1\n- !!timestamp x", ":3: a.1: 'x' is not a date or time; correct it"),
        ("a:\n  b: !!int ''", ":2: a.b: '' is not a whole number; correct it"),
        ("a: 0x_", ":1: a: '0x_' is not a whole number"),
        ("a: 2020-99-99", ":1: a: '2020-99-99' is not a date or time"),
        ("!!bool x: 1", ":1: x: 'x' is not true or false"),
        ('a: !!float "x\\ny"', ":1: a: 'x y' is not a number"),
        ("a: !!bool {=: x}", ":1: a: a list or a mapping is not true or false; leave the tag"),
        (f"a: !!int {{=: '0x{'f' * 5000}'}}", ":1: a: a list or a mapping is not a whole number;"),
    ],
)
def test_a_value_that_is_not_of_its_type(text: str, message: str) -> None:
    assert complaint(text).startswith(f"f.yaml{message}")


@pytest.mark.parametrize(
    "number", ["0x" + "f" * 5000, "9" * 5000, "1" + ":1" * 2500, "1" * 4999 + ".5"]
)
def test_a_number_of_thousands_of_digits(number: str) -> None:
    for text in (f"a: {{b: {number}}}", f"a: {{b: [{number}]}}", f"a:\n  ? {number}\n  : 1"):
        found = complaint(text)
        assert f"{number[:57]}...' is a number of 5,00" in found or f"{len(number):,} char" in found
        assert "give at most 100, or put it in quotes" in found


HUGE = 1 << 100_000


@pytest.mark.parametrize("value", [HUGE, [HUGE], {"a": -HUGE}], ids=["number", "list", "mapping"])
def test_explain_prints_any_value(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Shape.model_validate({"word": value})
    document = Document({"word": value}, {("word",): 3}, "f.yaml")
    message = str(yaml_lines.explain(caught.value, document, Shape))
    assert message == (
        f"f.yaml:3: word: a value ({type(value).__name__}) too long to print is not allowed; "
        f"a text is needed"
    )


def test_explain_shortens_values_and_fields() -> None:
    name = "n" * 1000
    with pytest.raises(ValidationError) as caught:
        Shape.model_validate({"count": name})
    lines = {("count",): 1}
    message = str(yaml_lines.explain(caught.value, Document({}, lines, "f.yaml"), Shape))
    assert message.startswith(f"f.yaml:1: count: '{name[:56]}... is not allowed")
    assert yaml_lines._field_name(("a", name, 1)) == f"a.{name[:57]}....1"


def test_aliases_that_double_are_refused() -> None:
    assert "more than 100,000 entries, those that aliases repeat included" in complaint(DOUBLING)
    merged = "a0: &a0 {k: v}\n" + "".join(
        f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 30)
    )
    assert "more than 100,000 entries" in complaint(merged)


def test_aliases_that_nest_are_refused() -> None:
    assert "contains itself or is nested too deep, more than 100 levels" in complaint(NESTED)
    assert "contains itself or is nested too deep" in complaint("a: &a\n  b: *a")


@pytest.mark.parametrize(("text", "parts"), [(DOUBLING, 3_000_000), (NESTED, 1_000_000)])
def test_little_is_recorded_of_what_is_refused(text: str, parts: int) -> None:
    loader = yaml.SafeLoader(text)
    recorder = yaml_lines._Recorder(loader, "f.yaml")
    node = loader.get_single_node()
    assert node is not None
    with pytest.raises(InputError):
        recorder.record(node, ())
    assert len(recorder.lines) <= yaml_lines._MOST_ENTRIES + 1
    assert sum(map(len, recorder.lines)) < parts
    assert max(map(len, recorder.lines)) <= yaml_lines._MOST_DEPTH + 1


def test_long_files_are_refused_before_they_are_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    def composed(self: object) -> None:
        raise AssertionError("it was composed")

    monkeypatch.setattr(yaml_lines._Loader, "get_single_node", composed)
    assert "more than 100,000 entries" in complaint("a: [" + "1," * 210_000 + "1]")
    for levels in (101, 1_000, 100_000):
        assert "nested too deep" in complaint("[" * levels)


def test_a_long_text_may_not_be_repeated_for_ever() -> None:
    text = f"a: &a {'x' * 1_000_000}\nb: [{'*a,' * 20}]"
    assert "more than 10,000,000 characters, those that aliases repeat" in complaint(text)


def test_a_key_is_a_word() -> None:
    bomb = "".join(f"&a{i} [*a{i - 1}, *a{i - 1}]," for i in range(1, 40))
    found = complaint(f"a:\n  ? [&a0 [x], {bomb}]\n  : 1")
    assert found == "f.yaml:2: a: a key is a list or a mapping; give a word"


def test_what_is_given_twice_is_named_in_short() -> None:
    name = "n" * 500
    assert f"'{name[:57]}...' is given twice" in complaint(f"{name}: 1\n{name}: 2")


def test_messages_of_libyaml_are_one_sentence() -> None:
    assert complaint("a: \x00").endswith("; mend that line")
    assert "not valid YAML" in complaint("a: !!" + "x" * 1000 + " 1")


def test_aliases_and_merges_are_at_hand() -> None:
    text = "a: &a {x: 1, z: [1, 2]}\nb:\n  <<: *a\n  y: !!float 2\nc: [*a, *a]\nd: !!int '3'\n"
    document = yaml_lines.parse(text, "f.yaml")
    assert document.data == yaml.safe_load(text)
    assert document.lines["c", 1, "z", 0] == 1
    assert document.lines["b", "y"] == 4


def test_a_large_but_sane_file_is_read() -> None:
    text = "a: [" + ", ".join(["{b: 1}"] * 10_000) + "]"
    assert len(yaml_lines.parse(text, "f.yaml").data["a"]) == 10_000
    digits = "9" * 100
    assert yaml_lines.parse(f"a: {digits}", "f.yaml").data == {"a": int(digits)}
    assert sys.get_int_max_str_digits() > yaml_lines._MOST_DIGITS
    deep = "[" * 99 + "]" * 99
    assert yaml_lines.parse(f"a: {deep}", "f.yaml").data["a"]
