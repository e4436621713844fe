"""Workloads from recorded traces and from the synthetic generator: one module a format."""

from dualpath_model.traces.detect import load_workload
from dualpath_model.traces.plain import write as write_plain
from dualpath_model.traces.stats import workload_statistics
from dualpath_model.traces.synthetic import (
    TABLE_2,
    SyntheticSpec,
    TrajectoryMeans,
    generate,
    trajectory_means,
)

__all__ = [
    "TABLE_2",
    "SyntheticSpec",
    "TrajectoryMeans",
    "generate",
    "load_workload",
    "trajectory_means",
    "workload_statistics",
    "write_plain",
]
