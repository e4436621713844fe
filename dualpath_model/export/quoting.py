"""Text of users in files of others: a function for each language, so that nothing escapes its quotes."""

from __future__ import annotations

import json
import math
import re
import shlex
from typing import Any

_PLAIN_YAML = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*\Z")
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}
_UNPRINTED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")


def one_line(text: object) -> str:
    """Return text without line breaks or control characters: fit for a comment in any format."""
    return _UNPRINTED.sub(lambda found: repr(found.group())[1:-1], str(text))


def shell(text: object) -> str:
    """Return text as one word of bash. Control characters become what ``$'...'`` spells out."""
    word = str(text)
    if not _UNPRINTED.search(word):
        return shlex.quote(word)
    spelt = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _UNPRINTED.sub(lambda found: _bash_escape(found.group()), spelt) + "'"


def _bash_escape(letter: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "replace"))


def yaml_scalar(value: Any) -> str:
    """Return a string, number, bool or None as YAML 1.1 and 1.2 both read it."""
    if isinstance(value, str):
        if _PLAIN_YAML.match(value) and value.lower() not in _YAML_WORDS:
            return value
        return _UNPRINTED.sub(
            lambda found: f"\\u{ord(found.group()):04x}", json.dumps(value, ensure_ascii=False)
        )
    if isinstance(value, float) and math.isfinite(value):
        text = repr(value)
        # YAML 1.1 takes 1e-07 for a string: it wants a point and a sign
        if "e" in text:
            mantissa, _, exponent = text.partition("e")
            mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
            return f"{mantissa}e{exponent if exponent[0] in '+-' else '+' + exponent}"
        return text
    return json.dumps(value, allow_nan=False)


def json_text(data: Any) -> str:
    """Return JSON in ASCII, indented, ending in a newline. Raises ValueError for nan and inf."""
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def markdown(text: object) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|&~])", r"\\\1", one_line(text))


def code(text: object) -> str:
    """Return text as a Markdown code span."""
    line = one_line(text).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{pad}{line}{pad}{fence}"
