"""Descriptors, threads, mappings and memory do not grow over many runs, arrays and faults.

``SHMPAR_SOAK_SECONDS`` sets the duration of the soak test under ``--stress``, 300 by default.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests import soak
from tests.interpreters import run_python

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def run_soak(*args: object, timeout: float) -> None:
    """Run the soak program in a fresh interpreter, and show its figures."""
    done = run_python(Path(soak.__file__), *map(str, args), timeout=timeout)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("flat\n")


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("runs", 320),  # each tenth has every kind of run
        ("arrays", 300),
        pytest.param("runs", 100_000, marks=pytest.mark.stress),
        pytest.param("arrays", 10_000, marks=pytest.mark.stress),
    ],
)
def test_no_resource_grows(mode: str, size: int) -> None:
    """A process uses the same resources after many runs or arrays."""
    run_soak(mode, size, timeout=1200)


@pytest.mark.stress
def test_no_resource_grows_with_faults(stress_seed: int) -> None:
    """Dead workers, timeouts, interrupts, new pools and files leak nothing."""
    seconds = float(os.environ.get("SHMPAR_SOAK_SECONDS", "300"))
    run_soak("faults", seconds, stress_seed, timeout=2 * seconds + 60)
