"""Whether to turn prefill nodes into decode nodes or back, given what was served of late.

:func:`decide` looks at a window of recent turns and the cluster as it is, asks the LP for every ratio
that the nodes could have, and says *keep*, *retune* (the scheduler's parameters alone) or *change*. The
rule, with its formulas, is in docs/replanning.md:

- served(C) = min(margin C, growth offered): of the LP's C requests/s a share is within the SLO, and
  nobody is served twice;
- gain = (served(after) - served(before)) x (horizon - duration of the switch);
- cost = sum over the batches of nodes that turn (served(before) - served(meanwhile)) x its seconds,
  and the requests' worth of reads that refilling lost KV-cache takes;
- change only where gain > cost, after / before > 1 + least gain (on the whole window, and on each of
  several parts of it, so that no handful of huge turns decides), the last change is long enough ago and
  the window has turns enough to trust its means. Of the ratios that pass, the one with the largest
  gain - cost;
- retune only where a parameter moves by a tenth, the same way in each of the parts, and under the same
  two conditions of time and turns.

A constant load never flaps: a ratio's capacity depends on the mix and the roles alone, so after a
change the ratio it came from has less of it, and the quotient is below 1. :mod:`solvers.replan_day`
drives the same function over a recorded day.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from dualpath_model.cluster import Cluster
from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.parameters import SchedulerParameters
from dualpath_model.scenario import Scenario, WorkloadClass
from dualpath_model.scheduler.setup import scheduler_settings
from dualpath_model.workload import Workload
from solvers import planner
from solvers.alternatives import name_of
from solvers.replan_answer import (
    DECISION_VERSION,
    Action,
    Capacity,
    Decision,
    Gain,
    KindCounts,
    Latency,
    Option,
    Rule,
    Window,
)
from solvers.replan_cost import NodeCost
from solvers.replan_cost import words as cost_words
from solvers.replan_ratios import (
    Assignment,
    Capacities,
    check_cluster,
    kinds_of,
    ratio_name,
    turned_nodes,
)
from solvers.replan_weigh import Weigh, search
from solvers.simulator.constants import TOKEN_LIMIT, Constants

_RETUNE = 0.1  # relative change of alpha, beta or (absolute) of the split that is worth a word
_SAME = 1e-9
_NOT_RETUNED = "the scheduler's parameters are left as they are"


def sessions_rate(window: Workload) -> float:
    """Return sessions/s of a window that has times: those after the first, over the time they took.

    Raises InputError where it has none.
    """
    span = float(np.ptp(window.start_s))
    if window.session_count < 2 or span <= 0:
        raise InputError(
            f"{window.source}: its sessions have no times of arrival, so their rate is not known; "
            f"give --rate in sessions/s"
        )
    return (window.session_count - 1) / span


def with_mix(scenario: Scenario, window: Workload) -> Scenario:
    """Return the scenario with the window as its only traffic."""
    return replace(scenario, classes=(WorkloadClass("window", window, share=1.0),))


def decide(
    scenario: Scenario,
    window: Workload,
    requests_per_s: float,
    rule: Rule | None = None,
    *,
    waiting: float = 0.0,
    since_change_s: float = math.inf,
    parameters: bool = True,
    constants: Constants | None = None,
    token_limit: int = TOKEN_LIMIT,
) -> Decision:
    """Say whether to change roles: ``scenario`` is the cluster as it is, ``window`` what came of late.

    ``requests_per_s``: turns/s that were offered. ``waiting``: turns that waited for an engine at the
    window's end; where more wait than come within the SLO's TTFT, the cluster is behind, and since a
    session sends its next turn only after the last one, what was offered is what was served: the load is
    then taken as without limit. ``since_change_s``: seconds since the last change.
    Without ``parameters`` those of the scheduler are left out, which takes most of the time.
    ``constants``: what an engine adds to the roofline, None as in the simulator (measured by profiles
    or fitted), ``Constants()`` nothing: capacities are then those of ``dualpath plan``.
    ``token_limit``: most tokens of a forward batch.

    Raises InputError for a cluster whose nodes cannot change and for a bad rate, InfeasibleError if no
    ratio can serve the window's mix.
    """
    rule = rule or Rule()
    check_cluster(scenario)
    if not (math.isfinite(requests_per_s) and requests_per_s >= 0):
        raise InputError(f"rate is {requests_per_s} requests/s; it must be finite and not negative")
    mixed = with_mix(scenario, window)
    kinds = kinds_of(scenario.cluster)
    capacities = Capacities(mixed, kinds, constants, token_limit)
    if not (math.isfinite(waiting) and waiting >= 0):
        raise InputError(f"waiting is {waiting} turns; it must be finite and not negative")
    behind = waiting > requests_per_s * scenario.slo.ttft_s
    forecast = math.inf if behind else requests_per_s * rule.growth
    weigh = Weigh(mixed, kinds, capacities, rule, forecast)
    options, searched = search(kinds.now, weigh)
    if all(one.capacity_requests_per_s <= 0 for _, one in options):
        raise InfeasibleError(
            f"no ratio of these {sum(map(sum, kinds.now))} nodes serves the mix of {window.source}: "
            f"the LLM or a request does not fit, or the TPOT cannot be met"
        )
    best = _best(options, weigh)
    # what holds for every change, of roles or of parameters
    early = _too_early(window, since_change_s, rule)
    refused = [*_refusals(weigh, best[1], rule), *early] if best[1].turned else []
    if best[1].turned and not refused and rule.parts > 1:
        refused = _doubts(capacities, window, best, rule)
    chosen = kinds.now if refused else best[0]
    if not refused and chosen == kinds.now:
        refused = _content(weigh)
    here = weigh.option(chosen)
    quick, then = capacities.quick(kinds.now), capacities.quick(chosen)
    # a cluster that serves nothing today has no bottleneck of its own: that of what it becomes
    now_quick = quick or then
    if now_quick is None or then is None:
        raise InfeasibleError(
            f"'{scenario.name}' as it is cannot serve this window's mix, and {'; '.join(refused)}"
        )
    retuned: dict[str, str] = {}
    before = after = None
    if parameters:
        cluster = capacities.cluster(chosen)
        before, after = _deployed(scenario), _parameters(mixed, cluster)
        retuned = _retuned(before, after)
        if chosen == kinds.now and retuned:
            kept = early or _unsure(mixed, cluster, window, before, retuned, rule)
            refused, retuned = [*refused, *kept], {} if kept else retuned
    action: Action = "change" if chosen != kinds.now else "retune" if retuned else "keep"
    costs = weigh.costs(chosen)
    load = requests_per_s * rule.growth
    return Decision(
        version=DECISION_VERSION,
        scenario=scenario.name,
        action=action,
        prefill_nodes_before=len(scenario.cluster.prefill),
        decode_nodes_before=len(scenario.cluster.decode),
        prefill_nodes_after=here.prefill_nodes,
        decode_nodes_after=here.decode_nodes,
        kinds=tuple(
            KindCounts(node.name, p, d, p2, d2)
            for node, (p, d), (p2, d2) in zip(kinds.nodes, kinds.now, chosen, strict=True)
        ),
        turned=turned_nodes(kinds, chosen),
        capacity_requests_per_s=Capacity(
            weigh.before, here.during_requests_per_s, here.capacity_requests_per_s
        ),
        headroom_before=weigh.before / load if load else None,
        headroom_after=here.capacity_requests_per_s / load if load else None,
        bottleneck_before=name_of(now_quick.bottleneck),
        bottleneck_after=name_of(then.bottleneck),
        gain=_gain(weigh, here, rule),
        switch_s=here.switch_s,
        nodes_at_once=here.nodes_at_once,
        node_costs=costs,
        lost_bytes=weigh.lost_bytes(chosen),
        latency=_latency(mixed, load, weigh.before, here.capacity_requests_per_s),
        window=_window(window, requests_per_s, load, waiting, behind),
        best=best[1],
        options=tuple(
            sorted((one for _, one in options), key=lambda o: (o.prefill_nodes, -o.net_requests))
        ),
        searched=searched,
        parameters_before=before,
        parameters_after=after,
        reasons=(*_reasons(weigh, here, costs, refused, rule), *retuned.values()),
    )


# ---- the rule ------------------------------------------------------------------------------------


def _best(options: Sequence[tuple[Assignment, Option]], weigh: Weigh) -> tuple[Assignment, Option]:
    """Return the option of largest gain - cost, of those that pass the least gain if any is worth it.

    At a load that a slightly better ratio serves in full, one that is better by more is worth as much,
    but for the nodes more that it turns.
    """
    worth = [one for one in options if one[1].turned and not _refusals(weigh, one[1], weigh.rule)]
    return max(worth or options, key=lambda one: (one[1].net_requests, -one[1].turned))


def _refusals(weigh: Weigh, option: Option, rule: Rule) -> list[str]:
    """Return why an option is not worth the change."""
    found = []
    ratio = option.capacity_requests_per_s / weigh.before if weigh.before else math.inf
    to = option.name
    if ratio <= 1 + rule.min_gain + _SAME:
        found.append(
            f"{to} has {ratio - 1:.1%} more capacity, not more than the least gain of "
            f"{rule.min_gain:.1%}"
        )
    if option.net_requests <= 0:
        found.append(
            f"turning to {to} would cost {option.cost_requests:,.0f} requests and gain "
            f"{option.gain_requests:,.0f} over {rule.horizon_s:,.0f} s"
        )
    return found


def _too_early(window: Workload, since_change_s: float, rule: Rule) -> list[str]:
    """Return why nothing at all is changed now."""
    found = []
    if since_change_s < rule.dwell_s:
        found.append(
            f"the last change was {since_change_s:,.0f} s ago, less than the dwell of "
            f"{rule.dwell_s:,.0f} s"
        )
    if window.turns < rule.min_turns:
        found.append(
            f"the window has {window.turns} turns, fewer than the {rule.min_turns} that its means need"
        )
    return found


def _doubts(
    capacities: Capacities, window: Workload, best: tuple[Assignment, Option], rule: Rule
) -> list[str]:
    """Say so if the gain does not show in every part of the window."""
    ratios = []
    for number in range(rule.parts):
        part = _every(window, number, rule.parts)
        if part is None:
            return [_too_few(rule)]
        asked = replace(capacities, scenario=with_mix(capacities.scenario, part), _known={})
        before = asked.of(asked.kinds.now)
        ratios.append(asked.of(best[0]) / before if before else math.inf)
    if min(ratios) > 1 + rule.min_gain + _SAME:
        return []
    shown = ", ".join(f"{ratio - 1:+.1%}" for ratio in ratios)
    return [
        f"the gain of {best[1].name} does not show in every part of the window ({shown}; the "
        f"least gain is {rule.min_gain:.1%}), so it may be chance"
    ]


def _too_few(rule: Rule) -> str:
    return f"the window has too few turns to look at {rule.parts} parts of it"


def _unsure(
    mixed: Scenario,
    cluster: Cluster,
    window: Workload,
    now: SchedulerParameters | None,
    retuned: Collection[str],
    rule: Rule,
) -> list[str]:
    """Say so if none of the parameters moves the same way in every part of the window."""
    lasting = set(retuned)
    for number in range(rule.parts if rule.parts > 1 else 0):
        part = _every(window, number, rule.parts)
        if part is None:
            return [_too_few(rule)]
        try:
            then = _parameters(with_mix(mixed, part), cluster)
        except InfeasibleError:  # of a few huge turns
            return [f"a part of the window cannot be served, so {_NOT_RETUNED}"]
        lasting &= _retuned(now, then).keys()
    if lasting:
        return []
    return [f"what moves them does not show in every part of the window, so {_NOT_RETUNED}"]


def _every(window: Workload, first: int, step: int) -> Workload | None:
    """Return every ``step``-th turn of a window, None where that leaves nothing to prefill."""
    turns = np.arange(first, window.turns, step)
    if not turns.size or not (window.miss_tokens[turns] > 0).any():
        return None
    return Workload(
        prompt_tokens=window.prompt_tokens[turns],
        hit_tokens=window.hit_tokens[turns],
        output_tokens=window.output_tokens[turns],
        think_time_s=window.think_time_s[turns],
        start_s=np.zeros(len(turns)),
        offsets=np.arange(len(turns) + 1, dtype=np.int64),
        source=window.source,
    )


def _content(weigh: Weigh) -> list[str]:
    """Say why nothing is better than today's ratio."""
    within = weigh.rule.margin * weigh.before
    if weigh.load <= within:
        return [
            f"the load of {weigh.load:,.2f} requests/s is within the {within:,.2f} that this ratio "
            f"serves within the SLO, so no other ratio would serve more"
        ]
    return ["no other ratio serves more over the horizon than the switch to it would cost"]


