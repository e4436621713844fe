"""What happens next: one time for each thing that can happen, and a heap for sleepers.

Every storage NIC, prefill unit, leader, transfer queue and decode engine has at most one next event, so
the agenda is a tournament tree over them (:mod:`dualpath_model.scheduler.index`), with times in whole
nanoseconds: no stale entries, and equal times are settled by the lowest number, which is the order of
events that ``docs/simulator.md`` states. Agents that think, or have not started, are in a binary heap
keyed by time and agent.
"""

from __future__ import annotations

from dualpath_model.compilation import compilable
from dualpath_model.scheduler.arrays import FloatArray
from dualpath_model.scheduler.index import IntArray, set_value

NEVER = 2**62
"""The time of what is not going to happen: the NONE of the index."""


@compilable
def set_time(agenda: IntArray, entry: int, time_ns: int) -> None:
    """Say when an entry's next event is."""
    set_value(agenda, entry, time_ns)


@compilable
def first_entry(agenda: IntArray) -> int:
    """Return the entry whose event is next, the lowest number among equal times."""
    size = agenda.shape[0] // 2
    place = 1
    while place < size:
        place *= 2
        if agenda[place + 1] < agenda[place]:
            place += 1
    return int(place - size)


@compilable
def heap_push(
    times: IntArray | FloatArray, names: IntArray, count: int, time: float, name: int
) -> None:
    """Add to a heap of ``count`` entries; equal times (or steps) are in the order of the names."""
    place = count
    while place > 0:
        above = (place - 1) // 2
        if times[above] < time or (times[above] == time and names[above] <= name):
            break
        times[place], names[place] = times[above], names[above]
        place = above
    times[place], names[place] = time, name


@compilable
def heap_pop(times: IntArray | FloatArray, names: IntArray, count: int) -> None:
    """Take the first of ``count`` entries out."""
    last = count - 1
    time, name = times[last], names[last]
    place = 0
    while True:
        below = 2 * place + 1
        if below >= last:
            break
        right = below + 1
        if right < last and (
            times[right] < times[below]
            or (times[right] == times[below] and names[right] < names[below])
        ):
            below = right
        if time < times[below] or (time == times[below] and name <= names[below]):
            break
        times[place], names[place] = times[below], names[below]
        place = below
    times[place], names[place] = time, name
