"""Large segments lie in pages of 2 MiB if the kernel makes some, and are as exact without."""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import errno
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shmpar
from shmpar.memory import huge, reuse, system
from shmpar.memory.allocate import LazyPages
from shmpar.memory.locate import locate
from shmpar.memory.segment import Segment
from shmpar.worker import compute, loop
from tests.interpreters import interpreter, run_python
from tests.test_little_shm import in_little_shm

MIB = 1 << 20
LONG = 60.0  # seconds, more than any page or chunk takes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has them")


def has_huge_pages() -> bool:
    """Return whether this kernel makes huge pages of shared memory."""
    values = shmpar.zeros(huge.MIN_BYTES, "u1")
    return segment_of(values).huge_bytes > 0


def segment_of(array: np.ndarray) -> Segment:
    found = locate(array)
    assert found is not None
    return found.segment


def mapped_in_huge_pages() -> int:
    """Return the bytes of shared memory that this process maps in huge pages."""
    lines = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"ShmemPmdMapped: +(\d+) kB", lines)
    return int(found[1]) * 1024 if found else 0


@pytest.fixture(autouse=True)
def no_slow_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each page any time: on a busy machine some would count as slow, and end the attempt."""
    monkeypatch.setattr(huge, "_SLOW_SECONDS", LONG)
    monkeypatch.setattr(huge, "_STALL_SECONDS", LONG)


@pytest.fixture(autouse=True)
def new_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each array lie in pages that are made for it."""
    monkeypatch.setattr(reuse, "_refused", True)


@pytest.fixture(params=["huge", "small"])
def pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Huge pages, where the kernel makes some, and small ones."""
    if request.param == "small":
        monkeypatch.setenv(huge.VARIABLE, "0")
    elif not has_huge_pages():
        pytest.skip("this kernel makes no huge pages of shared memory")
    return str(request.param)


def layouts() -> dict[str, np.ndarray]:
    """Return arrays of every kind of layout, all larger than two huge pages."""
    random = np.random.default_rng(0)
    cube = random.random((7, 500, 600))
    return {
        "contiguous": random.random(1_000_003),
        "bytes": np.arange(5 * MIB + 3, dtype="u1"),
        "transposed": cube.transpose(2, 0, 1),
        "fortran": np.asfortranarray(random.random((1000, 700))),
        "every third": random.random(2_000_000)[::3],
        "backwards": random.random((1200, 600))[::-1, ::-1],
        "long rows": random.random((3, 1_500_000))[:, ::2],
        "records": np.zeros(200_000, [("a", "u1"), ("b", "f8"), ("c", "S21")])[::1],
        "text": np.full(300_000, "abcd")[::1],
    }


@pytest.mark.parametrize("name", layouts())
def test_copies_are_equal(name: str, pages: str, nothing_left: None) -> None:
    """Each byte of a copy is that of its source, whatever the layout of the source."""
    values = layouts()[name]
    copy = shmpar.array(values)
    assert np.array_equal(copy, values)
    segment = segment_of(copy)
    assert (segment.huge_bytes > 0) == (pages == "huge" and segment.size >= huge.MIN_BYTES)


@settings(max_examples=15)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.permutations(range(3)),
    st.lists(st.sampled_from([1, 2, -1, -3]), min_size=3, max_size=3),
    st.sampled_from(["u1", "f4", "f8", "c16", "M8[s]"]),
)
def test_copies_of_any_layout(
    lengths: list[int], order: list[int], steps: list[int], dtype: str
) -> None:
    """A copy of a strided view of some megabytes equals the view."""
    shape = [*lengths, *[1] * (3 - len(lengths))]
    missing = 9 * MIB // (int(np.prod(shape)) * np.dtype(dtype).itemsize) + 1
    shape[order[0]] *= missing
    count = int(np.prod(shape))
    base = np.arange(count, dtype="u8").astype(dtype).reshape(shape)
    view = base[tuple(slice(None, None, step) for step in steps)].transpose(order)
    assert np.array_equal(shmpar.array(view), view)


@settings(max_examples=15)
@given(
    st.sampled_from(["i1", "u2", "i8", "f2", "f4", "f8", ">i4", "?", "f8"]),
    st.sampled_from(["u1", "i8", "f4", "f8", ">f8", "c16", "?"]),
    st.sampled_from([0, 1, 700_001, 2_000_003]),
    st.booleans(),
    st.booleans(),
)
def test_copies_are_cast(have: str, due: str, size: int, strided: bool, small: bool) -> None:
    """``dtype=`` casts each value as ``astype`` does, in pages of either size."""
    values = (np.arange(size) % 100).astype(have)
    values = values[::-2] if strided else values
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setenv(huge.VARIABLE, "0")
        copy = shmpar.array(values, dtype=due)
    assert copy.dtype == np.dtype(due)
    assert np.array_equal(copy, values.astype(due))


@pytest.mark.parametrize("value", ["0", "off", "No"])
def test_the_variable_turns_huge_pages_off(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """All usual words for it do."""
    monkeypatch.setenv(huge.VARIABLE, value)
    place = locate(shmpar.zeros(1 << 20))
    assert place is not None
    assert (huge.refusal(), place.segment.huge_bytes) == (f"{huge.VARIABLE}={value}", 0)


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """Bytes that several threads copy."""
    return np.random.default_rng(2).integers(0, 255, 100 * MIB + 6, "u1")


@pytest.mark.parametrize("backwards", [False, True], ids=["bytes", "backwards"])
def test_copies_by_threads(
    large: np.ndarray, backwards: bool, pages: str, nothing_left: None
) -> None:
    """Several threads copy a large array; each byte is that of its source."""
    values = large.view("i2")[::-1] if backwards else large
    copy = shmpar.array(values)
    assert np.array_equal(copy, values)
    assert segment_of(copy).huge_bytes == (100 * MIB if pages == "huge" else 0)
    with shmpar.Pool(1) as pool:
        assert np.array_equal(pool.map_blocks(np.copy, values, chunks=-1), values)


def test_a_slow_page_ends_the_attempt_of_all_threads(
    large: np.ndarray, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """The rest of a large array lies in small pages, and is as exact."""
    if not has_huge_pages():
        pytest.skip("this kernel makes no huge pages of shared memory")
    monkeypatch.setattr(huge, "_SLOW_SECONDS", -1)
    monkeypatch.setattr(huge, "_SLOW_RATIO", 1)  # some page takes longer than the median
    copy = shmpar.array(large)
    assert np.array_equal(copy, large)
    assert 0 < segment_of(copy).huge_bytes < 100 * MIB


def test_copies_without_more_threads(
    large: np.ndarray, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """A process that may start no thread copies by itself."""

    def refused(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refused)
    assert np.array_equal(shmpar.array(large), large)


def test_a_copy_fits_nowhere(nothing_left: None) -> None:
    """Threads that copy end with the error of the memory check."""
    source = """
