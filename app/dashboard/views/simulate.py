"""Simulate: policies side by side, event by event, in the background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import streamlit as st

from app import figures_comparison as drawing
from app.dashboard import answers, frames, session
from app.dashboard.frames import plain
from app.dashboard.jobs import Job, Jobs, Stage, key_of
from app.dashboard.question import Question
from app.dashboard.sidebar import sentence
from app.output import dump
from dualpath_model.errors import InputError
from solvers.planner import Plan

KINDS = {
    "compare": "Compare policies",
    "curve": "TTFT over load",
    "capacity": "Search the capacity",
}
MODES = ("a batch, all at once", "agents that arrive")
_ABOUT = {
    "basic": "reads on prefill nodes only, engines in turn",
    "dualpath": "the paper's scheduler: the shorter read queue",
    "split": "each read shared by both sides",
    "priced": "engines and side of least cost, with prices of the linear program",
    "round-robin": "engines and sides in turn",
    "oracle": "as if moving KV-cache cost nothing",
}
STARTED = "_started"
"""The session's key of the keys of its jobs."""
_MOST_AGENTS, _MOST_POLICIES, _POINTS = 2_000, 4, 6
_MOST_ARRIVALS = 10_000
"""Agents of one simulation that arrive over time; a batch of ``_MOST_AGENTS`` is there at once."""


@lru_cache(1)
def jobs() -> Jobs:
    """Return the server's jobs."""
    return Jobs()


def render(asked: Question) -> None:
    """Draw the page."""
    plan = answers.plan_of(asked)
    st.caption(
        "The simulator follows every request from arrival to last token through storage NICs, compute "
        "network and GPUs. The first run of a policy on a machine compiles it, which takes minutes; "
        "after that, runs take seconds."
    )
    job = _inputs(asked)
    if job is None:
        return
    key = key_of(job)
    known = jobs().look(key)
    left, right = st.columns([1, 4], vertical_alignment="center")
    running = known is not None and not known.stage.ended
    if left.button(
        "Run",
        type="primary",
        disabled=running or (known is not None and known.stage is Stage.DONE),
        icon=":material/play_arrow:",
        help="Run it in the background, also while you look at other pages.",
        width="stretch",
    ):
        try:
            key = jobs().start(job)
            st.session_state[STARTED] = [*st.session_state.get(STARTED, ()), key]
        except InputError as error:
            st.error(sentence(error), icon=":material/error:")
            return
        st.rerun()
    if known is None:
        right.caption("Not run yet on this server with these inputs.")
        return
    if running:
        _watch(key)
        return
    if known.stage is Stage.CANCELLED:
        st.info("Cancelled; nothing of it is kept. Run it again when you like.")
    elif known.stage is Stage.FORGOTTEN:
        st.info("Stopped, because no page that asked for it was open any more. Run it again.")
    elif known.stage is Stage.FAILED:
        st.error(plain(f"This cannot be simulated: {known.error}."), icon=":material/error:")
    else:
        _show(job["kind"], key, known, plan)


def going() -> None:
    """Say in the sidebar how many runs of this session are going on; they go on while a page is open."""
    if st.session_state.get(STARTED):
        with st.sidebar:
            _going()


@st.fragment(run_every=30.0)
def _going() -> None:
    running = jobs().going(st.session_state.get(STARTED, ()))
    if running:
        runs = "simulation is" if len(running) == 1 else "simulations are"
        st.caption(f"{len(running)} {runs} going on; see Simulate.")


