"""vLLM's own source, run or read without vLLM: what the other checkers of vllm share."""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import importlib.util
import os
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SITE = next(
    Path(part)
    for part in os.environ["PYTHONPATH"].split(os.pathsep)
    if (Path(part) / "vllm").is_dir()
)
ROOT = SITE / "vllm"
EXTRA = "extra_config"
_A_LIMIT = 10**6
"""What vllm.envs gives for any of its limits: no request of ours comes near."""


class Empty(types.ModuleType):
    """A module in which a class is Any, so that pydantic takes it, a constant a large number, and any
    other name a function that does nothing.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.isupper():
            return _A_LIMIT
        return Any if name[0].isupper() else Nothing()


class Nothing:
    """An object that can be called and asked for anything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *given: Any, **named: Any) -> Any:
        return given[0] if given and callable(given[0]) else self


class Finder:
    """Any module of vllm or openai that is not named as real is an empty one."""

    def __init__(self, real: set[str]) -> None:
        self.real = real

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".", maxsplit=1)[0] not in ("vllm", "openai"):
            return None
        if name in self.real:
            place = ROOT.parent.joinpath(*name.split(".")).with_suffix(".py")
            return importlib.util.spec_from_file_location(name, place)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> Any:
        return Empty(spec.name)

    def exec_module(self, module: Any) -> None:
        module.__path__ = []


def real_modules(*names: str) -> None:
    """Let these modules be vLLM's own, and all others of vllm empty."""
    sys.meta_path.insert(0, Finder(set(names)))


def tree(place: str) -> ast.Module:
    """Return a file of the package as a syntax tree."""
    return ast.parse((ROOT / place).read_text(encoding="utf-8"))


def functions(place: str, *names: str, **known: Any) -> dict[str, Any]:
    """Execute some functions, classes and constants of a module alone. ``known``: what they use."""
    wanted = [node for node in tree(place).body if _named(node) in names]
    missing = set(names) - {_named(node) for node in wanted}
    assert not missing, f"{place} has no {missing}"
    module = types.ModuleType(place)
    sys.modules[place] = module
    module.__dict__.update({"__builtins__": builtins, **vars(typing), **known})
    code = ast.Module(body=wanted, type_ignores=[])
    exec(compile(code, place, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _named(node: ast.stmt) -> str | None:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return None


def registered(place: str, method: str) -> dict[str, tuple[str, str]]:
    """Return what a factory knows: name to file and class."""
    return {
        call.args[0].value: (
            call.args[1].value.removeprefix("vllm.").replace(".", "/"),
            call.args[2].value,
        )
        for call in ast.walk(tree(place))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == method
        and all(isinstance(part, ast.Constant) for part in call.args)
    }


def extra_keys(*places: str) -> set[str]:
    """Return the keys that some files, or folders of them, read from ``kv_connector_extra_config``."""
    found = set()
    for place in places:
        path = ROOT / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found |= set(_extra_keys(ast.parse(file.read_text(encoding="utf-8"))))
    return found


def _extra_keys(module: ast.Module) -> Iterator[str]:
    for call in ast.walk(module):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args):
            continue
        first, receiver = call.args[0], ast.unparse(call.func.value)
        read = call.func.attr == "get_from_extra_config" or (
            call.func.attr == "get" and receiver.endswith(EXTRA)
        )
        if read and isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value


def arguments(place: str, name: str) -> set[str]:
    """Return the arguments of a class's ``__init__``."""
    (found,) = [node for node in ast.walk(tree(place)) if _named(node) == name]
    (init,) = [node for node in found.body if getattr(node, "name", "") == "__init__"]
    return {argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)} - {"self"}


def texts(place: str) -> set[str]:
    """Return every string of a file."""
    return {
        node.value
        for node in ast.walk(tree(place))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def flags() -> set[str]:
    """Return the flags of ``vllm serve``: those of the engine, and the fields of its front end."""
    found = {
        part.value
        for call in ast.walk(tree("engine/arg_utils.py"))
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument"
        for part in call.args
        if isinstance(part, ast.Constant) and str(part.value).startswith("--")
    }
    for node in tree("entrypoints/common/cli_args.py").body:
        if isinstance(node, ast.ClassDef):
            found |= {
                "--" + field.target.id.replace("_", "-")
                for field in node.body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            }
    return found
