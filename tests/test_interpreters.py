"""Fresh interpreters: what they say comes through, and nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests import interpreters, processes
from tests.leaks import Snapshot, left_after_waiting
from tests.snippets import FREEZES, LEAVES_ORPHAN


@pytest.fixture
def before():
    return Snapshot.take()


def test_an_interpreter_says_what_happened():
    """Output, standard input, arguments, environment and exit status come through."""
    source = """
        import os, sys
        print(input(), sys.argv[1], os.environ["EXTRA"])
        sys.exit("no")
    """
    done = interpreters.run_python(source, "argument", input="said\n", env={"EXTRA": "more"})
    assert (done.stdout, done.stderr, done.returncode) == ("said argument more\n", "no\n", 1)


def test_an_interpreter_runs_a_script(tmp_path):
    """A path is run as a script, which finds the package that is tested."""
    script = tmp_path / "script.py"
    script.write_text("import shmpar.errors; print(__file__)")
    done = interpreters.run_python(script)
    assert (done.stdout, done.stderr) == (f"{script}\n", "")


def test_an_interpreter_that_hangs_is_killed(before):
    """A timeout is an assertion with the output so far, and nothing goes on running."""
    source = f"print('so far', flush=True)\n{FREEZES}"
    with pytest.raises(AssertionError, match=r"(?s)still running after 0.5 s.*so far"):
        interpreters.run_python(source, timeout=0.5)
    assert left_after_waiting(before) == []


def test_an_interpreter_may_not_be_outlived(before, monkeypatch):
    """A process that outlives the interpreter is named and killed."""
    monkeypatch.setattr(interpreters, "GRACE", 0.1)
    with pytest.raises(AssertionError, match=r"outlived by:\n  \d+ .*pause"):
        interpreters.run_python(LEAVES_ORPHAN)
    assert left_after_waiting(before) == []


def test_an_interpreter_may_be_outlived_if_asked(before, monkeypatch):
    """With `survivors_ok` it is killed without a complaint."""
    monkeypatch.setattr(interpreters, "GRACE", 0.1)
    done = interpreters.run_python(LEAVES_ORPHAN, survivors_ok=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not processes.carries(int(done.stdout), processes.TOKEN)
    assert left_after_waiting(before) == []


def test_an_interpreter_can_be_talked_to():
    """The context manager gives the running process, a Ctrl-C reaches its group."""
    source = "print('ready', flush=True)\nimport signal\nsignal.pause()"
    with interpreters.interpreter(source, stdout=-1, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"ready\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
