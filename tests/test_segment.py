"""Segments: make, locate, fill and remove them."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import threading
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shmpar.errors import SegmentError, SegmentFull, SegmentGone
from shmpar.memory import allocate, limits
from shmpar.memory import locate as locating
from shmpar.memory import segment as segments
from shmpar.memory.copying import share, write
from shmpar.memory.layout import byte_bounds
from shmpar.memory.locate import locate
from shmpar.memory.manager import Manager
from shmpar.memory.segment import Segment, create
from tests.interpreters import run_python

DTYPES = st.one_of(
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(),
    hnp.boolean_dtypes(),
    hnp.datetime64_dtypes(),
    hnp.unicode_string_dtypes(max_len=5),
    hnp.byte_string_dtypes(max_len=5),
)


@st.composite
def layouts(draw):
    """Return an array of any shape and memory layout."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    array = draw(hnp.arrays(draw(DTYPES), shape))  # of shape () a scalar
    array = np.asarray(array).transpose(draw(st.permutations(range(array.ndim))))
    step = draw(st.sampled_from([slice(None), slice(None, None, -1), slice(None, None, 2)]))
    return array[(..., *(step,) * array.ndim)]


@given(layouts())
def test_share_keeps_values_and_memory_order(array):
    """A shared copy equals its source bit for bit, and has its strides but for wide gaps."""
    segment, copy = share(array)
    assert type(copy) is np.ndarray
    assert copy.tobytes() == array.tobytes()
    assert (copy.shape, copy.dtype) == (array.shape, array.dtype)
    low, high = byte_bounds(array.shape, array.strides, array.itemsize)
    if array.size and high - low <= 2 * array.nbytes:
        triples = zip(array.shape, array.strides, copy.strides, strict=True)
        assert all(length == 1 or due == found for length, due, found in triples)
    assert segment.size <= max(1, 3 * array.nbytes)


@given(layouts())
def test_write_puts_values_in_c_order(array):
    """write() writes exactly the values, in C order, at its offset."""
    segment = create(array.nbytes + 48)
    write(segment.fileno(), 16, array)
    found = segment.ndarray(16, array.shape, None, array.dtype)
    assert found.tobytes() == array.tobytes()
    assert not segment.ndarray(0, (16,), None, np.dtype("u1")).any()


def test_a_large_strided_array_is_gathered_in_pieces():
    """Strided values that fill several buffers and several steps are all written."""
    source = np.arange(5_000_000, dtype="i4").reshape(1000, 5000)[::-1, ::2]
    assert np.array_equal(share(source)[1], source)


@pytest.mark.parametrize("kind", [source.kind for source in allocate.SOURCES])
def test_every_source_works(kind, monkeypatch):
    """A segment of each source can be written, and another process can adopt it."""
    monkeypatch.setattr(allocate, "SOURCES", tuple(r for r in allocate.SOURCES if r.kind == kind))
    segment, array = share(np.arange(10))
    assert segment.kind == kind
    assert not os.get_inheritable(segment.fileno())
    twin = Segment.adopt(os.dup(segment.fileno()), 80, key=7, kind=kind, writable=True)
    twin.ndarray(0, (10,), None, array.dtype)[3] = 99
    assert array[3] == 99
    assert twin.key == 7


def test_a_private_segment_keeps_its_writes():
    """A private segment is writable, and its writes are not shared."""
    segment, array = share(np.zeros(4))
    fd = os.dup(segment.fileno())
    twin = Segment.adopt(fd, segment.size, key=1, kind="shm", writable=False, private=True)
    mine = twin.ndarray(0, (4,), None, array.dtype)
    mine[0] = 1
    assert mine.tolist() == [1, 0, 0, 0]
    assert array.tolist() == [0, 0, 0, 0]


def test_a_read_only_segment_gives_read_only_arrays():
    """A worker cannot write to an input."""
    segment, array = share(np.zeros(4))
    fd = os.dup(segment.fileno())
    twin = Segment.adopt(fd, segment.size, key=1, kind="shm", writable=False)
    mine = twin.ndarray(0, (4,), None, array.dtype)
    assert not mine.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        mine[0] = 1


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(-1, (2,), None), (0, (11,), None), (73, (1,), None), (0, (2,), (-8,)), (8, (3,), (40,))],
)
def test_an_array_outside_of_its_segment_is_refused(offset, shape, strides):
    """No byte outside of a segment can be reached."""
    with pytest.raises(ValueError, match="outside"):
        create(80).ndarray(offset, shape, strides, np.dtype("f8"))


