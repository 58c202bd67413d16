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
from tests.interpreters import ROOT, interpreter, run_python
from tests.test_little_shm import in_little_shm
from tests.test_little_shm import pytestmark as needs_root

SHM = "/dev/shm"
HEALTHY = {"SHMPAR_NUM_WORKERS": "2"}  # however many descriptors a machine of many CPUs needs

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
    """What a command says as JSON, and nothing else."""
    done = command(*arguments, "--json", **options)
    assert done.stderr == ""
    assert done.stdout.startswith("{")
    return json.loads(done.stdout)


def fresh():
    """A name that no other run of these tests uses."""
    return f"shmpar-test-{uuid.uuid4().hex[:12]}"


def exists(name):
    """Whether there is a file of that name in /dev/shm."""
    return os.path.exists(f"{SHM}/{name}")


@pytest.fixture
def live():
    """Make a named array of this process."""
    with creation.ones(3, name=fresh()) as array:
        yield array.name


@pytest.fixture
def stale(live):
    """Name an array in a process that is then killed; made last, since making a name reaps."""
    pipe = subprocess.PIPE
    with interpreter(OWNER, fresh(), stdin=pipe, stdout=pipe) as owner:
        name = owner.stdout.readline().decode().strip()
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        yield name, owner.pid
    remove_stale()


def labels(text):
    """Names of the facts that a doctor's text shows."""
    return re.findall(r"^  (\S.*?)  ", text, re.MULTILINE)


def test_a_healthy_machine_is_said_to_be():
    """All facts in aligned columns, nothing wrong, exit code 0."""
    done = command("doctor", env=HEALTHY)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.endswith("\n\nNothing is wrong.\n")
    assert "Pool()              2 workers, as SHMPAR_NUM_WORKERS says\n" in done.stdout
    assert re.search(r"one worker +started, computed and ended in \d+\.\d\d s\n", done.stdout)
    facts = re.findall(r"^  \S.*$", done.stdout, re.MULTILINE)
    assert {len(re.match(r"  \S+( \S+)* +", line)[0]) for line in facts} == {22}


def test_the_page_shows_what_is_printed():
    """The same names in the same order as the guide's."""
    page = Path(ROOT, "docs", "guide", "command-line.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```text\n(Versions\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert labels(command("doctor", env=HEALTHY).stdout) == labels(shown)


def test_the_same_as_json():
    """One object; what it says is so."""
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
    """An empty one is not set."""
    workers = answer("doctor", env={"SHMPAR_NUM_WORKERS": ""})["workers"]
    assert 1 <= workers["pool"] <= workers["affinity"]
    assert workers["SHMPAR_NUM_WORKERS"] is None


def test_a_variable_that_is_no_number_is_a_problem():
    """With what to do, and exit code 1; all else is looked at nevertheless."""
    done = command("doctor", env={"SHMPAR_NUM_WORKERS": "many"})
    assert (done.stderr, done.returncode) == ("", 1)
    assert "\n1 problem:\n  1. SHMPAR_NUM_WORKERS is a number of workers" in done.stdout
    assert "What to do: unset SHMPAR_NUM_WORKERS" in done.stdout
    assert "one worker          started" in done.stdout


def test_too_few_descriptors_are_a_problem():
    """The doctor itself works with few."""
    done = run_python(LIMITED, "60", "doctor", env=HEALTHY)
    assert (done.stderr, done.returncode) == ("", 1)
    assert "a process may open 60 files, Pool() needs about 76\n" in done.stdout
    assert "ulimit -Hn" in done.stdout
    done = run_python(LIMITED, "60", "doctor", "--json", env=HEALTHY)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert not found["ok"]
    assert [list(one) for one in found["problems"]] == [["what", "advice"]]


def test_a_limit_that_a_pool_raises_is_no_problem():
    """The soft one is shown as it was."""
    done = run_python(LIMITED, "4096", "doctor", env={"SHMPAR_NUM_WORKERS": "20"})
    assert (done.stderr, done.returncode) == ("", 0)
    assert "60; Pool() needs about 184\n" in done.stdout


def in_shm(size, *arguments):
    """What a command says where /dev/shm is empty and of this size."""
    code = f"import shmpar.cli; print(shmpar.cli.main({list(arguments)}))"
    said, _, code = in_little_shm(code, size).rstrip("\n").rpartition("\n")
    return said, int(code)


@needs_root
def test_a_little_shm_is_no_problem():
    """Large arrays lie elsewhere, and the doctor says where and why."""
    said, code = in_shm("64m", "doctor")
    assert "array of 1 MiB      shm (/dev/shm has room)\n" in said
    assert "array of 1 GiB      memfd (memory has room); /dev/shm: 64.0 MiB free\n" in said
    assert code == 0


@needs_root
def test_a_shm_that_cannot_be_written_is_a_problem():
    """Arrays work, without names."""
    said, code = in_shm("64m,ro", "doctor")
    assert "1 problem:\n  1. arrays cannot have names in /dev/shm: " in said
    assert "one worker          started" in said
    assert code == 1


@needs_root
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ls"], "no named segments"),
        (["ls", "--json"], '{\n  "segments": []\n}'),
        (["clean"], "nothing to remove"),
        (["clean", "--dry-run"], "nothing to remove"),
    ],
)
def test_nothing_is_said_plainly(arguments, said):
    """Where there are no segments."""
    assert in_shm("1m", *arguments) == (said, 0)


