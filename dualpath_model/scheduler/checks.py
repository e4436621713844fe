"""The door of the scheduler: what may be in an event, in one sentence when it is not."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from dualpath_model.errors import InputError
from dualpath_model.scheduler.events import (
    MOST_TOKENS,
    EngineReport,
    Event,
    Limits,
    NodeJoined,
    Prices,
    Settings,
    Submit,
)
from dualpath_model.scheduler.policies import policy_named

_LEAST_RATE, _MOST_RATE = 1e-3, 1e15


def whole(name: str, value: Any, least: int = 0, most: int = MOST_TOKENS) -> None:
    """Raise InputError unless ``value`` is an int in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(
            f"{name} is {value!r}; it must be a whole number between {least} and {most}"
        )


def number(name: str, value: Any, least: float, most: float) -> None:
    """Raise InputError unless ``value`` is a finite number in [least, most]."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not (good and math.isfinite(value) and least <= value <= most):
        raise InputError(f"{name} is {value!r}; it must be a number between {least:g} and {most:g}")


def named(kind: str, value: Any) -> None:
    """Raise InputError unless ``value`` is a usable name."""
    if not isinstance(value, str) or not value or len(value) > 200 or value.endswith(":"):
        raise InputError(
            f"{kind} {value!r} is not a name; give 1 to 200 characters that do not end in a colon"
        )


def event(value: Any) -> None:
    """Check that it is an event, and that what names something in it is text."""
    if not isinstance(value, Event):
        raise InputError(f"{value!r} is not an event; give one of dualpath_model.scheduler.events")
    for name in ("request", "node", "engine", "group"):
        if not isinstance(getattr(value, name, ""), str):
            raise InputError(f"{name} is {getattr(value, name)!r}; it must be a name, text")


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
        raise InputError(f"{where}it is {report!r}; give an EngineReport")
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
    if event.pool not in ("prefill", "decode"):
        raise InputError(
            f"node '{event.node}': pool is {event.pool!r}; it must be prefill or decode"
        )
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
    whole(f"{where}alpha_tokens", value.alpha_tokens)
    whole(f"{where}beta_tokens", value.beta_tokens)
    whole(f"{where}hbm_tokens", value.hbm_tokens, 1 if pool == "decode" else 0)
    number(f"{where}read_tokens_per_s", value.read_tokens_per_s, _LEAST_RATE, _MOST_RATE)
    number(f"{where}engine_tokens_per_s", value.engine_tokens_per_s, _LEAST_RATE, _MOST_RATE)
    prices: Prices = value.prices
    for name in ("read_price", "engine_price"):
        number(f"{where}prices.{name}", getattr(prices, name), 0.0, 1.0)
    for name in ("price", "near_s", "far_s", "miss_s"):
        column = getattr(prices, name)
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
    "split": (0.0, 1.0),
    "hit_share": (0.0, 1.0),
    "price_weight_s": (0.0, 1e6),
}


def settings(value: Settings) -> None:
    """Check the settings; every field has its range here."""
    for entry in fields(value):
        given = getattr(value, entry.name)
        name = f"settings.{entry.name}"
        if entry.name == "policy":
            policy_named(given)
        elif entry.name == "block_tokens":
            whole(name, given, 1, 65536)
        elif entry.name == "patience":
            whole(name, given, 0, 2**32)
        else:
            number(name, given, *_SETTINGS[entry.name])
