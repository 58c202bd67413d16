"""The command line: `python -m shmpar` as a user runs it, on the real /dev/shm."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import uuid
from pathlib import Path

import numpy as np
import pytest

import shmpar
from shmpar.arrays import creation
from shmpar.memory import names
from shmpar.memory.names import remove_stale
from tests.interpreters import ROOT, interpreter, output_after_setup, run_python
from tests.test_little_shm import in_little_shm
from tests.test_little_shm import pytestmark as needs_root

SHM = "/dev/shm"
HEALTHY = {"SHMPAR_NUM_WORKERS": "2"}  # Why: a pool on many CPUs may need too many descriptors

OWNER = """
import sys
from shmpar.arrays import attach, creation
array = creation.zeros(1000, name=sys.argv[1])
print(array.name, flush=True)
sys.stdin.read()
"""
LIMITED = """
import os, resource, sys
hard = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
os.execv(sys.executable, [sys.executable, "-m", "shmpar", *sys.argv[1:]])
"""


def command(*arguments, **options):
    """Run `python -m shmpar`."""
    return run_python(Path("shmpar"), *arguments, flags=["-m"], **options)


def answer(*arguments, **options):
    """Return the JSON of a command; it prints nothing else."""
    done = command(*arguments, "--json", **options)
    assert done.stderr == ""
    assert done.stdout.startswith("{")
    return json.loads(done.stdout)


def fresh():
    """Return a name that no other run of these tests uses."""
    return f"shmpar-test-{uuid.uuid4().hex[:12]}"


def exists(name):
    """Return True if a file in /dev/shm has this name."""
    return os.path.exists(f"{SHM}/{name}")


@pytest.fixture
def live():
    """Make a named array of this process."""
    with creation.ones(3, name=fresh()) as array:
        yield array.name


@pytest.fixture
def stale(live):
    """Name an array in a process and kill it; made last, since a new name removes stale ones."""
    pipe = subprocess.PIPE
    with interpreter(OWNER, fresh(), stdin=pipe, stdout=pipe) as owner:
        name = owner.stdout.readline().decode().strip()
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        yield name, owner.pid
    remove_stale()


def labels(text):
    """Return the labels in the doctor's text."""
    return re.findall(r"^  (\S.*?)  ", text, re.MULTILINE)


def test_a_healthy_machine():
    """The facts are aligned, nothing is wrong, and the exit code is 0."""
    done = command("doctor", env=HEALTHY)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.endswith("\n\nNothing is wrong.\n")
    assert "Pool()              2 workers, set by SHMPAR_NUM_WORKERS\n" in done.stdout
    assert re.search(r"one worker +started, computed and exited in [\d.]+ m?s\n", done.stdout)
    facts = re.findall(r"^  \S.*$", done.stdout, re.MULTILINE)
    assert {len(re.match(r"  \S+( \S+)* +", line)[0]) for line in facts} == {22}


def test_the_guide_shows_the_printed_labels():
    """The labels are those of the guide, in the same order."""
    page = Path(ROOT, "docs", "guide", "command-line.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```text\n(Versions\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert labels(command("doctor", env=HEALTHY).stdout) == labels(shown)


def test_the_doctor_as_json():
    """The output is one JSON object, with correct values."""
    found = answer("doctor", env={"SHMPAR_NUM_WORKERS": "3"})
    assert (found["ok"], found["problems"]) == (True, [])
    assert found["versions"]["shmpar"] == shmpar.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert (found["workers"]["pool"], found["workers"]["SHMPAR_NUM_WORKERS"]) == (3, "3")
    assert found["workers"]["affinity"] == len(os.sched_getaffinity(0))
    assert 0 < found["trial"]["seconds"] < 60
    assert found["tickets"]["kind"] in {"offset", "lock"}
    assert found["descriptors"]["soft"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 0 < found["memory"]["usable"] <= found["memory"]["available"]
    assert found["shared_memory"]["named"]
    assert found["places"]["small"] == "shm"


def test_without_the_variable_the_machine_decides():
    """An empty variable counts as not set."""
    workers = answer("doctor", env={"SHMPAR_NUM_WORKERS": ""})["workers"]
    assert 1 <= workers["pool"] <= workers["affinity"]
    assert workers["SHMPAR_NUM_WORKERS"] is None


def test_a_variable_that_is_not_a_number_is_a_problem():
    """The problem has advice, the exit code is 1, and the other checks still run."""
    done = command("doctor", env={"SHMPAR_NUM_WORKERS": "many"})
    assert (done.stderr, done.returncode) == ("", 1)
    assert "\n1 problem:\n  1. SHMPAR_NUM_WORKERS is a number of workers" in done.stdout
    assert "Advice: unset SHMPAR_NUM_WORKERS" in done.stdout
    assert "one worker          started" in done.stdout


def test_too_few_descriptors_are_a_problem():
    """The doctor itself works with few descriptors."""
    done = run_python(LIMITED, "60", "doctor", env=HEALTHY)
    assert (done.stderr, done.returncode) == ("", 1)
    assert "a process may open 60 files, Pool() needs about 76\n" in done.stdout
    assert "ulimit -Hn" in done.stdout
    done = run_python(LIMITED, "60", "doctor", "--json", env=HEALTHY)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert not found["ok"]
    assert [list(one) for one in found["problems"]] == [["what", "advice"]]


def test_a_soft_limit_that_a_pool_raises_is_no_problem():
    """The text shows the soft limit as it was."""
    done = run_python(LIMITED, "4096", "doctor", env={"SHMPAR_NUM_WORKERS": "20"})
    assert (done.stderr, done.returncode) == ("", 0)
    assert "60; Pool() needs about 184\n" in done.stdout


def in_shm(size, *arguments):
    """Run a command with an empty /dev/shm of this size; return its output and exit code."""
    code = f"import shmpar.cli; print(shmpar.cli.main({list(arguments)}))"
    shown, _, code = in_little_shm(code, size).rstrip("\n").rpartition("\n")
    return shown, int(code)


@needs_root
def test_a_little_shm_is_no_problem():
    """Large arrays lie elsewhere, and the doctor shows the place and the reason."""
    shown, code = in_shm("64m", "doctor")
    assert "array of 1 MiB      shm (/dev/shm has room)\n" in shown
    assert "array of 1 GiB      memfd (memory has room); /dev/shm: 64 MiB free\n" in shown
    assert code == 0


@needs_root
def test_a_shm_that_cannot_be_written_is_a_problem():
    """Arrays work, but without names."""
    shown, code = in_shm("64m,ro", "doctor")
    assert "1 problem:\n  1. arrays cannot have names in /dev/shm: " in shown
    assert "one worker          started" in shown
    assert code == 1


@needs_root
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["ls"], "no named segments"),
        (["ls", "--json"], '{\n  "segments": []\n}'),
        (["clean"], "nothing to remove"),
        (["clean", "--dry-run"], "nothing to remove"),
    ],
)
def test_without_segments(arguments, shown):
    """The commands print one line."""
    assert in_shm("1m", *arguments) == (shown, 0)


