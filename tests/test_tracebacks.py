"""Tracebacks name the user's lines: in scripts, with ``python -c``, and in a notebook."""

from __future__ import annotations

import os
import re
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar import tracebacks
from shmpar.verbs import blocks
from tests.pools import ENGINES
from tests.test_jupyter import run_cell, started_kernel

Run = Callable[..., CompletedProcess[str]]

SCRIPT = """
import sys, threading, traceback
import numpy as np, shmpar

def inner(block):
    return block / undefined

def work(block):
    return inner(block)

x, lock = np.ones(8), threading.Lock()
with shmpar.Pool(2, engine=sys.argv[1]) as pool:
    calls = {
        "verb": lambda: pool.map_blocks(work, x, chunks=2),
        "run": lambda: pool.map_blocks(work, x, chunks=2, wait=False).result(),
        "submit": lambda: pool.submit(work, x).result(),
        "map": lambda: list(pool.map(work, [x])),
        "imap": lambda: list(pool.imap(work, [x])),
        "starmap": lambda: pool.starmap(work, [(x,)]),
        "default": lambda: shmpar.map_blocks(work, x, chunks=2),
        "keyword": lambda: pool.map_blocks(work, x, chunk=2),
        "array": lambda: pool.zeros(-1),
        "shape": lambda: pool.map_blocks(lambda b: b[:1], x, chunks=2),
        "pickle": lambda: pool.map_blocks(lambda b: lock, x, chunks=2),
        "name": lambda: pool.colour,
    }
    for name, call in calls.items():
        print("==", name)
        try:
            call()
        except Exception:
            traceback.print_exc(file=sys.stdout)
"""
FUNCTION = {"verb", "run", "submit", "map", "imap", "starmap", "default"}


def printed(run_python: Run, tmp_path: Path, engine: str, **options: Any) -> dict[str, str]:
    """Return the traceback of each call of the script."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run_python(script, engine, **options)
    assert (done.stderr, done.returncode) == ("", 0)
    parts = re.split("(?m)^== (.+)\n", done.stdout)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_script_shows_lines_of_the_user_alone(
    run_python: Run, tmp_path: Path, engine: str
) -> None:
    """No frame of the package and no internal cause is shown, and the message comes last."""
    script = str(tmp_path / "script.py")
    found = printed(run_python, tmp_path, engine)
    for call, text in found.items():
        if call == "pickle" and engine != "processes":
            assert "ChunkError" in text  # these engines pickle nothing
            continue
        assert set(re.findall(r'File "(.+?)", line', text)) == {script}, (call, text)
        lines = text.strip().splitlines()
        assert "    call()" in lines, (call, text)
        if call not in FUNCTION:
            assert "The above exception" not in text, (call, text)
            continue
        assert f'  File "{script}", line 6, in inner' in lines, (call, text)
        assert "    return block / undefined" in lines
        assert "NameError: name 'undefined' is not defined" in lines[-1]
        if call in {"verb", "run", "default"}:
            assert "ChunkError: map_blocks, chunk 0 at [0:2]" in lines[-1]
            if engine == "processes" or call == "default":
                assert lines[0] == "NameError: name 'undefined' is not defined"
    assert "PlanError: cannot send function" in found["pickle"] or engine != "processes"


def test_all_frames_are_shown_on_request(run_python: Run, tmp_path: Path) -> None:
    found = printed(run_python, tmp_path, "processes", env={"SHMPAR_TRACEBACK": "full"})
    for call, text in found.items():
        assert tracebacks.PACKAGE in text, call


def test_the_source_of_a_command(run_python: Run) -> None:
    """The worker knows no source of ``python -c``; the line is shown all the same."""
    done = run_python(
        """
        import shmpar
        def work(x):
            y = x
            return y / 0
        with shmpar.Pool(1) as pool:
            try:
                pool.submit(work, 1).result()
            except ZeroDivisionError as error:
                print(error.__notes__[0])
            space = {}
            exec(compile("def other(x):\\n\\n\\n  return x / 0", "<string>", "exec"), space)
            try:
                pool.submit(space["other"], 1).result()
            except ZeroDivisionError as error:
                print(error.__notes__[0])
        """
    )
    first, second = done.stdout.split("In the worker:\n")[1:]
    assert 'File "<string>", line 5, in work\n    return y / 0\n' in first
    assert 'File "<string>", line 4, in other\nZeroDivisionError' in second


class Refuses:
    """Its pickling fails."""

    def __getstate__(self) -> object:
        raise KeyError("the user's own")


def test_an_exception_of_the_user_stays_the_cause() -> None:
    """A method that fails while its object is pickled is named with its line."""
    held = Refuses()
    with shmpar.Pool(1) as pool, pytest.raises(shmpar.PlanError) as caught:
        pool.submit(lambda: held)
    cause = caught.value.__cause__
    assert isinstance(cause, KeyError)
    assert [frame.name for frame in traceback.extract_tb(cause.__traceback__)] == ["__getstate__"]


def test_a_defect_keeps_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that this package does not raise on purpose can be reported."""
    monkeypatch.setattr(blocks, "items", lambda *_: None)
    with shmpar.Pool(1, engine="serial") as pool, pytest.raises(AttributeError) as caught:
        pool.parallel_map(abs, [1])
    files = [frame.filename for frame in traceback.extract_tb(caught.tb)]
    assert any(file.startswith(tracebacks.PACKAGE) for file in files)


