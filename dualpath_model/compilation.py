"""Plain functions over arrays, run as they are or compiled by numba: one source, two speeds.

A function marked :func:`compilable` keeps to the subset that numba compiles and may call other such
functions. :func:`bound` makes a copy of it, with everything that it calls: compiled if asked, and with
some of the called functions replaced (the *hooks* by which policies differ). numba is imported only
when something is compiled.
"""

from __future__ import annotations

import dis
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS = {"cache": True, "error_model": "numpy", "forceinline": True}

_bound: dict[tuple[object, ...], Callable[..., Any]] = {}


def compilable(function: Function) -> Function:
    """Mark a function that numba can compile; calling it stays an ordinary call."""
    function.__compilable__ = True  # type: ignore[attr-defined]
    return function


def bound(
    function: Function,
    hooks: Mapping[str, Callable[..., Any]] | None = None,
    *,
    compiled: bool = False,
) -> Function:
    """Return ``function`` with ``hooks`` called in place of the compilable functions of those names.

    ``compiled``: through numba, cached on disk; such a function must not return an array that it was
    given. The same arguments give the same object again.
    """
    named = tuple(sorted((hooks or {}).items()))
    if not named and not compiled:
        return function
    found = _bound.get((function, named, compiled))
    if found is None:
        binder = _Binder(dict(named), compiled)
        found = binder.bind(function)
        if compiled:
            found = binder.entry(cast(FunctionType, function), found)
        _bound[function, named, compiled] = found
    return cast(Function, found)


class _Binder:
    """Copies a function and, once each, the compilable functions that it calls."""

    def __init__(self, hooks: Mapping[str, Callable[..., Any]], compiled: bool) -> None:
        self.hooks = hooks
        self.compiled = compiled
        self.copies: dict[Callable[..., Any], Callable[..., Any]] = {}

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the copy of ``function``."""
        if function in self.copies:
            return self.copies[function]
        original = cast(FunctionType, function)
        scope = dict(original.__globals__)
        called = self.called(original)
        copy = FunctionType(
            original.__code__, scope, original.__name__, original.__defaults__, None
        )
        if self.compiled:
            # numba renews a cached function when its own file changes, not when one that it calls
            # does; so the name carries a digest of everything reachable.
            copy.__qualname__ = f"{original.__qualname__}_{self.digest(original)}"
            copy.__module__ = original.__module__
        scope.update({name: self.bind(target) for name, target in called.items()})
        self.copies[function] = self.jit(copy) if self.compiled else copy
        return self.copies[function]

    def entry(self, function: FunctionType, inner: Callable[..., Any]) -> Callable[..., Any]:
        """Return the compiled ``inner`` with its arrays borrowed: not counted at each call inside.

        The caller holds them anyway. Counting the 50 arrays of a scheduler's state up and down at every
        call that is not inlined took three quarters of the time.
        """
        scope = {"inner": inner, "borrowed": _borrowed(), "__name__": __name__}
        copy = FunctionType(_entry.__code__, scope, _entry.__name__)
        copy.__qualname__ = f"entry_{function.__name__}_{self.digest(function)}"
        copy.__module__ = __name__
        return self.jit(copy)

    def called(self, function: FunctionType) -> dict[str, FunctionType]:
        """Return the compilable functions that ``function`` names, hooks in place."""
        found = {}
        for name in _global_names(function.__code__):
            target = function.__globals__.get(name)
            if getattr(target, "__compilable__", False):
                found[name] = cast(FunctionType, self.hooks.get(name, target))
        return found

    def digest(self, function: FunctionType) -> str:
        """Return a digest of the code and constants of ``function`` and all that it calls."""
        state = hashlib.sha256(repr(_OPTIONS).encode())
        pending, seen = [function], set()
        while pending:
            current = pending.pop()
            if current in seen:
                continue
            seen.add(current)
            state.update(_text(current.__code__).encode())
            for name in _global_names(current.__code__):
                value = current.__globals__.get(name)
                if isinstance(value, int | float):  # numba freezes these into the machine code
                    state.update(f"{name}={value!r}".encode())
            for name, value in sorted(current.__globals__.items(), key=lambda item: item[0]):
                fields = getattr(
                    value, "_fields", None
                )  # numba knows a named tuple by position only
                if isinstance(value, type) and isinstance(fields, tuple):
                    state.update(f"{name}{fields!r}".encode())
            pending.extend(called for _, called in sorted(self.called(current).items()))
        return state.hexdigest()[:12]

    @staticmethod
    def jit(function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile when first called, everything in one piece.

        Passing named tuples of arrays to a function that is not inlined copies each array's seven
        words: in the simulator that took five sixths of the time.
        """
        import numba

        compiled: Callable[..., Any] = numba.njit(**_OPTIONS)(function)
        return compiled


def _entry(*args: Any) -> Any:
    return inner(*borrowed(args))  # type: ignore[name-defined]  # noqa: F821


@cache
def _borrowed() -> Any:
    """Return the numba intrinsic that gives arrays, also those in tuples, without their owner."""
    import numba.core.cgutils
    import numba.extending
    import numba.np.arrayobj

    types: Any = numba.core.types
    cgutils: Any = numba.core.cgutils
    make_array: Any = numba.np.arrayobj.make_array

    def bare(context: Any, builder: Any, kind: Any, value: Any) -> Any:
        if isinstance(kind, types.Array):
            array = make_array(kind)(context, builder, value)
            array.meminfo = cgutils.get_null_value(array.meminfo.type)
            array.parent = cgutils.get_null_value(array.parent.type)
            return array._getvalue()
        if isinstance(kind, types.BaseTuple):
            parts = cgutils.unpack_tuple(builder, value, len(kind))
            bared = [bare(context, builder, t, v) for t, v in zip(kind, parts, strict=True)]
            return context.make_tuple(builder, kind, bared)
        return value

    def borrowed(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return bare(context, builder, signature.args[0], arguments[0])

        return value(value), generate

    return numba.extending.intrinsic(borrowed)


def _global_names(code: CodeType) -> list[str]:
    """Return the globals that code reads; ``co_names`` has attributes too."""
    loads = [step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"]
    return sorted(set(loads))


def _text(code: CodeType) -> str:
    constants = [c for c in code.co_consts if not isinstance(c, CodeType)]
    return f"{code.co_name} {code.co_code.hex()} {constants!r} {code.co_names!r}"
