"""Tickets: each mechanism hands out each ticket exactly once."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from shmpar.ipc import tickets
from tests.interpreters import ROOT, run_python

KINDS = ("offset", "lock")
PROCESSES = 8
MEAN = 2.4  # tickets of a claim

Claims = list[np.ndarray[Any, Any]]


@pytest.fixture(params=KINDS)
def counter(request: pytest.FixtureRequest) -> Iterator[tickets.Tickets]:
    """A counter of each mechanism that processes share."""
    made = tickets.new_tickets(request.param)
    yield made
    made.close()


def claim_until(counter: tickets.Tickets, total: int, seed: int) -> list[tuple[int, int]]:
    """Claim tickets, a few at a time, until `total` have been handed out."""
    sizes = random.Random(seed).choices((1, 1, 1, 2, 7), k=997)
    claims: list[tuple[int, int]] = []
    for size in itertools.cycle(sizes):
        first = counter.claim(size)
        if first >= total:
            break
        claims.append((first, size))
    return claims


def claim_in_processes(
    counter: tickets.Tickets, processes: int, total: int, *, stop_at: int | None = None
) -> tuple[Claims, float, int]:
    """Let forked processes claim until `total` is reached, or stop them on the way.

    Returns
    -------
    claims : list of ndarray
        First ticket and size of each claim, one array per process.
    seconds : float
        From the moment when all may begin until all have exited.
    handed_out : int
        Result of stop(); `total` if it was not called.
    """
    gate, opened = os.pipe()  # no process begins before all exist
    readers, pids = [], []
    for seed in range(processes):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(opened)
            os.read(gate, 1)
            claims = claim_until(counter, total, seed)
            with os.fdopen(write, "wb") as pipe:
                pipe.write(np.array(claims, dtype=np.int64).tobytes())
            os._exit(0)
        os.close(write)
        readers.append(read)
        pids.append(pid)
    os.close(opened)
    began = time.perf_counter()
    handed_out = total
    if stop_at is not None:
        while counter.claim(0) < stop_at:
            pass
        handed_out = counter.stop(total)
    parts = []
    for read in readers:
        with os.fdopen(read, "rb") as pipe:
            parts.append(np.frombuffer(pipe.read(), np.int64).reshape(-1, 2))
    seconds = time.perf_counter() - began
    os.close(gate)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    return parts, seconds, handed_out


def check_once(parts: Claims, total: int) -> int:
    """Assert that every ticket below `total` was in exactly one claim; count the claims."""
    claims = np.concatenate(parts)
    given = np.zeros(total + 8, dtype=np.int64)
    for size in np.unique(claims[:, 1]):
        firsts = claims[claims[:, 1] == size, 0]
        np.add.at(given, (firsts[:, None] + np.arange(size)).ravel(), 1)
    assert (given[:total] == 1).all()
    return len(claims)


def test_each_ticket_is_handed_out_once_among_processes(counter: tickets.Tickets) -> None:
    """Eight processes make 50,000 claims of several sizes; no two of them get the same ticket."""
    total = int(50_000 * MEAN)
    parts, _, _ = claim_in_processes(counter, PROCESSES, total)
    assert check_once(parts, total) > 47_000
    assert sum(len(part) > 0 for part in parts) > 1


@pytest.mark.stress
def test_two_million_claims_of_eight_processes(counter: tickets.Tickets) -> None:
    """Each ticket is handed out exactly once; the test prints the time per claim."""
    total = int(2_000_000 * MEAN)
    parts, seconds, _ = claim_in_processes(counter, PROCESSES, total)
    claims = check_once(parts, total)
    assert claims > 1_900_000
    print(f"{counter.kind}: {claims:,} claims, each once, {seconds / claims * 1e6:.2f} us a claim")


def test_executed_interpreters_draw_from_one_counter(counter: tickets.Tickets) -> None:
    """A descriptor that was inherited over exec is the same counter."""
    source = textwrap.dedent("""
        import sys
        from shmpar.ipc.tickets import open_tickets
        counter = open_tickets(sys.argv[1], int(sys.argv[2]))
        sys.stdin.read()
        while (first := counter.claim(3)) < 30_000:
            print(first)
    """)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", source, counter.kind, str(counter.fileno())],
            pass_fds=[counter.fileno()],
            env={**os.environ, "PYTHONPATH": ROOT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for child in children:
        child.stdin.close()
    firsts = [int(line) for child in children for line in child.stdout]
    for child in children:
        child.stdout.close()
        assert child.wait() == 0
    assert sorted(firsts) == list(range(0, 30_000, 3))


@pytest.mark.parametrize("kind", [*KINDS, "thread"])
def test_each_ticket_is_handed_out_once_among_threads(kind: str) -> None:
    """Threads of one process exclude each other too."""
    counter = tickets.new_tickets(kind)
    claims: list[list[int]] = [[] for _ in range(4)]
    together = threading.Barrier(4)

    def draw(mine: list[int]) -> None:
        together.wait()
        while (first := counter.claim(1)) < 4_000:
            mine.append(first)

    threads = [threading.Thread(target=draw, args=(mine,)) for mine in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(itertools.chain.from_iterable(claims)) == list(range(4_000))
    counter.close()


def test_a_killed_process_blocks_no_other(counter: tickets.Tickets) -> None:
    """SIGKILL at any moment of a claim leaves no lock behind."""
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


def test_a_process_that_is_killed_inside_the_lock_blocks_no_other() -> None:
    """A process that has read the number but not written it has no ticket and no lock."""
    counter = tickets.new_tickets("lock")
    assert counter.claim(5) == 0
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:

        def freeze(*_: object) -> None:
            os.write(write, b"locked")
            signal.pause()

        os.pwrite = freeze
        counter.claim(1)
        os._exit(1)
    os.close(write)
    assert os.read(read, 6) == b"locked"
    os.close(read)
    with pytest.raises(BlockingIOError):
        fcntl.lockf(counter.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(pid, signal.SIGKILL)
    assert counter.claim(1) == 5
    os.waitpid(pid, 0)
    counter.close()


def test_a_stopped_counter_hands_out_nothing_below_its_end(counter: tickets.Tickets) -> None:
    """stop() returns how many tickets were handed out before."""
    assert counter.claim(3) == 0
    assert counter.stop(10) == 3
    assert counter.claim(1) >= 10
    assert counter.stop(10) >= 10


def test_stop_returns_the_number_of_tickets_that_others_claimed(counter: tickets.Tickets) -> None:
    """Each claim is before stop() and counted, or behind it and beyond the end."""
    total = 100_000_000
    parts, _, handed_out = claim_in_processes(counter, 3, total, stop_at=5_000)
    claims = np.concatenate(parts)
    assert 5_000 <= handed_out < total
    assert (claims.sum(axis=1) <= handed_out).all()
    check_once(parts, handed_out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing", ["O_TMPFILE", "memfd_create"])
def test_a_counter_uses_another_file_where_a_nameless_one_is_missing(
    missing: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a nameless file in /dev/shm, a memory file or a temporary file serves as well."""
    monkeypatch.delattr(tickets.os, "O_TMPFILE")
    monkeypatch.setattr(tempfile, "_O_TMPFILE_WORKS", False)
    if missing == "memfd_create":
        monkeypatch.delattr(tickets.os, "memfd_create")
    made = tickets.new_tickets(kind)
    where = os.readlink(f"/proc/self/fd/{made.fileno()}")
    assert where.startswith("/memfd:") is (missing == "O_TMPFILE")
    assert where.endswith("(deleted)")
    parts, _, _ = claim_in_processes(made, 4, 50_000)
    check_once(parts, 50_000)
    made.close()


