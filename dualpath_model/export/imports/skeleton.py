"""A scenario with holes: what was read from a deployment's files, and what its user must still say."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from dualpath_model.errors import unknown_name
from dualpath_model.export.quoting import one_line, yaml_scalar

STAND_IN = "paper-hopper"
"""The node that stands in for the real ones, which no deployment states."""
STAND_IN_GPUS = 8
KV_DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "bf16": "bf16",
        "bfloat16": "bf16",
        "float16": "bf16",
        "fp8": "fp8",
        "fp8_e4m3": "fp8",
        "fp8_e5m2": "fp8",
        "fp8_ds_mla": "fp8_ds_mla",
    }
)
"""What engines call the type of the KV-cache, and what a scenario does."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """Plain data of a scenario file, as far as it is known.

    ``found``: sentences that say what was read and where; ``missing``: what the user must fill in, or
    check where a value stands in for one that was not stated.
    """

    scenario: Mapping[str, Any]
    found: tuple[str, ...]
    missing: tuple[str, ...]

    def to_yaml(self) -> str:
        """Return the scenario file, with what was found and what is missing as comments above it."""
        lines = ["# Skeleton of a scenario, read from a deployment. Found:"]
        lines += [f"#   {one_line(sentence)}" for sentence in self.found]
        lines += ["# To fill in or check:"]
        lines += [f"#   {one_line(sentence)}" for sentence in self.missing or ("nothing",)]
        return "\n".join([*lines, *_block(self.scenario, "")]) + "\n"


def catalog_llm(model: str) -> str | None:
    """Return the catalog's name of a model or path of weights; None where it has none."""
    from dualpath_model.catalog.llms import llm_names

    short = model.rstrip("/").rsplit("/", 1)[-1].lower()
    known = [name for name in llm_names() if short == name or short.startswith(f"{name}-")]
    return max(known, key=len) if known else None


def known_llm(model: str, missing: list[str]) -> str:
    """Return the catalog's name of a model; itself where there is none, which ``missing`` then says."""
    known = catalog_llm(model)
    if known is not None:
        return known
    missing.append(
        f"llm: '{one_line(model)}' is in no catalog; take a name of `dualpath llm list`, or give its "
        f"config.json"
    )
    return model


def stand_in(gpus: int, buffer: str | None) -> dict[str, Any]:
    """Return a node of so many GPUs and a compute NIC for each; ``buffer``: of the node, with a unit."""
    node: dict[str, Any] = {"base": STAND_IN}
    if gpus != STAND_IN_GPUS:
        node |= {"gpus": gpus, "cnics": gpus}
    return node if buffer is None else node | {"buffer": buffer}


def like_the_other(scenario: Mapping[str, Any], role: str, missing: list[str]) -> None:
    """Give a role of which nothing is stated the nodes of the other: what holds the LLM there holds it
    here too.
    """
    other = "decode" if role == "prefill" else "prefill"
    for part in ("cluster", "parallelism"):
        scenario[part][role] = scenario[part][other]
    missing.insert(
        0,
        f"cluster.{role}: nothing with this role is stated; as many nodes as for {other} stand in, give "
        f"count and machine",
    )


def importer_names() -> list[str]:
    """Return the kinds of deployment that can be read."""
    from dualpath_model.export import imports

    found = [module.name for module in pkgutil.iter_modules(imports.__path__)]
    return sorted(name for name in found if name not in ("skeleton",) and name[0] != "_")


def read_deployment(kind: str, path: Path) -> Skeleton:
    """Read a deployment's file. Raises InputError for an unknown kind and for a file that it is not."""
    names = importer_names()
    if kind not in names:
        raise unknown_name("kind of deployment", kind, names)
    module = importlib.import_module(f"{__package__}.{kind}")
    return cast("Callable[[Path], Skeleton]", module.read)(path)


def _block(data: Any, indent: str) -> list[str]:
    lines: list[str] = []
    for key, part in data.items():
        head = f"{indent}{yaml_scalar(str(key))}:"
        if isinstance(part, Mapping) and part:
            lines += [head, *_block(part, indent + "  ")]
        elif isinstance(part, list | tuple) and part:
            lines.append(head)
            for item in part:
                if isinstance(item, Mapping) and item:
                    inner = _block(item, indent + "    ")
                    lines.append(f"{indent}  - {inner[0].lstrip()}")
                    lines += inner[1:]
                else:
                    lines.append(f"{indent}  - {_flow(item)}")
        else:
            lines.append(f"{head} {_flow(part)}")
    return lines


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    return yaml_scalar(value)