# ---- the answer ----------------------------------------------------------------------------------


def _gain(weigh: Weigh, here: Option, rule: Rule) -> Gain:
    served, now = here.served_requests_per_s, weigh.served(weigh.before)
    nodes = here.prefill_nodes + here.decode_nodes
    within = rule.margin * weigh.before  # of all nodes
    hours = here.net_requests / within * nodes / 3600 if within else 0.0
    return Gain(
        requests_per_s=served - now,
        capacity_ratio=here.capacity_requests_per_s / weigh.before if weigh.before else math.inf,
        gain_requests=here.gain_requests,
        cost_requests=here.cost_requests,
        net_requests=here.net_requests,
        node_hours=hours,
    )


def _latency(mixed: Scenario, load: float, before: float, after: float) -> Latency:
    settings, workload = scheduler_settings(mixed), mixed.workload
    floor = (
        settings.hit_s_per_token * workload.hit_tokens
        + settings.miss_s_per_token * workload.miss_tokens
    )
    return Latency(
        load_before=load / before if before else math.inf,
        load_after=load / after if after else math.inf,
        ttft_floor_mean_s=float(floor.mean()),
        ttft_floor_p90_s=float(np.quantile(floor, 0.9)),
        slo_ttft_s=mixed.slo.ttft_s,
    )