@pytest.mark.alone
def test_segments_are_listed(live, stale):
    """Each has its process, its size and its state."""
    name, pid = stale
    found = {one["name"]: one for one in answer("ls")["segments"]}
    assert {**found[live], "age": 0} == {
        "name": live,
        "pid": os.getpid(),
        "age": 0,
        "size": 24,
        "alive": True,
    }
    assert {**found[name], "age": 0} == {
        "name": name,
        "pid": pid,
        "age": 0,
        "size": 8000,
        "alive": False,
    }
    assert all(one["age"] >= 0 for one in found.values())


@pytest.mark.alone
def test_segments_are_listed_as_a_table(live, stale):
    """The oldest come first; the last line counts them and names the command that cleans up."""
    done = command("ls")
    assert (done.stderr, done.returncode) == ("", 0)
    header, *rows, empty, summary = done.stdout.splitlines()
    assert header.split() == ["NAME", "PID", "AGE", "SIZE", "STATE"]
    names = [row.split()[0] for row in rows]
    assert names.index(live) < names.index(stale[0])
    assert re.search(rf"^{stale[0]} +{stale[1]} +\d+ s +7.8 KiB  stale$", done.stdout, re.MULTILINE)
    assert len({row.index(row.split()[-1]) for row in [header, *rows]}) == 1
    assert empty == ""
    assert summary.endswith(": python -m shmpar clean")
    assert summary.startswith(f"{len(rows)} segments, ")


@pytest.mark.alone
def test_a_dry_run_removes_nothing(live, stale):
    """The output lists the segments that would be removed."""
    done = command("clean", "--dry-run")
    assert (done.stderr, done.returncode) == ("", 0)
    assert re.search(rf"^{stale[0]}  7.8 KiB$", done.stdout, re.MULTILINE)
    assert re.search(r"^would remove \d+ segments?, ", done.stdout, re.MULTILINE)
    assert exists(stale[0])
    assert live not in done.stdout
    shown = answer("clean", "--dry-run")
    assert shown["dry_run"]
    assert {"name": stale[0], "size": 8000} in shown["segments"]
    assert exists(stale[0])


@pytest.mark.alone
def test_stale_segments_are_removed(live, stale):
    """Segments of living processes stay."""
    shown = answer("clean")
    assert (shown["dry_run"], shown["left"]) == (False, [])
    assert {"name": stale[0], "size": 8000} in shown["segments"]
    assert shown["bytes"] == sum(one["size"] for one in shown["segments"])
    assert live not in {one["name"] for one in shown["segments"]}
    assert not exists(stale[0])
    assert exists(live)
    assert stale[0] not in command("ls").stdout


@pytest.mark.alone
def test_the_removed_segments_are_listed(stale):
    """The text has a line for each, and the sum."""
    done = command("clean")
    assert (done.stderr, done.returncode) == ("", 0)
    assert re.search(rf"^{stale[0]}  7.8 KiB$", done.stdout, re.MULTILINE)
    assert re.search(r"^removed \d+ segments?, ", done.stdout, re.MULTILINE)
    assert not exists(stale[0])