@pytest.mark.parametrize(
    ("platform", "release", "kind"),
    [
        pytest.param("linux", "6.1.0", "offset", id="linux"),
        pytest.param("linux", "4.4.0", "lock", id="gvisor"),
        pytest.param("linux", "4.4.0-19041-Microsoft", "lock", id="wsl1"),
        pytest.param("darwin", "23.1.0", "lock", id="macos"),
    ],
)
def test_the_lock_is_used_where_the_offset_is_not_known_to_be_atomic(
    platform: str, release: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Systems other than Linux, and systems that only report to be Linux."""
    names = os.uname_result(("Linux", "here", release, "#1", "x86_64"))
    monkeypatch.setattr(tickets.sys, "platform", platform)
    monkeypatch.setattr(tickets.os, "uname", lambda: names)
    made = tickets.new_tickets()
    assert made.kind == kind
    made.close()


def test_a_lock_of_threads_suffices_where_the_system_has_no_record_locks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows has neither mechanism, and no worker processes."""
    monkeypatch.setattr(tickets.sys, "platform", "win32")
    monkeypatch.setattr(tickets, "fcntl", None)
    made = tickets.new_tickets()
    assert (made.kind, made.fileno()) == ("thread", -1)
    assert [made.claim(2), made.claim(1), made.stop(9), made.claim(1)] == [0, 2, 3, 12]
    made.close()


@pytest.mark.parametrize("kind", ["offset", "thread"])
def test_engines_of_one_process_work_without_the_module_fcntl(kind: str) -> None:
    """A fresh interpreter without it computes serially and in threads."""
    done = run_python(f"""
        import sys
        sys.modules["fcntl"] = None
        import numpy as np
        import shmpar
        from shmpar.ipc import tickets
        tickets._offset_is_atomic = lambda: {kind == "offset"}
        for engine in ("serial", "threads"):
            with shmpar.Pool(2, engine=engine) as pool:
                print(pool.map_blocks(np.negative, np.arange(4), chunks=1).tolist())
        print(tickets.new_tickets().kind)
    """)
    assert (done.stdout, done.stderr) == (f"[0, -1, -2, -3]\n[0, -1, -2, -3]\n{kind}\n", "")


def test_a_counter_is_not_inherited_and_closes_once(counter: tickets.Tickets) -> None:
    """The descriptor of a counter is closed at exec and with the counter."""
    fd = counter.fileno()
    assert not os.get_inheritable(fd)
    counter.close()
    counter.close()
    assert counter.fileno() == -1
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_a_counter_closes_when_it_is_dropped() -> None:
    """A call of close() is not needed."""
    made = tickets.new_tickets()
    fd = made.fileno()
    del made
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
