"""attach(): segments that it opens, segments and addresses that it refuses, and its effects."""

from __future__ import annotations

import copy
import glob
import json
import os
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpar.arrays import SharedArray, attach
from shmpar.arrays import creation as sa
from shmpar.arrays.address import Address, dtype_from_json, dtype_to_json
from shmpar.errors import SegmentGone
from shmpar.memory import allocate
from tests.interpreters import ROOT, run_python


def pythons():
    """Find the other interpreters of the machine that can import NumPy and run shmpar."""
    found = glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin/python"))
    found += glob.glob(os.path.join(os.path.dirname(sys.prefix), "*", "bin", "python"))
    code = "import sys, numpy; sys.exit(sys.version_info < (3, 11))"
    mine = os.path.realpath(sys.executable)
    for python in sorted(set(found)):
        if os.path.realpath(python) != mine:
            done = subprocess.run([python, "-c", code], check=False, capture_output=True)
            if done.returncode == 0:
                yield python


@pytest.fixture
def owner():
    """Share an array."""
    array = sa.array(np.arange(12.0).reshape(3, 4))
    yield array
    array.close()


ATTACHER = """
import json, sys
from shmpar.arrays import attach
a = attach(json.loads(sys.argv[1]))
b = attach(sys.argv[2], (3, 4), "f8")
assert not a.owner and b[0, 0] == a[0, 0]
a[0, 0] += 1
if sys.argv[3] == "close":
    a.close()
    b.close()
"""