def _window(window: Workload, offered: float, load: float, waiting: float, behind: bool) -> Window:
    return Window(
        source=window.source,
        sessions=window.session_count,
        turns=window.turns,
        mean_hit_tokens=float(window.hit_tokens.mean()),
        mean_miss_tokens=float(window.miss_tokens.mean()),
        mean_output_tokens=window.mean_output_tokens,
        offered_requests_per_s=offered,
        forecast_requests_per_s=load,
        waiting_requests=waiting,
        behind=behind,
    )


def _parameters(mixed: Scenario, cluster: Cluster) -> SchedulerParameters:
    """Return the scheduler's parameters as they should be for the window's mix on these nodes."""
    return planner.plan(mixed.on(cluster), intervals=False).scheduler_parameters


def _deployed(scenario: Scenario) -> SchedulerParameters | None:
    """Return the scheduler's parameters as planned for; None where that cannot be served any more."""
    try:
        return planner.plan(scenario, intervals=False).scheduler_parameters
    except InfeasibleError:
        return None


def _retuned(now: SchedulerParameters | None, then: SchedulerParameters) -> dict[str, str]:
    """Return which parameters move by enough to matter, up or down, and a sentence for each."""
    if now is None:
        return {}
    found = {}
    for name, was, is_ in (
        ("alpha", now.alpha_tokens, then.alpha_tokens),
        ("beta", now.beta_tokens, then.beta_tokens),
    ):
        if abs(is_ - was) > _RETUNE * was:
            way = "up" if is_ > was else "down"
            found[f"{name} {way}"] = (
                f"the scheduler's {name} goes from {was:,.0f} to {is_:,.0f} tokens"
            )
    if abs(then.split - now.split) > _RETUNE:
        way = "up" if then.split > now.split else "down"
        found[f"split {way}"] = (
            f"the share of reads through decode nodes goes from {now.split:.1%} to {then.split:.1%}"
        )
    return found


def _reasons(
    weigh: Weigh,
    here: Option,
    costs: Sequence[NodeCost],
    refused: Sequence[str],
    rule: Rule,
) -> list[str]:
    if not here.turned:
        return list(refused)
    was, becomes = ratio_name(weigh.kinds, weigh.kinds.now), here.name
    ratio = here.capacity_requests_per_s / weigh.before - 1 if weigh.before else math.inf
    turned = f"{here.turned} node{'s' if here.turned > 1 else ''}"
    load = "any load, for the cluster is behind," if math.isinf(weigh.load) else "the forecast load"
    return [
        f"{was} limits this mix at {weigh.before:,.2f} requests/s; with {turned} turned {becomes} has "
        f"{here.capacity_requests_per_s:,.2f} ({ratio:+.1%})",
        f"over {rule.horizon_s:,.0f} s that gains {here.gain_requests:,.0f} requests within the SLO at "
        f"{load} and the switch costs {here.cost_requests:,.0f}",
        f"the switch takes {here.switch_s:,.0f} s, {here.nodes_at_once} at a time: "
        + "; ".join(map(cost_words, costs)),
    ]
