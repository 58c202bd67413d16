"""The leak detector finds and names each kind of leak.

Each test removes its leaks before it ends, so the fixture ``nothing_left`` checks it as well.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import uuid
from contextlib import ExitStack
from multiprocessing import resource_tracker

import pytest

from tests import interpreters, leaks, processes
from tests.leaks import Snapshot, leaks_after_waiting, leaks_since
from tests.programs import LEAVES_ORPHAN

IDLE = "import sys; sys.stdin.read()"  # exits when its standard input is closed


@pytest.fixture
def before():
    gc.collect()
    return Snapshot.take()


@pytest.fixture
def cleanup():
    with ExitStack() as stack:
        yield stack


def kinds(left):
    """Return the set of kinds of leaks."""
    return {one.kind for one in left}


def private(left):
    """Return the leaks without names, which another test run may have made at the same time."""
    return [one for one in left if one.kind not in {"segment", "file"}]


def idle_child(cleanup):
    """Start a child that runs until its standard input is closed."""
    child = subprocess.Popen([sys.executable, "-c", IDLE], stdin=subprocess.PIPE)
    cleanup.callback(child.wait)
    cleanup.callback(child.stdin.close)
    return child


def test_an_empty_test_has_no_leak(before):
    """Nothing is reported for a test that does nothing."""
    assert leaks_after_waiting(before) == []


def test_a_running_child_is_a_leak(before, cleanup):
    """The report has the pid and the command line of a process that still runs."""
    child = idle_child(cleanup)
    left = [one for one in leaks_since(before) if one.kind == "process"]
    assert [one.key for one in left] == [child.pid]
    assert str(child.pid) in str(left[0])
    assert "child" in str(left[0])


def test_an_unreaped_child_is_a_leak(before, cleanup):
    """A child that has exited and was not waited for is reported at once."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    cleanup.callback(child.wait)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    (left,) = private(leaks_after_waiting(before, seconds=60))
    assert (left.kind, left.key) == ("process", None)
    assert "never waited for" in left.name


def test_a_child_that_is_about_to_exit_gets_time(before, cleanup):
    """The detector waits until the child has exited, and then reports the unreaped child."""
    child = idle_child(cleanup)
    child.stdin.close()
    (left,) = private(leaks_after_waiting(before, seconds=60))
    assert "never waited for" in left.name


def test_an_orphan_in_its_own_session_is_a_leak(before, cleanup):
    """A grandchild with another parent, group and session is found by its token."""
    done = subprocess.run([sys.executable, "-c", LEAVES_ORPHAN], stdout=-1, check=True)
    pid = int(done.stdout)
    cleanup.callback(processes.wait_for_exit, [pid], 60)
    cleanup.callback(os.kill, pid, signal.SIGKILL)
    assert [one.key for one in private(leaks_since(before))] == [pid]


def test_an_orphan_of_a_fork_is_a_leak(before, cleanup):
    """An orphan without a token is found by the address of its environment."""
    end, held = os.pipe()
    told, tell = os.pipe()
    for fd in (end, told, tell):
        cleanup.callback(os.close, fd)
    child = os.fork()
    if child == 0:
        if (pid := os.fork()) == 0:
            os.close(held)
            os.read(end, 1)
        else:
            os.write(tell, str(pid).encode())
        os._exit(0)
    os.waitpid(child, 0)
    pid = int(os.read(told, 20))
    cleanup.callback(processes.wait_for_exit, [pid], 60)
    cleanup.callback(os.close, held)
    assert [one.key for one in leaks_since(before) if one.kind == "process"] == [pid]


def test_an_allowed_process_is_no_leak(before, cleanup, monkeypatch):
    """A test may start workers of a pool with a wider scope."""
    monkeypatch.setattr(leaks, "_allowed", set())
    child = idle_child(cleanup)
    leaks.allow_processes(child.pid)
    assert kinds(private(leaks_since(before))) == {"descriptor"}  # the pipe


def test_the_resource_tracker_is_no_leak(before):
    """The standard library keeps the resource tracker and its pipe."""
    resource_tracker.ensure_running()
    assert private(leaks_since(before)) == []


def test_a_thread_is_a_leak(before, cleanup):
    """The report has the name of a thread; a thread that ends in time is not reported."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="reader", daemon=True)
    cleanup.callback(thread.join)
    cleanup.callback(end.set)
    thread.start()
    (left,) = private(leaks_after_waiting(before, seconds=0.01))
    assert (left.kind, left.name, left.key) == ("thread", "reader (daemon)", thread)
    end.set()
    assert leaks_after_waiting(before, seconds=60) == []


def found(path, before):
    """Return whether a name in shared memory is reported."""
    return ("segment", path) in [(one.kind, one.name) for one in leaks_since(before)]


def test_a_name_in_shared_memory_is_a_leak(before, cleanup):
    """A name of shmpar is reported, and any other name that this test run holds."""
    unique = uuid.uuid4().hex
    ours, other = f"/dev/shm/shmpar-leak-{unique}", f"/dev/shm/leak-{unique}"
    with open(ours, "xb"):
        cleanup.callback(os.unlink, ours)
    assert found(ours, before)
    with open(other, "xb"):
        cleanup.callback(os.unlink, other)
        assert found(other, before)


def test_a_name_that_another_program_left_is_no_leak(before, cleanup):
    """A file or a folder of joblib or multiprocessing that no process holds is not reported."""
    unique = uuid.uuid4().hex
    folder, file = f"/dev/shm/joblib_memmapping_folder_1_{unique}", f"/dev/shm/sem.mp-{unique}"
    os.mkdir(folder)
    cleanup.callback(os.rmdir, folder)
    with open(file, "xb"):
        cleanup.callback(os.unlink, file)
    assert not found(folder, before)
    assert not found(file, before)


HOLDS = {
    "open": "file = open(sys.argv[1], 'xb')",
    "mapped": """