@pytest.mark.alone
def test_segments_are_listed(live, stale):
    """With who made them, their size, and whether that process lives."""
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
    """The oldest first; the last line counts them, and says how to remove the stale ones."""
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
    """It says what would go."""
    done = command("clean", "--dry-run")
    assert (done.stderr, done.returncode) == ("", 0)
    assert re.search(rf"^{stale[0]}  7.8 KiB$", done.stdout, re.MULTILINE)
    assert re.search(r"^would remove \d+ segments?, ", done.stdout, re.MULTILINE)
    assert exists(stale[0])
    assert live not in done.stdout
    said = answer("clean", "--dry-run")
    assert said["dry_run"]
    assert {"name": stale[0], "size": 8000} in said["segments"]
    assert exists(stale[0])


@pytest.mark.alone
def test_what_the_dead_left_is_removed(live, stale):
    """What is alive stays."""
    said = answer("clean")
    assert (said["dry_run"], said["left"]) == (False, [])
    assert {"name": stale[0], "size": 8000} in said["segments"]
    assert said["bytes"] == sum(one["size"] for one in said["segments"])
    assert live not in {one["name"] for one in said["segments"]}
    assert not exists(stale[0])
    assert exists(live)
    assert stale[0] not in command("ls").stdout


@pytest.mark.alone
def test_removing_is_told(stale):
    """A line for each, and the sum."""
    done = command("clean")
    assert (done.stderr, done.returncode) == ("", 0)
    assert re.search(rf"^{stale[0]}  7.8 KiB$", done.stdout, re.MULTILINE)
    assert re.search(r"^removed \d+ segments?, ", done.stdout, re.MULTILINE)
    assert not exists(stale[0])


@pytest.mark.alone
def test_a_doctor_tells_of_the_dead(live, stale):
    """Its pool removes what they left, as any pool does, so that is no problem."""
    found = answer("doctor", env=HEALTHY)
    assert found["ok"]
    assert found["segments"]["stale"]["count"] >= 1
    assert found["segments"]["stale"]["bytes"] >= 8000
    assert found["segments"]["alive"]["count"] >= 1
    assert found["segments"]["left"] == {"count": 0, "bytes": 0}
    assert not exists(stale[0])
    assert exists(live)


@pytest.mark.alone
def test_what_a_living_process_has_taken_over_stays(live):
    """Although the one that made it was killed, and its marker lists it too."""
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


@needs_root
@pytest.mark.alone
def test_what_belongs_to_others_stays():
    """A dead process' marker and segment, of another user."""
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
    "arguments", [[], ["cleanse"], ["ls", "--all"], ["doctor", "x"], ["doctor", "--dry-run"]]
)
def test_what_cannot_be_asked_is_a_usage_error(arguments):
    """Exit code 2, and nothing on standard output."""
    done = command(*arguments)
    assert (done.stdout, done.returncode) == ("", 2)
    assert done.stderr.startswith("usage: python -m shmpar")


def test_the_version_is_told():
    """As other commands do."""
    assert command("--version").stdout == f"shmpar {shmpar.__version__}\n"


def test_nobody_may_read_the_answer():
    """A pipe that closed is no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        options = {"stdout": writer, "stderr": subprocess.PIPE, "flags": ["-m"]}
        with interpreter(Path("shmpar"), "ls", **options) as process:
            assert process.stderr.read() == b""
            assert process.wait() == 0
    finally:
        os.close(writer)
