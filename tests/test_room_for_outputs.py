"""Room for several segments: none takes the room of another, and none asks for it twice."""

from __future__ import annotations

import os
import sys

import pytest

from tests.interpreters import run_python
from tests.test_little_shm import in_little_shm

needs_root = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0,
    reason="mounting a small /dev/shm needs root",
)
TWO = "lambda b: (b.astype('f8'), b.astype('f8') + 1)"
CALLS = (
    "pool.map_blocks(lambda b: b + 1, x, dtype='f8')",
    "pool.map_blocks(lambda b: b + 1, x, out=np.empty_like(x))",
    f"pool.map_blocks({TWO}, x.astype('u1'))[1]",
    f"pool.map_blocks({TWO}, x.astype('u1'), dtype=('f8', 'f8'))[1]",
    f"pool.map_blocks({TWO}, x.astype('u1'), out=(np.empty_like(x), np.empty_like(x)))[1]",
)


@needs_root
@pytest.mark.parametrize("engine", ["processes", "threads"])
def test_each_segment_has_room_of_its_own(engine: str) -> None:
    """An output that workers reserve later keeps its room; the next segment lies elsewhere."""
    source = f"""
import numpy as np, shmpar
x = np.arange(5_000_000) % 200.0  # 40 MB
with shmpar.Pool(2, engine={engine!r}) as pool:
    for call in {CALLS!r}:
        print((eval(call) == x + 1).all())
"""
    assert in_little_shm(source) == "True\n" * len(CALLS)


@needs_root
def test_a_small_copy_does_not_take_the_room_of_an_output() -> None:
    """A copy of an input that needs no look at the memory lies elsewhere too."""
    source = """
import numpy as np, shmpar
x = np.arange(1_500_000.0)  # 12 MB
with shmpar.Pool(2) as pool:
    size = {"chunks": 300_000, "out_chunks": 1_200_000, "dtype": "f8"}
    found = pool.map_blocks(lambda b: np.repeat(b, 4), x, **size)
    print((found == np.repeat(x, 4)).all(), *pool.last_run.report.memory)
"""
    assert in_little_shm(source, "56m") == "True private shm\n"


@needs_root
def test_threads_that_ask_at_the_same_moment_get_room_of_their_own() -> None:
    """Of two outputs, or an output and an array, one lies elsewhere if there is room for one."""
    source = """
import threading, numpy as np, shmpar
from shmpar.memory.locate import describe
from shmpar.memory.segment import new_output
def output():
    return new_output((40 << 20,), np.dtype("u1"), lazy=True)
def array():
    return shmpar.zeros(40 << 20, "u1")
def kinds(*makers):
    made, start = [], threading.Barrier(len(makers))
    def work(make):
        start.wait()
        made.append(make())
    threads = [threading.Thread(target=work, args=(make,)) for make in makers]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return [describe(one)[0] for one in made]
print(*[sum(kinds(output, other) == ["shm", "shm"] for _ in range(n))
    for other, n in ((output, 10), (array, 6))])
"""
    assert in_little_shm(source, "64m") == "0 0\n"


@needs_root
def test_the_traceback_of_an_interrupted_copy_keeps_no_room() -> None:
    """A notebook keeps the last traceback, and another file gets the number of the descriptor."""
    source = """
import numpy as np, shmpar
from shmpar.memory.locate import describe
kept = []
try:
    with np.errstate(invalid="raise"):
        shmpar.array(np.full(5_000_000, np.nan), "i8")
except FloatingPointError as error:
    kept.append(error)
print(describe(shmpar.zeros(5_000_000))[0])
"""
    assert in_little_shm(source, "64m") == "shm\n"


@needs_root
def test_a_copy_with_a_name_needs_its_room_once() -> None:
    """An array that fills more than half of the room is copied into a segment with a name."""
    source = """
import numpy as np, os, shmpar
from multiprocessing.managers import SharedMemoryManager
x = np.arange(5_000_000) % 1000.0  # 40 MB
name = "shmpar-test-room"
print((shmpar.array(x, name=name) == x).all(), os.listdir("/dev/shm"))
print((shmpar.array(x[::-1], name=name) == x[::-1]).all())
print((shmpar.array(x.astype("f4"), "f8", name=name) == x).all())
print((shmpar.full(x.shape, x, name=name) == x).all())
with SharedMemoryManager() as manager:
    print((shmpar.array(x, manager=manager) == x).all())
"""
    assert in_little_shm(source) == "True []\n" + "True\n" * 4


def test_a_request_that_never_fits_ends_while_others_make_calls() -> None:
    """A thread that ends one run after the other does not delay the error for ever."""
    done = run_python("""
        import threading, numpy as np, shmpar
        stop = threading.Event()
        with shmpar.Pool(1) as pool:
            def calls():
                while not stop.is_set():
                    pool.map_blocks(np.negative, np.ones(10))
            thread = threading.Thread(target=calls)
            pool.map_blocks(np.negative, np.ones(10))
            thread.start()
            try:
                shmpar.zeros(10**15, "u1")
            except shmpar.SegmentFull:
                print("refused")
            stop.set()
            thread.join()
    """)
    assert (done.stdout, done.stderr) == ("refused\n", "")


@needs_root
def test_a_full_file_system_does_not_end_huge_pages() -> None:
    """The kernel refuses a page where there is no room; it is asked again for the next array."""
    source = """
import os, shmpar
from shmpar.memory import huge
from shmpar.memory.locate import locate
def made():
    return locate(shmpar.zeros(5 << 20, "u1")).segment.huge_bytes
before = made()
with open("/dev/shm/filler", "wb") as filler:
    os.posix_fallocate(filler.fileno(), 0, 15 << 20)
made()
os.unlink("/dev/shm/filler")
print(huge.refusal(), made() == before)
"""
    assert in_little_shm(source, "16m") == "None True\n"


@needs_root
def test_the_memory_of_a_failed_run_is_released_for_a_later_array() -> None:
    """A failed run and its error refer to each other; a lack of room has them collected."""
    source = """
import gc, numpy as np, shmpar
from shmpar.memory import allocate
gc.disable()
def work(block, block_id):
    if block_id[0] == 9:
        raise ValueError("late")
    return block.astype("f8")
with shmpar.Pool(1) as pool:
    try:
        pool.map_blocks(work, np.ones(5_000_000, "u1"), chunks=500_000, dtype="f8")
    except shmpar.ChunkError:
        pass
    pool.map_blocks(np.negative, np.ones(9))
    allocate._shared_ends.append(float("-inf"))  # as a while later
    print(shmpar.zeros(5_000_000, name="shmpar-test-collected").sum())
"""
    assert in_little_shm(source) == "0.0\n"