def test_frames_of_callbacks_stay(any_pool: shmpar.Pool) -> None:
    """A progress function of the user's that raises is shown."""

    def show(done: int, total: int) -> None:
        raise LookupError(f"{done} of {total}")

    with pytest.raises(LookupError) as caught:
        any_pool.map_blocks(np.negative, np.ones(8), chunks=2, progress=show)
    names = [frame.name for frame in traceback.extract_tb(caught.tb)]
    assert names[-1] == "show"
    any_pool._last_run = None


def test_a_result_that_is_asked_for_again(any_pool: shmpar.Pool) -> None:
    """The traceback has no frame of the package then either."""

    def fail(block: Any) -> Any:
        raise ValueError("no")

    run = any_pool.map_blocks(fail, np.ones(4), chunks=2, wait=False)
    for _ in range(3):
        with pytest.raises(shmpar.ChunkError) as caught:
            run.result()
        files = {frame.filename for frame in traceback.extract_tb(caught.tb)}
        assert files == {__file__}
    any_pool._last_run = None


@pytest.mark.parametrize(
    "wait",
    [
        lambda run, _: run.exception(),
        lambda run, _: run.wait(),
        lambda run, _: list(run.completed()),
        lambda _, pool: pool.shutdown(),
    ],
)
def test_an_interrupt_of_any_wait(wait: Any) -> None:
    """The traceback ends in the line of the user that waits."""
    waits, goes_on = threading.Event(), threading.Event()

    def interrupt(*_: Any) -> None:
        goes_on.set()
        raise KeyboardInterrupt

    def work(_: int) -> None:
        waits.wait()
        os.kill(os.getpid(), signal.SIGINT)
        goes_on.wait()

    with shmpar.Pool(1, engine="threads") as pool:
        run = pool.parallel_map(work, [1], wait=False)
        before = signal.signal(signal.SIGINT, interrupt)
        try:
            with pytest.raises(KeyboardInterrupt) as caught:
                wait(run, waits.set() or pool)
        finally:
            signal.signal(signal.SIGINT, before)
    names = [frame.filename for frame in traceback.extract_tb(caught.tb)]
    assert not any(name.startswith(tracebacks.PACKAGE) for name in names)


CELLS = {
    "cell": "pool.map_blocks(work, x, chunks=2)",
    "several lines": "y = 1\nz = 2\npool.map_blocks(work, x, chunks=2)\nz = 3\n",
    "run": "pool.map_blocks(work, x, chunks=2, wait=False).result()",
    "submit": "pool.submit(work, x).result()",
    "map": "list(pool.map(work, [x]))",
    "module": "pool.map_blocks(helper.work, x, chunks=2)",
    "serial": "shmpar.Pool(engine='serial').map_blocks(work, x, chunks=2)",
    "deep": "pool.map_blocks(lambda b: down(b, 30), x, chunks=2)",
    "shape": "pool.map_blocks(lambda b: b[:1], x, chunks=2)",
    "keyword": "pool.map_blocks(work, x, chunk=2)",
    "lock": "pool.map_blocks(lambda b: lock, x, chunks=2)",
}
PREPARE = """
import sys, threading
import numpy as np, shmpar
sys.path.insert(0, {folder!r})
import helper
pool, x, lock = shmpar.Pool(2), np.ones(8), threading.Lock()
def inner(block):
    return block / undefined
def work(block):
    return inner(block)
def down(block, depth):
    return down(block, depth - 1) if depth else inner(block)
"""


