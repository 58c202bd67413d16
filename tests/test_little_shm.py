"""Runs with a /dev/shm of 64 MB, as in a container by default, or with a full one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.interpreters import output_after_setup

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0,
    reason="mounting a small /dev/shm needs root",
)


def in_little_shm(source: str, size: str = "64m", where: str = "/dev/shm") -> str:
    """Run a snippet in a mount namespace with a tmpfs of this size; return its output."""
    return output_after_setup(
        ["unshare", "-m", "sh"], f"mount -t tmpfs -o size={size} tmpfs {where}", source
    )


def test_a_run_over_an_array_larger_than_shm() -> None:
    """Inputs and outputs of 100 MB lie in memory files, and the report says so."""
    source = """
import numpy as np, shmpar
source = np.ones(12_500_000)
with shmpar.Pool(2) as pool:
    result = pool.map_blocks(lambda block: block + 1, pool.array(source), chunks=1_000_000)
    print(result.min(), result.max(), *pool.last_run.report.memory)
"""
    assert in_little_shm(source) == "2.0 2.0 memfd memfd\n"


def test_a_segment_of_another_library_without_its_memory() -> None:
    """If memory is lacking, attach() raises SegmentFull; an access would be SIGBUS."""
    source = """
import numpy as np, shmpar
from multiprocessing.shared_memory import SharedMemory
made = SharedMemory("shmpar-test-sparse", create=True, size=3 << 20)
with open("/dev/shm/filler", "wb") as filler:
    filler.write(bytes(2 << 20))
try:
    shmpar.attach("shmpar-test-sparse", (3 << 17,), "f8")
except shmpar.SegmentFull as error:
    print("SegmentFull")
open("/dev/shm/filler", "wb").close()
array = shmpar.attach("shmpar-test-sparse", (3 << 17,), "f8")
with shmpar.Pool(2) as pool:
    pool.map_blocks(lambda block: block + 1, array, out=array, chunks=1 << 14)
print(array.min(), array.max())
made.unlink()
"""
    assert in_little_shm(source, "4m") == "SegmentFull\n1.0 1.0\n"


def test_a_mapped_file_on_a_full_disk_is_an_error_and_no_signal(tmp_path: Path) -> None:
    """A sparse output is reserved before a worker writes to it."""
    source = f"""
import numpy as np, shmpar
out = np.memmap("{tmp_path}/out", np.float64, "w+", shape=(5_000_000,))
with shmpar.Pool(2) as pool:
    try:
        pool.map_blocks(np.negative, np.ones(5_000_000), out=out)
    except shmpar.SegmentFull as error:
        print("SegmentFull")
    print(pool.parallel_map(abs, range(3)))
"""
    assert in_little_shm(source, "8m", str(tmp_path)) == "SegmentFull\n[0, 1, 2]\n"
