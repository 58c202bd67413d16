"""The benchmarks run, and their systems agree on the answers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from benchmarks import all_verbs, anatomy, limits, main_job

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="they read /proc and compare with forked processes"
)


MODULES = (main_job, all_verbs, anatomy, limits)
QUICK = {"floor", "submit", "anatomy"}  # in the default suite


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.stress)
        for module in MODULES
        for name in module.ALL
    ],
)
def test_a_benchmark_runs_in_small(
    name: str, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    """Each prints what it measured, and warns of nothing; figures of a quick run mean nothing."""
    module = next(module.__name__ for module in MODULES if name in module.ALL)
    done = run_python(f"from {module} import ALL; ALL[{name!r}](quick=True)")
    assert done.returncode == 0, done.stderr
    assert any(unit in done.stdout for unit in (" ms ", " us ", " MB"))
    assert done.stderr == ""