def _inputs(asked: Question) -> dict[str, Any] | None:
    """Draw the inputs; return the job that they describe, None where they describe none."""
    names = list(_ABOUT)
    kind = st.segmented_control(
        "Question",
        list(KINDS),
        format_func=KINDS.__getitem__,
        key=session.control("simulate.kind", "compare", list(KINDS)),
        help="Compare policies on the same agents; see how the time to the first token (TTFT) grows "
        "with the rate of arrivals; or search the highest rate within the latency promise.",
    )
    kind = kind or "compare"
    policies = st.multiselect(
        "Policies",
        names,
        format_func=lambda name: f"{name}: {_ABOUT[name]}",
        max_selections=_MOST_POLICIES,
        key=session.control("simulate.policies", ("basic", "dualpath"), names, most=_MOST_POLICIES),
        help="Who decides which node reads; at most four.",
    )
    if not policies:
        st.info("Choose at least one policy.")
        return None
    job: dict[str, Any] = {
        "kind": kind,
        "yaml": answers.yaml_of(asked),
        "folder": str(answers.folder_of(asked)),
        "policies": list(policies),
        "agents": None,
        "rate_aps": None,
        "until_s": None,
        "warmup_s": 0.0,
    }
    life_s = _life_s(asked)
    full_aps = min(100.0, max(0.05, round(answers.plan_of(asked).sessions_per_s or 0.6, 2)))
    columns = st.columns(4)
    if kind == "compare":
        mode = columns[0].selectbox(
            "Agents come as",
            MODES,
            key=session.control("simulate.mode", MODES[0], MODES),
            help="A batch, as in offline roll-outs, or arrivals at random times, as of users.",
        )
        if mode == MODES[0]:
            job["agents"] = columns[1].number_input(
                "Agents",
                1,
                _MOST_AGENTS,
                step=16,
                key=session.control("simulate.agents", 512, low=1, high=_MOST_AGENTS),
                help="Sessions that run at once; each has many requests.",
            )
        else:
            job["rate_aps"] = columns[1].number_input(
                "Agents a second",
                0.01,
                100.0,
                step=0.05,
                key=session.control("simulate.rate", max(0.01, full_aps / 2), low=0.01, high=100.0),
                help="Mean rate of arrivals (Poisson), in agents/s.",
            )
    elif kind == "curve":
        most = columns[0].number_input(
            "Up to, agents a second",
            0.05,
            100.0,
            step=0.1,
            key=session.control("simulate.most", full_aps, low=0.05, high=100.0),
            help=f"The curve has {_POINTS} rates up to this one, in agents/s.",
        )
        job["rates_aps"] = [round(most * (i + 1) / _POINTS, 4) for i in range(_POINTS)]
    if kind != "compare" or job["rate_aps"] is not None:
        warmup = columns[2].number_input(
            "Warm-up, s",
            0,
            20_000,
            step=60,
            key=session.control("simulate.warmup", life_s, low=0, high=20_000),
            help="Simulated seconds before requests count: the cluster fills up first, which takes as "
            "long as an agent lives. As it stands: turns a session at half the promised latencies.",
        )
        measure = columns[3].number_input(
            "Measure, s",
            60,
            20_000,
            step=60,
            key=session.control("simulate.measure", life_s, low=60, high=20_000),
            help="Simulated seconds that count.",
        )
        job["warmup_s"] = float(warmup)
        job["until_s"] = float(warmup + measure)
        job["measure_s"] = float(measure)
    if kind != "compare":
        statistic = columns[1].selectbox(
            "Within the promise",
            ("mean", "p99"),
            key=session.control("simulate.statistic", "mean", ("mean", "p99")),
            help="What of the TTFT must be within the promise: its mean, or 99 % of the requests.",
        )
        if kind == "capacity":
            job["statistic"] = statistic
    job["seed"] = int(
        columns[0 if kind == "capacity" else 2 if job["until_s"] is None else 0].number_input(
            "Seed",
            0,
            2**31,
            key=session.control("simulate.seed", 0, low=0, high=2**31),
            help="Of the random numbers: the same seed gives the same agents to every policy.",
        )
    )
    return job if _bounded(job) else None