@pytest.mark.alone
def test_the_doctor_counts_stale_segments(live, stale):
    """Stale segments are no problem, since every pool removes them."""
    found = answer("doctor", env=HEALTHY)
    assert found["ok"]
    assert found["segments"]["stale"]["count"] >= 1
    assert found["segments"]["stale"]["bytes"] >= 8000
    assert found["segments"]["alive"]["count"] >= 1
    assert found["segments"]["left"] == {"count": 0, "bytes": 0}
    assert not exists(stale[0])
    assert exists(live)


@pytest.mark.alone
def test_a_segment_that_was_taken_over_stays(live):
    """The creator of the segment was killed, and its registry lists the segment too."""
    pipe = subprocess.PIPE
    with interpreter(OWNER, fresh(), stdin=pipe, stdout=pipe) as owner:
        name = owner.stdout.readline().decode().strip()
        with shmpar.attach(name, 1000, "f8", own=True) as taken:
            owner.send_signal(signal.SIGKILL)
            owner.wait()
            assert name not in {one["name"] for one in answer("clean")["segments"]}
            assert exists(name)
            (found,) = [one for one in answer("ls")["segments"] if one["name"] == name]
            assert (found["alive"], found["pid"]) == (True, os.getpid())
            assert taken.sum() == 0
        assert not exists(name)
    remove_stale()  # the registry of the creator, which nothing needs any more


@needs_root
@pytest.mark.alone
def test_segments_of_other_users_stay():
    """The registry and the segment of a dead process are another user's."""
    name, marker = fresh(), names.generate_name(".marker")
    nobody = 65534
    for path in (f"{SHM}/{name}", f"{SHM}/{marker}"):
        with open(path, "w"):
            os.chown(path, nobody, nobody)
    found = os.stat(f"{SHM}/{name}")
    with open(f"{SHM}/{marker}", "w") as file:
        file.write(f"{found.st_dev} {found.st_ino} {name}\n")
    assert name not in command("ls").stdout
    assert name not in command("clean").stdout
    assert exists(name)
    assert exists(marker)
    os.unlink(f"{SHM}/{name}")
    os.unlink(f"{SHM}/{marker}")


@pytest.mark.parametrize(
    "arguments", [[], ["cleanse"], ["ls", "--any"], ["doctor", "x"], ["doctor", "--dry-run"]]
)
def test_invalid_arguments_are_a_usage_error(arguments):
    """The exit code is 2, and standard output is empty."""
    done = command(*arguments)
    assert (done.stdout, done.returncode) == ("", 2)
    assert done.stderr.startswith("usage: python -m shmpar")


def test_the_version():
    """The version is printed with the name of the package."""
    assert command("--version").stdout == f"shmpar {shmpar.__version__}\n"


def test_a_closed_pipe_is_no_error():
    """There is no traceback, and the exit code is 0."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        options = {"stdout": writer, "stderr": subprocess.PIPE, "flags": ["-m"]}
        with interpreter(Path("shmpar"), "ls", **options) as process:
            assert process.stderr.read() == b""
            assert process.wait() == 0
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    ("output", "error", "code"),
    [
        ("/dev/null", "", 0),
        ("/dev/full", "python -m shmpar: [Errno 28] No space left on device\n", 1),
    ],
    ids=["closed", "full"],
)
def test_an_output_that_takes_nothing(output, error, code):
    """A standard output that is closed prints nothing, as with print(); a full one is an error."""
    source = """
import os, sys
os.dup2(os.open(sys.argv[1], os.O_WRONLY), 1)
if sys.argv[1] == os.devnull:
    os.close(1)
os.execv(sys.executable, [sys.executable, "-m", "shmpar", "ls"])
"""
    done = run_python(source, output)
    assert (done.stderr, done.returncode) == (error, code)


@needs_root
def test_without_proc_the_doctor_says_so():
    """Names need it, and so the advice is to mount it."""
    source = "import shmpar.cli; print(shmpar.cli.main(['doctor']))"
    shown = output_after_setup(["unshare", "-m", "sh"], "mount -t tmpfs tmpfs /proc", source)
    assert "1 problem:\n  1. arrays cannot have names in /dev/shm: /proc is not mounted\n" in shown
    assert "Advice: mount it, as root: mount -t proc proc /proc." in shown


def test_nameless_segments_are_listed():
    """``ls --all`` shows an array without a name, with the pids of its processes."""
    with shmpar.Pool(1) as pool:
        values = pool.array(np.ones(1_234_567, "u1"))
        assert pool.block_reduce(np.sum, values, chunks=-1).item() == 1_234_567
        found = [one for one in answer("ls", "--all")["nameless"] if one["size"] == 1_234_567]
        assert len(found) == 1
        assert found[0]["used"] == -(-1_234_567 // 4096) * 4096
        assert {os.getpid(), *pool._loop.engine.pids()} <= set(found[0]["pids"])
        text = command("ls", "--all").stdout
    assert f"{found[0]['path']}  " in text
    assert "without a name" in text
