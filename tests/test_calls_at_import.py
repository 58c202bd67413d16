"""A worker process is inside a worker for its whole life: verbs run serially there."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]

# Each process that imports it notes its number. It ends an explosion.
MODULE = """
import atexit, os, threading
import numpy as np
import shmpar

LOG = os.environ["TEST_LOG"]

def note(word):
    with open(LOG, "a") as file:
        file.write(f"{word} {os.getpid()}\\n")
    if len(open(LOG).read().splitlines()) > 40:
        os._exit(9)

def double(block):
    return block * 2

def total():
    return float(shmpar.map_blocks(double, np.arange(6.0), chunks=2).sum())

def of_pool():
    with shmpar.Pool(2) as pool:
        return float(pool.map_blocks(double, np.arange(6.0), chunks=2).sum())

def in_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(total()))
    thread.start()
    thread.join()
    return found[0]

def at_exit():
    note(f"exit:{total()}")

class Unpickled:
    def __init__(self):
        self.total = total()
    def __reduce__(self):
        return Unpickled, ()
    def __call__(self, block):
        return block + self.total

class Finalized:
    def __del__(self):
        note(f"del:{total()}")

def finalizing(block):
    Finalized()
    return block + 30

note("import")
TOTAL = total()

def work(block):
    return block + TOTAL
"""

SCRIPT = """
import numpy as np
import shmpar
import calling

if __name__ == "__main__":
    image = np.arange(12.0)
    with shmpar.Pool(2{options}) as pool:
        for work in ({work},):
            result = pool.map_blocks(work, image, chunks=2)
            assert np.array_equal(result, image + 30), result
    print("right")
"""

FUNCTIONS = [
    "calling.work",
    "calling.Unpickled()",
    "calling.finalizing",
    "lambda b: b + calling.in_thread()",
    "lambda b: b + calling.of_pool()",
]


def run_script(run_python: Run, folder: Path, work: str, options: str = "") -> list[str]:
    """Run a script that imports the module; return the distinct words that were noted."""
    (folder / "calling.py").write_text(MODULE)
    script = folder / "script.py"
    script.write_text(SCRIPT.format(work=work, options=options))
    log = folder / "log"
    done = run_python(script, env={"TEST_LOG": str(log)}, timeout=40)
    assert (done.stdout, done.returncode) == ("right\n", 0), done.stderr
    assert done.stderr == ""
    lines = [line.split() for line in log.read_text().splitlines()]
    # The script, two workers of its pool with a successor each time, and those of the default pool.
    most = 10 + (os.cpu_count() or 1)
    assert len({pid for word, pid in lines if word == "import"}) <= most
    return sorted({word for word, _ in lines})


@pytest.mark.parametrize(
    ("work", "options"),
    [
        (", ".join(FUNCTIONS), ""),
        ("calling.work", ", initializer=calling.total"),
        ("calling.work", ", initializer=calling.in_thread, max_tasks_per_worker=2"),
    ],
    ids=["functions", "initializer", "replaced"],
)
def test_a_module_that_calls_verbs_starts_no_further_workers(
    run_python: Run, tmp_path: Path, work: str, options: str
) -> None:
    """The result is the serial one, and as many processes import the module as without the call."""
    words = run_script(run_python, tmp_path, work, options)
    assert set(words) <= {"import", "del:30.0"}


def test_a_pool_made_at_import_is_serial_in_a_worker(run_python: Run, tmp_path: Path) -> None:
    """A module may keep a pool of its own; in a worker its calls are made at once."""
    (tmp_path / "keeping.py").write_text(
        textwrap.dedent("""
            import shmpar
            pool = shmpar.Pool(2)
            def half(value):
                return value / 2
            def work(block):
                return block + pool.submit(half, 4.0).result() + sum(pool.map(half, [2.0, 4.0]))
        """)
    )
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import numpy as np, shmpar, keeping
            with shmpar.Pool(2) as pool:
                print(pool.map_blocks(keeping.work, np.zeros(4), chunks=2).tolist())
            keeping.pool.shutdown()
        """)
    )
    done = run_python(script, timeout=40)
    assert (done.stdout, done.stderr, done.returncode) == ("[5.0, 5.0, 5.0, 5.0]\n", "", 0)


def test_an_exit_function_of_a_worker_may_call_a_verb(run_python: Run, tmp_path: Path) -> None:
    """The exit functions that the user's code registers run in an interpreter that is whole."""
    words = run_script(
        run_python,
        tmp_path,
        "calling.work",
        ", initializer=__import__('atexit').register, initargs=(calling.at_exit,)",
    )
    assert "exit:30.0" in words


def test_a_site_that_calls_a_verb_starts_no_further_workers(
    run_python: Run, tmp_path: Path
) -> None:
    """The call is made while the interpreter of a worker starts."""
    (tmp_path / "calling.py").write_text(MODULE)
    (tmp_path / "sitecustomize.py").write_text("import calling\n")
    log = tmp_path / "log"
    env = {"TEST_LOG": str(log), "PYTHONPATH": str(tmp_path)}
    source = """
        import calling, sys
        print(calling.total(), calling.in_thread())
    """
    done = run_python(source, env=env, timeout=40)
    assert (done.stdout, done.returncode) == ("30.0 30.0\n", 0), done.stderr


def test_a_program_that_a_worker_starts_may_have_workers(run_python: Run) -> None:
    """A new interpreter is no worker; a forked child of a worker still is."""
    source = """
        import multiprocessing, os, subprocess, sys
        import numpy as np
        import shmpar

        PROGRAM = (
            "import os, shmpar\\n"
            "with shmpar.Pool(1) as pool:\\n"
            "    print(pool.submit(os.getpid).result() == os.getpid())"
        )

        def program(_):
            return subprocess.check_output([sys.executable, "-c", PROGRAM], text=True).strip()

        def child(send):
            with shmpar.Pool(1) as pool:
                send.send(str(pool.submit(os.getpid).result() == os.getpid()))

        def forked(_):
            receive, send = multiprocessing.Pipe()
            process = multiprocessing.get_context("fork").Process(target=child, args=(send,))
            process.start()
            process.join()
            return receive.recv()

        with shmpar.Pool(1) as pool:
            print(*pool.map(program, [0]), *pool.map(forked, [0]))
    """
    done = run_python(source, timeout=60)
    assert (done.stdout, done.stderr) == ("False True\n", ""), done.stderr
