"""What a dual-path serving system is: data, equations, decisions.

The public door of the package; ``from dualpath_model import load_scenario`` is where most scripts
start, and :mod:`solvers` answers questions about what it returns.
"""

from __future__ import annotations

from dualpath_model.catalog.llms import llm_names, load_llm
from dualpath_model.catalog.nodes import load_node, node_names
from dualpath_model.cluster import Cluster, Efficiencies, Gpu, Node
from dualpath_model.errors import DualPathError, InfeasibleError, InputError
from dualpath_model.llm import KvDtype, Llm
from dualpath_model.loads import Demand, Loads, Serving, Slo
from dualpath_model.parameters import SchedulerParameters, SchedulerRules
from dualpath_model.paths import PAPER, Key, Path, Payload, Pool, Resource, Step, StepTable
from dualpath_model.scenario import Scenario, ScenarioSpec, load_scenario
from dualpath_model.traces import load_workload
from dualpath_model.workload import Session, Turn, Workload

__version__ = "0.1.0"

__all__ = [
    "PAPER",
    "Cluster",
    "Demand",
    "DualPathError",
    "Efficiencies",
    "Gpu",
    "InfeasibleError",
    "InputError",
    "Key",
    "KvDtype",
    "Llm",
    "Loads",
    "Node",
    "Path",
    "Payload",
    "Pool",
    "Resource",
    "Scenario",
    "ScenarioSpec",
    "SchedulerParameters",
    "SchedulerRules",
    "Serving",
    "Session",
    "Slo",
    "Step",
    "StepTable",
    "Turn",
    "Workload",
    "__version__",
    "llm_names",
    "load_llm",
    "load_node",
    "load_scenario",
    "load_workload",
    "node_names",
]