with open(sys.argv[1], 'x+b') as file:
    file.truncate(4096)
    view = mmap.mmap(file.fileno(), 4096)
    os.closerange(file.fileno() + 1, 100)  # mmap's own descriptor
""",
}


@pytest.mark.parametrize("hold", HOLDS)
def test_a_name_of_another_test_run_is_no_leak(before, cleanup, hold):
    """A segment that a process outside this test run holds is not reported."""
    path = f"/dev/shm/shmpar-leak-{uuid.uuid4().hex}"
    foreign = f"import mmap, os, sys\n{HOLDS[hold]}\nprint(flush=True); input()"
    other = subprocess.Popen(
        ["setsid", "--fork", sys.executable, "-c", foreign, path],
        env={**os.environ, processes.TOKEN_NAME: "other"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    cleanup.enter_context(other)
    cleanup.callback(os.unlink, path)
    other.stdout.readline()
    other.wait()
    assert os.path.exists(path)
    assert not found(path, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: os.memfd_create("leak"),
        lambda: os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600),
    ],
    ids=["memfd", "nameless file"],
)
def test_nameless_memory_is_a_leak(before, cleanup, make):
    """An open descriptor of nameless shared memory is reported as memory with its size."""
    fd = make()
    cleanup.callback(os.close, fd)
    os.truncate(fd, 4096)
    (left,) = private(leaks_since(before))
    assert left.kind == "memory"
    assert "4096 bytes" in left.name


def test_a_mapping_is_a_leak(before, cleanup):
    """Mapped shared memory without a descriptor is reported after its first access."""
    view = mmap.mmap(-1, 1 << 20)
    cleanup.callback(view.close)
    view[:] = bytes(len(view))
    (left,) = private(leaks_since(before))
    assert left.kind == "memory"
    assert left.name.startswith("mapping")


def test_a_descriptor_is_a_leak(before, cleanup):
    """Both ends of a pipe are reported with their numbers."""
    pipe = os.pipe()
    for fd in pipe:
        cleanup.callback(os.close, fd)
    left = private(leaks_since(before))
    assert kinds(left) == {"descriptor"}
    assert [int(one.name.split(":")[0]) for one in left] == sorted(pipe)


def test_a_replaced_descriptor_is_a_leak(cleanup):
    """A number that refers to another file than before is a new descriptor."""
    first, second = os.pipe()
    cleanup.callback(os.close, first)
    cleanup.callback(os.close, second)
    before = Snapshot.take()
    with open(os.devnull, "rb") as file:
        os.dup2(file.fileno(), first)
    assert [one.name for one in private(leaks_since(before))] == [f"{first}: /dev/null"]


def test_a_temporary_file_is_a_leak(before, cleanup):
    """A file of shmpar in the folder of temporary files is reported."""
    fd, path = tempfile.mkstemp(prefix="shmpar-leak-")
    os.close(fd)
    cleanup.callback(os.unlink, path)
    assert ("file", path) in [(one.kind, one.name) for one in leaks_since(before)]


def test_garbage_is_collected_first(before):
    """An object that only a reference cycle holds is no leak."""
    gc.disable()
    try:
        cycle = [mmap.mmap(-1, 1 << 20)]
        cycle[0][:] = bytes(1 << 20)
        cycle.append(cycle)
        del cycle
        assert kinds(private(leaks_since(before))) == {"memory"}
    finally:
        gc.enable()
    assert leaks_after_waiting(before) == []


def test_a_report_names_every_leak(before, cleanup):
    """The report has a line for each leak."""
    for fd in os.pipe():
        cleanup.callback(os.close, fd)
    lines = leaks.report(private(leaks_since(before))).splitlines()
    assert lines[0] == "the test left behind:"
    assert len(lines) == 3


INNER = """
    import mmap, os
    import pytest

    def test_leaks():
        os.memfd_create("forgotten")

    def test_fails_and_leaks():
        kept = os.memfd_create("forgotten")
        assert not kept

    def mapped():
        '''Map and touch shared memory that goes with its last reference.

        >>> mapped()
        <mmap.mmap closed=False, ...>
        '''
        view = mmap.mmap(-1, 1 << 20)
        view[:] = bytes(1 << 20)
        return view

    @pytest.fixture
    def memory():
        return mapped()

    def test_memory_goes_with_its_fixture(memory):
        assert not memory.closed

    @pytest.fixture
    def file():
        with open(os.memfd_create("held"), "wb") as file:
            yield file

    def test_its_fixture_cleans_up(file):
        assert file.writable()
"""


def test_the_fixture_fails_a_test_that_leaks(tmp_path):
    """A leak is an error of a passed test, and a section in the report of a failed test."""
    path = tmp_path / "test_inner.py"
    path.write_text(textwrap.dedent(INNER))
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "tests.conftest", "--rootdir", str(tmp_path)]
    arguments += ["-c", os.path.join(interpreters.ROOT, "pyproject.toml"), str(path)]
    start = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    done = interpreters.run_python(start, *arguments, cwd=tmp_path)
    assert "1 failed, 4 passed, 1 error" in done.stdout, done.stdout + done.stderr
    for header in ("ERROR at teardown of test_leaks", "Captured left behind teardown"):
        after = done.stdout.partition(header)[2].splitlines()
        assert after[1] == "the test left behind:"
        assert after[2].endswith("/memfd:forgotten (deleted), 0 bytes")
