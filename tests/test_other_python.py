"""Workers of another interpreter get what it can load, or an error that names the reason."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.engines.environments import _find_uv

X = np.arange(12.0)


def script(path: Path, text: str) -> str:
    """Write a shell script that passes for an interpreter."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def pretender(path: Path, *answer: str) -> str:
    """Write an interpreter that is this one, but gives another answer to questions."""
    said = r"\000".join(answer)
    return script(
        path,
        f"""case "$*" in
            *shmpar:*) printf '\\nshmpar:{said}' ;;
            *) exec {sys.executable} "$@" ;;
        esac""",
    )


REFUSED = {
    "old Python": ("cpython", "3.10.13"),
    "PyPy": ("pypy", "3.11.9"),
    "old NumPy": ("cpython", "3.12.1", "cb0d0d0a", "1.21.6", "3.0.0"),
}
MESSAGES = {
    "old Python": r"is cpython 3\.10\.13; workers need CPython 3\.11",
    "PyPy": r"is pypy 3\.11\.9; workers need CPython",
    "old NumPy": r"has NumPy 1\.21\.6; workers need NumPy 1\.26",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_interpreter_that_cannot_run_workers_is_refused(tmp_path: Path, kind: str) -> None:
    """The pool is not made; the error names the interpreter and its version."""
    python = pretender(tmp_path / "python", *REFUSED[kind])
    with pytest.raises(shmpar.PlanError, match=f"{python}, {MESSAGES[kind]}"):
        shmpar.Pool(2, python=python)


@pytest.mark.parametrize("program", ["/bin/true", "/bin/false", b"/bin/false"])
def test_a_program_that_is_no_python_is_refused(program: Any) -> None:
    path = os.fsdecode(program)
    with pytest.raises(shmpar.PlanError, match=rf"{path}, is no Python that starts: .* status"):
        shmpar.Pool(2, python=program)


def test_the_last_line_of_an_interpreter_that_fails_is_named(tmp_path: Path) -> None:
    python = script(tmp_path / "python", "echo 'no licence' >&2; exit 4")
    with pytest.raises(shmpar.PlanError, match="exited with status 4: no licence"):
        shmpar.Pool(2, python=python)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    """The remedies are pip, and the folder in PYTHONPATH."""
    python = script(tmp_path / "python", f'exec {sys.executable} -S "$@"')
    with pytest.raises(shmpar.PlanError, match=r"has no numpy .*pip install numpy.*PYTHONPATH"):
        shmpar.Pool(2, python=python, env={"PYTHONPATH": ""})
    numpy = tmp_path / "packages" / "numpy"
    numpy.mkdir(parents=True)
    (numpy / "__init__.py").write_text("__version__ = '2.0.0'")
    env = {"PYTHONPATH": str(numpy.parent)}
    with pytest.raises(shmpar.PlanError, match="has no cloudpickle"):
        shmpar.Pool(2, python=python, env=env)


def check_verbs(pool: shmpar.Pool) -> None:
    """Check each verb with functions that every worker can import."""
    big = np.arange(40000.0)
    assert pool.map_blocks(np.negative, X, chunks=5).tolist() == (-X).tolist()
    padded = pool.map_overlap(np.negative, X, depth=1, boundary="reflect", chunks=5)
    assert padded.tolist() == (-X).tolist()
    assert pool.block_reduce(np.sum, X, chunks=6).tolist() == [15.0, 51.0]
    assert pool.parallel_map(np.sum, X.reshape(3, 4)).tolist() == [6.0, 22.0, 38.0]
    assert pool.parallel_map(abs, [1, -2]) == [1, 2]
    assert pool.parallel_map(np.cumsum, [X[:2], X[1:3]], dtype=object)[1].tolist() == [1.0, 3.0]
    assert pool.apply_along_axis(np.sort, 0, X[::-1]).tolist() == X.tolist()
    assert (pool.sum(big), pool.max(big)) == (big.sum(), 39999)
    np.testing.assert_allclose([pool.mean(big), pool.std(big)], [big.mean(), big.std()])
    for bins in (5, [0.0, 3.0, 50.0]):
        for found, due in zip(pool.histogram(big, bins), np.histogram(big, bins), strict=True):
            np.testing.assert_array_equal(found, due)


SENT = {
    "empty": np.zeros((0, 3)),
    "scalar": np.array(3.0),
    "C order": np.arange(6).reshape(2, 3),
    "Fortran order": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "gaps": np.arange(12)[::3],
    "text": np.array(["ä", "bc"]),
    "time": np.array(["2020-01-01"], "M8[D]"),
    "big-endian": np.arange(3, dtype=">i2"),
    "fields": np.array([(1, 2.5)], [("a", "u1"), ("b", "f8")]),
    "objects": np.array([1, "x", None], object),
    "a NumPy scalar": np.float32(1.5),
    "large": np.arange(20000.0),
}


def check_values(pool: shmpar.Pool) -> None:
    """Check that arrays come and go."""
    for name, value in SENT.items():
        found = pool.submit(np.array, value).result()
        assert found.dtype == value.dtype, name
        np.testing.assert_array_equal(found, value)
        assert pool.submit(list, [value]).result()[0].shape == value.shape, name
    with pytest.raises(np.linalg.LinAlgError):
        pool.submit(np.linalg.inv, np.zeros((2, 2))).result()


def test_functions_for_other_bytecode_are_refused_and_all_others_sent(tmp_path: Path) -> None:
    """The error names the version; shmpar's own functions travel by name."""
    python = pretender(
        tmp_path / "python", "cpython", "3.99.1", "00000000", np.__version__, "3.0.0"
    )
    refused = r"the workers' Python 3\.99\.1 cannot run; put it into a module"
    with shmpar.Pool(1, python=python) as pool:
        check_verbs(pool)
        check_values(pool)
        with pytest.raises(shmpar.PlanError, match=refused):
            pool.map_blocks(lambda block: block, X)
        with pytest.raises(shmpar.PlanError, match=refused):
            pool.submit(lambda: 1)
        pool._last_run = None
    with pytest.raises(shmpar.PlanError, match=refused):
        shmpar.Pool(1, python=python, initializer=lambda: None)


def test_a_module_that_workers_do_not_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names PYTHONPATH, with which the function works."""
    python = script(tmp_path / "python", f'exec {sys.executable} "$@"')
    (tmp_path / "module_of_a_test.py").write_text("def double(value): return 2 * value\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    double = __import__("module_of_a_test").double
    with shmpar.Pool(1, python=python) as pool:
        with pytest.raises(shmpar.PlanError, match=r"module_of_a_test.*PYTHONPATH"):
            pool.map_blocks(double, X)
        with pytest.raises(shmpar.PlanError, match=r"module_of_a_test.*PYTHONPATH"):
            pool.submit(double, 1).result()
        pool._last_run = None
    with shmpar.Pool(1, python=python, env={"PYTHONPATH": str(tmp_path)}) as pool:
        assert pool.map_blocks(double, X).tolist() == (2 * X).tolist()
        assert pool.submit(double, 1).result() == 2
    del sys.modules["module_of_a_test"]


def test_warning_filters_that_workers_do_not_know(tmp_path: Path) -> None:
    """They are left out, and the others hold."""
    python = script(tmp_path / "python", f'exec {sys.executable} "$@"')
    (tmp_path / "categories_of_a_test.py").write_text("class Mine(UserWarning): pass\n")
    sys.path.insert(0, str(tmp_path))
    try:
        mine: Any = __import__("categories_of_a_test").Mine
    finally:
        sys.path.remove(str(tmp_path))
    with warnings.catch_warnings(), shmpar.Pool(1, python=python) as pool:
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("error", mine)
        with pytest.raises(RuntimeWarning, match="divide by zero"):
            pool.submit(np.divide, 1.0, np.zeros(1)).result()
    del sys.modules["categories_of_a_test"]


def install(folder: Path, *packages: str, version: str | None = None) -> dict[str, str]:
    """Install packages into a folder; return the variables with which Python finds them."""
    chosen = [] if version is None else ["--python-version", version]
    try:
        tool = [_find_uv(), "pip", "install"]  # Why first: it takes a tenth of the time.
    except shmpar.ShmparError:
        tool = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check",
                "--no-compile"]  # fmt: skip
    done = subprocess.run(
        [*tool, "-q", "--target", str(folder), "--only-binary=:all:", *chosen, *packages],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"cannot install {packages}: {done.stderr.strip()[-200:]}")
    return {"PYTHONPATH": str(folder)}


def test_workers_with_another_numpy(tmp_path: Path) -> None:
    """Arrays and functions of any kind come and go between NumPy 1 and NumPy 2."""
    other = "1.26.4" if np.__version__[0] == "2" else "2.*"
    env = install(tmp_path / "packages", f"numpy=={other}", "cloudpickle")
    python = script(tmp_path / "python", f'exec {sys.executable} "$@"')
    with shmpar.Pool(2, python=python, env=env) as pool:
        found = pool.submit(lambda: __import__("numpy").__version__).result()
        assert found[0] != np.__version__[0]
        check_verbs(pool)
        check_values(pool)
        held = np.arange(3)
        assert pool.map_blocks(lambda block: block + held[1], X, chunks=5).tolist() == [*(X + 1)]
        with pytest.warns(RuntimeWarning, match="divide by zero"):
            pool.map_blocks(np.log, np.zeros(3))
        with pytest.raises(shmpar.ChunkError, match="AxisError"):
            pool.map_blocks(lambda block: block.sum(5), X)
        pool._last_run = None


def other_pythons() -> dict[str, str]:
    """Return another version of Python that workers support, if this machine has one."""
    patterns = ("~/.pyenv/versions/3.1[1-9]*/bin/python", "/usr/*bin/python3.1[1-9]",
                "/usr/local/bin/python3.1[1-9]")  # fmt: skip
    found: dict[str, str] = {}
    for python in (one for text in patterns for one in glob.glob(os.path.expanduser(text))):
        ask = "import sys; print('%d.%d' % sys.version_info[:2], sys.implementation.name)"
        done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
        version, _, kind = done.stdout.strip().partition(" ")
        if kind == "cpython" and version != f"3.{sys.version_info.minor}":
            found.setdefault(version, python)
    return found


@pytest.mark.stress  # it installs NumPy; another test pretends to be another Python
def test_workers_with_another_python(tmp_path: Path) -> None:
    """Importable functions and arrays come and go; functions sent by value are refused."""
    found = other_pythons()
    if not found:
        pytest.skip("no other CPython, 3.11 or later, on this machine")
    version, python = max(found.items(), key=lambda one: int(one[0].split(".")[1]))
    env = install(tmp_path / "packages", "numpy", "cloudpickle", version=version)
    with shmpar.Pool(2, python=python, env=env) as pool:
        check_verbs(pool)
        check_values(pool)
        with pytest.raises(shmpar.PlanError, match=rf"Python {version}\.\d+ cannot run"):
            pool.map_blocks(lambda block: block, X)
        with pytest.warns(RuntimeWarning, match="divide by zero"):
            pool.map_blocks(np.log, np.zeros(3))
        pool._last_run = None