@pytest.mark.parametrize("python", [sys.executable, *pythons()])
def test_unrelated_processes_attach_and_exit_without_effect(python, owner):
    """The owner's array is unchanged, and no process prints anything."""
    address = json.dumps(owner.address)
    for n in range(6 if python == sys.executable else 2):
        how = "close" if n % 2 else "exit"
        done = subprocess.run(
            [python, "-c", ATTACHER, address, owner.name, how],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": ROOT},
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert owner[0, 0] == n + 1
        assert os.path.exists(f"/dev/shm/{owner.name}")


def test_the_standard_library_opens_a_segment_by_name(owner):
    """SharedMemory(name) holds the values from its first byte on."""
    done = run_python(
        """
        import sys, numpy as np
        from multiprocessing import resource_tracker, shared_memory
        resource_tracker.register = lambda *_: None     # what track=False does on 3.13
        theirs = shared_memory.SharedMemory(sys.argv[1])
        view = np.ndarray((3, 4), "f8", theirs.buf)
        view[1, 1] = -5
        del view
        theirs.close()
        """,
        owner.name,
    )
    assert done.stderr == ""
    assert owner[1, 1] == -5


def test_attach_opens_segments_of_the_standard_library():
    """Pools may attach the array by handle or by name; the segment keeps its owner."""
    theirs = SharedMemory(create=True, size=100)
    try:
        a = attach(theirs, (3, 4), "f8")
        a[2, 3] = 6
        assert not a.owner
        assert bytes(theirs.buf[88:96]) == np.float64(6).tobytes()
        a.close()
        assert attach(theirs.name, 100, "u1").size == 100
        with pytest.raises(ValueError, match="100 bytes"):
            attach(theirs, (4, 4), "f8")
        del a
    finally:
        theirs.close()
        theirs.unlink()


def test_attaching_twice_maps_once(owner):
    """Both arrays lie at the same address of this process, so that an overlap is recognised."""
    first, second = attach(owner.address), attach(owner.name, (3, 4), "f8")
    assert np.shares_memory(first, second)
    first.close()
    first.close()
    assert not second.closed
    assert not owner.closed
    assert first[1, 1] == 5


def test_a_segment_that_was_taken_over_is_removed(owner):
    """own=True removes the name with this array; the first owner keeps its values."""
    code = """
        import sys
        from shmpar.arrays import attach
        a = attach(sys.argv[1], (3, 4), "f8", own=True)
        assert a.owner
    """
    name = owner.name
    assert run_python(code, name).stderr == ""
    assert not os.path.exists(f"/dev/shm/{name}")
    assert owner.sum() == 66
    owner.close()


def test_missing_segments_and_arguments_are_named(owner):
    """Each error names the remedy."""
    with pytest.raises(SegmentGone, match="keep the owner"):
        attach("shmpar_nothing", 3, "f8")
    with pytest.raises(FileNotFoundError):
        attach("shmpar_nothing", 3, "f8")
    with pytest.raises(TypeError, match="needs the array's shape"):
        attach(owner.name)
    with pytest.raises(TypeError, match="needs the array's shape"):
        attach(owner.name, shape=3)
    with pytest.raises(TypeError, match="its own shape"):
        attach(owner.address, 3)
    with pytest.raises(TypeError, match="takes a name"):
        attach(3, 3, "f8")
    with pytest.raises(ValueError, match="96 bytes"):
        attach(owner.name, 13, "f8")


@pytest.mark.parametrize(
    "name",
    [
        "../etc/passwd", "/etc/passwd", "", ".", "a\0b", "/proc/self/fd/0", "/proc/1/fd/01/x",
        "/proc/1/../1/fd/3", "/proc/1/mem", "//proc/1/fd/3", "/dev/shm/x",
    ],
)  # fmt: skip
def test_only_names_of_segments_are_opened(name, owner):
    """A path, or another file in /proc, is refused."""
    with pytest.raises(ValueError, match="cannot name"):
        attach(name, 3, "u1")
    with pytest.raises(ValueError, match="cannot name"):
        attach({**owner.address, "name": name})


def test_only_regular_files_are_opened(tmp_path, owner):
    """A symbolic link, a folder, a pipe and a file with a name are refused."""
    paths = [f"/dev/shm/shmpar-test-{kind}" for kind in ("link", "folder", "pipe")]
    target = tmp_path / "target"
    target.write_bytes(bytes(100))
    os.symlink(target, paths[0])
    os.mkdir(paths[1])
    os.mkfifo(paths[2])
    try:
        for path in paths:
            with pytest.raises(ValueError, match="no segment"):
                attach(os.path.basename(path), 3, "u1")
    finally:
        os.unlink(paths[0])
        os.rmdir(paths[1])
        os.unlink(paths[2])
    with open(target, "rb") as file, pytest.raises(ValueError, match="name of its own"):
        attach(f"/proc/{os.getpid()}/fd/{file.fileno()}", 3, "u1")
    reader, writer = os.pipe()
    with pytest.raises(ValueError, match="no segment"):
        attach(f"/proc/{os.getpid()}/fd/{reader}", 3, "u1")
    os.close(reader)
    os.close(writer)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_other_users_segments_are_refused():
    """Another user could shorten the segment while it is mapped."""
    path = "/dev/shm/shmpar-test-foreign"
    with open(path, "wb") as file:
        file.write(bytes(100))
    os.chown(path, 12345, 12345)
    try:
        with pytest.raises(PermissionError, match="12345"):
            attach("shmpar-test-foreign", 3, "u1")
    finally:
        os.unlink(path)


def test_an_address_of_a_segment_that_was_replaced_is_gone(owner):
    """An address means one segment, and not another one of the same name."""
    address = owner.address
    owner.close()
    other = sa.zeros((3, 4), name=address["name"])
    with pytest.raises(SegmentGone, match="another one"):
        attach(address)
    other.close()


def test_a_file_that_has_grown_is_attached_whole(tmp_path):
    """An array behind the old end of an attached file is found; the first one stays as it is."""
    np.arange(4.0).tofile(tmp_path / "file")
    first = attach(sa.asarray(np.memmap(tmp_path / "file", "f8", "r+")).address)
    with open(tmp_path / "file", "ab") as file:
        np.arange(4.0, 8.0).tofile(file)
    whole = attach({**first.address, "size": 64, "shape": [8]})
    assert whole.tolist() == list(range(8))
    whole[0] = 9
    assert first[0] == 9


def test_closing_an_attached_file_leaves_its_mapping_shared(tmp_path):
    """An owner that attached to a file closes its own segment, and not that of a memmap."""
    mapped = np.memmap(tmp_path / "file", "f8", "w+", shape=4)
    attach(sa.asarray(mapped).address, own=True).close()
    again = sa.asarray(mapped)
    again[0] = 9
    assert mapped[0] == 9


def test_a_memory_file_is_found_through_its_owner(monkeypatch):
    """Without room in /dev/shm other processes find it through /proc, by device and inode."""
    monkeypatch.setattr(allocate, "SOURCES", allocate.SOURCES[1:2])
    a = sa.array(np.arange(5.0))
    assert a.name.startswith("/proc/")
    done = run_python(
        "import sys, json, shmpar; shmpar.attach(json.loads(sys.argv[1]))[2] = 9",
        json.dumps(a.address),
    )
    assert done.stderr == ""
    assert a[2] == 9
    address = a.address
    del address["inode"], address["device"]
    with pytest.raises(ValueError, match="device and inode"):
        attach(address)
    with pytest.raises(SegmentGone):
        attach({**a.address, "inode": 1})


TAMPERED = [
    {"offset": -8}, {"offset": 8}, {"offset": 2**70}, {"size": 0}, {"size": -1}, {"size": 2**80},
    {"size": 95}, {"size": 97}, {"shape": [3, 5]}, {"shape": [-3, 4]}, {"shape": [2**40, 2**40]},
    {"shape": [3]}, {"strides": [-32, 8]}, {"strides": [40, 8]}, {"strides": [2**63, 8]},
    {"shape": [2**62, 4], "strides": [0, 0]}, {"shape": [1] * 65, "strides": [8] * 65},
    {"dtype": "O"}, {"dtype": "<f16"}, {"dtype": "f8,f8"}, {"dtype": "__import__('os')"},
    {"dtype": {}}, {"dtype": {"base": "<f8", "shape": [-1]}}, {"dtype": {"names": ["a"]}},
    {"version": 2}, {"start": -1}, {"start": 97}, {"file": True},
]  # fmt: skip
MISTYPED = [
    {"offset": 0.0}, {"offset": True}, {"size": "96"}, {"shape": 12}, {"shape": [3.0, 4]},
    {"strides": None}, {"name": None}, {"dtype": 3}, {"dtype": ["<f8"]}, {"writable": 1},
    {"dtype": {"names": [1], "formats": ["<f8"], "offsets": [0], "titles": [None],
               "itemsize": 8, "aligned": False, "record": False}},
]  # fmt: skip


@pytest.mark.parametrize("change", TAMPERED, ids=str)
def test_tampered_addresses_are_refused(change, owner):
    """An edited address reaches nothing outside of the segment."""
    with pytest.raises((ValueError, FileNotFoundError)):
        attach({**owner.address, **change})


@pytest.mark.parametrize("change", MISTYPED, ids=str)
def test_mistyped_addresses_are_refused(change, owner):
    """An entry of another type is a TypeError."""
    with pytest.raises(TypeError):
        attach({**owner.address, **change})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
KEYS = ["version", "size", "offset", "shape", "strides", "dtype", "start", "writable", "device"]


@given(st.dictionaries(st.sampled_from(KEYS), JSON))
def test_any_json_is_an_address_or_an_error(change):
    """A parsed address lies inside of its segment; any other is a ValueError or a TypeError."""
    whole = Address("shmpar_x", 96, 0, (3, 4), (32, 8), np.dtype("<f8")).to_json()
    try:
        found = Address.parse({**copy.deepcopy(whole), **change})
    except (ValueError, TypeError):
        return
    raw = np.zeros(min(found.size, 1 << 20), "u1")
    if found.size <= raw.size:
        np.ndarray(found.shape, found.dtype, raw, found.offset, found.strides)


@given(JSON)
def test_any_json_is_a_dtype_or_an_error(found):
    """JSON that is accepted gives a dtype that has the same JSON."""
    try:
        dtype = dtype_from_json(found)
    except (ValueError, TypeError):
        return
    assert not dtype.hasobject
    assert dtype_from_json(json.loads(json.dumps(dtype_to_json(dtype)))) == dtype


def test_deeply_nested_dtypes_are_refused():
    """The depth has a limit."""
    bomb = "<f8"
    for _ in range(100):
        bomb = {"base": bomb, "shape": [1]}
    with pytest.raises(ValueError, match="deeply"):
        dtype_from_json(bomb)


def test_a_segment_that_was_shortened_is_refused(owner):
    """The size is checked before the segment is mapped."""
    address = owner.address
    os.truncate(f"/dev/shm/{owner.name}", 10)
    with pytest.raises(ValueError, match="10 bytes"):
        attach(address)


def test_an_address_is_plain_json(owner):
    """An address passes through json unchanged, and is small."""
    text = json.dumps(owner[1:].T.address)
    assert len(text) < 400
    back = attach(json.loads(text))
    assert type(back) is SharedArray
    assert np.shares_memory(back, owner)
    assert np.array_equal(back, owner[1:].T)
