"""Runs where /dev/shm has 64 MB, as in a container by default, or no room at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.interpreters import said_after

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0,
    reason="mounting a small /dev/shm needs root",
)


def in_little_shm(source: str, size: str = "64m", where: str = "/dev/shm") -> str:
    """Run a snippet in a mount namespace with a tmpfs of this size; return what it printed."""
    return said_after(
        ["unshare", "-m", "sh"], f"mount -t tmpfs -o size={size} tmpfs {where}", source
    )


def test_a_run_over_an_array_larger_than_shm() -> None:
    """100 MB in and out lie in anonymous memory files, and the report says so."""
    source = """
import numpy as np, shmpar
source = np.ones(12_500_000)
with shmpar.Pool(2) as pool:
    result = pool.map_blocks(lambda block: block + 1, pool.array(source), chunks=1_000_000)
    print(result.min(), result.max(), *pool.last_run.report.memory)
"""
    assert in_little_shm(source) == "2.0 2.0 memfd memfd\n"


def test_a_mapped_file_on_a_full_disk_is_an_error_and_no_signal(tmp_path: Path) -> None:
    """A sparse output is reserved before anybody writes to it."""
    source = f"""
import numpy as np, shmpar
out = np.memmap("{tmp_path}/out", np.float64, "w+", shape=(5_000_000,))
with shmpar.Pool(2) as pool:
    try:
        pool.map_blocks(np.negative, np.ones(5_000_000), out=out)
    except shmpar.SegmentFull as error:
        print("SegmentFull")
    print(pool.parallel_map(abs, range(3)).tolist())
"""
    assert in_little_shm(source, "8m", str(tmp_path)) == "SegmentFull\n[0, 1, 2]\n"
