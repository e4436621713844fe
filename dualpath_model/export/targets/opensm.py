"""InfiniBand: QoS options for opensm, and the service levels that applications ask for.

opensm 3.3.23 exits with 0 whatever it is given and goes on with defaults, so values are checked here.
"""

from __future__ import annotations

from dualpath_model.export.documents import settings_file
from dualpath_model.export.target import Asked, Bundle, Target
from dualpath_model.export.targets._qos import (
    COLLECTIVE_LANE,
    KV_LANE,
    LIMIT_BYTES,
    Qos,
    not_of_a_network,
    qos_of,
)
from dualpath_model.export.values import Value, derived, fixed

_SERVICE_LEVELS = 16
_APPENDIX = "the paper's appendix A.1"


def build(asked: Asked) -> Bundle:
    """Return opensm's options and the environment of the applications."""
    qos = qos_of(asked.plan)
    options = settings_file(
        "opensm.conf",
        "options to add to the subnet manager's `opensm.conf`",
        _options(qos),
        form="{key} {value}",
        head=(
            f"For opensm {asked.version}: QoS options only; add them to /etc/opensm/opensm.conf",
            *(f"VL {lane.number}: {lane.carries}" for lane in qos.lanes),
        ),
        quote=False,
    )
    environment = settings_file(
        "infiniband.env",
        "environment of every engine, on prefill and decode nodes alike",
        _environment(),
        head=("Service levels of the applications; opensm.conf gives each its virtual lane",),
    )
    return Bundle((options, environment), not_of_a_network(asked.plan), _notes(qos))


def _options(qos: Qos) -> dict[str, Value]:
    weights = {"collective_weight": qos.collective, "kv_weight": qos.kv}
    vls = [lane.number for lane in qos.lanes]
    levels = vls + [0] * (_SERVICE_LEVELS - len(vls))
    return {
        "qos": fixed("TRUE", "opensm ignores the options below without it (its default is FALSE)"),
        "qos_max_vls": fixed(len(vls), f"four virtual lanes, as in {_APPENDIX}"),
        "qos_high_limit": derived(
            qos.high_limit,
            "scheduler_parameters.qos_high_limit: what the high-priority table may send before the low "
            "one gets a turn",
            f"x {LIMIT_BYTES} bytes",
            bytes=qos.high_limit * LIMIT_BYTES,
        ),
        "qos_vlarb_high": derived(
            ",".join(f"{lane.number}:{lane.high}" for lane in qos.lanes),
            "VL:weight; collectives have scheduler_parameters.qos_collective_weight, KV-cache 0: it "
            "never goes first",
            "x 64 bytes",
            **weights,
        ),
        "qos_vlarb_low": derived(
            ",".join(f"{lane.number}:{lane.low}" for lane in qos.lanes),
            f"VL:weight; KV-cache on VL {KV_LANE} has scheduler_parameters.qos_kv_weight, the others "
            f"qos_collective_weight",
            "x 64 bytes",
            **weights,
        ),
        "qos_sl2vl": fixed(
            ",".join(map(str, levels)),
            "VL of service levels 0 to 15: the first four have their own, all others share VL 0",
        ),
    }


def _environment() -> dict[str, Value]:
    kv = f"KV-cache on service level {KV_LANE}, whose virtual lane yields to the others"
    return {
        "UCX_IB_SL": fixed(KV_LANE, f"{kv}; UCX, also below NIXL"),
        "MC_IB_SL": fixed(KV_LANE, f"{kv}; Mooncake"),
        "NCCL_IB_SL": fixed(
            COLLECTIVE_LANE, "collectives of model execution: a lane of high priority"
        ),
    }


def _notes(qos: Qos) -> tuple[str, ...]:
    share = qos.kv / sum(qos.low)
    found = [
        f"While all lanes have something to send, up to {qos.high_limit * LIMIT_BYTES} bytes of "
        f"collectives go before each turn of the low-priority table, of which KV-cache has "
        f"{share:.1%} by weight; KV-cache uses what collectives leave idle.".replace("%", " %"),
        "Traffic of other libraries (NVSHMEM, MPI) stays on service level 0 unless they are told; "
        "their collectives then share VL 0 with what nobody marked.",
        "The ports need at least 4 virtual lanes (ibportstate shows VLCap); where one has fewer, opensm "
        "uses fewer without a word.",
    ]
    if qos.high_limit == 255:
        found.append(
            "A high limit of 255 is no limit: KV-cache waits while collectives have anything to send."
        )
    return tuple(found)


TARGET = Target(
    name="opensm",
    software="opensm",
    about="Virtual lanes with the plan's QoS weights for InfiniBand; service levels of applications.",
    # the only version that Debian 12 has; no other was looked at
    versions=("3.3.23",),
    expresses=(
        "QoS weights of collectives and KV-cache, and the high-priority limit",
        "service level of each application",
    ),
    cannot=("split x and the limits of the scheduler: a network does not choose who reads",),
    parser="opensm 3.3.23 itself, `opensm -F opensm.conf -c FILE`; UCX's `ucx_info -c` for its variable",
    apply=(
        "On the host of the master subnet manager keep what is there: "
        "`cp /etc/opensm/opensm.conf /etc/opensm/opensm.conf.before`.",
        "Take the `qos` lines out of `/etc/opensm/opensm.conf` and add those of `opensm.conf` "
        "(`opensm -c FILE` writes a whole file of defaults where there is none).",
        "Try it without hardware: `opensm -F /etc/opensm/opensm.conf -c /tmp/read-back.conf` must print "
        "neither `Unrecognized token` nor `out of range`, `Invalid Cached Option` or `VLs listed`; its "
        "exit status says nothing.",
        "Restart the subnet manager: `systemctl restart opensm`.",
        "Start every engine with `infiniband.env` in its environment "
        "(`set -a; . ./infiniband.env`, or `EnvironmentFile=` of its unit).",
    ),
    check=(
        "`smpquery sl2vl LID PORT` and `smpquery vlarb LID PORT` show the lanes and weights of a port.",
        f"`perfquery --xmtsl LID PORT` counts by service level: {KV_LANE} grows while hits are loaded.",
    ),
    roll_back=(
        "`cp /etc/opensm/opensm.conf.before /etc/opensm/opensm.conf` and `systemctl restart opensm`.",
        "Start the engines without `infiniband.env`; their service level is then 0.",
    ),
    build=build,
)
