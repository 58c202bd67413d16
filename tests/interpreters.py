"""Fresh interpreters for tests: a snippet or a script, and nothing of it left afterwards."""

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
GRACE = 2.0  # seconds that anything may outlive the interpreter that started it


def run_python(
    source: str | os.PathLike[str],
    *args: str,
    timeout: float = 60,
    input: str | None = None,  # noqa: A002 (as in subprocess.run)
    survivors_ok: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a snippet (str) or a script (path) in a fresh interpreter and return what it said.

    Parameters
    ----------
    source : str or path
        Source text, which is dedented and given to ``-c``, or the path of a script.
    *args : str
        Its ``sys.argv[1:]``.
    timeout : float
        Seconds until it is killed, with all that it started.
    input : str, optional
        Text for its standard input, which is empty otherwise.
    survivors_ok : bool
        Let processes that it started outlive it; they are killed without a complaint.
    **options
        ``env`` (added to this environment), ``cwd``, ``flags`` and ``python``, as for
        :func:`interpreter`.

    Returns
    -------
    subprocess.CompletedProcess
        With ``stdout`` and ``stderr`` as text and ``returncode``, minus the signal's number
        after a death by signal.  The caller looks at all three.

    Raises
    ------
    AssertionError
        If it takes longer than `timeout`, or a process that it started is alive two seconds
        after its end.
    """
    file = tempfile.TemporaryFile  # unlike a pipe, one that a survivor holds blocks nobody
    with file() as stdin, file() as stdout, file() as stderr:
        stdin.write((input or "").encode())
        stdin.seek(0)
        files = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        try:
            with interpreter(source, *args, survivors_ok=survivors_ok, **files, **options) as one:
                returncode = one.wait(timeout)
        except subprocess.TimeoutExpired:
            said = f"stdout:\n{_text(stdout)}\nstderr:\n{_text(stderr)}"
            raise AssertionError(f"still running after {timeout} s\n{said}") from None
        return subprocess.CompletedProcess(one.args, returncode, _text(stdout), _text(stderr))


def said_after(shell: Sequence[str], setup: str, source: str) -> str:
    """Run a snippet in an interpreter that a shell becomes after a command; return what it printed.

    Parameters
    ----------
    shell : sequence of str
        How the shell is started.
    setup : str
        What it does before.
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
    assert (done.returncode, done.stderr) == (0, "")
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

    Its process group is its pid: ``os.killpg(process.pid, signal.SIGINT)`` is a Ctrl-C.  `flags`
    go before the source (``["-X", "dev"]``); other options are those of ``subprocess.Popen``.
    When the block ends it is killed if it still runs, and what it started must end by itself.
    """
    token = f"{processes.TOKEN}-{uuid.uuid4().hex}"
    path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [python, *flags, *_how(source), *args],
        env={**os.environ, "PYTHONPATH": path, **(env or {}), processes.TOKEN_NAME: token},
        start_new_session=True,
        **options,
    )
    finished = False
    try:
        yield process
        finished = True
    finally:
        _end(process)
        survivors = processes.outlive(process.pid, token, GRACE if finished else 0)
        described = [str(survivor) for survivor in survivors]
        for survivor in survivors:
            with suppress(ProcessLookupError):
                os.kill(survivor.pid, signal.SIGKILL)
        processes.outlive(process.pid, token, GRACE)  # a kill is certain, its moment is not
    if described and not survivors_ok:
        raise AssertionError("the interpreter was outlived by:\n  " + "\n  ".join(described))


def _how(source: str | os.PathLike[str]) -> list[str]:
    if isinstance(source, str):
        return ["-c", textwrap.dedent(source)]
    return [os.fspath(source)]


def _end(process: subprocess.Popen[Any]) -> None:
    """Kill it unless it has ended, and reap it."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def _text(file: IO[bytes]) -> str:
    """Read all that was written to a file so far."""
    file.seek(0)
    return file.read().decode(errors="replace")
