"""Where all traffic of a scenario, not its hits alone, leaves the bottleneck-free range of P/D.

With the storage NICs of both sides saturated, P prefill nodes read P S_p hit bytes a second and D
decode nodes D S_d; whatever else a request asks comes with its hits. If a capacity takes p units a hit
byte read by prefill and d a hit byte read by decode, a prefill node carries ``p S_p + d S_d D/P`` of
it and a decode node ``p S_p P/D + d S_d``. The paper (section 4.2) has hits alone, so this is its
analysis with other weights; :func:`solvers.symbolic.traffic_conditions` is the same in symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

from dualpath_model.closed_form import SNIC_D, SNIC_P, BottleneckFree, bottleneck_free, ratio_range
from dualpath_model.errors import InfeasibleError
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario


@dataclass(frozen=True, slots=True)
class RealTrafficRange:
    """The range of P/D in which saturated storage NICs saturate nothing else, in three readings.

    ``hits``: hit traffic alone, as in the paper. ``traffic``: everything that moves KV-cache, miss
    hand-off and write-back included. ``serving``: GPUs and HBM as well, so inside it storage, not
    compute, is what limits the cluster. ``ratio`` is the scenario's own P/D.
    """

    ratio: float
    hits: BottleneckFree
    traffic: BottleneckFree
    serving: BottleneckFree


def real_traffic_range(scenario: Scenario) -> RealTrafficRange:
    """Return the bottleneck-free range of a scenario's own payloads, per-node capacities only.

    What the cluster shares (storage service, fabric) bounds the number of nodes rather than their
    ratio and is left out. ``serving`` takes the decode engines' operating point as it is at the
    scenario's node counts. Raises InfeasibleError where the range is not defined: a framework whose
    paths do not each read on their own side (:attr:`paths.StepTable.no_range`), pools that are not
    homogeneous, no storage NIC that can run out, no hits read from storage; or as
    :meth:`Scenario.loads`.
    """
    if scenario.serving.table.no_range is not None:
        raise InfeasibleError(scenario.serving.table.no_range)
    loads = scenario.loads()
    if not loads.homogeneous:
        raise InfeasibleError(
            "the bottleneck-free range needs alike nodes in each pool; see the utilisation of each "
            "node of the plan instead"
        )
    prefill, decode = loads.prefill[0], loads.decode[0]
    if SNIC_P not in prefill.capacity or SNIC_D not in decode.capacity:
        raise InfeasibleError(
            "the bottleneck-free range needs storage NICs that can run out in both pools; give the "
            "nodes snics of at least 1 and keep 'snic' among the limits"
        )
    demand = prefill.demand + decode.demand
    capacity = {**prefill.capacity, **decode.capacity}
    moving = {key: rate for key, rate in capacity.items() if key.moves_kv}
    return RealTrafficRange(
        ratio=prefill.count / decode.count,
        hits=bottleneck_free(
            scenario.serving.table,
            {key: rate for key, rate in moving.items() if key.pool is Pool.PREFILL},
            {key: rate for key, rate in moving.items() if key.pool is Pool.DECODE},
        ),
        traffic=ratio_range(demand, moving),
        serving=ratio_range(demand, capacity),
    )
