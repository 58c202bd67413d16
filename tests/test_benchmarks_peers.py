"""Every system computes every workload right, in small; figures are kept."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from benchmarks.peers import systems, workloads

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="they read /proc and compare with forked processes"
)

RunPython = Callable[..., CompletedProcess[str]]


def orders() -> list[dict[str, object]]:
    """All workloads that a system can be asked for, in both ways, at their first small point."""
    listed: list[dict[str, object]] = [{"do": "open"}]
    for name in workloads.NAMES:
        workload = workloads.load(name)
        for point in workload.points("smoke")[-1:] if workload.job else ():
            listed.append({"do": "load", "workload": name, "point": point})
            for way in ("same", "own"):
                listed += [{"do": "warm", "way": way}, {"do": "call", "way": way}]
            listed.append({"do": "drop"})
    return listed


@pytest.mark.parametrize("name", systems.NAMES)
def test_a_system_computes_all_workloads(name: str, run_python: RunPython, tmp_path: Path) -> None:
    """A process of its own answers each order; answers are checked there."""
    for package in systems.load(name).needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (the extra `benchmarks` has it)")
    lines = "".join(json.dumps(order) + "\n" for order in orders())
    serve = "from benchmarks.peers import serve; serve.main()"
    done = run_python(serve, name, "2", str(tmp_path), input=lines, timeout=300)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(orders())
    unsuited = False
    for order, answer in zip(orders(), answers, strict=True):
        unsuited = "unsuited" in answer or (unsuited and order["do"] in {"warm", "call"})
        assert unsuited or "failed" not in answer, (order, answer)


def test_systems_take_turns_and_figures_are_kept(run_python: RunPython, tmp_path: Path) -> None:
    """A run writes what it measured, with versions and the machine."""
    kept = tmp_path / "kept.json"
    source = "import sys; from benchmarks.peers import command; command.main(sys.argv[1:])"
    chosen = ("floor", "cold", "--systems", "ours,whole,threads")
    done = run_python(source, *chosen, "--smoke", "--json", str(kept), timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(kept.read_text())
    assert {"numpy", "shmpar"} <= set(found["versions"])
    assert found["machine"]["cores"] > 0
    assert found["left_out"] == {}
    floor = [one for one in found["records"] if one["workload"] == "floor"]
    assert {one["system"] for one in floor} == {"ours", "whole", "threads"}
    assert all(one["median"] > 0 for one in floor)
    cold = {(one["system"], one["way"]) for one in found["records"] if one["workload"] == "cold"}
    assert {("ours", "pool"), ("ours", "process"), ("import numpy", "process")} <= cold
