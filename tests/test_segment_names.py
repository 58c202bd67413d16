"""Names of segments: make them, remove them, and remove those of dead processes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time

import numpy as np
import pytest

from shmpar.arrays import attach
from shmpar.arrays import creation as sa
from shmpar.errors import SegmentGone
from shmpar.memory import allocate, names
from shmpar.memory.manager import Manager
from shmpar.memory.names import inventory, remove_stale
from tests.interpreters import interpreter, run_python

SHM = "/dev/shm"


@pytest.fixture
def manager():
    """Return a manager that is closed at the end."""
    with Manager() as manager:
        yield manager


def stale_names(*, dry_run=False):
    """Remove stale segments, or only list them; return their names."""
    return [entry.name for entry in remove_stale(dry_run=dry_run)]


def names_in(inventory):
    """Return the names that a registry lists."""
    return {entry.name for entry in inventory.entries}


def present():
    """Return our names in /dev/shm."""
    return {name for name in os.listdir(SHM) if name.startswith("shmpar_")}


def test_memory_has_no_name_until_it_is_requested(manager):
    """The name has at most 31 characters and stays the same."""
    before = present()
    a = sa.zeros(3, manager=manager)
    assert present() == before
    name = a.name
    assert a.name == name
    assert len(name) <= 31
    assert name in present()
    assert stat.S_IMODE(os.stat(f"{SHM}/{name}").st_mode) == 0o600


@pytest.mark.parametrize("end", ["close", "with", "drop", "manager"])
def test_a_name_is_removed_with_its_array(end, manager):
    """The name goes at close(), after a with block, with the last view or with the manager."""
    a = sa.zeros(3, manager=manager)
    name = a.name
    if end == "close":
        a.close()
    elif end == "with":
        with a:
            pass
    elif end == "drop":
        del a
    else:
        manager.close()
    assert not os.path.exists(f"{SHM}/{name}")
    assert not [one for one in present() if one.endswith(".marker")] or inventory()
    with pytest.raises(SegmentGone, match="keep the owner"):
        attach(name, 3, "f8")


def test_a_chosen_name_exists_at_once(manager):
    """A chosen name exists at once, and only once at a time."""
    a = sa.full(3, 7.0, name="shmpar-test-chosen", manager=manager)
    assert a.name == "shmpar-test-chosen"
    assert attach("shmpar-test-chosen", 3, "f8").tolist() == [7, 7, 7]
    with pytest.raises(FileExistsError, match="attach"):
        sa.zeros(3, name="shmpar-test-chosen", manager=manager)
    a.close()
    sa.zeros(3, name="shmpar-test-chosen", manager=manager).close()


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "a/b", "/a", "a\0b", "x" * 256, "é" * 128, "shmpar_12.marker", "a@1",
        "a\nb", "a\n1 2 other\n", "\x1b[2J", "a\x7f", "a\u2028b", "\udcff",
    ],
)  # fmt: skip
def test_bad_names_are_refused(name, manager):
    """An impossible name is refused before anything is made."""
    with pytest.raises(ValueError, match="cannot name"):
        sa.zeros(3, name=name, manager=manager)
    with pytest.raises(TypeError):
        sa.zeros(3, name=b"bytes", manager=manager)


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_while_a_name_is_given_leaves_no_name(after, manager, monkeypatch):
    """A name that was given goes with its array; otherwise the next request gives it."""
    link, given = allocate.link_file, []

    def interrupted(fd: int, path: str) -> None:
        if after:
            link(fd, path)
        given.append(os.path.basename(path))
        raise KeyboardInterrupt

    array = sa.zeros(10, manager=manager)
    with monkeypatch.context() as patch:
        patch.setattr(allocate, "link_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _ = array.name
    assert os.path.lexists(f"{SHM}/{given[0]}") == after
    name = array.name
    assert (name == given[0]) == after
    assert os.path.lexists(f"{SHM}/{name}")
    array.close()
    assert not os.path.lexists(f"{SHM}/{name}")


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize(
    ("call", "use"),
    [
        ("fstat", lambda a: a.address),
        ("dup", lambda a: a.name),
        ("open", lambda a: a.lock.acquire()),
    ],
)
def test_an_end_within_a_system_call_is_told_as_such(call, use, reused, manager, monkeypatch):
    """Another thread may close an array, and open a file whose descriptor gets the number."""
    names_before = present()
    a = sa.zeros(3, manager=manager)
    segment, original, others = a._handle.segment, getattr(os, call), []
    fd = segment.fileno()

    def late(*args, **kwargs):
        monkeypatch.setattr(os, call, original)
        segment.close()
        if reused:
            others.append(os.open("/dev/null", os.O_RDWR))
            assert others == [fd]
        return original(*args, **kwargs)

    monkeypatch.setattr(os, call, late)
    try:
        with pytest.raises(SegmentGone, match="the segment was closed"):
            use(a)
    finally:
        for other in others:
            os.close(other)
    assert present() == names_before


def test_two_threads_may_close_an_array(manager, monkeypatch):
    """The second call is harmless although the first one has not returned."""
    a = sa.zeros(3, manager=manager)
    path, original = f"{SHM}/{a.name}", os.fstat

    def late(fd):
        monkeypatch.setattr(os, "fstat", original)
        a.close()
        return original(fd)

    monkeypatch.setattr(os, "fstat", late)
    a.close()
    assert a.closed
    assert not os.path.lexists(path)


def test_a_name_that_was_taken_by_another_file_is_left_alone(manager):
    """Only the very file that was named is removed."""
    a = sa.zeros(3, name="shmpar-test-other", manager=manager)
    path = f"{SHM}/shmpar-test-other"
    os.rename(path, f"{path}-old")
    with open(path, "w"):
        pass
    a.close()
    assert os.path.exists(path)
    os.unlink(path)
    os.unlink(f"{path}-old")


OWNER = """
    import os, sys
    from shmpar.arrays import attach, creation as sa
    a, b = sa.ones(3), sa.zeros(5, name=sys.argv[1])
    print(a.name, flush=True)
    sys.stdin.read()
