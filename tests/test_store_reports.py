"""The number in the report of how often units of stores are read."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from shmpar.grid import Grid, Halo, Mode
from shmpar.plan import Blocks, PerChunk, Plan
from shmpar.report.text import unit_reads


def naive_reads(shape, lengths, unit, depth):
    """Count the units that each window touches, by looking into each element of each axis."""
    reads = 0
    starts = [range(0, n, step) for n, step in zip(shape, lengths, strict=True)]
    for corner in itertools.product(*starts):
        touched = 1
        for start, n, step, length, reach in zip(corner, shape, lengths, unit, depth, strict=True):
            places = range(max(0, start - reach), min(n, start + step + reach))
            touched *= len({place // length for place in places})
        reads += touched
    units = np.prod([-(-n // length) for n, length in zip(shape, unit, strict=True)])
    return reads / units


def test_reads_of_units_are_counted():
    """The factor equals that of a count, with and without a halo."""
    rng = random.Random(0)
    for _ in range(100):
        ndim = rng.randint(1, 3)
        shape, lengths, unit = ([rng.randint(1, 12) for _ in range(ndim)] for _ in range(3))
        depth = [rng.choice([0, 0, 1, 3]) for _ in range(ndim)]
        halo = Halo(tuple((n, n) for n in depth), ((Mode.NONE, Mode.NONE),) * ndim)
        argument = Blocks(0, tuple(range(ndim)), halo if any(depth) else None)
        plan = Plan("map_overlap", Grid.cut(tuple(shape), tuple(lengths)), (argument,), PerChunk())
        due = naive_reads(shape, lengths, unit, depth)
        assert unit_reads(plan, argument, unit) == pytest.approx(due)
