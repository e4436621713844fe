"""A plan becomes files that a deployment accepts: one module a target, one registry.

``export(target_named("vllm"), read_plan(path))`` makes the files, :func:`write` puts them into a
folder. Every value says where it comes from (:mod:`values`), what the target cannot express is in
the folder's README with its effect, and user text is quoted in one place (:mod:`quoting`).
"""

from __future__ import annotations

from dualpath_model.export.folder import Export, diff, export, write
from dualpath_model.export.plan_file import PlanFile, parse_plan, plan_in, read_plan
from dualpath_model.export.registry import all_targets, target_named
from dualpath_model.export.site import Site, read_site
from dualpath_model.export.target import Asked, Bundle, Dropped, Target

__all__ = [
    "Asked",
    "Bundle",
    "Dropped",
    "Export",
    "PlanFile",
    "Site",
    "Target",
    "all_targets",
    "diff",
    "export",
    "parse_plan",
    "plan_in",
    "read_plan",
    "read_site",
    "target_named",
    "write",
]
