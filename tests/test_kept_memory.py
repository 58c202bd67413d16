"""Memory that a worker has freed serves its later arrays."""

from __future__ import annotations

import resource

import numpy as np

import shmpar

PAGES = 256  # of 4 KiB, in an array of 1 MiB


def faults_of_temporaries(times: int) -> int:
    """Make temporary arrays of 1 MiB, two at a time; return how many pages the system gave."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        one = np.ones(PAGES * 4096, "u1")
        other = one + one
        del one, other
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_temporary_arrays_fault_once() -> None:
    """The pages of the first arrays serve all later ones."""
    with shmpar.Pool(1) as pool:
        pool.submit(faults_of_temporaries, 1).result(60)
        assert pool.submit(faults_of_temporaries, 20).result(60) < 2 * PAGES
