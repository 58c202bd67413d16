"""The benchmarks run, and their systems agree on the answers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from benchmarks import all_verbs, main_job

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="they read /proc and compare with forked processes"
)


@pytest.mark.parametrize("name", [*main_job.ALL, *all_verbs.ALL])
def test_a_benchmark_runs_in_small(
    name: str, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    """Each prints what it measured, and warns of nothing; figures of a quick run mean nothing."""
    module = "main_job" if name in main_job.ALL else "all_verbs"
    done = run_python(f"from benchmarks.{module} import ALL; ALL[{name!r}](quick=True)")
    assert done.returncode == 0, done.stderr
    assert any(unit in done.stdout for unit in (" ms ", " us ", " MB"))
    assert done.stderr == ""