def test_a_segment_lives_as_long_as_its_views():
    """The last view closes the descriptor and calls the subscribers once."""
    ended = []
    segment = create(80)
    fd = segment.fileno()
    segment.subscribe(ended.append)
    key = segment.key
    view = segment.ndarray(0, (10,), None, np.dtype("f8"))[3:]
    del segment
    assert not ended
    os.fstat(fd)
    del view
    assert ended == [key]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_a_closed_segment_keeps_its_views():
    """After close() the values stay readable and nothing else works; a second call is harmless."""
    ended = []
    segment, array = share(np.arange(3))
    segment.subscribe(ended.append)
    segment.close()
    segment.close()
    array += 1
    assert array.tolist() == [1, 2, 3]
    assert ended == [segment.key]
    assert locate(array) is None
    with pytest.raises(SegmentGone, match="closed"):
        segment.fileno()
    segment.subscribe(ended.append)
    assert len(ended) == 2


def test_an_end_within_the_call_that_maps_a_segment_is_told_as_such(monkeypatch):
    """Another thread may close the descriptor, or its number may denote another file by then."""
    segment = create(80)

    def late(segment: Segment, _: int) -> None:
        segment.close()
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(segments.Mapping, "_anywhere", late)
    with pytest.raises(SegmentGone, match="closed"):
        segment.ndarray(0, (10,), None, np.dtype("f8"))


def test_the_mapping_cannot_be_closed():
    """Closing the mmap object does nothing, so a view never faults."""
    segment, array = share(np.arange(3))
    segment.mapping.close()
    assert array.sum() == 3


def test_a_segment_may_end_while_the_list_of_mappings_is_locked():
    """A garbage collection under the lock ends segments without waiting for that lock."""
    ended = []
    segment = create(80)
    segment.subscribe(ended.append)
    cycle = [segment.ndarray(0, (10,), None, np.dtype("f8"))]
    cycle.append(cycle)
    del segment, cycle
    with segments._mappings_lock:
        gc.collect()
    assert len(ended) == 1


def test_keys_are_never_reused():
    """A worker caches segments by their keys."""
    keys = {create(1).key for _ in range(100)}
    assert len(keys) == 100


# --- locate()


def test_plain_memory_is_not_located():
    """An array that owns its data is not located, nor is a view of it."""
    plain = np.arange(10)
    assert locate(plain) is None
    assert locate(plain[2:]) is None
    assert locate(np.frombuffer(b"abcdefgh", "u1")) is None


@pytest.mark.parametrize(
    ("view", "offset"),
    [
        (lambda a: a, 0),
        (lambda a: a[1:], 40),
        (lambda a: a[::-1, 2], 136),
        (lambda a: a.T[3], 24),
        (lambda a: a.view("u1")[0, 5:], 5),
        (lambda a: np.lib.stride_tricks.sliding_window_view(a, 2, 1)[1], 40),
        (lambda a: np.broadcast_to(a[2], (7, 5)), 80),
    ],
)
def test_views_are_located_by_their_bytes(view, offset):
    """The segment and offset of a view are found, however the view was made."""
    segment, array = share(np.arange(20.0).reshape(4, 5))
    if view(array).shape == (4,):
        offset = 3 * 40 + 16 if view(array)[0] == array[3, 2] else offset
    place = locate(view(array))
    assert place.segment == segment
    assert place.offset == offset


def test_an_address_range_can_be_reused():
    """An address range that the kernel reuses belongs to its present segment."""
    for _ in range(50):
        segment, array = share(np.zeros(1000))
        assert locate(array).segment is not None
        assert locate(array).segment.key == segment.key


@pytest.fixture
def npy(tmp_path):
    """Write a .npy file of 10 x 8 float64."""
    path = tmp_path / "a b\n.npy"
    np.save(path, np.arange(80.0).reshape(10, 8))
    return path


@pytest.mark.parametrize("source", [locating._from_kernel, locating._from_memmap])
def test_a_mapped_file_is_located(npy, source, monkeypatch):
    """np.load(mmap_mode=) is located; all views of it lie in one segment."""
    monkeypatch.setattr(locating, "_from_kernel", source)
    array = np.load(npy, mmap_mode="r+")
    place = locate(array)
    assert (place.segment.kind, place.segment.writable) == ("file", True)
    assert os.pread(place.segment.fileno(), 8, place.offset + 8) == array[0, 1].tobytes()
    part = locate(np.asarray(array)[3:, 1:])
    assert part.segment.key == place.segment.key
    assert part.offset == place.offset + 3 * 64 + 8


def test_the_segment_of_a_mapped_file_ends_with_its_mmap(npy):
    """The segment of a mapped file ends when the user drops the map."""
    array = np.load(npy, mmap_mode="r")
    ended = []
    place = locate(array)
    assert not place.segment.writable
    place.segment.subscribe(ended.append)
    del place, array
    assert len(ended) == 1


