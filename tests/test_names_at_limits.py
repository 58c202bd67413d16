"""Names of segments where a file system is full, or another thread closes the segment."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

import shmpar
from shmpar.errors import SegmentGone
from shmpar.memory import names
from shmpar.memory.manager import default_manager
from shmpar.memory.names import NameRegistry, nameless
from tests.interpreters import run_python
from tests.test_little_shm import in_little_shm

SHM = "/dev/shm"


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0,
    reason="mounting a small /dev/shm needs root",
)
def test_each_name_is_listed_on_a_full_file_system() -> None:
    """A file system that takes a part of a line refuses the name, which nobody could remove."""
    source = """
import os, shmpar
from shmpar.memory.names import inventory
arrays = [shmpar.zeros(1) for _ in range(100)]
kept = [arrays.pop() for _ in range(9)]
made = {one.name for one in kept}
with open("/dev/shm/filler", "wb") as file:
    for step in (1 << 20, 1 << 12):
        try:
            while True:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)
        except OSError:
            pass
refused = 0
for array in arrays:
    try:
        array.name
    except shmpar.SegmentFull:
        refused += 1
def unlisted():
    listed = {entry.name for one in inventory() for entry in one.entries}
    return {name for name in os.listdir("/dev/shm") if ".m" not in name} - listed - {"filler"}
print(0 < refused < 91, unlisted())
os.truncate("/dev/shm/filler", 0)
made = [array.name for array in arrays]
print(unlisted(), len(set(made)))
(entries,) = [one.entries for one in inventory()]
print(all(entry.pid == os.getpid() for entry in entries))
"""
    assert in_little_shm(source, "4m") == "True set()\nset() 91\nTrue\n"


@pytest.mark.parametrize("reused", [False, True])
def test_an_array_that_is_closed_while_it_gets_a_name(
    reused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No name is left, and no other array gets it."""
    array, made = shmpar.zeros(1000), list[Any]()
    record = NameRegistry.record

    def close_after(self: NameRegistry, name: str, identity: names.Identity) -> None:
        record(self, name, identity)
        array.close()  # as another thread may
        made.append(name)
        if reused:
            made.append(shmpar.ones(5))  # which takes the number of the descriptor

    with monkeypatch.context() as patch:
        patch.setattr(NameRegistry, "record", close_after)
        with pytest.raises(SegmentGone, match="closed"):
            _ = array.name
    assert not os.path.lexists(f"{SHM}/{made[0]}")
    assert not reused or made[1].name != made[0]


def test_a_segment_that_is_closed_after_its_link_keeps_no_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of a segment looks for a name that came while it closed."""
    array = shmpar.zeros(1000)
    segment = array._handle.segment
    unlink, late = type(segment).unlink, list[str]()

    def name_after(self: Any) -> None:
        unlink(self)
        if not late and self is segment:
            late.append(default_manager().name(segment))  # as another thread may

    with monkeypatch.context() as patch:
        patch.setattr(type(segment), "unlink", name_after)
        array.close()
    assert late
    assert not os.path.lexists(f"{SHM}/{late[0]}")


def test_segments_with_a_name_are_not_among_those_without() -> None:
    """The kernel shows no name of a file that got one later; counters have no bytes."""
    named = shmpar.zeros(54_321, "u1")
    plain = shmpar.zeros(65_432, "u1")
    assert named.name
    with shmpar.Pool(1) as pool:
        assert pool.block_reduce(len, plain, chunks=-1).item() == 65_432
        sizes = [one.size for one in nameless() if os.getpid() in one.pids]
    assert sizes.count(65_432) == 1
    assert 54_321 not in sizes
    assert 0 not in sizes


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser becomes another user")
def test_a_user_sees_memory_that_is_mapped_alone() -> None:
    """A segment that was closed, and has a view, is listed for a user without privileges."""
    done = run_python("""
        import ctypes, os, shmpar
        from shmpar.memory.manager import Manager
        from shmpar.memory.names import nameless
        shmpar.zeros(1, manager=Manager())  # loads the library
        os.setgroups([])
        os.setresuid(65534, 65534, 65534)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable, as any process of this user
        with Manager() as manager:
            arrays = [shmpar.zeros(size, "u1", manager=manager) for size in (5_555_555, 55_555)]
            opened = {one.size: one for one in nameless()}
        mapped = {one.size: one for one in nameless() if os.getpid() in one.pids}
        print(opened[5_555_555].pids == (os.getpid(),), sorted(mapped), sum(map(len, arrays)))
    """)
    assert done.stderr == ""
    assert done.stdout in {
        f"True [{small}, 5558272] 5611110\n" for small in (55_555, 57_344)
    }  # of the mapping, in pages
