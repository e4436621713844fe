"""Leaders fetch: requests leave the queues for engines, by the scheduler's own functions."""

from __future__ import annotations

import numpy as np

from dualpath_model.compilation import compilable
from dualpath_model.scheduler.placement import (
    designate_decode,
    designate_prefill,
    place_decode,
    place_prefill,
)
from solvers.simulator.state import (
    DECODE,
    NEXT_DECODE,
    NEXT_PREFILL,
    ON_DECODE,
    ON_PREFILL,
    PLACED,
    PREFILL,
    TURN,
    Sim,
    append,
    drop,
)
from solvers.simulator.transfers import ask_for_room


@compilable
def fetch_prefill(sim: Sim, group: int, now: int) -> None:
    """The leader of a prefill group fetches."""
    agents, traffic, queues = sim.world.agents, sim.traffic, sim.world.prefill_queues
    common = queues.first.shape[0] - 1
    private = sim.machine.private
    queue = common
    if private:
        queue = group
        while queues.length[common] > 0:
            agent = queues.first[common]
            chosen = designate_prefill(sim.prefill, traffic.prompt[agents[agent, TURN]])
            if chosen < 0:
                break
            drop(queues, common, agents, NEXT_PREFILL, 1)
            append(queues, chosen, agents, NEXT_PREFILL, agent)
    column = np.empty((3, 1), dtype=np.int64)
    placed = np.empty((1, 6), dtype=np.int64)
    while queues.length[queue] > 0:
        agent = queues.first[queue]
        turn = agents[agent, TURN]
        column[0, 0], column[1, 0] = traffic.prompt[turn], traffic.hit[turn]
        column[2, 0] = agents[agent, DECODE]
        count = place_prefill(
            sim.prefill,
            sim.decode,
            sim.nodes,
            group,
            private,
            column[0],
            column[1],
            column[2],
            placed,
        )
        if count == 0:
            break
        drop(queues, queue, agents, NEXT_PREFILL, 1)
        agents[agent, PREFILL] = placed[0, 0]
        if placed[0, 2] >= 0:
            both_chosen(sim, agent, placed[0, 2], placed[0, 3], now)


@compilable
def fetch_decode(sim: Sim, group: int, now: int) -> None:
    """The leader of a decode group fetches: phase 1 for all that wait, phase 2 in the group."""
    agents, traffic, queues = sim.world.agents, sim.traffic, sim.world.decode_queues
    common = queues.first.shape[0] - 1
    while queues.length[common] > 0:
        agent = queues.first[common]
        turn = agents[agent, TURN]
        prompt = traffic.prompt[turn]
        chosen = designate_decode(sim.decode, prompt, prompt + traffic.output[turn])
        if chosen < 0:
            break
        drop(queues, common, agents, NEXT_DECODE, 1)
        append(queues, chosen, agents, NEXT_DECODE, agent)
    if queues.length[group] == 0:
        return
    offered, placed = sim.world.offered, sim.world.placed
    room, count = sim.decode.group_free[group], 0
    agent = queues.first[group]
    while count < min(offered.shape[1], queues.length[group]):
        turn = agents[agent, TURN]
        prompt, output = traffic.prompt[turn], traffic.output[turn]
        room -= prompt + output
        if room < 0:
            break
        offered[4, count] = agent
        offered[0, count], offered[1, count] = prompt, traffic.hit[turn]
        offered[2, count], offered[3, count] = prompt + output, agents[agent, PREFILL]
        agent = agents[agent, NEXT_DECODE]
        count += 1
    done, _ = place_decode(
        sim.prefill,
        sim.decode,
        sim.nodes,
        group,
        sim.machine.z_factor,
        offered[0, :count],
        offered[1, :count],
        offered[2, :count],
        offered[3, :count],
        placed,
    )
    drop(queues, group, agents, NEXT_DECODE, done)
    for i in range(done):
        agents[offered[4, i], DECODE] = placed[i, 0]
        if placed[i, 2] >= 0:
            both_chosen(sim, offered[4, i], placed[i, 2], placed[i, 3], now)


@compilable
def both_chosen(sim: Sim, agent: int, on_prefill: int, on_decode: int, now: int) -> None:
    """Both engines are known, and what each node reads."""
    agents = sim.world.agents
    agents[agent, PLACED] = now
    agents[agent, ON_PREFILL], agents[agent, ON_DECODE] = on_prefill, on_decode
    ask_for_room(sim, agent, now)
