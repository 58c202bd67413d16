"""The benchmarks run, and their systems agree on the answers.

The default suite has the short ones: `.ci/run` has a step for all.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from benchmarks import harness
from benchmarks.cases import CASES, busy_loops
from benchmarks.single import ALL

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="they read /proc and compare with forked processes"
)

ROOT = Path(__file__).parent.parent
RunPython = Callable[..., CompletedProcess[str]]
QUICK = {"anatomy"}  # in the default suite
COMPARE = "import sys; from benchmarks import compare; compare.main(sys.argv[1:])"


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.stress) for name in ALL],
)
def test_a_benchmark_runs_in_small(name: str, run_python: RunPython) -> None:
    """Each prints its figures and no warning; figures of a quick run mean nothing."""
    source = f"from benchmarks.single import ALL; ALL[{name!r}](quick=True)"
    done = run_python(source, timeout=240)  # Why: some start many interpreters, also of peers
    assert done.returncode == 0, done.stderr
    assert any(unit in done.stdout for unit in (" ms ", " us ", " MB"))
    assert done.stderr == ""


@pytest.mark.stress
def test_the_floor_is_measured_idle_and_busy(run_python: RunPython) -> None:
    """Both places have a median and quartiles."""
    done = run_python("from benchmarks.single import ALL; ALL['floor'](quick=True)")
    assert (done.stderr, done.returncode) == ("", 0)
    for where in ("idle", "busy"):
        (line,) = [line for line in done.stdout.splitlines() if f"  shmpar, {where}" in line]
        assert "median" in line
        assert "quartiles" in line


def test_busy_loops_are_reaped() -> None:
    """No loop outlives its block, after an exception either."""
    before = harness.family(os.getpid())
    with pytest.raises(ZeroDivisionError), busy_loops(2):  # noqa: PT012
        assert len(harness.family(os.getpid())) == len(before) + 2
        raise ZeroDivisionError
    assert harness.family(os.getpid()) == before


def compare(run_python: RunPython, *arguments: str) -> CompletedProcess[str]:
    """Run the comparison of this checkout with itself."""
    return run_python(COMPARE, str(ROOT), *arguments, timeout=120)


def check(name: str, record: dict[str, object]) -> None:
    """A record has a figure of both checkouts for each round, and their ratio."""
    assert record["workload"] == name
    assert len(record["other"]) == len(record["this"]) == 1
    assert record["ratio"] == record["other"][0] / record["this"][0]
    if not name.startswith("added_"):  # differences: noise makes them negative in small
        assert min(*record["other"], *record["this"]) > 0


@pytest.mark.stress
def test_compare_measures_two_checkouts(run_python: RunPython, tmp_path: Path) -> None:
    """A few workloads: of a call, of bytes, and beside busy loops."""
    names, kept = ("floor_busy", "memory"), tmp_path / "figures.json"
    options = ("--rounds", "1", "--smoke", "--json", str(kept))
    done = compare(run_python, *names, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(kept.read_text())
    assert found["rounds"] == 1
    for name, record in zip(names, found["records"], strict=True):
        check(name, record)
        assert any(line.startswith(name) for line in done.stdout.splitlines())


@pytest.mark.stress
def test_compare_measures_all_workloads(run_python: RunPython, tmp_path: Path) -> None:
    """Each workload of the default run."""
    pytest.importorskip("scipy")
    kept = tmp_path / "figures.json"
    done = compare(run_python, "--rounds", "1", "--smoke", "--json", str(kept))
    assert done.returncode == 0, done.stdout + done.stderr
    for name, record in zip(CASES, json.loads(kept.read_text())["records"], strict=True):
        check(name, record)


def test_compare_reports_a_broken_checkout(run_python: RunPython, tmp_path: Path) -> None:
    """The other checkout fails to import: its workload fails by name, and nothing hangs."""
    package = tmp_path / "shmpar"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('broken')\n")
    done = run_python(COMPARE, str(tmp_path), "floor", "--rounds", "1", "--smoke", timeout=60)
    assert done.returncode == 1
    assert "failed in the other checkout" in done.stdout


def test_compare_refuses_a_folder_without_the_project(
    run_python: RunPython, tmp_path: Path
) -> None:
    """The message names the folder."""
    done = run_python(COMPARE, str(tmp_path), "floor")
    assert done.returncode == 2
    assert f"{tmp_path} is not a checkout" in done.stderr


@pytest.mark.stress
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ended_measurements_of_stores_leave_no_process(tmp_path: Path, number: int) -> None:
    """The process of each system exits with its workers, also those that were stopped."""
    pytest.importorskip("zarr")
    pytest.importorskip("dask")
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "stores", "--quick"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
    ) as running:
        until = time.monotonic() + 60
        while len(started := harness.family(running.pid)) < 5:
            assert time.monotonic() < until
            time.sleep(0.02)
        running.send_signal(number)
    while any(map(harness._lives, started)):
        assert time.monotonic() < until + 60
        time.sleep(0.02)
    assert number == signal.SIGKILL or not list(tmp_path.iterdir())


def test_a_killed_comparison_leaves_no_process(tmp_path: Path) -> None:
    """The processes of both checkouts exit by themselves, with their workers."""
    arguments = (str(ROOT), "tiles", "--rounds", "1000", "--smoke")
    running = subprocess.Popen(
        [sys.executable, "-c", COMPARE, *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
    )
    until = time.monotonic() + 60
    while len(started := harness.family(running.pid)) < 7:  # both checkouts, two workers each
        assert time.monotonic() < until
        time.sleep(0.05)
    running.kill()
    running.wait()
    while any(map(harness._lives, started)):
        assert time.monotonic() < until + 60
        time.sleep(0.05)
