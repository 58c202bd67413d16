"""Optional system calls that the kernel refuses: each has a fall-back, with the same results."""

from __future__ import annotations

import errno
import os
import random
import re
import time
from pathlib import Path

import pytest

from tests import refused_calls, seccomp
from tests.interpreters import ROOT, output_after_setup, run_python
from tests.pools import ENGINES

pytestmark = pytest.mark.skipif(
    not seccomp.SUPPORTED, reason="the filters have the numbers of Linux on x86-64 and aarch64"
)

# Why apart: nothing in shmpar calls these; libc, Python and NumPy have fall-backs.
OF_OTHERS = {
    "clone3", "vfork", "copy_file_range", "process_madvise", "madvise", "getrandom", "close_range",
}  # fmt: skip
OURS = [name for name in seccomp.RULES if name not in OF_OTHERS]
ERRORS = [errno.ENOSYS, errno.EPERM]
CAMPAIGN_SECONDS = 110


def check(error: int, *names: str) -> None:
    """Make calls of all kinds on all engines while these system calls are refused."""
    done = run_python(Path(refused_calls.__file__), str(error), *names, timeout=120)
    assert (done.stdout, done.returncode) == ("right\n", 0), (names, error, done.stderr)
    assert done.stderr == "", (names, error)


# Why: each program starts several workers.  The calls of a set are far apart in the table, so a
# fall-back is found while the next call of the table is allowed.
SETS = 2


@pytest.mark.parametrize("number", range(SETS))
def test_calls_that_are_refused_have_a_fall_back(number: int) -> None:
    """Results are right on all engines, and nothing is left; errors alternate between sets."""
    check(ERRORS[number % 2], *OURS[number::SETS])


@pytest.mark.stress
@pytest.mark.parametrize("name", OURS)
def test_a_call_that_is_refused_alone(name: str) -> None:
    """Each call alone, with one of the errors."""
    check(ERRORS[OURS.index(name) % 2], name)


@pytest.mark.stress
@pytest.mark.parametrize(("number", "name"), list(enumerate(OURS)), ids=str)
def test_a_call_that_is_refused_with_the_other_error(number: int, name: str) -> None:
    """The two errors have the same fall-back."""
    check(ERRORS[1 - number % 2], name)


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_all_optional_calls_are_refused_together(error: int) -> None:
    """A pool works with the calls alone that every system has."""
    check(error, *seccomp.refusable(error))


@pytest.mark.parametrize(
    "error",
    [errno.EOPNOTSUPP, pytest.param(errno.EINVAL, marks=pytest.mark.stress)],
    ids=errno.errorcode.get,
)
def test_file_systems_refuse_with_other_errors(error: int) -> None:
    """A file system that lacks a call answers with another error than the kernel."""
    check(error, "fallocate", "O_TMPFILE", "F_ADD_SEALS", "F_OFD_SETLK", "link")


def test_the_doctor_tells_the_missing_calls_and_their_cost() -> None:
    """Without a filter nothing is missing; with one, each call has a line, as in the guide."""
    source = """
        import sys
        from tests import seccomp
        if int(sys.argv[1]):
            seccomp.refuse(sys.argv[2:], int(sys.argv[1]))
        from shmpar import cli
        cli.main(["doctor"])
    """
    shown = [run_python(source, str(error), *OURS).stdout for error in (0, *ERRORS)]
    sections = [one.split("System calls\n")[1].split("\n\n")[0] for one in shown]
    with open(Path(ROOT, "docs", "guide", "command-line.md"), encoding="utf-8") as file:
        healthy, refused = re.findall(r"System calls\n(.*?)\n(?:\n|```)", file.read(), re.DOTALL)
    assert sections == [healthy, refused, refused]


