"""Fresh interpreters pass on their output and exit status, and leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from tests import interpreters, processes
from tests.leaks import Snapshot, leaks_after_waiting
from tests.programs import LEAVES_ORPHAN, WAITS_FOREVER


@pytest.fixture
def before():
    return Snapshot.take()


def test_input_and_output_are_passed_on():
    """The result has the output and the exit status; the snippet gets input and arguments."""
    source = """
        import os, sys
        print(input(), sys.argv[1], os.environ["EXTRA"])
        sys.exit("no")
    """
    done = interpreters.run_python(source, "argument", input="typed\n", env={"EXTRA": "more"})
    assert (done.stdout, done.stderr, done.returncode) == ("typed argument more\n", "no\n", 1)


def test_an_interpreter_runs_a_script(tmp_path):
    """A path is run as a script, which can import the package under test."""
    script = tmp_path / "script.py"
    script.write_text("import shmpar.errors; print(__file__)")
    done = interpreters.run_python(script)
    assert (done.stdout, done.stderr) == (f"{script}\n", "")


def test_an_interpreter_that_hangs_is_killed(before, tmp_path, monkeypatch):
    """The error of a timeout has the output so far, and no process keeps running."""
    printed, wait = tmp_path / "printed", subprocess.Popen.wait
    touch = f"open({str(printed)!r}, 'w').close()"
    source = f"print('so far', flush=True)\n{touch}\n{WAITS_FOREVER}"

    def wait_after_the_output(process, timeout=None):
        # Why: an interpreter may take longer than the timeout to start.
        while timeout is not None and not printed.exists():
            time.sleep(0.005)
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_after_the_output)
    with pytest.raises(AssertionError, match=r"(?s)still running after 0.1 s.*so far"):
        interpreters.run_python(source, timeout=0.1)
    assert leaks_after_waiting(before) == []


def test_a_process_that_outlives_its_interpreter_is_an_error(before, monkeypatch):
    """The error names the process, which is killed."""
    monkeypatch.setattr(interpreters, "GRACE", 0.1)
    with pytest.raises(AssertionError, match=r"outlived by:\n  \d+ .*pause"):
        interpreters.run_python(LEAVES_ORPHAN)
    assert leaks_after_waiting(before) == []


def test_a_process_may_outlive_its_interpreter_with_survivors_ok(before, monkeypatch):
    """The process is killed without an error."""
    monkeypatch.setattr(interpreters, "GRACE", 0.1)
    done = interpreters.run_python(LEAVES_ORPHAN, survivors_ok=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not processes.has_token(int(done.stdout), processes.TOKEN)
    assert leaks_after_waiting(before) == []


def test_a_test_can_act_while_an_interpreter_runs():
    """The context manager gives the running process, and a signal reaches its group."""
    source = "print('ready', flush=True)\nimport signal\nsignal.pause()"
    with interpreters.interpreter(source, stdout=-1, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"ready\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
