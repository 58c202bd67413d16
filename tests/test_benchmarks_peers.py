"""Every system computes every workload right, in small; the figures are written to a file."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from benchmarks import systems, workloads
from benchmarks.figures import Results
from benchmarks.page import text

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="they read /proc and compare with forked processes"
)

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RunPython = Callable[..., CompletedProcess[str]]


def requests() -> list[dict[str, object]]:
    """Return requests for all workloads of a system, in both ways, at a small point."""
    listed: list[dict[str, object]] = [{"do": "open"}]
    for name in workloads.NAMES:
        workload = workloads.load(name)
        for point in workload.points("smoke")[-1:] if workload.job else ():
            listed.append({"do": "load", "workload": name, "point": point})
            for way in ("same", "own"):
                listed += [{"do": "warm", "way": way}, {"do": "call", "way": way}]
            listed.append({"do": "drop"})
    return listed


@pytest.mark.parametrize(
    "name",
    [
        name if name in {"ours", "threads"} else pytest.param(name, marks=pytest.mark.stress)
        for name in systems.NAMES
    ],
)
def test_a_system_computes_all_workloads(name: str, run_python: RunPython) -> None:
    """A process of its own replies to each request; it checks the answers."""
    for package in systems.load(name).needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (the extra `benchmarks` has it)")
    lines = "".join(json.dumps(request) + "\n" for request in requests())
    server = "from benchmarks import server; server.main()"
    with tempfile.TemporaryDirectory() as home:  # Why: Ray needs a short path for its sockets
        done = run_python(server, name, "2", home, input=lines, timeout=300)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(requests())
    unsuited = False
    for request, answer in zip(requests(), answers, strict=True):
        unsuited = "unsuited" in answer or (unsuited and request["do"] in {"warm", "call"})
        assert unsuited or "failed" not in answer, (request, answer)


@pytest.mark.stress
def test_systems_take_turns_and_figures_are_written(run_python: RunPython, tmp_path: Path) -> None:
    """A run writes its figures, with versions and the machine."""
    kept = tmp_path / "kept.json"
    source = "import sys; from benchmarks import peers; peers.main(sys.argv[1:])"
    chosen = ("floor", "cold", "--systems", "ours,whole")
    done = run_python(source, *chosen, "--smoke", "--json", str(kept), timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(kept.read_text())
    assert {"numpy", "shmpar"} <= set(found["versions"])
    assert found["machine"]["cores"] > 0
    assert found["left_out"] == {}
    floor = [one for one in found["records"] if one["workload"] == "floor"]
    assert {one["system"] for one in floor} == {"ours", "whole"}
    assert all(one["median"] > 0 for one in floor)
    cold = {(one["system"], one["way"]) for one in found["records"] if one["workload"] == "cold"}
    assert {("ours", "pool"), ("ours", "process"), ("import numpy", "process")} <= cold


def source() -> str:
    """Return the file of figures that the page names."""
    found = re.search(r"made from `(benchmarks/results/[^`]+)`", PAGE.read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def test_the_page_matches_its_figures() -> None:
    """The page is made from its file of figures: no number in it was written by hand."""
    assert text(Results(str(ROOT / source())), source()) == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("kept", [{"floor"}, {"memory", "cold"}, set()])
def test_a_page_of_few_workloads_has_their_figures_alone(kept: set[str], tmp_path: Path) -> None:
    """Targets of the other workloads are not measured."""
    found = json.loads((ROOT / source()).read_text())
    found["records"] = [one for one in found["records"] if one["workload"] in kept]
    some = tmp_path / "some.json"
    some.write_text(json.dumps(found))
    page = text(Results(str(some)), "some.json")
    assert "not measured" in page
    assert ("### A warm call, two chunks" in page) == ("floor" in kept)


@pytest.mark.stress
def test_pictures_are_drawn_from_the_figures(run_python: RunPython, tmp_path: Path) -> None:
    """The pictures of the page are drawn, and no other."""
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed (the extra `benchmarks` has it)")
    draw = "import sys; from benchmarks import page; page.main(sys.argv[1:])"
    done = run_python(draw, str(ROOT / source()), "--docs", str(tmp_path))
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"images/(benchmark_\w+\.svg)", PAGE.read_text(encoding="utf-8"))
    assert {path.name for path in (tmp_path / "images").iterdir()} == set(shown)
    assert all((ROOT / "docs" / "images" / name).exists() for name in shown)
