"""Tickets: each is handed out exactly once, by both mechanisms."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from shmpar import tickets

KINDS = ("offset", "lock")


@pytest.fixture(params=KINDS)
def counter(request: pytest.FixtureRequest) -> Iterator[tickets.Tickets]:
    """A counter of each kind."""
    made = tickets.new_tickets(request.param)
    yield made
    made.close()


def claim_in_processes(counter: tickets.Tickets, processes: int, total: int) -> tuple[list, float]:
    """Have forked processes claim until `total` is reached; return the claims and the seconds."""
    readers = []
    began = time.perf_counter()
    for seed in range(processes):
        read, write = os.pipe()
        if os.fork() == 0:
            rng = random.Random(seed)
            claims = []
            while True:
                size = rng.choice((1, 1, 1, 2, 7))
                first = counter.claim(size)
                if first >= total:
                    break
                claims.append((first, size))
            with os.fdopen(write, "wb") as pipe:
                pipe.write(np.array(claims, dtype=np.int64).tobytes())
            os._exit(0)
        os.close(write)
        readers.append(read)
    parts = []
    for read in readers:
        with os.fdopen(read, "rb") as pipe:
            parts.append(np.frombuffer(pipe.read(), np.int64).reshape(-1, 2))
    seconds = time.perf_counter() - began
    for _ in readers:
        assert os.wait()[1] == 0
    return parts, seconds


def check_once(parts: list, total: int) -> int:
    """Assert that every ticket below `total` was in exactly one claim; count the claims."""
    given = np.zeros(total + 8, dtype=np.int64)
    for first, size in np.concatenate(parts):
        given[first : first + size] += 1
    assert (given[:total] == 1).all()
    return sum(map(len, parts))


def test_each_ticket_is_handed_out_once_among_processes(counter: tickets.Tickets) -> None:
    """Four processes, claims of several sizes."""
    parts, _ = claim_in_processes(counter, 4, 40_000)
    check_once(parts, 40_000)
    assert sum(len(part) > 0 for part in parts) > 1


@pytest.mark.stress
def test_two_million_claims_of_eight_processes(counter: tickets.Tickets) -> None:
    """Each ticket exactly once; prints what a claim costs."""
    total = 4_800_000  # claims are of 2.4 tickets on average
    parts, seconds = claim_in_processes(counter, 8, total)
    claims = check_once(parts, total)
    assert claims > 1_900_000
    print(f"{counter.kind}: {claims:,} claims, each once, {seconds / claims * 1e6:.2f} us a claim")


def test_each_ticket_is_handed_out_once_among_threads(counter: tickets.Tickets) -> None:
    """Threads of one process exclude each other too."""
    claims: list[list[int]] = [[] for _ in range(4)]

    def draw(mine: list[int]) -> None:
        while (first := counter.claim(1)) < 4_000:
            mine.append(first)

    threads = [threading.Thread(target=draw, args=(mine,)) for mine in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(itertools.chain.from_iterable(claims)) == list(range(4_000))


def test_a_holder_that_is_killed_blocks_nobody(counter: tickets.Tickets) -> None:
    """SIGKILL in the middle of claiming leaves no lock behind."""
    for _ in range(20):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            while True:
                counter.claim(1)
                os.write(write, b"c")
        os.close(write)
        os.read(read, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        before = counter.claim(1)
        assert counter.claim(1) == before + 1


def test_a_stopped_counter_hands_out_nothing_below_its_end(counter: tickets.Tickets) -> None:
    """stop() says how many were handed out; rewind() is for the next run."""
    assert counter.claim(3) == 0
    assert counter.stop(10) == 3
    assert counter.claim(1) >= 10
    counter.rewind()
    assert counter.claim(2) == 0


@pytest.mark.parametrize("missing", ["O_TMPFILE", "memfd_create"])
def test_a_counter_is_found_a_file_elsewhere(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a nameless file in /dev/shm it is a memory file, then a temporary one."""
    monkeypatch.delattr(tickets.os, "O_TMPFILE")
    if missing == "memfd_create":
        monkeypatch.delattr(tickets.os, "memfd_create")
    made = tickets.new_tickets("offset" if missing == "O_TMPFILE" else None)
    parts, _ = claim_in_processes(made, 2, 5_000)
    check_once(parts, 5_000)
    made.close()


def test_the_lock_is_taken_where_the_offset_is_not_known_to_be_atomic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other systems than Linux, and one that only looks like it."""
    monkeypatch.setattr(tickets.sys, "platform", "darwin")
    made = tickets.new_tickets()
    assert made.kind == "lock"
    made.close()