import numpy as np, os, shmpar
from shmpar.memory import allocate
allocate.SOURCES = allocate.SOURCES[:1]  # else the copy would lie in memory without a name
values = np.ones(150 << 20, "u1")
for _ in range(2):
    try:
        shmpar.array(values)
    except shmpar.SegmentFull as error:
        print("SegmentFull", os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize)
"""
    assert in_little_shm(source, "110m") == f"SegmentFull {110 * MIB}\n" * 2


def test_the_end_lies_in_small_pages(pages: str, nothing_left: None) -> None:
    """A segment takes no more memory than its bytes, rounded up to a small page."""
    for values in (shmpar.zeros(5 * MIB + 5, "u1"), shmpar.array(np.ones(5 * MIB + 5, "u1"))):
        segment = segment_of(values)
        assert os.fstat(segment.fileno()).st_blocks * 512 == 5 * MIB + 4096
        assert segment.huge_bytes == (4 * MIB if pages == "huge" else 0)


def test_new_arrays_are_zeros(pages: str, nothing_left: None) -> None:
    """Memory that another array has used before reads as zeros."""
    for _ in range(3):
        values = shmpar.zeros(1_500_000)
        assert not values.any()
        values[...] = 1
        del values


def test_a_mapping_uses_the_huge_pages(pages: str, nothing_left: None) -> None:
    """A process that maps a segment gets its huge pages, not small ones."""
    before = mapped_in_huge_pages()
    values = shmpar.zeros(16 * MIB, "u1")
    assert values.sum() == 0
    found = mapped_in_huge_pages() - before
    assert found == (16 * MIB if pages == "huge" else 0)


@given(
    st.integers(1, 60 * MIB),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=6),
    st.floats(0, 1, exclude_max=True),
)
def test_the_parts_of_a_window_cover_the_pages_that_are_not_ready(
    nbytes: int, ends: list[tuple[float, float]], share: float
) -> None:
    """Each page comes once, from the share of this worker on, and a part is made at once."""
    pages, mapped = LazyPages(0, nbytes), np.zeros(nbytes, "u1")
    ready: set[int] = set()
    for pair in ends:
        low, high = sorted(int(end * nbytes) for end in pair)
        touched = range(low // huge.PAGE, -(-high // huge.PAGE))
        begin = len(touched) * share // 1
        turned = [*touched[int(begin) :], *touched[: int(begin)]]
        parts = pages.missing(low, high, share)
        found = [page for part in parts for page in range(*part, huge.PAGE)]
        assert found == [page * huge.PAGE for page in turned if page not in ready]
        assert all(stop - start <= huge.BATCH for start, stop in parts)
        for part in parts[::2]:
            pages.map(mapped, *part)
            ready.update(page // huge.PAGE for page in range(*part, huge.PAGE))


@pytest.mark.parametrize("quick", [True, False])
def test_workers_share_few_pages_of_a_fresh_output(
    quick: bool, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """A worker takes as many quick chunks as fill the pages that it makes at once, while it can."""

    def work(row: np.ndarray) -> np.ndarray:
        time.sleep(0.002)  # longer than a claim lasts by itself
        return row + 1

    monkeypatch.setattr(loop, "CLAIM_SECONDS", 0.001)
    monkeypatch.setattr(compute, "_PAGES_SECONDS", LONG if quick else 0)
    values = np.zeros((96, MIB), "u1")
    with shmpar.Pool(2, engine="threads") as pool:
        claims = []
        for out in (None, pool.zeros(values.shape, values.dtype)):
            assert (pool.map_blocks(work, values, chunks=(1, -1), out=out) == 1).all()
            assert pool.last_run is not None
            claims.append(pool.last_run.report.claims)
    assert (claims[0] < 40, claims[0] == 96, claims[1]) == (quick, not quick, 96)


def test_a_small_output_beside_a_large_one_makes_no_claim_larger(
    monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """The pages of the large one decide: claims that fill a page of the small one are too long."""

    def work(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(0.002)
        return row + 1, row[: 1 << 16]

    monkeypatch.setattr(loop, "CLAIM_SECONDS", 0.001)
    monkeypatch.setattr(compute, "_PAGES_SECONDS", LONG)
    with shmpar.Pool(2, engine="threads") as pool:
        large, small = pool.parallel_map(work, np.zeros((96, MIB), "u1"), dtype=("u1", "u1"))
        assert (large == 1).all()
        assert not small.any()
        assert pool.last_run is not None
        assert pool.last_run.report.claims < 40


def test_threads_count_their_huge_pages_together(
    monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """None forgets those that another thread makes meanwhile; pages of both count once."""
    if not has_huge_pages():
        pytest.skip("this kernel makes no huge pages of shared memory")
    reserve = LazyPages.reserve

    def slow(self: LazyPages, fd: int, start: int, stop: int) -> int:
        reserve(self, fd, start, stop)
        time.sleep(0.005)
        return stop - start

    monkeypatch.setattr(LazyPages, "reserve", slow)
    with shmpar.Pool(2, engine="threads") as pool:
        found = pool.map_blocks(np.sqrt, np.ones((64, 1 << 16)), chunks=(1, -1))
        assert (found == 1).all()
        assert pool.last_run.report.huge_bytes == found.nbytes == 32 * MIB


@pytest.mark.parametrize("engine", ["processes", "threads", "serial"])
def test_fresh_outputs(engine: str, pages: str, nothing_left: None) -> None:
    """Outputs that workers reserve have NumPy's values, for rows, tiles, columns and items."""
    values = np.random.default_rng(1).random((1003, 1201))
    with shmpar.Pool(2, engine=engine) as pool:
        shared = pool.array(values)
        for chunks in ((50, -1), (-1, 70), (333, 400), "auto"):
            found = pool.map_blocks(lambda block: block * 2, shared, chunks=chunks)
            assert np.array_equal(found, values * 2)
            assert segment_of(found).reserved
        assert np.array_equal(pool.map_blocks(np.sqrt, values), np.sqrt(values))
        rows = pool.parallel_map(lambda row: row[::-1], shared)
        assert np.array_equal(rows, values[:, ::-1])
        one, other = pool.map_blocks(lambda block: (block + 1, block > 0), shared, chunks=100)
        assert np.array_equal(one, values + 1)
        assert other.all()