"""


@pytest.mark.alone
def test_the_names_of_a_killed_process_are_removed_by_the_next():
    """The names of a killed process are removed; those of a living one stay."""
    pipe = subprocess.PIPE
    with (
        interpreter(OWNER, "shmpar-test-living", stdin=pipe, stdout=pipe) as living,
        interpreter(OWNER, "shmpar-test-killed", stdin=pipe, stdout=pipe) as killed,
    ):
        living_name = living.stdout.readline().decode().strip()
        killed_name = killed.stdout.readline().decode().strip()
        assert {living_name, killed_name} <= present()
        assert not set(stale_names(dry_run=True)) & {living_name, killed_name}
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert {killed_name, "shmpar-test-killed"} <= set(stale_names(dry_run=True))
        found = {name for one in inventory() if not one.alive for name in names_in(one)}
        assert {killed_name, "shmpar-test-killed"} <= found
        assert {killed_name, "shmpar-test-killed"} <= set(stale_names())
        assert killed_name not in present()
        assert not os.path.exists(f"{SHM}/shmpar-test-killed")
        assert living_name in present()
        living.stdin.close()
        assert living.wait() == 0
    assert living_name not in present()
    assert not os.path.exists(f"{SHM}/shmpar-test-living")


@pytest.mark.alone
def test_an_array_of_a_killed_process_can_be_taken_over():
    """The name is in the first registry of the new owner before stale names are removed."""
    heir = f"""
        import os, subprocess, sys, textwrap
        from shmpar.arrays import attach
        from shmpar.memory.names import inventory, remove_stale
        owner = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(sys.argv[1]), "shmpar-test-inherited"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        with owner:
            name = owner.stdout.readline().decode().strip()
            owner.kill()
        a = attach(name, 3, "f8", own=True)  # Why: any pool would remove the name later
        assert os.path.exists(f"{SHM}/{{name}}"), "gone at once"
        assert not os.path.exists("{SHM}/shmpar-test-inherited"), "the others stay"
        assert name not in {{one.name for one in remove_stale()}}
        # Should this process die too, the next removal finds the name in either registry.
        listing = [
            one.alive for one in inventory() if name in {{entry.name for entry in one.entries}}
        ]
        assert sorted(listing) == [False, True]
        assert a.name == name and a.tolist() == [1, 1, 1]
        a.close()
        assert not os.path.exists(f"{SHM}/{{name}}")
        assert remove_stale() == []
        assert all(one.alive for one in inventory())
    """
    done = run_python(heir, OWNER)
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.alone
def test_a_reused_name_is_not_removed():
    """A name in a stale registry stays if it belongs to another file now."""
    mine = sa.zeros(3, name="shmpar-test-reused")
    stale = f"{SHM}/{names.generate_name('.marker')}"
    with open(stale, "w") as file:
        file.write("1 2 shmpar-test-reused\n3 4 ../x\nhalf a li")
    assert "shmpar-test-reused" not in stale_names()
    assert not os.path.exists(stale)
    assert mine.name == "shmpar-test-reused"
    assert os.path.exists(f"{SHM}/shmpar-test-reused")
    mine.close()


@pytest.mark.alone
def test_a_forked_child_does_not_keep_a_registry_alive():
    """The lock of a killed parent is released although its child lives on."""
    code = """
        import os, sys, time
        from shmpar.arrays import attach, creation as sa
        a = sa.ones(3)
        name = a.name
        ready, go = os.pipe()
        if os.fork() == 0:
            sys.stdin.read()
            os._exit(0)
        print(name, flush=True)
        time.sleep(60)
    """
    pipe = subprocess.PIPE
    with interpreter(code, stdin=pipe, stdout=pipe, survivors_ok=True) as owner:
        name = owner.stdout.readline().decode().strip()
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert name in stale_names()
        owner.stdin.close()


def test_a_forked_child_removes_nothing():
    """Finalizers, exit and close() in the child leave the names of the parent."""
    done = run_python("""
        import os, gc, warnings
        from shmpar.arrays import attach, creation as sa
        warnings.simplefilter("ignore", DeprecationWarning)
        a, b = sa.ones(3), sa.zeros(4)
        names = a.name, b.name
        ended = []
        a._handle.segment.subscribe(ended.append)
        pid = os.fork()
        if pid == 0:
            del b
            a.close()
            gc.collect()
            c = sa.zeros(2)     # with its own manager
            c.name
            c.close()
            assert not ended
            raise SystemExit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert all(os.path.exists(f"/dev/shm/{name}") for name in names)
        assert a.address and not ended
    """)
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_child_that_was_forked_while_a_thread_gives_a_name_has_names():
    """The child waits for no lock of a thread that it does not have."""
    done = run_python("""
        import os, signal, sys, threading, warnings
        from shmpar.arrays import creation as sa
        warnings.simplefilter("ignore", DeprecationWarning)
        shared, other = sa.zeros(3), sa.zeros(3)
        inside, forked = threading.Event(), threading.Event()
        def wait(frame, event, _):
            if event == "call" and frame.f_code.co_name == "remove_stale":
                sys.setprofile(None)
                inside.set()
                forked.wait()
        def give():
            sys.setprofile(wait)
            other.name
        thread = threading.Thread(target=give)
        thread.start()
        inside.wait()
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            os._exit(shared.name != f"/proc/{os.getpid()}/fd/{shared._handle.segment.fileno()}")
        status = os.waitpid(pid, 0)[1]
        forked.set()
        thread.join()
        print(status, shared.name == other.name)
    """)
    assert (done.stdout, done.stderr) == ("0 False\n", "")


def test_a_manager_of_the_parent_refuses_in_a_forked_child():
    """The child gets an error, since nothing would release its segments."""
    done = run_python("""
        import os, warnings
        from shmpar.memory.manager import Manager
        warnings.simplefilter("ignore", DeprecationWarning)
        manager = Manager()
        pid = os.fork()
        if pid == 0:
            try:
                manager.create(8)
            except RuntimeError as error:
                raise SystemExit("parent" not in str(error))
        assert os.waitpid(pid, 0)[1] == 0
    """)
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize(
    "end", ["", "raise SystemExit(3)", "1/0", "import os; os.kill(os.getpid(), 2)"]
)
def test_nothing_is_left_at_exit(end):
    """At every kind of exit the names are removed, without a message."""
    done = run_python(f"""
        from shmpar.arrays import attach, creation as sa
        from shmpar.memory.copying import share
        import numpy as np
        a, b, c = sa.ones(3), sa.zeros((2, 2)), share(np.ones(4))
        print(a.name, b.name)
        {end}
    """)
    found = done.stdout.split()
    assert len(found) == 2
    assert not set(found) & present()
    assert "shmpar" not in done.stderr
    assert "resource_tracker" not in done.stderr


@pytest.mark.alone
def test_removing_stale_names_is_cheap():
    """Every start of a pool removes stale names, so it must be fast."""
    start = time.perf_counter()
    for _ in range(20):
        stale_names()
    assert time.perf_counter() - start < 1


@pytest.mark.alone
def test_two_managers_of_a_process_keep_each_others_names():
    """POSIX locks do not exclude their own process, so it must know its own registries."""
    with Manager() as first, Manager() as second:
        a, b = sa.ones(3, manager=first), sa.ones(3, manager=second)
        assert {a.name, b.name} <= present()
        stale_names()
        assert {a.name, b.name} <= present()
        assert len([one for one in inventory() if one.alive]) >= 2
        done = run_python("from shmpar.memory.names import remove_stale; print(remove_stale())")
        assert done.stdout == "[]\n"
        del a, b


def test_a_registry_is_removed_with_its_last_name(manager):
    """A long session in which one array had a name leaves no file behind."""
    a = sa.ones(3, manager=manager)
    a.name  # noqa: B018 (names the segment)
    path = manager.registry().path
    assert os.path.exists(path)
    del a
    assert not os.path.exists(path)
    assert path not in names._own_registries


def test_a_result_can_be_shared_by_name_and_survives_its_manager(manager):
    """A plain result gets a name too, and keeps its memory after the manager is closed."""
    from shmpar.memory.copying import share

    result = share(np.arange(4.0))[1]
    a = sa.asarray(result, manager=manager)
    assert np.shares_memory(a, result)
    b = attach(a.address)
    b[0] = 9
    assert result[0] == 9
    name = a.name
    manager.close()
    assert not os.path.exists(f"{SHM}/{name}")
    assert result.sum() == 15
