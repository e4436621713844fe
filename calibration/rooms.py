"""What every measuring room takes and gives: a time to keep to, a way to tell, samples in series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dualpath_model.profile import AttentionFit, Estimate, Fit, Series, Setting

Tell = Callable[[float, str], None]
"""Gets the share that is done and what is being measured; raises KeyboardInterrupt after Ctrl-C."""


@dataclass
class Measured:
    """What a room found; :mod:`calibration.run` adds machine, date and tool versions."""

    series: list[Series]
    fits: list[Fit] = field(default_factory=list)
    figures: dict[str, Estimate] = field(default_factory=dict)
    attention: list[AttentionFit] = field(default_factory=list)
    settings: dict[str, Setting] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