@pytest.mark.parametrize("engine", ["processes", "threads"])
def test_the_rest_of_a_failed_output_can_be_read(engine: str, nothing_left: None) -> None:
    """An output that no chunk has finished reads as zeros, and the run can be resumed."""
    values = np.ones((4000, 500))
    values[3000:] = -1

    def work(block: np.ndarray, bad: Any) -> np.ndarray:
        if block[0, 0] < 0 and bad[0]:
            raise ValueError("not yet")
        return block + 1

    with shmpar.Pool(2, engine=engine) as pool:
        bad = pool.array(np.ones(1))
        with pytest.raises(shmpar.ChunkError) as caught:
            pool.map_blocks(work, pool.array(values), chunks=(100, -1), kwargs={"bad": bad})
        run = caught.value.run
        assert run.out[3000:].sum() == 0
        bad[0] = 0
        assert np.array_equal(run.resume().result(), values + 1)


def test_failed_chunks_of_a_fresh_output_are_filled(nothing_left: None) -> None:
    """A window that no worker has reserved takes the fill value."""

    def work(block: np.ndarray, block_id: tuple[int, ...]) -> np.ndarray:
        if block_id[0] % 2:
            raise ValueError("odd")
        return block

    with shmpar.Pool(2) as pool, pytest.warns(RuntimeWarning):
        found = pool.map_blocks(
            work, np.ones((64, 40_000)), chunks=(8, -1), on_error="fill", fill_value=-1.0
        )
    assert np.array_equal(found[:, 0].reshape(8, 8)[:, 0], [1, -1] * 4)


