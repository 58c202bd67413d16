"""A pool works in a Python that was started in any way, and ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.interpreters import ROOT, interpreter

Run = Callable[..., CompletedProcess[str]]

SCRIPT = """
import numpy as np
import shmpar

factor = 3

def scaled(block):
    return block * factor

with shmpar.Pool(1) as pool:
    one = pool.map_blocks(scaled, np.arange(6), chunks=2)
    factor = 5
    two = pool.map_blocks(lambda block: scaled(block) + 1, np.arange(6), chunks=2)
print(one.tolist(), two.tolist())
"""
OUTPUT = "[0, 3, 6, 9, 12, 15] [1, 6, 11, 16, 21, 26]\n"


def check(done: CompletedProcess[str], output: str = OUTPUT) -> None:
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


def test_a_script_without_a_guard(run_python: Run, tmp_path: Path) -> None:
    """A script needs no guard, since workers never import __main__."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    check(run_python(script))


def test_a_script_on_standard_input(run_python: Run) -> None:
    """Python may read the script from a pipe."""
    check(
        run_python("import sys; exec(compile(sys.stdin.read(), '<stdin>', 'exec'))", input=SCRIPT)
    )
    check(run_python(Path("-"), input=SCRIPT))


@pytest.mark.parametrize("flags", [["-X", "dev", "-B", "-bb"], ["-W", "error", "-O"]], ids=" ".join)
def test_workers_have_the_flags_of_the_interpreter(run_python: Run, flags: list[str]) -> None:
    """Neither the parent nor a worker of a snippet (`python -c`) emits a warning."""
    check(run_python(SCRIPT, flags=flags))


