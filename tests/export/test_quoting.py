"""Whatever text a user gives comes back as it was, and does nothing on its way."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dualpath_model.export import quoting
from dualpath_model.export.documents import command_file, settings_file, yaml_file
from dualpath_model.export.values import derived, fixed

# no surrogates: they are no text; no NUL: bash cannot hold one
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40)
NASTY = (
    "$(>canary)",
    "`>canary`",
    "'; >canary; '",
    '"\n- x: y\n#',
    "a\r\nb: c",
    "# no comment",
    "yes",
    "1e-7",
    "~",
    "{{ x }}",
    "\u2028\u0085\ufeff",
    "\\u0041\\",
    "!!python/object",
    "*anchor &x",
    "-",
    "",
    "\x1b[31m",
    "𝒳 é",
)


@given(TEXT)
@settings(max_examples=300)
def test_yaml_scalars_come_back(text: str) -> None:
    assert yaml.safe_load(f"key: {quoting.yaml_scalar(text)}") == {"key": text}


@pytest.mark.parametrize("text", NASTY)
def test_nasty_yaml_scalars_come_back(text: str) -> None:
    assert yaml.safe_load(f"key: {quoting.yaml_scalar(text)}") == {"key": text}
    assert yaml.safe_load(f"{quoting.yaml_scalar(text)}: 1") == {text: 1}


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.none())
def test_yaml_numbers_come_back(number: float | None) -> None:
    again = yaml.safe_load(f"key: {quoting.yaml_scalar(number)}")["key"]
    assert again == number
    assert type(again) is type(number)


def test_yaml_has_no_number_that_is_none() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        quoting.yaml_scalar(float("nan"))


def _bash_prints(word: str) -> str:
    script = f"printf '%s' {word}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={})
    return done.stdout.decode()


@given(TEXT)
@settings(max_examples=60, deadline=None)
@example("$(>canary)")
@example("a\nb'\\\x7f")
def test_shell_words_come_back(text: str) -> None:
    assert _bash_prints(quoting.shell(text)) == text


@given(TEXT)
def test_comments_stay_on_their_line(text: str) -> None:
    assert len(quoting.one_line(text).splitlines()) <= 1
    assert quoting.one_line(text).isprintable() or "\x00" not in quoting.one_line(text)


@given(TEXT)
def test_json_is_ascii_and_comes_back(text: str) -> None:
    found = quoting.json_text({"key": text})
    assert found.isascii()
    assert json.loads(found) == {"key": text}


@pytest.mark.parametrize("text", NASTY)
def test_scripts_run_only_their_own_commands(text: str, tmp_path: Path) -> None:
    file = command_file(
        "run.sh",
        "a script",
        [(["printf", "%s\\n", text], {"--flag": derived(text, f"from {text}"), "--on": None})],
        head=[text],
    )
    script = tmp_path / file.name
    script.write_text(file.text, encoding="utf-8")
    done = subprocess.run(["bash", script], capture_output=True, cwd=tmp_path, check=True)
    assert done.stdout.decode() == f"{text}\n--flag\n{text}\n--on\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.sh"]


@pytest.mark.parametrize("text", NASTY)
def test_settings_are_sourced_as_they_are(text: str, tmp_path: Path) -> None:
    file = settings_file("env", "settings", {"NAME": derived(text, text)}, head=[text])
    path = tmp_path / "env"
    path.write_text(file.text, encoding="utf-8")
    script = f". {path}; printf '%s' \"$NAME\""
    done = subprocess.run(["bash", "-c", script], capture_output=True, cwd=tmp_path, check=True)
    assert done.stdout.decode() == text
    assert [found.name for found in tmp_path.iterdir()] == ["env"]


_leaf = TEXT | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
_documents = st.recursive(
    _leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, _documents, min_size=1, max_size=4))
@settings(max_examples=200)
def test_yaml_documents_come_back(document: dict[str, object]) -> None:
    """With a comment above every value, and the same where a value is itself a list or a mapping."""

    def with_origins(part: object) -> object:
        if isinstance(part, dict):
            return {key: with_origins(inner) for key, inner in part.items()}
        if isinstance(part, list):
            return [with_origins(inner) for inner in part]
        return derived(part, "because\n- of: this")

    assert yaml.safe_load(yaml_file("f.yaml", "", with_origins(document)).text) == document
    whole = {key: fixed(part, "as it is") for key, part in document.items()}
    assert yaml.safe_load(yaml_file("f.yaml", "", whole).text) == document
