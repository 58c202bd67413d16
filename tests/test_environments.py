"""Environments are made once, whole or not at all; workers in them run functions by their file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.engines import environments
from tests.interpreters import ROOT, interpreter, run_python

X = np.arange(12.0)
MAKE = "import shmpar; print(shmpar.environment(['some-package'], cache={cache!r}))"


# A stand-in for uv, which needs no network


class Uv:
    """A program named `uv` that makes folders, and keeps a list of its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.log.touch()
        self.install("")

    def install(self, more: str) -> None:
        """Write the program; `more` runs where packages would be installed."""
        text = f"""#!/bin/sh
            echo "$@" >> {self.log}
            case "$1 $2" in
                venv*) for last; do :; done
                    mkdir -p "$last/bin" && ln -s {sys.executable} "$last/bin/python";;
                "pip install") {more or ":"};;
                "pip freeze") echo numpy==2.0; echo some-package==1.0;;
            esac"""
        (self.folder / "uv.new").write_text(text)
        (self.folder / "uv.new").chmod(0o755)
        (self.folder / "uv.new").rename(self.folder / "uv")

    def calls(self, kind: str) -> int:
        """Return the number of calls that begin with a word."""
        return sum(line.startswith(kind) for line in self.log.read_text().splitlines())


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uv:
    """The stand-in, first on the PATH."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Uv(tmp_path / "bin")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The folder of the environments that `uv` makes by default."""
    return tmp_path / "cache" / "shmpar" / "environments"


def test_an_environment_is_made_once(uv: Uv, cache: Path) -> None:
    """Neither the order of the requirements nor a repetition matters; anything else does."""
    python = shmpar.environment(["b", "a==1"])
    assert python == str(cache / Path(python).parts[-3] / "bin" / "python")
    assert shmpar.environment(iter(["a==1", " b ", "b"])) == python
    assert uv.calls("venv") == 1
    others = [
        shmpar.environment(["a==1"]), shmpar.environment(["b", "a==1"], python="3.99"),
        shmpar.environment(["b", "a==1"], python=sys.executable),
        shmpar.environment(["b", "a==1"], cache=cache / "other"),
    ]  # fmt: skip
    assert len({python, *others}) == 5
    assert uv.calls("venv") == 5
    log = uv.log.read_text()
    assert log.count(f"venv --quiet --no-project --python {sys.executable} ") == 4
    assert "--python 3.99 " in log
    assert re.search(
        rf"pip install .*--python {python} a==1 b cloudpickle==\S+ numpy>=1\.26\n", log
    )


def test_a_second_call_is_quick(uv: Uv) -> None:
    """It starts no program, and reads little."""
    check_quick(["a"], shmpar.environment(["a"]))
    assert uv.calls("") == 3


def check_quick(requirements: list[str], python: str, **options: Any) -> None:
    """Check that an environment is found at once, in the quickest of some calls."""
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        assert shmpar.environment(requirements, **options) == python
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) <= 0.05


@pytest.mark.parametrize("fault", ["no record", "no interpreter", "no files"])
def test_an_incomplete_environment_is_made_anew(uv: Uv, fault: str) -> None:
    python = Path(shmpar.environment(["a"]))
    folder = python.parent.parent
    if fault == "no files":
        shutil.rmtree(folder)
    else:
        (folder / "shmpar.json" if fault == "no record" else python).unlink()
        (folder / "left").touch()
    assert shmpar.environment(["a"]) == str(python)
    assert uv.calls("venv") == 2
    assert python.exists()
    assert not (folder / "left").exists()


def test_the_record_lists_what_was_installed(uv: Uv) -> None:
    folder = Path(shmpar.environment(["a"])).parent.parent
    record = json.loads((folder / "shmpar.json").read_text())
    assert record["installed"] == ["numpy==2.0", "some-package==1.0"]
    assert record["requirements"][0] == "a"
    assert sorted(os.listdir(folder)) == ["bin", "shmpar.json"]


def test_the_output_of_uv_is_in_the_error(uv: Uv, cache: Path) -> None:
    """A failure leaves no environment, and the next call tries again."""
    uv.install("echo 'no such version' >&2; exit 2")
    with pytest.raises(shmpar.ShmparError, match=r"of b, cloudpickle(?s:.*)\nno such version$"):
        shmpar.environment(["b"])
    assert [one.complete for one in environments.environments()] == [False]
    uv.install("")
    assert os.path.exists(shmpar.environment(["b"]))
    assert [one.complete for one in environments.environments()] == [True]