# A kernel that refuses


class OnePageAtOnce:
    """A C library in which the kernel makes no page but those at some places, one at a time."""

    def __init__(self, refused: int | None) -> None:
        self.calls: list[tuple[int, int]] = []
        self._libc, self._refused = system.libc(), refused

    def __getattr__(self, name: str) -> Any:
        return getattr(self._libc, name)

    def madvise(self, address: int, nbytes: int, advice: int) -> int:
        self.calls.append((address, nbytes))
        first = self.calls[0][0]
        if nbytes > huge.PAGE or address - first == self._refused:
            ctypes.set_errno(errno.ENOMEM)
            return -1
        return int(self._libc.madvise(address, nbytes, advice))


@pytest.mark.parametrize("refused", [None, 0, 2 * huge.PAGE, 7 * huge.PAGE])
@pytest.mark.parametrize("kind", ["zeros", "copy", "backwards"])
def test_pages_of_which_the_kernel_refuses_one(
    kind: str, refused: int | None, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """The pages before it are made one by one, and the rest is reserved in small ones."""
    if not has_huge_pages():
        pytest.skip("this kernel makes no huge pages of shared memory")
    values = np.random.default_rng(3).integers(0, 255, 20 * MIB + 5, "u1")
    values = {"zeros": 0 * values, "copy": values, "backwards": values[::-1]}[kind]
    fake = OnePageAtOnce(refused)
    monkeypatch.setattr(system, "libc", lambda: fake)
    made = shmpar.zeros(values.shape, "u1") if kind == "zeros" else shmpar.array(values)
    assert np.array_equal(made, values)
    segment = segment_of(made)
    assert segment.huge_bytes == (20 * MIB if refused is None else refused)
    assert os.fstat(segment.fileno()).st_blocks * 512 == 20 * MIB + 4096
    assert huge.refusal() is None


FILTERED = """
import ctypes, errno, numpy as np, struct, sys
import shmpar
from shmpar.memory import huge
from shmpar.memory.locate import locate
def refuse(number, argument, value, answer):
    # BPF: if the system call is this one and its third argument has this value: errno, else allow.
    program = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16 + 8 * argument),
               (0x15, 0, 1, value), (0x06, 0, 0, 0x00050000 | answer), (0x06, 0, 0, 0x7FFF0000)]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(38, 1, 0, 0, 0) == 0
    assert prctl(22, 2, ctypes.c_char_p(header), 0, 0) == 0, ctypes.get_errno()
refuse({"x86_64": 28, "aarch64": 233}[__import__("platform").machine()], 2, 25,
       getattr(errno, sys.argv[1]))
values = np.arange(2_000_000.0)
copy = shmpar.array(values)
print((copy == values).all(), locate(copy).segment.huge_bytes, huge.refusal())
with shmpar.Pool(2) as pool:
    print((pool.map_blocks(lambda block: block * 2, copy) == values * 2).all())
    print((pool.map_blocks(np.sqrt, values) == np.sqrt(values)).all())
    print((pool.submit(np.copy, values).result() == values).all())
"""


@pytest.mark.parametrize(
    ("name", "reason"),
    [("EINVAL", "Invalid argument"), ("EPERM", "not permitted"), ("ENOMEM", None)],
)
def test_a_kernel_that_refuses(name: str, reason: str | None) -> None:
    """Old kernels and filters of system calls answer with an error: small pages are used."""
    lines = run_python(FILTERED, name).stdout.splitlines()
    assert lines[0].startswith("True 0 ")
    assert reason in lines[0] if reason else lines[0].endswith("None")
    assert lines[1:] == ["True"] * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_no_signal_on_a_full_file_system() -> None:
    """Outputs of which others took the room end in ``SegmentFull``; none is a SIGBUS."""
    source = """
import numpy as np, os, shmpar, time
from shmpar.memory import allocate
allocate.SOURCES = allocate.SOURCES[:1]  # else the output would lie in memory without a name
values = np.ones((600, 10_000))
def work(block, block_id):
    if block_id[0] == 0:
        with open("/dev/shm/filling", "wb") as file:
            try:
                while True:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, 1 << 16)
            except OSError:
                os.rename("/dev/shm/filling", "/dev/shm/filler")
    while not os.path.exists("/dev/shm/filler"):  # no chunk is written before the room is gone
        time.sleep(0.001)
    return block + 1
with shmpar.Pool(2) as pool:
    try:
        pool.map_blocks(work, values, chunks=(20, -1), dtype="f8")
    except shmpar.SegmentFull as error:
        print("SegmentFull", "no room" in str(error))
    os.unlink("/dev/shm/filler")
    print((pool.map_blocks(lambda block: block + 1, values, chunks=(20, -1)) == 2).all())
"""
    assert in_little_shm(source, "110m") == "SegmentFull True\nTrue\n"


INTERRUPTED = """
import numpy as np, os, shmpar, sys
values = np.ones(40_000_000)
try:
    print("ready", flush=True)
    while True:
        shmpar.array(values)
except KeyboardInterrupt:
    print("interrupted", len(os.listdir("/proc/self/fd")))
print(shmpar.array(values[:1_000_000]).sum())
"""


def test_an_interrupt_while_pages_are_made(pages: str) -> None:
    """Ctrl-C ends a copy within a moment, and leaves no memory."""
    with interpreter(INTERRUPTED, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        output, _ = process.communicate(timeout=30)
        assert time.monotonic() - began < 25
    lines = output.splitlines()
    assert lines[0].startswith("interrupted")
    assert lines[1] == "1000000.0"


KILLED = """
import numpy as np, shmpar
values = np.ones((4000, 2500))
with shmpar.Pool(2) as pool:
    shared = pool.array(values)
    print("ready", flush=True)
    while True:
        pool.array(values)
        assert (pool.map_blocks(lambda block: block + 1, shared) == 2).all()
        assert (pool.submit(np.negative, values).result() == -1).all()
"""


@pytest.mark.stress
def test_60_kills_while_pages_are_made(stress_seed: int) -> None:
    """A parent that is killed while pages are made leaves no process and no memory."""
    chance = random.Random(stress_seed)
    for _ in range(60):
        with interpreter(KILLED, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0, 0.2))
            process.kill()
            process.communicate()


@pytest.mark.stress
def test_100_runs_with_fresh_outputs_while_workers_are_killed(stress_seed: int) -> None:
    """A worker that is killed while it reserves its part of an output changes no value."""
    values, chance = np.random.default_rng(0).random((4000, 2500)), random.Random(stress_seed)
    with shmpar.Pool(2, retries=20) as pool:
        shared, right = pool.array(values), values * 2
        for _ in range(100):
            run = threading.Thread(target=_kill_one, args=(pool, chance.uniform(0, 0.03)))
            run.start()
            assert np.array_equal(pool.map_blocks(lambda block: block * 2, shared), right)
            run.join()


def _kill_one(pool: shmpar.Pool, after: float) -> None:
    time.sleep(after)
    pids = pool._loop.engine.pids()
    if pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGKILL)
