"""Names for Kubernetes from free text: DNS-1123, the same for the same text, different for others."""

from __future__ import annotations

import hashlib
import re

from dualpath_model.errors import InputError
from dualpath_model.export.quoting import one_line

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}\Z")
_DIGEST = 8


def label(text: str, most: int = 63) -> str:
    """Return ``text`` as a DNS-1123 label of at most ``most`` characters that begins with a letter.

    A text that had to be mended gets eight digits of its SHA-256 behind it, so that two scenarios whose
    names differ only in what a label cannot hold do not get one name.
    """
    if len(text) <= most and _LABEL.match(text) and text[0].isalpha():
        return text
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not words[:1].isalpha():
        words = f"plan-{words}".strip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{words[: most - _DIGEST - 1].strip('-')}-{digest}"


def checked_namespace(text: str) -> str:
    """Return a name space as it is. Raises InputError if it is no DNS-1123 label: it is the user's own
    word for a place that exists, so it is not mended.
    """
    if not _LABEL.match(text):
        raise InputError(
            f"site: namespace is '{one_line(text)}', which is no DNS-1123 label; use 1 to 63 lower case "
            f"letters, digits and hyphens, a letter or digit first and last, such as dualpath"
        )
    return text


def key(path: str) -> str:
    """Return a file's path as a key of a ConfigMap: letters, digits, ``-``, ``_`` and ``.``."""
    if _KEY.match(path) and path not in (".", "..") and not path.startswith(".."):
        return path
    plain = re.sub(r"[^-._a-zA-Z0-9]+", "-", path.replace("/", "__")).lstrip(".")
    digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{digest}-{plain[:200]}"
