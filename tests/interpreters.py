"""Run programs and scripts in fresh interpreters that must leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from tests import processes

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GRACE = 2.0  # seconds that a process may outlive the interpreter that started it


def run_python(
    source: str | os.PathLike[str],
    *args: str,
    timeout: float = 60,
    input: str | None = None,  # noqa: A002 (as in subprocess.run)
    survivors_ok: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a snippet (str) or a script (path) in a fresh interpreter and return its output.

    Parameters
    ----------
    source : str or path
        Source text, which is dedented and passed to ``-c``, or the path of a script.
    *args : str
        The ``sys.argv[1:]`` of the interpreter.
    timeout : float
        Seconds until the interpreter and all processes that it started are killed.
    input : str, optional
        Text for standard input, which is empty otherwise.
    survivors_ok : bool
        Kill processes that outlive the interpreter without an error.
    **options
        ``env`` (added to the environment of this process), ``cwd``, ``flags`` and ``python``, as
        for :func:`interpreter`.

    Returns
    -------
    subprocess.CompletedProcess
        ``stdout`` and ``stderr`` as text, and ``returncode``, which is the negative number of
        the signal that ended the process.  The caller checks all three.

    Raises
    ------
    AssertionError
        If the interpreter runs longer than `timeout`, or a process that it started is alive two
        seconds after it has exited.
    """
    file = tempfile.TemporaryFile  # Why: a pipe that a survivor holds open would block us
    with file() as stdin, file() as stdout, file() as stderr:
        stdin.write((input or "").encode())
        stdin.seek(0)
        options |= {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        try:
            with interpreter(source, *args, survivors_ok=survivors_ok, **options) as process:
                returncode = process.wait(timeout)
        except subprocess.TimeoutExpired:
            output = f"stdout:\n{_text(stdout)}\nstderr:\n{_text(stderr)}"
            raise AssertionError(f"still running after {timeout} s\n{output}") from None
        return subprocess.CompletedProcess(process.args, returncode, _text(stdout), _text(stderr))


def output_after_setup(shell: Sequence[str], setup: str, source: str) -> str:
    """Run a snippet in a fresh interpreter after a shell command, and return its output.

    Parameters
    ----------
    shell : sequence of str
        Command that starts the shell.
    setup : str
        Command that the shell runs before it becomes the interpreter.
    """
    done = subprocess.run(
        [*shell, "-c", f'{setup} && exec {sys.executable} -c "$0"', source],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@contextmanager
def interpreter(
    source: str | os.PathLike[str],
    *args: str,
    env: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
    python: str = sys.executable,
    survivors_ok: bool = False,
    **options: Any,
) -> Iterator[subprocess.Popen[Any]]:
    """Start a fresh interpreter in a session of its own, for tests that act while it runs.

    The process group has the pid of the interpreter: ``os.killpg(process.pid, signal.SIGINT)``
    works like Ctrl-C.  `flags` go before the source (``["-X", "dev"]``); other options are those of
    ``subprocess.Popen``.  At the end of the block the interpreter is killed if it still runs, and
    the processes that it started must exit by themselves.
    """
    token = f"{processes.TOKEN}-{uuid.uuid4().hex}"
    path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [python, *flags, *_source_arguments(source), *args],
        env={**os.environ, "PYTHONPATH": path, **(env or {}), processes.TOKEN_NAME: token},
        start_new_session=True,
        **options,
    )
    finished = False
    try:
        yield process
        finished = True
    finally:
        _kill_and_reap(process)
        survivors = processes.wait_for_session(process.pid, token, GRACE if finished else 0)
        described = [str(survivor) for survivor in survivors]
        for survivor in survivors:
            with suppress(ProcessLookupError):
                os.kill(survivor.pid, signal.SIGKILL)
        if survivors:  # Why: a kill takes effect later
            processes.wait_for_session(process.pid, token, GRACE)
    if described and not survivors_ok:
        raise AssertionError("the interpreter was outlived by:\n  " + "\n  ".join(described))


def _source_arguments(source: str | os.PathLike[str]) -> list[str]:
    if isinstance(source, str):
        return ["-c", textwrap.dedent(source)]
    return [os.fspath(source)]


def _kill_and_reap(process: subprocess.Popen[Any]) -> None:
    """Kill a process unless it has exited, reap it, and close its pipes."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def _text(file: IO[bytes]) -> str:
    """Return the text that was written to a file so far."""
    file.seek(0)
    return file.read().decode(errors="replace")
