"""Nothing grows: descriptors, threads, mappings and memory over many runs, arrays and faults.

``SHMPAR_SOAK_SECONDS`` says how long the soak of ``--stress`` takes, 300 if it does not.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests import soak
from tests.interpreters import run_python

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


def stays_flat(*args: object, timeout: float) -> None:
    """Run it in an interpreter of its own, and show its figures."""
    done = run_python(Path(soak.__file__), *map(str, args), timeout=timeout)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("flat\n")


@pytest.mark.parametrize(
    ("what", "size"),
    [
        ("runs", 320),  # in tenths, each of which has every kind of run
        ("arrays", 300),
        pytest.param("runs", 100_000, marks=pytest.mark.stress),
        pytest.param("arrays", 10_000, marks=pytest.mark.stress),
    ],
)
def test_nothing_grows(what: str, size: int) -> None:
    """Over many runs, or arrays."""
    stays_flat(what, size, timeout=1200)


@pytest.mark.stress
def test_nothing_grows_with_faults(stress_seed: int) -> None:
    """Workers that die, chunks that take too long, interrupts, new pools, files."""
    seconds = float(os.environ.get("SHMPAR_SOAK_SECONDS", "300"))
    stays_flat("faults", seconds, stress_seed, timeout=2 * seconds + 60)
