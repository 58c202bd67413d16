"""Every claim of docs/security.md about access and unpickling holds."""

from __future__ import annotations

import ast
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.arrays import attach
from shmpar.ipc.tickets import _counter_file
from shmpar.ipc.wire import Wire, _sealed
from shmpar.memory import allocate
from tests.interpreters import ROOT, run_python

SHM = "/dev/shm"


def mode(fd: int) -> int:
    return stat.S_IMODE(os.fstat(fd).st_mode)


@pytest.mark.parametrize("source", allocate.SOURCES, ids=lambda source: source.kind)
def test_only_the_user_can_open_memory(source: Any) -> None:
    """Memory of each source has the mode 0600 under any umask."""
    before = os.umask(0)
    try:
        fd = source.open()
    finally:
        os.umask(before)
    assert mode(fd) == 0o600
    os.close(fd)


def counter_in_memory() -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocate, "SOURCES", allocate.SOURCES[1:])
        return _counter_file()


@pytest.mark.parametrize(
    "make", [_counter_file, counter_in_memory, lambda: _sealed(b"body")],
    ids=["tickets", "tickets-elsewhere", "message"],
)  # fmt: skip
def test_only_the_user_can_open_files_for_workers(make: Any) -> None:
    """Counters and long messages have the mode 0600."""
    before = os.umask(0)
    try:
        fd = make()
    finally:
        os.umask(before)
    assert mode(fd) == 0o600
    os.close(fd)


def test_only_the_user_can_open_named_files(tmp_path: Path) -> None:
    """Segments, markers and ledgers have the mode 0600; outputs follow the umask."""
    before = os.umask(0)
    try:
        with shmpar.Pool(1, engine="serial") as pool:
            array = shmpar.zeros(3)
            name = array.name
            # Why not those in the folder: others may be of a process that ends now.
            held = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
            markers = [os.path.basename(one) for one in held if one.endswith(".marker")]
            files = {"out": tmp_path / "out.npy", "ledger": tmp_path / "ledger"}
            pool.map_blocks(np.negative, np.arange(4.0), **files)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(os.stat(f"{SHM}/{one}").st_mode) for one in (name, *markers)}
    assert markers
    assert modes == {0o600}
    assert stat.S_IMODE(files["ledger"].stat().st_mode) == 0o600
    assert stat.S_IMODE(files["out"].stat().st_mode) == 0o666
    array.close()


def test_no_process_can_connect_to_a_socket() -> None:
    """Workers inherit socket pairs, which have no path and no port and do not listen."""
    ours, theirs = Wire.pair()
    for end in (ours, theirs):
        assert end.family == socket.AF_UNIX
        assert not end.getsockname()
        assert not end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        end.close()
    done = run_python("""
        import os, socket, sys
        calls = []
        sys.addaudithook(lambda event, args: calls.append(event) if "socket" in event else None)
        import shmpar
        with shmpar.Pool(2) as pool:
            pool.parallel_map(abs, range(3))
            inodes = set()
            for pid in (os.getpid(), *pool._loop.engine.pids()):
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    try:
                        kind, _, inode = os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")
                    except FileNotFoundError:  # the descriptor of the listing itself
                        continue
                    inodes |= {inode.strip("[]")} if kind == "socket" else set()
            with open("/proc/net/unix") as lines:
                rows = [line.split() for line in lines]
        named = [row for row in rows if row[6] in inodes and len(row) > 7]
        print(len(inodes), named, set(calls) & {"socket.bind", "socket.connect"})
    """)
    assert (done.stdout, done.stderr) == ("4 [] set()\n", "")


UNPICKLES = {"loads", "load", "Unpickler"}


def test_unpickling_happens_in_few_places() -> None:
    """Messages, payloads, plans and results of items are unpickled, but no address or array."""
    found = set()
    for path in Path(ROOT, "shmpar").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in UNPICKLES:
                module = ast.unparse(node.value)
                if module not in {"json", "tomllib"}:
                    found.add((str(path.relative_to(Path(ROOT, "shmpar"))), module))
    assert found == {
        ("cluster/engine.py", "pickle"),  # results of calls, from a host
        ("cluster/host.py", "pickle"),  # the initializer, from the client
        ("cluster/runs.py", "pickle"),  # objects that a function returned, from a host
        ("ipc/wire.py", "pickle"),
        ("pickling/exceptions.py", "pickle"),  # its own pickles, to see that they load
        ("pickling/unpack.py", "_OtherNumPy(io.BytesIO(body))"),  # a message of another NumPy
        ("pickling/unpack.py", "pickle"),
        ("stores/recognise.py", "np"),  # np.load of a .npy file, which allows no pickle
        ("stores/recognise.py", "pickle"),  # openers, which this process has made
        ("stores/store.py", "pickle"),
        ("worker/logs.py", "pickle"),  # attributes that a program adds to its logging records
        ("worker/main.py", "pickle"),
        ("worker/results.py", "pickle"),  # the results beside a ledger of items
    }


def test_a_pickle_in_shared_memory_is_never_loaded(tmp_path: Path) -> None:
    """A pickle in an array or in its results is treated as numbers and is not executed."""

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    import pickle

    planted = np.frombuffer(pickle.dumps(Bomb()), np.uint8)
    with shmpar.Pool(1) as pool:
        shared = pool.array(planted)
        attach(json.loads(json.dumps(shared.address)))
        pool.map_blocks(np.negative, shared)
        pool.parallel_map(bytes, shared.reshape(1, -1), dtype=object)
    assert not (tmp_path / "executed").exists()


def test_the_address_of_a_file_opens_no_other_file(tmp_path: Path) -> None:
    """The device and the inode are compared before the file is opened; links are refused."""
    np.save(tmp_path / "mine.npy", np.arange(4.0))
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to(tmp_path / "mine.npy")
    os.mkfifo(tmp_path / "pipe")
    array = shmpar.asarray(np.load(tmp_path / "mine.npy", mmap_mode="r"))
    address = array.address
    assert attach(address).tolist() == [0, 1, 2, 3]
    for name in ("secret", "link", "pipe", "..", "mine.npy/x", "x" * 300):
        with pytest.raises((ValueError, shmpar.SegmentError)):
            attach({**address, "name": str(tmp_path / name)})
    for name in ("mine.npy", "/dev/zero", "/proc/self/mem", "/proc/self/environ", str(tmp_path)):
        with pytest.raises((ValueError, shmpar.SegmentError)):
            attach({**address, "name": name})
    found = os.stat(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        attach({
            **address,
            "name": str(tmp_path / "pipe"), "device": found.st_dev, "inode": found.st_ino,
        })  # fmt: skip
    array.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_can_open_nothing() -> None:
    """Another user can neither open nor remove a name, a memory file or a marker."""
    array = shmpar.ones(3)
    done = run_python(
        """
        import json, os, sys
        from shmpar.arrays import attach
        from shmpar.memory.names import inventory, remove_stale
        pid, address = sys.argv[1], json.loads(sys.argv[2])
        os.setgid(12345); os.setuid(12345)
        tries = [lambda: attach(address), lambda: attach(address["name"], 3, "f8"),
                 lambda: open(f"/dev/shm/{address['name']}", "rb"),
                 lambda: os.listdir(f"/proc/{pid}/fd"),
                 lambda: os.unlink(f"/dev/shm/{address['name']}")]
        for one in tries:
            try:
                print("could", one())
            except PermissionError:
                pass
        print(inventory(), remove_stale())
        """,
        str(os.getpid()),
        json.dumps(array.address),
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (done.stdout, done.stderr) == ("[] []\n", "")
    array.close()