def test_private_removed_and_replaced_files_are_not_located(npy):
    """Memory that other processes would not see is not located."""
    assert locate(np.load(npy, mmap_mode="c")) is None
    removed = np.load(npy, mmap_mode="r")
    os.unlink(npy)
    assert locate(removed) is None
    np.save(npy, np.zeros((10, 8)))
    replaced = np.load(npy, mmap_mode="r")
    os.rename(npy, f"{npy}.old")
    np.save(npy, np.zeros((10, 8)))
    place = locate(replaced)
    assert place is None or os.path.samestat(
        os.fstat(place.segment.fileno()), os.stat(f"{npy}.old")
    )


@pytest.mark.parametrize("located_before", [False, True])
def test_a_file_that_was_shortened_is_an_error(npy, located_before):
    """Past the end of the file, a read is SIGBUS."""
    array = np.load(npy, mmap_mode="r+")
    if located_before:
        locate(array)
    os.truncate(npy, 200)
    with pytest.raises(SegmentError, match="shortened"):
        locate(array)


def test_the_standard_librarys_memory_is_located():
    """An array over SharedMemory.buf is located."""
    theirs = SharedMemory(create=True, size=800)
    try:
        array = np.ndarray((100,), "f8", theirs.buf)
        place = locate(array[5:])
        assert place.offset == 40
        assert place.segment.kind == "file"
        del array, place
    finally:
        theirs.close()
        theirs.unlink()


# --- free memory


def test_an_absurd_request_is_refused_before_memory_is_touched():
    """The error for a petabyte has the requested bytes, the free bytes and advice."""
    with pytest.raises(
        SegmentFull, match=r"result: no room .* 1,000,000,000,000,000 .* free.*np.memmap"
    ):
        create(10**15, purpose="result")
    assert issubclass(SegmentFull, MemoryError)


def test_memory_that_runs_out_between_two_steps_is_noticed(monkeypatch):
    """Each step checks free memory again; the bytes reserved so far are released."""
    answers = itertools.chain([1 << 40, 1 << 40], itertools.repeat(0))
    monkeypatch.setattr(limits, "free_memory", lambda: next(answers))
    monkeypatch.setattr(allocate, "SOURCES", allocate.SOURCES[:1])
    with pytest.raises(SegmentFull, match="0 free"):
        create(200 << 20)


def test_a_full_source_is_skipped(monkeypatch):
    """After ENOSPC in /dev/shm, the values are written to the next source."""

    def full(fd, nbytes):
        raise OSError(errno.ENOSPC, "No space left on device")

    first = allocate.Source("shm", "/dev/shm", lambda: full(0, 0))
    monkeypatch.setattr(allocate, "SOURCES", (first, *allocate.SOURCES[1:]))
    segment, array = share(np.arange(5))
    assert segment.kind == "memfd"
    assert array.tolist() == [0, 1, 2, 3, 4]


def test_every_byte_is_reserved():
    """Blocks are allocated for the whole size, so no write can fail later."""
    segment = create(5 << 20)
    assert os.fstat(segment.fileno()).st_blocks * 512 >= 5 << 20
    segment, _ = share(np.zeros(5 << 17))
    assert os.fstat(segment.fileno()).st_blocks * 512 >= 5 << 20


def test_free_memory_is_known():
    """Free memory is a plausible number."""
    assert 0 < limits.free_memory() < 1 << 62


def test_cgroup_limits_count(tmp_path, monkeypatch):
    """A group leaves its limit minus its use, without reclaimable page cache."""
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100\n")
    child = tmp_path / "child"
    child.mkdir()
    (child / "memory.max").write_text("max\n")
    (child / "memory.current").write_text("1\n")
    (tmp_path / "membership").write_text("3:cpu:/other\n0::/child/missing\n")
    monkeypatch.setattr(limits, "CGROUP_ROOT", str(tmp_path))
    monkeypatch.setattr(limits, "CGROUP_MEMBERSHIP", str(tmp_path / "membership"))
    assert [group.left for group in limits.memory_groups()] == [400]


def test_cgroup_limits_of_version_1_count_too(tmp_path, monkeypatch):
    """The group of the controller and its ancestors count."""
    for group, limit in (("", 1000), ("/a", 500), ("/a/b", 1 << 63)):
        folder = tmp_path / f"memory{group}"
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text("100\n")
    (tmp_path / "membership").write_text("7:memory:/a/b\n")
    monkeypatch.setattr(limits, "CGROUP_ROOT", str(tmp_path))
    monkeypatch.setattr(limits, "CGROUP_MEMBERSHIP", str(tmp_path / "membership"))
    assert [group.left for group in limits.memory_groups()] == [400, 900]


