"""What every measuring room takes and gives: a time to keep to, a way to tell, samples in series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dualpath_model.parameters import SchedulerRules
from dualpath_model.profile import AttentionFit, Estimate, Fit, Series, Setting

BLOCK_TOKENS = SchedulerRules().block_tokens
"""Tokens of a full block, the unit of storage (paper, section 6.1)."""

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


def join(parts: Sequence[Measured]) -> Measured:
    """Return what several rooms found as what one did, in their order.

    Of figures with equal names the first part's counts; of equal settings and tools, the last part's.
    """
    whole = Measured([])
    for part in parts:
        whole.series += part.series
        whole.fits += part.fits
        whole.figures |= {k: v for k, v in part.figures.items() if k not in whole.figures}
        whole.attention += part.attention
        whole.settings |= part.settings
        whole.tools |= part.tools
        whole.warnings += part.warnings
    return whole