def test_modules_of_the_working_directory_and_beside_the_script(
    run_python: Run, tmp_path: Path
) -> None:
    """Workers import a module of either folder only if the parent would, and from where it does."""
    for name in ("selectors", "random", "queue", "socket", "pickle"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    (script.parent / "helper.py").write_text("def double(block): return block * 2\n")
    script.write_text(
        "import numpy as np, shmpar\nfrom helper import double\n"
        "with shmpar.Pool(2) as pool:\n"
        "    print(pool.map_blocks(double, np.arange(4), chunks=2).tolist())\n"
    )
    check(run_python(script, cwd=tmp_path), "[0, 2, 4, 6]\n")


def test_workers_have_the_process_state_of_the_parent(run_python: Run, tmp_path: Path) -> None:
    """Workers have its directory, warning filters, NumPy error state and env=."""
    source = """
        import os, sys, warnings
        import numpy as np, shmpar
        os.chdir(sys.argv[1])
        np.seterr(divide="raise")
        warnings.simplefilter("ignore")

        def look(_):
            warnings.warn("ignored")
            return (os.getcwd(), np.geterr()["divide"], os.environ["OMP_NUM_THREADS"],
                    os.environ["MINE"])

        with shmpar.Pool(1, env={"MINE": "yes"}) as pool:
            print(*pool.parallel_map(look, range(1), dtype=object)[0])
    """
    check(run_python(source, str(tmp_path)), f"{os.path.realpath(tmp_path)} raise 1 yes\n")


def test_changes_of_the_process_state_are_undone(run_python: Run, tmp_path: Path) -> None:
    """The next call has the process state of the parent again."""
    source = """
        import os, sys, warnings, numpy as np, shmpar

        def spoil(block):
            os.chdir("/")
            np.seterr(all="raise")
            sys.path.insert(0, "/nowhere")
            warnings.simplefilter("error")
            return block

        def look():
            return os.getcwd(), np.geterr(), sys.path, warnings.filters

        with shmpar.Pool(1) as pool:
            print(pool.submit(look).result() == look())
            for spoiled in (lambda: pool.map_blocks(spoil, np.ones(3)),
                            lambda: pool.submit(spoil, 1).result()):
                spoiled()
                print(pool.submit(look).result() == look())
                spoiled()
                print(pool.parallel_map(lambda _: look(), range(1), dtype=object)[0] == look())
    """
    check(run_python(source, cwd=tmp_path), "True\n" * 5)


def test_workers_have_the_arguments_and_folders_of_the_parent(
    run_python: Run, tmp_path: Path
) -> None:
    """A folder may be relative to an earlier directory; `env` and the initializer add others."""
    for name in ("early", "variable", "initial", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of_{name}.py").write_text(f"def name(): return {name!r}\n")
    source = """
        import os, sys, numpy as np, shmpar
        sys.path.insert(0, "early")
        import of_early
        initial = os.path.join("..", "initial")
        sys.setrecursionlimit(4321)
        sys.argv += [None, "\\0"]  # a program may do so, and no process can be given these
        os.umask(0o027)
        os.chdir("elsewhere")

        def prepare():
            sys.path.insert(0, initial)
            assert sys.argv == due[0]
            np.set_printoptions(precision=2)

        def look():
            import of_initial, of_variable
            return (
                sys.argv, sys.getrecursionlimit(), sys._xoptions, os.umask(0o027),
                of_early.name(), of_variable.name(), of_initial.name(), str(np.array([1.23456])),
            )

        arguments = ["-c", "one", "--", "", *["x" * 100] * 4_000]
        due = arguments, 4321, {"int_max_str_digits": "640"}, 0o027
        env = {"PYTHONPATH": os.path.join("..", "variable")}
        with shmpar.Pool(1, env=env, initializer=prepare) as pool:
            os.chdir("/")
            for _ in range(2):
                found = pool.submit(look).result()
                assert found == (*due, "early", "variable", "initial", "[1.23]"), found
        sys.argv.append("x" * 200_000)  # more than a process can be given
        with shmpar.Pool(1) as pool:
            assert pool.submit(lambda: sys.argv).result() == [""]
    """
    flags = ["-X", "int_max_str_digits=640"]
    arguments = "one", "--", "", *["x" * 100] * 4_000  # as the names of files, by ``*.tif``
    check(run_python(source, *arguments, flags=flags, cwd=tmp_path), "")


def test_a_worker_looks_for_garbage_unless_its_interpreter_does_not(
    run_python: Run, tmp_path: Path
) -> None:
    """The start of a worker has no such look, and leaves the choice of a ``sitecustomize``."""
    (tmp_path / "sitecustomize.py").write_text("import gc; gc.disable()")
    source = "import gc, shmpar; print(shmpar.Pool(1).submit(gc.isenabled).result())"
    check(run_python(source), "True\n")
    path = os.pathsep.join([str(tmp_path), ROOT])
    check(run_python(source, env={"PYTHONPATH": path}), "False\n")


def test_a_program_that_does_not_know_its_interpreter(run_python: Run) -> None:
    """The error names the remedy, which may be relative to the directory of the moment."""
    source = """
        import os, sys, shmpar
        python = sys.executable
        for sys.executable in ("", None):
            try:
                shmpar.Pool(1)
            except shmpar.PlanError as error:
                print("pass python=" in str(error))
        python, env = os.path.relpath(python), {"PYTHONPATH": ":".join(sys.path)}
        with shmpar.Pool(1, python=python, env=env) as pool:
            os.chdir("/")
            pool.restart()
            print(pool.submit(abs, -1).result())
    """
    check(run_python(source), "True\nTrue\n1\n")


def test_an_initializer_sets_globals_and_print_reaches_standard_output(run_python: Run) -> None:
    """Later functions see the globals; the output of workers appears before the verb returns."""
    source = """
        import shmpar
        model = None

        def load(name):
            global model
            model = name

        def use(n):
            return f"{model} {n}"

        with shmpar.Pool(1, initializer=load, initargs=("big",)) as pool:
            print(*pool.parallel_map(use, range(3), dtype="U9"))
            pool.parallel_map(lambda n: print("row", n), range(2))
        print("end")
    """
    check(run_python(source), "big 0 big 1 big 2\nrow 0\nrow 1\nend\n")


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("", 0),
        pytest.param("sys.exit(3)", 3, marks=pytest.mark.stress),
        pytest.param("raise KeyError(1)", 1, marks=pytest.mark.stress),
        ("os._exit(4)", 4),
    ],
    ids=["falls off", "sys.exit", "exception", "os._exit"],
)
def test_an_open_pool_ends_with_its_interpreter(run_python: Run, ending: str, code: int) -> None:
    """No worker and no segment is left, whether the interpreter exits normally or not."""
    source = f"""
        import os, sys
        import numpy as np, shmpar
        pool = shmpar.Pool(2)
        held = pool.map_blocks(np.negative, np.arange(4.0), chunks=1)
        again = shmpar.parallel_map(abs, range(4))
        endless = pool.parallel_map(lambda n: __import__("time").sleep(60), range(9), wait=False)
        print(held.sum(), sum(again), flush=True)
        {ending}
    """
    done = run_python(source)
    assert (done.stdout, done.returncode) == ("-6.0 6\n", code)
    assert not done.stderr or "KeyError" in done.stderr


