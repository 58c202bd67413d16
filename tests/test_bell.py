"""How a worker waits for its next message: asleep, or, after a small call, looking out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import shmpar
from shmpar.worker import main
from shmpar.worker.main import Bell

pytestmark = pytest.mark.skipif(not hasattr(os, "eventfd"), reason="there are no event counters")


@pytest.fixture
def counter(nothing_left: None) -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def looks(one: Bell, counter: int) -> bool:
    """Whether it is awake while it waits; the processor's time says so."""
    ring = threading.Timer(0.1, os.eventfd_write, (counter, 1))
    ring.start()
    began = time.thread_time()
    one.await_message()
    spent = time.thread_time() - began
    ring.join()
    return spent > 0.04


@pytest.mark.parametrize("brisk", [False, True])
def test_each_message_is_waited_for_once(counter: int, brisk: bool) -> None:
    one = Bell(counter)
    one.computed(0.0, alone=brisk)
    os.eventfd_write(counter, 2)
    os.eventfd_write(counter, 1)
    for _ in range(3):
        one.await_message()
    late = threading.Timer(0.05, os.eventfd_write, (counter, 1))
    late.start()
    began = time.monotonic()
    one.await_message()
    assert time.monotonic() - began > 0.03
    late.join()


def test_it_looks_out_after_a_small_call(counter: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, if it was alone with it."""
    monkeypatch.setattr(main, "BRISK_SECONDS", 30)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    one = Bell(counter)
    assert not looks(one, counter)
    one.computed(1e-6, alone=True)
    assert looks(one, counter)
    assert not looks(one, counter)
    one.computed(1e-6, alone=False)
    assert not looks(one, counter)
    one.computed(1.0, alone=True)
    assert not looks(one, counter)


def test_it_sleeps_in_the_end(counter: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    one = Bell(counter)
    one.computed(1e-6, alone=True)
    assert not looks(one, counter)


def test_with_one_processor_it_sleeps(counter: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep its parent from ringing."""
    monkeypatch.setattr(main, "BRISK_SECONDS", 30)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    one = Bell(counter)
    one.computed(1e-6, alone=True)
    assert not looks(one, counter)


def test_a_pool_comes_to_rest(nothing_left: None) -> None:
    """After small calls its workers take no more of the processors' time."""
    with shmpar.Pool(2) as pool:
        for _ in range(20):
            pool.map_blocks(np.negative, np.arange(10.0), chunks=5)

        def used() -> int:
            stats = [f"/proc/{pid}/stat" for pid in pool._driver.engine.pids()]
            fields = [Path(one).read_text().rpartition(")")[2].split() for one in stats]
            return sum(int(user) + int(system) for *_, user, system in (f[:13] for f in fields))

        before, until = used(), time.monotonic() + 0.5
        while time.monotonic() < until:  # it is a rate that is measured
            time.sleep(0.05)
        assert used() - before < 10  # of 100 hundredths of a second