def test_without_uv_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "uv", None)
    with pytest.raises(shmpar.ShmparError, match=r"needs the program uv.*-m pip install uv"):
        shmpar.environment(["a"], cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("numpy", r"is a list, such as \['numpy'\]"), ([3], "not 3"), (["-r x.txt"], "not '-r"),
     ([" "], "not ' '")],
)  # fmt: skip
def test_requirements_that_are_none(tmp_path: Path, wrong: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        shmpar.environment(wrong, cache=tmp_path)
    assert os.listdir(tmp_path) == []


def test_without_a_home_nothing_is_made_in_the_working_directory(
    uv: Uv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may run a user that it does not know; the command prints the same error."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(shmpar.ShmparError, match="pass cache=, or set XDG_CACHE_HOME"):
        shmpar.environment(["a"])
    assert not (tmp_path / "nowhere").exists()
    done = shmpar_cli("environments")
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith("python -m shmpar: this user has no home directory")


def test_paths_do_not_depend_on_the_working_directory(
    uv: Uv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of projects, of the interpreter and of the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    one = shmpar.environment(["./project"], python="./bin/python", cache="there")
    assert one == shmpar.environment(["~/project"], python="~/bin/python", cache="~/there")
    monkeypatch.chdir("/")
    two = shmpar.environment(
        [str(tmp_path / "project")], python=tmp_path / "bin" / "python", cache=tmp_path / "there"
    )
    assert one == two
    assert uv.calls("venv") == 1


def test_processes_and_threads_that_ask_at_once_make_one(uv: Uv, cache: Path) -> None:
    """The others wait for the file lock, and find it."""
    source = MAKE.format(cache=str(cache))
    found: list[str] = []

    def ask() -> None:
        found.append(shmpar.environment(["some-package"], cache=cache))

    piped: Any = {"stdout": subprocess.PIPE, "text": True}
    with interpreter(source, **piped) as one, interpreter(source, **piped) as two:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found += [one.communicate()[0].strip(), two.communicate()[0].strip()]
    assert len(found) == 5
    assert len(set(found)) == 1
    assert uv.calls("venv") == 1


def test_a_process_that_is_killed_leaves_nothing_complete(uv: Uv, cache: Path) -> None:
    """Its uv goes on and holds the lock, so nobody removes its files. Then all is made anew."""
    begun, go = uv.folder / "begun", uv.folder / "go"
    os.mkfifo(begun)
    os.mkfifo(go)
    uv.install(f": > {begun}; read line < {go}")
    with interpreter(MAKE.format(cache=str(cache)), survivors_ok=True) as process:
        begun.open().close()
        process.kill()
        process.wait()
        (found,) = environments.environments(cache)
        assert not found.complete
        assert environments.remove(found.path) is False
        answer = environments.environments(cache)
        assert [one.path for one in answer] == [found.path]
        with go.open("w"):
            pass
        # Why: this call waits for the lock, which the program holds up to its end.
        uv.install("")
        assert os.path.exists(shmpar.environment(["some-package"], cache=cache))
    assert uv.calls("venv") == 2
    assert [one.complete for one in environments.environments(cache)] == [True]


def shmpar_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m shmpar` with these arguments."""
    source = "import sys; from shmpar.cli import main; sys.exit(main(sys.argv[1:]))"
    return run_python(source, *arguments)


def test_the_command_lists_and_removes(uv: Uv, cache: Path) -> None:
    """With --json it prints the same as an object."""
    assert shmpar_cli("environments").stdout == "no environments\n"
    folder = Path(shmpar.environment(["a==1"])).parent.parent
    (folder / "file").write_bytes(bytes(5000))
    (cache / "not ours").mkdir()
    done = shmpar_cli("environments")
    assert done.returncode == 0
    first, line, _, total, *_ = done.stdout.split("\n")
    assert first.split() == ["FOLDER", "PYTHON", "SIZE", "STATE", "REQUIREMENTS"]
    assert re.fullmatch(
        rf"{folder} +3\.\d+ +\S+ KiB  complete  a==1, cloudpickle==\S+, numpy>=1\.26", line
    )
    assert re.fullmatch(r"1 environment, \S+ KiB", total)
    data = json.loads(shmpar_cli("environments", "--json").stdout)
    assert data["environments"][0]["path"] == str(folder)
    assert data["environments"][0]["nbytes"] > 5000
    assert data["removed"] == []
    done = shmpar_cli("environments", "--remove")
    assert "removed 1 environment" in done.stdout
    assert done.returncode == 0
    assert os.listdir(cache) == ["not ours"]
    assert shmpar_cli("environments", "--remove").stdout == "no environments\n"


# With uv itself, and packages from the network


def made(requirements: list[str], cache: Path, **options: Any) -> str:
    """Return an interpreter of a new environment; skip the test where there is no network."""
    try:
        uv = environments._find_uv()
    except shmpar.ShmparError:
        pytest.skip("uv is not installed")
    try:
        return shmpar.environment(requirements, cache=cache, **options)
    except shmpar.ShmparError:
        done = subprocess.run(
            [uv, "pip", "compile", "--quiet", "--no-cache", "-"],
            input="cloudpickle", capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip("uv reaches no index of packages")
        raise


def other_python(minor: int) -> str:
    """Return an interpreter of CPython 3.minor; skip the test where there is none."""
    pattern = f"versions/3.{minor}*/bin/python"
    roots = [os.environ.get("PYENV_ROOT", ""), os.path.expanduser("~/.pyenv")]
    candidates = [str(one) for root in roots if root for one in sorted(Path(root).glob(pattern))]
    for found in [shutil.which(f"python3.{minor}"), *candidates]:
        if found is None:
            continue
        ask = "import sys; print(sys.implementation.name, *sys.version_info[:2])"
        done = subprocess.run([found, "-c", ask], capture_output=True, text=True, check=False)
        if done.stdout.split() == ["cpython", "3", str(minor)]:
            return found
    pytest.skip(f"no CPython 3.{minor} on this machine")


SOURCE = """
import sys
import numpy as np

def versions():
    return sys.version_info[:2], np.__version__

def double(block, *, by=2):
    return block * by

def draw(rng, task):
    task.update(1, 1, "drawn")
    return rng.normal(size=3), rng

def fail(block):
    return block.sum(axis=5)

def record():
    rows = np.rec.array([(1, 2.5)], names="a,b")
    return rows, np.float32(1.5), np.ones(20000), {"k": np.arange(3)}
"""


def check(python: str, folder: Path, *, version: tuple[int, int], numpy: str | None) -> None:
    """Check functions by file, progress, random generators, results and errors."""
    path = folder / "functions.py"
    path.write_text(SOURCE)

    def of(name: str) -> Callable[..., Any]:
        return shmpar.from_file(path, name)

    with shmpar.Pool(2, python=python) as pool:
        found, numpy_there = pool.submit(of("versions")).result()
        assert found == version
        assert numpy is None or numpy_there.startswith(numpy)
        assert pool.map_blocks(of("double"), X, chunks=5, kwargs={"by": 3}).tolist() == [*(3 * X)]
        lines = pool.map_overlap(of("double"), X, depth=1, boundary=np.float32(1), chunks=4)
        assert lines.tolist() == [*(2 * X)]
        for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64):
            rng, same = (np.random.Generator(kind(5)) for _ in range(2))
            future = pool.submit(of("draw"), rng)
            drawn, again = future.result()
            assert drawn.tolist() == same.normal(size=3).tolist()
            assert again.normal() == same.normal()
            assert again.spawn(1)[0].normal() == same.spawn(1)[0].normal()
            assert future.progress == (1, 1, "drawn")
        drawn, again = pool.submit(of("draw"), np.random.RandomState(4)).result()
        legacy = np.random.RandomState(4)
        assert drawn.tolist() == legacy.normal(size=3).tolist()
        assert again.normal() == legacy.normal()
        with pytest.raises(shmpar.ChunkError, match="AxisError"):
            pool.map_blocks(of("fail"), X)
        rec, scalar, large, held = pool.submit(of("record")).result()
        assert (rec.b[0], scalar, large.sum(), held["k"].tolist()) == (2.5, 1.5, 20000, [0, 1, 2])
        assert pool.submit(list, [rec]).result()[0].a[0] == 1
        numbers = np.array([[5, 1], [2, 9]])
        for name in ("median", "unique", "argmax", "nanmean", "std", "prod"):
            due = getattr(np, name)(numbers)
            assert np.array_equal(getattr(pool, name)(numbers), due), name
        assert pool.bincount(numbers.ravel()).tolist() == np.bincount(numbers.ravel()).tolist()
        assert pool.percentile(numbers, [25, 50]).tolist() == [1.75, 3.5]
        pool._last_run = None


def test_an_environment_with_another_numpy(tmp_path: Path) -> None:
    """It is made by uv, and found at once after that."""
    oldest = "1.26" if sys.version_info < (3, 13) else "2.1"
    other = oldest if np.__version__[0] == "2" else "2.0"
    requirements = [f"numpy=={other}.*"]
    python = made(requirements, tmp_path / "cache")
    check_quick(requirements, python, cache=tmp_path / "cache")
    (found,) = environments.environments(tmp_path / "cache")
    assert any(one.startswith(f"numpy=={other}.") for one in found.installed)
    check(python, tmp_path, version=sys.version_info[:2], numpy=other)


@pytest.mark.stress  # each installs NumPy; another test has another NumPy
@pytest.mark.parametrize("minor", [11, 12, 13, 14])
@pytest.mark.parametrize("numpy", ["2", "1.26"])
def test_an_environment_with_another_python(tmp_path: Path, minor: int, numpy: str) -> None:
    """Functions by file run there, also between different versions of NumPy."""
    if numpy == "1.26" and minor > 12:
        pytest.skip("NumPy 1.26 has no packages for it")
    python = made([f"numpy=={numpy}.*"], tmp_path / "cache", python=other_python(minor))
    check(python, tmp_path, version=(3, minor), numpy=numpy)
    with shmpar.Pool(1, python=python) as pool:
        if minor != sys.version_info[1]:
            with pytest.raises(shmpar.PlanError, match=r"shmpar\.from_file\(path, name\)"):
                pool.submit(lambda: 1)


def test_a_python_that_is_too_old_is_refused(tmp_path: Path) -> None:
    """The environment can be made, and the pool names the version that it needs."""
    python = other_python(10)
    with pytest.raises(shmpar.PlanError, match=r"cpython 3\.10\.\d+; workers need CPython 3\.11"):
        shmpar.Pool(1, python=python)


@pytest.mark.stress  # it installs scikit-image and SciPy
def test_a_package_that_is_only_there(tmp_path: Path) -> None:
    """The parent does not import scikit-image, and the function filters a shared array in place."""
    requirements = ["numpy==1.26.*", "scikit-image"]
    python = made(requirements, tmp_path / "cache")
    check_quick(requirements, python, cache=tmp_path / "cache")
    path = tmp_path / "edges.py"
    path.write_text(
        "from skimage.filters import sobel\n"
        "def edges(window): return sobel(window)\n"
        "def fill(image, out, task):\n"
        "    out[...] = sobel(image)\n"
        "    task.update(1, 1, 'filtered')\n"
    )
    image = np.random.default_rng(3).random((40, 50))
    with shmpar.Pool(2, python=python) as pool:
        shared, out = pool.array(image), pool.zeros(image.shape)
        future = pool.submit(shmpar.from_file(path, "fill"), shared, out)
        future.result()
        assert future.progress == (1, 1, "filtered")
        found = pool.map_overlap(
            shmpar.from_file(path, "edges"), shared, depth=2, boundary="reflect", chunks=16
        )
        np.testing.assert_allclose(found[2:-2, 2:-2], out[2:-2, 2:-2])
        assert float(out.max()) > 0
    assert "skimage" not in sys.modules


@pytest.mark.stress  # it installs scikit-image
def test_the_code_of_the_pages_that_needs_the_network(tmp_path: Path) -> None:
    """The blocks marked `py` of the guide are a file and a program; the other page has a line."""
    made(["numpy==1.26.*", "scikit-image"], tmp_path / "cache")
    guide = Path(ROOT, "docs", "guide", "environments.md").read_text(encoding="utf-8")
    file, program = re.findall(r"^```py\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    (tmp_path / "edges.py").write_text(file)
    env = {"XDG_CACHE_HOME": str(tmp_path / "home")}
    done = run_python(program + "print(found.shape)", cwd=tmp_path, env=env, timeout=200)
    assert (done.stdout, done.stderr) == ("(2000, 2000)\n", "")
    page = Path(ROOT, "docs", "coming-from.md").read_text(encoding="utf-8")
    (create,) = re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    create = create.replace('"3.12"', repr(other_python(12)))
    done = run_python(create + "print(python)", env=env, timeout=200)
    assert done.stderr == ""
    check(done.stdout.strip(), tmp_path, version=(3, 12), numpy="1.26")