def test_the_end_of_a_worker_is_noticed_without_pidfd(tmp_path: Path) -> None:
    """The socket does not tell, since a child that the function has forked holds it too."""
    os.mkfifo(tmp_path / "gate")
    done = run_python(
        """
        import errno, os, sys
        from tests import seccomp
        seccomp.refuse(["pidfd_open"], errno.ENOSYS)
        import shmpar
        gate = sys.argv[1]

        def dies(n):
            child = os.fork()
            if child == 0:
                with open(gate):  # until the parent opens it
                    os._exit(0)
            os.setpgid(child, child)  # else it would end with the worker
            os._exit(3)

        with shmpar.Pool(1, retries=0) as pool:
            try:
                pool.parallel_map(dies, range(1))
            except shmpar.WorkerDied as error:
                print(error.exitcode)
            open(gate, "w").close()
            print(pool.parallel_map(abs, range(3)))
        """,
        str(tmp_path / "gate"),
    )
    assert (done.stdout, done.stderr) == ("3\n[0, 1, 2]\n", "")


NO_ROOM = """
import sys
from tests import seccomp
seccomp.refuse(["fallocate"], int(sys.argv[1]))
import os, tempfile
import numpy as np
import shmpar

x = np.arange(100.0)
for engine in sys.argv[2:]:
    with tempfile.TemporaryDirectory() as folder, shmpar.Pool(1, engine=engine) as pool:
        mapped = np.memmap(folder + "/mapped", np.float64, "w+", shape=100)
        for call in (
            lambda: pool.zeros(100),
            lambda: pool.map_blocks(np.negative, x, out=mapped),
            lambda: pool.map_blocks(np.negative, x, out=folder + "/out.npy"),
            lambda: shmpar.zeros(3, name="shmpar-test-no-room"),
        ):
            try:
                call()
            except shmpar.SegmentFull as error:
                print("no room for" in str(error), os.strerror(int(sys.argv[1])) in str(error))
        print(engine, os.listdir(folder))
"""


@pytest.mark.parametrize(
    "error", [errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG], ids=errno.errorcode.get
)
def test_a_lack_of_room_is_no_refusal(error: int) -> None:
    """A full disk, a quota and a limit have the same words for memory and for files."""
    # Why not all: the parent reserves all memory of the program, on every engine.
    engines = ENGINES if error == errno.ENOSPC else ["serial"]
    done = run_python(NO_ROOM, str(error), *engines)
    expected = "".join("True True\n" * 4 + f"{engine} ['mapped']\n" for engine in engines)
    assert (done.stdout, done.stderr) == (expected, "")


@pytest.mark.parametrize("name", ["O_TMPFILE", "eventfd", "pidfd_open", "SOCK_SEQPACKET"])
def test_a_machine_without_descriptors_is_no_refusal(name: str) -> None:
    """ENFILE is the limit of the machine; the error names it, and nothing is left."""
    done = run_python(
        """
        import errno, os, sys
        from tests import seccomp
        seccomp.refuse(sys.argv[1:], errno.ENFILE)
        import shmpar
        before = os.listdir("/proc/self/fd")
        try:
            with shmpar.Pool(1) as pool:
                pool.zeros(100)
        except OSError as error:
            print(error.errno == errno.ENFILE, "fs.file-max" in str(error))
        print(os.listdir("/proc/self/fd") == before)
        """,
        name,
    )
    assert (done.stdout, done.stderr) == ("True True\nTrue\n", "")


def test_tickets_without_shm_and_proc() -> None:
    """A memory file has no path then, so a lock guards the counter."""
    source = """
import errno
from tests import seccomp
seccomp.refuse(["O_TMPFILE"], errno.EOPNOTSUPP)
import shmpar
from shmpar.ipc.tickets import new_tickets
print(new_tickets().kind)
with shmpar.Pool(2) as pool:
    print(pool.parallel_map(abs, range(-3, 0)))
"""
    if os.geteuid() != 0:
        pytest.skip("mounting another /proc needs root")
    shown = output_after_setup(["unshare", "-m", "sh"], "mount -t tmpfs tmpfs /proc", source)
    assert shown == "lock\n[3, 2, 1]\n"


@pytest.mark.stress
def test_random_sets_of_calls_are_refused(stress_seed: int) -> None:
    """Any set of refused calls, with any of four errors, gives right results."""
    rng, rounds, end = random.Random(stress_seed), 0, time.monotonic() + CAMPAIGN_SECONDS
    while time.monotonic() < end:
        error = rng.choice([errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL])
        known = seccomp.refusable(error)
        names = rng.sample(known, rng.randrange(1, len(known)))
        check(error, *names)
        rounds += 1
    print(f"{rounds} sets of refused calls")
    assert rounds > 10