def shown(client: Any, code: str) -> list[str]:
    """Run a cell that fails; return the lines of its traceback, without colours."""
    request = client.execute(code)
    lines: list[str] = []
    while True:
        message = client.get_iopub_msg(timeout=60)
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] == "error":
            text = "\n".join(message["content"]["traceback"])
            lines = re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip().split("\n")
        elif message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return lines


@pytest.mark.stress
def test_a_notebook_shows_few_lines(run_python: Run, tmp_path: Path) -> None:
    """At most 20, with the user's file and line; the message comes first and last."""
    in_a_kernel(run_python, tmp_path, "show_few_lines")


def in_a_kernel(run_python: Run, folder: Path, function: str) -> None:
    """Call a function of this module in a process of its own, which starts a kernel."""
    source = f"""
        from pathlib import Path
        from tests import test_tracebacks
        test_tracebacks.{function}(Path({str(folder)!r}))
        print("done")
    """
    done = run_python(source, timeout=120)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


def show_few_lines(tmp_path: Path) -> None:
    """Run cells that fail."""
    (tmp_path / "helper.py").write_text("def work(block):\n    return block / undefined\n")
    with started_kernel() as (client, _):
        assert shown(client, PREPARE.format(folder=str(tmp_path))) == []
        for name, code in CELLS.items():
            lines = shown(client, code)
            text = "\n".join(lines)
            assert 0 < len(lines) <= 20, text
            assert tracebacks.PACKAGE not in text
            if name in {"shape", "keyword", "lock"}:
                assert re.search(r"Cell In\[\d+\], line 1", text), text
                continue
            if name == "module":
                assert f'File "{tmp_path / "helper.py"}", line 2, in work' in text
            elif name not in {"submit", "map"}:
                assert "Cell In[1], line 7, in inner" in text, text
            assert "    return block / undefined" in text, text
            assert "name 'undefined' is not defined" in lines[-1]
            if "ChunkError" in text:
                assert lines[0] == lines[-1]
                assert re.search(r"  Cell In\[\d+\], line \d+, in <module>\n", text), text
        assert shown(client, "%env SHMPAR_TRACEBACK=full") == []
        assert tracebacks.PACKAGE in "\n".join(shown(client, CELLS["cell"]))
        assert shown(client, "pool.shutdown()") == []


AUTORELOAD = """
%load_ext autoreload
%autoreload 2
import os, sys
sys.path.insert(0, {folder!r})
import helper, shmpar
from helper import part
pools = [shmpar.Pool(1, engine=engine) for engine in ("processes", "threads", "serial")]
def use(x):
    return helper.part(x), part(x), helper.K
def ask(function):
    found = [pool.submit(function, 2).result() for pool in pools]
    for pool in pools:
        found += pool.block_reduce(lambda _: function(2), [0, 0], chunks=1, dtype=object).tolist()
    return set(found)
"""


def test_reloaded_modules_and_cells_that_run_again(run_python: Run, tmp_path: Path) -> None:
    """Workers use them as the kernel does, on three engines: nothing is stale."""
    in_a_kernel(run_python, tmp_path, "reload_and_run_again")


def reload_and_run_again(tmp_path: Path) -> None:
    """Change a module and a cell of a kernel with ``%autoreload 2``."""
    helper = tmp_path / "helper.py"
    helper.write_text("K = 1\ndef part(x):\n    return x + K\n")
    with started_kernel() as (client, _):
        assert run_cell(client, AUTORELOAD.format(folder=str(tmp_path)))[2] == ""
        ask = "print(ask(use) == {use(2)}, use(2))"
        assert run_cell(client, ask)[0] == "True (3, 3, 1)\n"
        helper.write_text("K = 10\ndef part(x):\n    return x - K\n")
        touch = f"os.utime({str(helper)!r}, (2e9, 2e9))"
        assert run_cell(client, touch)[2] == ""
        assert run_cell(client, ask)[0] == "True (-8, -8, 10)\n"
        assert run_cell(client, "helper.K = 100\n" + ask)[0] == "True (-98, -98, 100)\n"
        again = "def use(x):\n    return 'again', helper.K\n" + ask
        assert run_cell(client, again)[0] == "True ('again', 100)\n"
        patched = (
            "helper.part = lambda x: 'patched'\ndef use(x):\n    return helper.part(x)\n" + ask
        )
        assert run_cell(client, patched)[0] == "True patched\n"
        assert run_cell(client, "for pool in pools: pool.shutdown()")[2] == ""
