"""RoCE: DSCP values, traffic classes and their shares for `dcb`, and the applications' variables.

dcb (iproute2 6.1.0) asks the device before it looks at the maps, so nothing but a real NIC reads them:
their ranges are checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dualpath_model.deployment import NodeKind
from dualpath_model.errors import InputError
from dualpath_model.export.documents import File, command_file, json_file, settings_file
from dualpath_model.export.site import Site, of_site
from dualpath_model.export.target import Asked, Bundle, Dropped, Target
from dualpath_model.export.targets._qos import (
    COLLECTIVE_LANE,
    KV_LANE,
    LIMIT_BYTES,
    Qos,
    not_of_a_network,
    percent_of,
    qos_of,
)
from dualpath_model.export.values import Value, derived, fixed

_PRIORITIES = 8
_SPARE_LANE = 3
_SPARE_DSCP = 34
_SHARES = (
    "low-priority weights of the lanes (collectives qos_collective_weight, KV-cache qos_kv_weight) as "
    "percents: rounded down, what is left of 100 to those that lost most, each at least 1"
)


def build(asked: Asked) -> Bundle:
    """Return a script for each kind of node, the environment and the table of classes."""
    qos, site = qos_of(asked.plan), asked.site
    marks = _marks(site)
    scripts = tuple(
        _script(names, pool, nics, qos, site, asked) for names, pool, nics in _groups(asked)
    )
    environment = settings_file(
        "roce.env",
        "environment of every engine, on prefill and decode nodes alike",
        _environment(site),
        head=("Traffic class bytes of the applications: 4 x DSCP, the two low bits are ECN's",),
    )
    table = json_file(
        "classes.json",
        "DSCP, traffic class byte, priority and share of each lane, for the switches' settings too",
        {"classes": [_class(lane.number, lane.carries, qos, marks) for lane in qos.lanes]},
    )
    return Bundle((*scripts, environment, table), _dropped(asked, qos), _NOTES)


def _marks(site: Site) -> dict[int, Value]:
    """Return the DSCP of each lane. Raises InputError if two lanes have one."""
    found = {
        0: fixed(0, "what nobody marked"),
        COLLECTIVE_LANE: of_site(site, "collective_dscp"),
        KV_LANE: of_site(site, "kv_dscp"),
        _SPARE_LANE: fixed(_SPARE_DSCP, "second lane of collectives, free"),
    }
    values = [mark.value for mark in found.values()]
    if len(set(values)) < len(values):
        raise InputError(
            f"site: kv_dscp is {site.kv_dscp} and collective_dscp is {site.collective_dscp}; they must "
            f"differ from each other and from {_SPARE_DSCP} (second lane of collectives), each 1 to 63"
        )
    return found


def _groups(asked: Asked) -> list[tuple[str, str, int]]:
    """Return (file, pool, compute NICs) of each script: nodes with as many NICs share one."""
    found = []
    for pool in ("prefill", "decode"):
        counts = sorted({kind.cnics for kind in asked.deployment.pool(pool)})
        for count in counts:
            name = f"dcb-{pool}.sh" if len(counts) == 1 else f"dcb-{pool}-{count}-nics.sh"
            found.append((name, pool, count))
    return found


def _script(name: str, pool: str, nics: int, qos: Qos, site: Site, asked: Asked) -> File:
    kinds = [kind for kind in asked.deployment.pool(pool) if kind.cnics == nics]
    commands: list[tuple[Sequence[str], Mapping[str, Value | None]]] = []
    for interface in _interfaces(site, nics, kinds):
        commands += _commands(interface, qos, _marks(site))
    nodes = ", ".join(str(p) for kind in kinds for p in kind.positions)
    return command_file(
        name,
        f"commands for {pool} nodes {nodes}",
        commands,
        head=(
            f"For {pool} nodes {nodes}, as root: dcb of iproute2 {asked.version}, compute interfaces",
        ),
    )


def _interfaces(site: Site, nics: int, kinds: Sequence[NodeKind]) -> list[Value]:
    given = site.compute_interfaces
    if given is None:
        return [of_site(site, "compute_interfaces", f"compute{number}") for number in range(nics)]
    if len(given) < nics:
        raise InputError(
            f"site: compute_interfaces names {len(given)} interfaces, but {kinds[0].pool} nodes have "
            f"{nics} compute NICs; name one for each, else KV-cache on the others has no class"
        )
    return [of_site(site, "compute_interfaces", name) for name in given[:nics]]


def _commands(
    interface: Value, qos: Qos, marks: Mapping[int, Value]
) -> list[tuple[Sequence[str], Mapping[str, Value | None]]]:
    lanes = [lane.number for lane in qos.lanes]
    shares = _shares(qos)
    pairs = [f"{marks[lane].value}:{lane}" for lane in lanes]
    weights = {"collective_weight": qos.collective, "kv_weight": qos.kv}
    return [
        (
            ("dcb", "app", "replace"),
            {
                "dev": interface,
                "dscp-prio": fixed(pairs, "DSCP:priority; lane n of the plan is priority n"),
            },
        ),
        (
            ("dcb", "ets", "set"),
            {
                "dev": interface,
                "willing": fixed("off", "the switch's offer would replace what is set here"),
                "prio-tc": fixed(
                    [f"{prio}:{prio if prio in lanes else 0}" for prio in range(_PRIORITIES)],
                    "priority:class; priorities that carry nothing of ours share class 0",
                ),
                "tc-tsa": fixed(["all:ets"], "all classes share by weight; none is strict"),
                "tc-bw": derived(
                    [f"{tc}:{share}" for tc, share in enumerate(shares)], _SHARES, "%", **weights
                ),
            },
        ),
        (
            ("dcb", "pfc", "set"),
            {
                "dev": interface,
                "prio-pfc": fixed(
                    [f"{prio}:{'on' if prio in lanes else 'off'}" for prio in range(_PRIORITIES)],
                    "four lossless classes, as in the paper's appendix A.1",
                ),
            },
        ),
    ]


def _shares(qos: Qos) -> tuple[int, ...]:
    shares = percent_of(qos.low) + (0,) * (_PRIORITIES - len(qos.lanes))
    assert sum(shares) == 100, shares
    return shares


def _environment(site: Site) -> dict[str, Value]:
    kv = _traffic_class("kv_dscp", site.kv_dscp, "KV-cache")
    return {
        "UCX_IB_TRAFFIC_CLASS": kv,
        "MC_IB_TC": kv,
        "NCCL_IB_TC": _traffic_class("collective_dscp", site.collective_dscp, "collectives"),
    }


def _traffic_class(name: str, dscp: int, carries: str) -> Value:
    value = derived(4 * dscp, f"{carries}: 4 x {name} of the site", dscp=dscp)
    return replace(value, site=(name,))


def _class(number: int, carries: str, qos: Qos, marks: Mapping[int, Value]) -> dict[str, Value]:
    mark = marks[number]
    return {
        "priority": fixed(number, f"lane {number} of the plan"),
        "carries": fixed(carries, "the paper's appendix A.1"),
        "dscp": mark,
        "traffic_class": derived(
            4 * mark.value, "4 x DSCP: the two low bits are ECN's", dscp=mark.value
        ),
        "share": derived(
            _shares(qos)[number],
            _SHARES,
            "%",
            weight=qos.low[number],
            weights=sum(qos.low),
        ),
        "lossless": fixed(True, "RDMA needs PFC; four lossless classes"),
    }


def _dropped(asked: Asked, qos: Qos) -> tuple[Dropped, ...]:
    share = _shares(qos)[KV_LANE]
    return (
        *not_of_a_network(asked.plan),
        Dropped(
            f"high-priority limit of {qos.high_limit * LIMIT_BYTES} bytes",
            "ETS has one level: classes share by weight, or one is strict and starves the others",
            f"while collectives fill a link, KV-cache takes up to {share} % of it, where on InfiniBand "
            f"it has that share only of the turns that the limit leaves",
        ),
    )


_NOTES = (
    "The switches need the same: DSCP to priority, shares and PFC of classes.json; the commands for "
    "that are their maker's.",
    "Four lossless priorities need a NIC and switches with the buffers for them: dcb pfc show must give "
    "a pfc-cap of 4 or more.",
    "mlnx_qos does the same on NVIDIA NICs; where it or a vendor's agent runs, let only one of them set "
    "the classes.",
)

TARGET = Target(
    name="roce",
    software="iproute2 dcb",
    about="DSCP, traffic classes, their shares and PFC for RoCE, and the applications' traffic classes.",
    # the only version that Debian 12 has; its usage and man pages were read
    versions=("6.1.0",),
    expresses=(
        "QoS weights as shares of ETS classes",
        "lossless classes (PFC), DSCP of KV-cache and collectives",
        "traffic class of each application",
    ),
    cannot=(
        "the high-priority limit: ETS has one level",
        "split x and the limits of the scheduler: a network does not choose who reads",
    ),
    parser="our own range checks, as dcb asks the NIC before it reads a map; `bash -n` and shellcheck "
    "for the scripts, UCX's `ucx_info -c` for its variable",
    apply=(
        "Keep what is there, on every node and for every compute interface: `dcb -j ets show dev DEV`, "
        "`dcb -j pfc show dev DEV`, `dcb -j app show dev DEV`, each into a file.",
        "On every prefill node run its `dcb-prefill` script, on every decode node its `dcb-decode` "
        "script, as root; running one twice changes nothing.",
        "Run it again after a restart: dcb keeps nothing (a oneshot unit of systemd after "
        "`network-online.target`).",
        "Give the switches the classes of `classes.json`.",
        "Start every engine with `roce.env` in its environment "
        "(`set -a; . ./roce.env`, or `EnvironmentFile=` of its unit).",
    ),
    check=(
        "`dcb ets show dev DEV`, `dcb pfc show dev DEV` and `dcb app show dev DEV dscp-prio` show what "
        "the script set.",
        f"`ethtool -S DEV` counts by priority (`rx_prio{KV_LANE}_bytes` on NVIDIA NICs), which grows "
        f"while hits are loaded.",
    ),
    roll_back=(
        "`dcb app flush dev DEV dscp-prio` and `dcb ets set dev DEV willing on`, or set the values that "
        "were kept, with `dcb ets set` and `dcb pfc set`.",
        "Start the engines without `roce.env`.",
    ),
    build=build,
)