def _life_s(asked: Question) -> int:
    """Return about how long an agent lives, s, in round numbers: every turn at half the promises."""
    scenario = answers.scenario_of(asked)
    sessions = sum(part.workload.session_count for part in scenario.classes)
    turns = sum(part.workload.turns for part in scenario.classes)
    output = sum(float(part.workload.output_tokens.sum()) for part in scenario.classes)
    think = sum(float(part.workload.think_time_s.sum()) for part in scenario.classes)
    promised = turns * scenario.slo.ttft_s + output * scenario.slo.tpot_s
    life_s = (0.5 * promised + think) / sessions
    return int(min(10_000, max(300, -(-life_s // 100) * 100)))


def _bounded(job: dict[str, Any]) -> bool:
    """Tell whether no simulation of a job has too many agents; say so if one has."""
    rate: float = max(job.get("rates_aps", [job["rate_aps"] or 0.0]))
    count = rate * float(job["until_s"] or 0.0)
    if count > _MOST_ARRIVALS:
        st.info(
            f"At {rate:g} agents a second, {count:,.0f} agents arrive in {job['until_s']:,.0f} s; one "
            f"simulation here has at most {_MOST_ARRIVALS:,}. Lower the rate, the warm-up or the time "
            f"that is measured, or use `dualpath simulate`."
        )
    return count <= _MOST_ARRIVALS


@st.fragment(run_every=1.0)
def _watch(key: str) -> None:
    """Show how far a job is, until it ends; then draw the page anew."""
    job = jobs().look(key)
    if job is None or job.stage.ended:
        st.rerun()
        return
    if job.stage is Stage.QUEUED:
        st.progress(0.0, f"Waits for {job.ahead} other runs of this server")
    else:
        left = "" if job.left_s is None else f", about {job.left_s:,.0f} s left"
        st.progress(job.share, plain(f"{job.text or 'starting'}{left}"))
    st.button(
        "Cancel",
        on_click=jobs().cancel,
        args=(key,),
        icon=":material/stop:",
        help="End the run at once; nothing of it is kept.",
    )


def _show(kind: str, key: str, job: Job, plan: Plan) -> None:
    found = job.result
    if kind == "compare":
        for name, figure in _compared(key, job).items():
            frames.figure(figure, name)
        frames.rows(_rows(found), "policies")
    elif kind == "curve":
        statistic = str(st.session_state.get("simulate.statistic", "mean"))
        frames.figure(drawing.curve(found, statistic), "load-curve")
        frames.rows(found["points"], "load-points")
    else:
        for text in flattered(found["capacity"], plan):
            st.warning(plain(text), icon=":material/warning:")
        frames.figure(drawing.capacities(found), "capacity")
        frames.rows(
            [
                {
                    "policy": row["policy"],
                    "agents/s": row["rate_aps"],
                    "low": row["low_aps"],
                    "high": row["high_aps"],
                    "requests/s": row["turns_per_s"],
                    "fails first above": row["limit"],
                }
                for row in found["capacity"]
            ],
            "capacities",
        )
    st.download_button(
        "everything (JSON)",
        lambda: dump(found).encode(),
        file_name=f"{kind}.json",
        mime="application/json",
        on_click="ignore",
        type="tertiary",
        icon=":material/download:",
        help="All figures of these runs.",
    )


def flattered(rows: Sequence[Mapping[str, Any]], plan: Plan) -> list[str]:
    """Return why a capacity that was found may be too high."""
    found = []
    short = [str(row["policy"]) for row in rows if row["in_transit"]]
    if short:
        found.append(
            f"{', '.join(short)}: the warm-up is shorter than an agent lives, so long sessions had not "
            f"grown yet and the rate is flattered; raise the warm-up."
        )
    for row in rows:
        bound = plan.throughput_requests_per_s
        if row["policy"] == "basic":
            bound = plan.throughput_basic_requests_per_s
        if row["policy"] != "oracle" and (row["turns_per_s"] or 0.0) > 1.05 * bound:
            found.append(
                f"{row['policy']} served {row['turns_per_s']:,.1f} requests/s, more than the "
                f"{bound:,.1f} that the Plan page bounds it by: its requests were shorter than the mean."
            )
    return found


_drawn: dict[str, dict[str, Any]] = {}


def _compared(key: str, job: Job) -> dict[str, Any]:
    """Return the figures of a comparison, drawn once."""
    if key not in _drawn:
        while len(_drawn) >= 16:
            _drawn.pop(next(iter(_drawn)))
        found = job.result
        _drawn[key] = {
            "ttft": drawing.distribution(found, "ttft_s", "Time to first token (TTFT)"),
            "ttft-parts": drawing.parts(found),
            "tpot": drawing.distribution(found, "tpot_s", "Time per output token (TPOT)"),
            "queues": drawing.queues(found),
            "storage-nics": drawing.nics(found),
        }
    return _drawn[key]


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    def cut(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.4g}")

    return [
        {
            "policy": run["summary"]["policy"],
            "completion (JCT), s": cut(run["summary"]["jct_s"]),
            "requests": run["summary"]["turns"],
            "requests/s": cut(run["summary"]["turns_per_s_simulated"]),
            **{
                f"{label} {key}, s": cut(run["summary"][name].get(key))
                for name, label in (("ttft_s", "TTFT"), ("tpot_s", "TPOT"))
                for key in ("mean", "p50", "p99")
            },
            "fullest storage NIC, times the mean": cut(run["summary"]["snic_max_over_mean"]),
        }
        for run in found["policies"]
    ]
