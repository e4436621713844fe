"""The scheduler: decisions as functions over arrays, the stateful reference around them, the policies.

Read :mod:`paper` (the rules), :mod:`placement` (the loops around them), :mod:`reference` (the state
machine), in this order; ``docs/scheduler.md`` is the guide.
"""

from __future__ import annotations

from dualpath_model.scheduler.events import (
    Decision,
    DecodeFinished,
    DecodePlaced,
    EngineJoined,
    EngineLost,
    EngineReport,
    Event,
    Fetch,
    GroupChosen,
    Limits,
    NodeJoined,
    NodeLost,
    ParametersChanged,
    PrefillFinished,
    PrefillPlaced,
    Prices,
    ReadFinished,
    ReadOrdered,
    ReadStarted,
    Returned,
    Settings,
    Submit,
)
from dualpath_model.scheduler.log import DecisionLog, replay
from dualpath_model.scheduler.policies import POLICIES, Policy
from dualpath_model.scheduler.reference import Scheduler
from dualpath_model.scheduler.setup import scheduler_nodes, scheduler_settings

__all__ = [
    "POLICIES",
    "Decision",
    "DecisionLog",
    "DecodeFinished",
    "DecodePlaced",
    "EngineJoined",
    "EngineLost",
    "EngineReport",
    "Event",
    "Fetch",
    "GroupChosen",
    "Limits",
    "NodeJoined",
    "NodeLost",
    "ParametersChanged",
    "Policy",
    "PrefillFinished",
    "PrefillPlaced",
    "Prices",
    "ReadFinished",
    "ReadOrdered",
    "ReadStarted",
    "Returned",
    "Scheduler",
    "Settings",
    "Submit",
    "replay",
    "scheduler_nodes",
    "scheduler_settings",
]
