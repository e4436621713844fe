"""What is asked: a scenario, and how the sliders change it. Hashable, so that answers are remembered."""

from __future__ import annotations

from dataclasses import dataclass, replace

Value = int | float | str


@dataclass(frozen=True)
class Question:
    """A shipped example (``base``) or a YAML of one's own (``text``), with what was changed in it.

    ``files``: name in the scenario and SHA-256 of each upload that it refers to. ``knobs``: name and
    value of those that were moved, in the order of :data:`app.dashboard.knobs.KNOBS`.
    """

    base: str
    text: str = ""
    files: tuple[tuple[str, str], ...] = ()
    knobs: tuple[tuple[str, Value], ...] = ()

    def unmoved(self) -> Question:
        """Return the question as it was before any knob was moved."""
        return replace(self, knobs=())


@dataclass(frozen=True)
class Pin:
    """A question that is kept for comparison, under a name."""

    name: str
    question: Question
