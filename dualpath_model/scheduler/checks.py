"""The door of the scheduler: what may be in an event, in one sentence when it is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dualpath_model.errors import InputError
from dualpath_model.scheduler.events import (
    MOST_TOKENS,
    EngineReport,
    Event,
    Fetch,
    Limits,
    NodeJoined,
    ParametersChanged,
    Prices,
    Settings,
    Submit,
)
from dualpath_model.scheduler.policies import policy_named

LEAST_RATE, MOST_RATE = 1e-3, 1e15


def whole(name: str, value: Any, least: int = 0, most: int = MOST_TOKENS) -> None:
    """Raise InputError unless ``value`` is an int in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(
            f"{name} is {_shown(value)}; it must be a whole number between {least} and {most}"
        )


def number(name: str, value: Any, least: float, most: float) -> None:
    """Raise InputError unless ``value`` is a finite number in [least, most]."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not (good and least <= value <= most):  # not true of nan
        raise InputError(
            f"{name} is {_shown(value)}; it must be a number between {least:g} and {most:g}"
        )


def named(kind: str, value: Any) -> None:
    """Raise InputError unless ``value`` is a usable name."""
    if not isinstance(value, str) or not 0 < len(value) <= 200 or not value.isprintable():
        raise InputError(
            f"{kind} {_shown(value)} is not a name; give 1 to 200 characters that can be printed"
        )


def _is(name: str, value: Any, kind: type, words: str) -> None:
    if not isinstance(value, kind):
        raise InputError(f"{name} is {_shown(value)}; it must be {words}")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # whatever it is, saying so must not fail (an int of 5,000 digits does)
        text = f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def event(value: Any) -> None:
    """Check that it is an event, and that what names something in it is text."""
    if not isinstance(value, Event):
        raise InputError(
            f"{_shown(value)} is not an event; give one of dualpath_model.scheduler.events"
        )
    for name in ("request", "node", "engine", "group"):
        given = getattr(value, name, "")
        if not isinstance(given, str):
            raise InputError(f"{name} {_shown(given)} is not a name; give text")
    whole("attempt", getattr(value, "attempt", 1), 1, 2**62)


def report(value: Fetch) -> None:
    """Check the form of a fetch's report, not its numbers."""
    for name in ("engines", "read_q"):
        given = getattr(value, name)
        where = f"fetch of group '{value.group}': {name}"
        _is(where, given, Mapping, "a mapping by name")
        for key in given:
            if not isinstance(key, str):
                raise InputError(f"{where} has {_shown(key)}, which is not a name; give text")


def parameters(value: ParametersChanged) -> None:
    """Check new parameters; :func:`limits` checks those of each node."""
    if value.settings is not None:
        settings(value.settings)
    _is("limits", value.limits, Mapping, "a mapping from node to Limits")


def submit(event: Submit) -> None:
    """Check a new request."""
    named("request", event.request)
    where = f"request '{event.request}': "
    whole(f"{where}prompt_tokens", event.prompt_tokens, 1)
    whole(f"{where}hit_tokens", event.hit_tokens, 0, event.prompt_tokens)
    whole(f"{where}reserve_tokens", event.reserve_tokens)


def engine_report(engine: str, report: EngineReport, limit_tokens: int) -> None:
    """Check what a leader says of an engine whose HBM holds ``limit_tokens`` (prefill: any)."""
    where = f"report on engine '{engine}': "
    if not isinstance(report, EngineReport):
        raise InputError(f"{where}it is {_shown(report)}; give an EngineReport")
    for name in ("seq", "tok", "free_tokens"):
        value = getattr(report, name)
        if value is not None:
            most = limit_tokens if name == "free_tokens" else MOST_TOKENS
            whole(f"{where}{name}", value, 0, most)
    if report.seq is not None and report.tok is not None:
        if report.tok < report.seq:
            raise InputError(
                f"{where}tok is {report.tok} for {report.seq} unfinished requests; each has at least "
                f"one token, so it must be {report.seq} or more"
            )
        if report.seq == 0 and report.tok > 0:
            raise InputError(
                f"{where}tok is {report.tok} with no unfinished request; it must be 0 when seq is 0"
            )


def node_joined(event: NodeJoined) -> None:
    """Check a node by itself."""
    named("node", event.node)
    named("group", event.group)
    if not isinstance(event.pool, str) or event.pool not in ("prefill", "decode"):
        raise InputError(
            f"node '{event.node}': pool is {_shown(event.pool)}; it must be prefill or decode"
        )
    _is(f"node '{event.node}': engines", event.engines, tuple, "a tuple of names")
    for engine in event.engines:
        named("engine", engine)
    if not event.engines or len(set(event.engines)) < len(event.engines):
        raise InputError(
            f"node '{event.node}': engines are {list(event.engines)}; give each once, and at least one"
        )
    limits(event.node, event.pool, event.limits)


def limits(node: str, pool: str, value: Limits) -> None:
    """Check the limits of a node."""
    where = f"node '{node}': "
    _is(f"{where}limits", value, Limits, "Limits")
    _is(f"{where}limits.prices", value.prices, Prices, "Prices")
    whole(f"{where}alpha_tokens", value.alpha_tokens)
    whole(f"{where}beta_tokens", value.beta_tokens)
    whole(f"{where}hbm_tokens", value.hbm_tokens, 1 if pool == "decode" else 0)
    number(f"{where}read_tokens_per_s", value.read_tokens_per_s, LEAST_RATE, MOST_RATE)
    number(f"{where}engine_tokens_per_s", value.engine_tokens_per_s, LEAST_RATE, MOST_RATE)
    prices: Prices = value.prices
    for name in ("read_price", "engine_price"):
        number(f"{where}prices.{name}", getattr(prices, name), 0.0, 1.0)
    _is(f"{where}prices.resources", prices.resources, tuple, "a tuple of names")
    for name in ("price", "near_s", "far_s", "miss_s"):
        column = getattr(prices, name)
        _is(f"{where}prices.{name}", column, tuple, "a tuple of numbers")
        if len(column) != len(prices.resources):
            raise InputError(
                f"{where}prices.{name} has {len(column)} entries for {len(prices.resources)} "
                f"resources; give one for each"
            )
        for entry in column:
            number(f"{where}prices.{name}", entry, 0.0, 1e6)


_SETTINGS = {
    "z_factor": (1.0, 10.0),
    "hit_s_per_token": (0.0, 1e6),
    "miss_s_per_token": (0.0, 1e6),
    "most_work_s": (0.0, 1e12),
    "expected_split": (0.0, 1.0),
    "hit_share": (0.0, 1.0),
    "price_weight_s": (0.0, 1e6),
}


def settings(value: Settings) -> None:
    """Check the settings; every field has its range here."""
    _is("settings", value, Settings, "Settings")
    for entry in fields(value):
        given = getattr(value, entry.name)
        name = f"settings.{entry.name}"
        if entry.name == "policy":
            named(name, given)
            policy_named(given)
        elif entry.name == "block_tokens":
            whole(name, given, 1, 65536)
        elif entry.name == "patience":
            whole(name, given, 0, 2**32)
        else:
            number(name, given, *_SETTINGS[entry.name])