SMALL_SHM = """
import os, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm"], check=True)
import numpy as np
from shmpar.memory.copying import share
from shmpar.memory.segment import create
from shmpar.arrays import attach, creation as sa
segment, array = share(np.ones(100 << 17))
assert segment.kind == "memfd", segment.kind
array[:] = 2
assert create(100 << 20).kind == "memfd"
small = sa.zeros(10)
assert small._handle.segment.kind == "shm"
big = sa.zeros(100 << 17)
assert big.name.startswith(f"/proc/{os.getpid()}/fd/")
reader = f'''
from shmpar.arrays import attach, creation as sa
a = attach({big.address!r})
a[5] = 7
assert a.size == 100 << 17
'''
subprocess.run([sys.executable, "-c", reader], check=True)
assert big[5] == 7
try:
    sa.zeros(100 << 17, name="mine")
except sa.creation.SegmentFull as error:
    print("refused", os.listdir("/dev/shm"))
"""


def test_a_small_dev_shm_is_no_limit():
    """If 100 MB exceed /dev/shm, they lie in a memory file that can be attached."""
    if os.geteuid() != 0 or not os.path.exists("/usr/bin/unshare"):
        pytest.skip("mounting a small /dev/shm needs root and unshare")
    import subprocess
    import sys

    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    code = SMALL_SHM.replace("sa.creation.SegmentFull", "MemoryError")
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env=env,
    )
    if "unshare" in done.stderr and done.returncode == 1:
        pytest.skip(f"no new mount namespace here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "refused []\n"
    assert done.stderr == ""


def test_segments_can_be_made_by_many_threads():
    """Threads that make segments at once get distinct ones."""
    manager = Manager()
    failures = []

    def work(seed):
        try:
            for n in range(50):
                array = np.full(100, seed * 1000 + n)
                place = manager.allocate(array.nbytes, array)
                found = place.segment.ndarray(place.offset, (100,), None, array.dtype)
                assert (found == array).all()
                assert locate(found).segment == place.segment
                if n % 10 == 0:
                    manager.name(place.segment)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    manager.close()


def test_a_closed_manager_makes_nothing():
    """A closed manager raises RuntimeError; a second close() is harmless."""
    manager = Manager()
    place = manager.allocate(24, np.ones(3))
    view = place.segment.ndarray(0, (3,), None, np.dtype("f8"))
    manager.close()
    manager.close()
    assert place.segment.closed
    assert view.sum() == 3
    with pytest.raises(RuntimeError, match="closed"):
        manager.create(8)


def test_small_arrays_share_a_segment_where_descriptors_are_scarce(monkeypatch):
    """Pieces are aligned, zero and disjoint, and the segment ends with the last one."""
    monkeypatch.setattr(limits, "descriptors_scarce", lambda: True)
    with Manager() as manager:
        places = [manager.allocate(n) for n in (1, 100, 64, 0, 65536)]
        assert len({place.segment.key for place in places}) == 1
        assert [place.offset for place in places] == [0, 64, 192, 256, 320]
        assert manager.allocate(65537).segment.key != places[0].segment.key
        segment, offset = places[1].segment, places[1].offset
        ended = []
        segment.subscribe(ended.append)
        view = segment.ndarray(offset, (100,), None, np.dtype("u1"))
        del places, segment
        assert not ended
        assert not view.any()
        del view
        assert len(ended) == 1


def test_many_arrays_live_under_a_low_limit_of_descriptors():
    """3,000 small arrays and 600 large ones live at once under a soft limit of 1,024."""
    done = run_python("""
        import os, resource, numpy as np
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, min(hard, 4096)))
        from shmpar.arrays import attach, creation as sa
        arrays = [sa.array(np.full(100, n)) for n in range(3000)]
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1024
        assert len(os.listdir("/proc/self/fd")) < 600
        assert all((a == n).all() for n, a in enumerate(arrays))
        last = arrays[-1]
        assert "@" in last.name
        assert (attach(last.name, last.shape, last.dtype) == 2999).all()
        attach(arrays[-2].address)[0] = 5
        assert arrays[-2][0] == 5 and arrays[-3][0] == 2997
        last.close()
        assert arrays[-2].name
        large = [sa.zeros(10_000) for _ in range(600)]
        print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1024 or len(large))
    """)
    assert (done.stderr, done.returncode) == ("", 0)


def test_an_array_that_outlives_the_modules_prints_nothing():
    """The last arrays of an interpreter end after the globals of this package, in silence."""
    done = run_python("""
        import os, shmpar
        os.kept = shmpar.zeros(9), shmpar.zeros(9, name=f"late{os.getpid()}")
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
