"""Workers follow the state of their parent, whatever it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

import shmpar
from tests.pools import ENGINES
from tests.work.parent_state import check, seen, seen_by_row

Run = Callable[..., CompletedProcess[str]]
NAME, OTHER = "SHMPAR_TEST_VARIABLE", "SHMPAR_TEST_OTHER"


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.delenv(OTHER, raising=False)
    yield monkeypatch
    monkeypatch.undo()


@pytest.mark.parametrize("engine", ENGINES)
def test_workers_see_changed_environment_variables(
    variables: pytest.MonkeyPatch, engine: str
) -> None:
    """A variable that is set, changed, deleted and set back after the start of the pool."""
    variables.setenv(NAME, "at the start")
    with shmpar.Pool(2, engine=engine) as pool:

        def values() -> list[str | None]:
            (first, *others) = pool.map(seen, [NAME] * 4, [OTHER] * 4)
            assert others == [first] * 3
            rows = pool.parallel_map(seen_by_row, np.arange(8), kwargs={"name": NAME}, dtype=object)
            assert set(rows) == {str(first[0])}
            return first

        assert values() == ["at the start", None]
        variables.setenv(NAME, "ä later \udcff")
        variables.setenv(OTHER, "new")
        assert values() == ["ä later \udcff", "new"]
        variables.delenv(NAME)
        assert values() == [None, "new"]
        variables.setenv(NAME, "at the start")
        variables.delenv(OTHER)
        assert values() == ["at the start", None]


def test_variables_of_the_pool_and_of_the_initializer_stay(
    variables: pytest.MonkeyPatch,
) -> None:
    """`env` and the caps on threads are not overwritten, nor anything that the worker has set."""

    def initialize() -> None:
        os.environ[OTHER] = "initialized"

    with shmpar.Pool(1, env={NAME: "pool"}, initializer=initialize, threads_per_worker=3) as pool:
        variables.setenv(NAME, "parent")
        variables.setenv("OMP_NUM_THREADS", "7")
        variables.setenv("SHMPAR_TEST_THIRD", "sent")
        names = NAME, OTHER, "OMP_NUM_THREADS", "SHMPAR_TEST_THIRD"
        assert pool.submit(seen, *names).result() == ["pool", "initialized", "3", "sent"]


def test_a_captured_environ_is_that_of_the_worker(variables: pytest.MonkeyPatch) -> None:
    """A script writes ``from os import environ``, so its function holds the object."""
    environ = os.environ

    def read() -> list[str | None]:
        return [environ.get(NAME), environ.get(OTHER)]

    with shmpar.Pool(1, env={NAME: "pool"}) as pool:
        variables.setenv(OTHER, "later")
        assert pool.submit(read).result() == ["pool", "later"]
        assert pool.submit(lambda: dict(environ)).result()[NAME] == "pool"


def test_a_plain_dict_in_place_of_the_variables(variables: pytest.MonkeyPatch) -> None:
    """Tests replace `os.environ`; workers have its variables alone, and later all others again."""
    variables.setenv(NAME, "real")
    with shmpar.Pool(1) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "environ", {OTHER: "mocked"})
            assert pool.submit(seen, NAME, OTHER).result() == [None, "mocked"]
        assert pool.submit(seen, NAME, OTHER).result() == ["real", None]


def test_a_worker_that_starts_later_has_the_changes(variables: pytest.MonkeyPatch) -> None:
    with shmpar.Pool(1, max_tasks_per_worker=1) as pool:
        for value in ("one", "two", "two"):
            variables.setenv(NAME, value)
            assert pool.submit(seen, NAME).result() == [value]
        variables.delenv(NAME)
        assert [pool.submit(seen, NAME).result() for _ in range(2)] == [[None]] * 2


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
FOLDERS = {
    "non-ASCII": "caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode(),
    "no text": b"caf\xe9\xff",
    "spaces": b"a folder \n with lines",
}
EASY = {("ASCII", "no text"), ("UTF-8", "spaces")}


# Why stress: bytes that are no text are the harder case in UTF-8, and spaces are ASCII.
@pytest.mark.parametrize(
    ("locale", "folder"),
    [
        pytest.param(
            ASCII if locale == "ASCII" else {"LC_ALL": "C.UTF-8"},
            folder,
            id=f"{locale}-{folder}",
            marks=[pytest.mark.stress] * ((locale, folder) in EASY),
        )
        for locale in ("ASCII", "UTF-8")
        for folder in FOLDERS
    ],
)
def test_modules_in_a_folder_of_any_name(
    run_python: Run, tmp_path: Path, folder: str, locale: dict[str, str]
) -> None:
    """The path is sent at the start of a worker, with the next call, and as a `Path`."""
    place = os.path.join(os.fsencode(tmp_path), FOLDERS[folder])
    for number in range(3):
        os.makedirs(place + b"%d" % number)
        with open(os.path.join(place + b"%d" % number, b"module%d.py" % number), "w") as file:
            file.write(f"def double(value): return 2 * value + {number}\n")
    source = """
        import os, pathlib, sys, numpy as np, shmpar
        place = bytes.fromhex(sys.argv[1])
        sys.path.append(os.fsdecode(place + b"0"))
        import module0
        with shmpar.Pool(1) as pool:
            print(pool.submit(module0.double, 1).result())
            sys.path.append(os.fsdecode(place + b"1"))
            import module1
            print(pool.map_blocks(module1.double, np.arange(3)).tolist())
            os.chdir(place + b"2")
            sys.path[:] = [pathlib.Path(one) for one in sys.path] + ["", None, b"bytes"]
            sys.path.insert(0, "caf\\u00e9 that is not there")
            sys.path[0:1] = [os.fsdecode(place + b"2")]
            import module2
            moved = pool.submit(os.getcwdb).result() == os.getcwdb()
            print(pool.submit(module2.double, 1).result(), moved)
            sys.path.append("caf\\u00e9 that is not there")
            with shmpar.Pool(1) as pool:
                print(pool.submit(module2.double, 2).result())
    """
    check(run_python(source, place.hex(), env=locale), "2\n[1, 3, 5]\n4 True\n6\n")


AS_NOBODY = """
    import os, sys, time
    import numpy as np, shmpar

    def work(row, path):
        with open(path, "w") as file:
            file.write("busy")
        time.sleep(60)

    path, mode = sys.argv[1:]
    pool = shmpar.Pool(2)
    if mode != "starting":
        os.mkfifo(path)
        run = pool.parallel_map(work, range(1), kwargs={"path": path}, wait=False)
        open(path).read(4)
    os.setuid(65534)
    if mode == "failed":
        try:
            with pool:
                raise KeyError(1)
        except KeyError:
            pass
    pool.shutdown(cancel_futures=True)
    print("closed", mode == "starting" or run.cancelled())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change its user")
@pytest.mark.parametrize("mode", ["starting", "busy", "failed"])
def test_a_pool_is_closed_after_a_setuid(run_python: Run, tmp_path: Path, mode: str) -> None:
    """No error, and no worker is left, though this process may not signal its workers any more."""
    check(run_python(AS_NOBODY, str(tmp_path / "fifo"), mode), "closed True\n")
