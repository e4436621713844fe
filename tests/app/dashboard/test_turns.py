"""Scripts run in the order in which they came, and who steps aside lets others go on."""

from __future__ import annotations

import threading
import time

from app.dashboard.turns import Turns


def waiting(turns: Turns, count: int) -> None:
    end = time.monotonic() + 10
    while len(turns._waiting) < count:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_first_come_first_served() -> None:
    turns, order = Turns(), []

    def work(number: int) -> None:
        with turns:
            order.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    with turns:
        for number, thread in enumerate(threads):
            thread.start()
            waiting(turns, number + 1)
    for thread in threads:
        thread.join(10)
    assert order == list(range(8))


def test_never_more_than_allowed() -> None:
    turns, lock, inside, most = Turns(2), threading.Lock(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(30):
            with turns:
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.0005)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (inside, most) == (0, 2)
    with turns, turns:  # both are free again
        pass


def test_an_error_hands_the_turn_on() -> None:
    turns = Turns()
    try:
        with turns:
            raise ValueError
    except ValueError:
        pass
    with turns:
        pass


def test_who_steps_aside_does_not_hold_the_others_up() -> None:
    turns, went_on = Turns(), threading.Event()

    def other() -> None:
        with turns:
            went_on.set()

    with turns:
        thread = threading.Thread(target=other)
        thread.start()
        waiting(turns, 1)
        assert not went_on.is_set()
        with turns.aside():
            assert went_on.wait(10)
        assert not turns._free
    thread.join(10)
    assert turns._free == 1