def test_a_forked_child_has_no_pool(run_python: Run) -> None:
    """The copy refuses to work, and the parent's pool goes on."""
    source = """
        import os, warnings
        import shmpar
        # Python 3.12 and later warn of each fork beside threads.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pool = shmpar.Pool(2)
        shared = pool.ones(3)
        shared.name
        pool.parallel_map(abs, range(4))
        pid = os.fork()
        if pid == 0:
            try:
                pool.parallel_map(abs, range(4))
            except RuntimeError as error:
                print(error, flush=True)
            pool.shutdown()
            del pool, shared
            os._exit(0)
        os.waitpid(pid, 0)
        print(pool.parallel_map(abs, range(3)), shmpar.attach(shared.name, 3, float)[0])
        pool.shutdown()
    """
    output = "this pool belongs to the parent process; make one after the fork\n[0, 1, 2] 1.0\n"
    check(run_python(source), output)


def test_a_forked_child_keeps_no_worker_alive(run_python: Run) -> None:
    """The workers exit with the parent, although a forked child runs on."""
    source = """
        import os, sys, time
        import shmpar
        pool = shmpar.Pool(1)
        (worker,) = pool.parallel_map(lambda _: os.getpid(), range(1))
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(write)
            os.read(read, 1)
            fd = os.pidfd_open(worker) if os.path.exists(f"/proc/{worker}") else -1
            import select
            gone = fd < 0 or bool(select.select([fd], [], [], 2)[0])
            print("gone" if gone else "alive", flush=True)
            os._exit(0)
        os.close(read)
        os._exit(0)
    """
    done = run_python(source, survivors_ok=True)
    assert done.returncode == 0


INTERRUPTED = """
import os, sys, time
import numpy as np, shmpar

def work(n, seconds):
    os.write(1, b"at work\\n")  # a single write, since workers share the pipe
    time.sleep(seconds)

with shmpar.Pool(2) as pool:
    for seconds in (0.01, 60):
        try:
            pool.parallel_map(work, range(500), kwargs={"seconds": seconds})
        except KeyboardInterrupt:
            pass
        else:
            sys.exit("not interrupted")
        print("again", pool.map_blocks(np.negative, np.arange(3)).tolist(), flush=True)
print("end", flush=True)
"""


def test_an_interrupt_ends_the_call_and_not_the_pool() -> None:
    """After Ctrl-C in short and long chunks, the next call is right and nothing is left."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with interpreter(INTERRUPTED, text=True, **pipes) as process:
        for _ in range(2):
            assert process.stdout.readline() == "at work\n"
            os.killpg(process.pid, signal.SIGINT)
            for line in process.stdout:
                if line != "at work\n":
                    assert line == "again [0, -1, -2]\n"
                    break
        assert process.stdout.readline() == "end\n"
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_a_pool_in_a_daemonic_process(run_python: Run) -> None:
    """A daemonic process may use a pool, although multiprocessing refuses its own pools there."""
    source = """
        import multiprocessing, sys
        import shmpar

        def child():
            with shmpar.Pool(2) as pool:
                print(pool.parallel_map(abs, range(3)), flush=True)

        process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
        process.start()
        process.join()
    """
    check(run_python(source), "[0, 1, 2]\n")


def test_a_pool_in_a_spawned_process(run_python: Run, tmp_path: Path) -> None:
    """Functions and classes of the script are sent by value, under the name that it has there."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import functools, multiprocessing, shmpar

class Point:
    def __init__(self, x):
        self.x = x + offset

@functools.cache
def point(x):
    return Point(x)

def load(value):
    global offset
    offset = value

def child():
    with shmpar.Pool(1, initializer=load, initargs=(10,)) as pool:
        (found,) = pool.parallel_map(lambda x: point(x), [1])
        print(type(found) is Point, found.x, pool.submit(Point, 2).result().x)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
"""
    )
    check(run_python(script), "True 11 12\n")


def test_a_worker_imports_few_modules(run_python: Run) -> None:
    """A worker imports no slow module, and of the higher layers the registration of joblib alone.

    A call of ``Parallel`` inside a worker may name this backend.
    """
    source = """
        import sys
        import shmpar
        with shmpar.Pool(1) as pool:
            (names,) = pool.parallel_map(lambda _: sorted(sys.modules), range(1), dtype=object)
        ours = {name.split(".")[1] for name in names if name.startswith("shmpar.")}
        print(*sorted(ours))
        slow = ("tqdm", "asyncio", "concurrent.futures", "socket", "numpy.ma")
        print(*[name for name in slow if name in names])
    """
    due = "errors grid integrations ipc memory pickling plan stores tracebacks version worker\n\n"
    check(run_python(source), due)
