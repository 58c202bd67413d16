"""The report of a run over stores: bytes, seconds, and units that are read again."""

from __future__ import annotations

import itertools
import random
import time

import numpy as np
import pytest

import shmpar
from shmpar.grid import Grid, Halo, Mode
from shmpar.plan import Blocks, PerChunk, Plan
from shmpar.report.report import units_read


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
        least = max(1.0, naive_reads(shape, lengths, unit, depth))
        assert units_read(plan, [tuple(unit)])[0] == pytest.approx(least)


def test_the_report_tells_stores_apart_and_gives_advice(zarr, tmp_path):
    """A grid across units reads each unit four times; the advice names the factor and the units."""
    source = zarr.create_array(tmp_path / "x.zarr", shape=(400, 400), chunks=(200, 200), dtype="i4")
    source[...] = np.random.default_rng(0).integers(0, 1 << 30, (400, 400))
    out = zarr.create_array(tmp_path / "y.zarr", shape=(400, 400), chunks=(50, 50), dtype="i4")
    with shmpar.Pool(2, engine="threads") as pool:
        pool.map_blocks(np.negative, source, chunks=50, out=out)
        report = pool.last_run.report
    assert (report.store_read, report.store_written) == (source.nbytes, source.nbytes)
    assert (report.unit_reads, report.units) == (16.0, (200, 200))
    assert 0 < report.store_seconds <= report.serial_seconds
    text = str(report)
    assert "625 KiB read, 625 KiB written in " in text
    assert "; each unit is read 16.0 times" in text
    assert report.advice == (
        "each unit (200, 200) of a store is read 16.0 times: try chunks=(200, 200)"
    )


@pytest.mark.parametrize(
    ("chunks", "due"),
    [
        ("auto", ""),
        (
            (1, 64, 64),
            "each unit (1, 64, 64) of a store is read 7.6 times: try chunks=(1, 128, 128)",
        ),
    ],
)
def test_the_advice_for_units_names_other_chunks(zarr, tmp_path, chunks, due):
    """Chunks of whole units read some again for their halo; no advice repeats them."""
    source = zarr.create_array(
        tmp_path / "x.zarr", shape=(2, 512, 512), chunks=(1, 64, 64), dtype="u2"
    )
    source[...] = np.random.default_rng(0).integers(0, 999, source.shape, "u2")
    with shmpar.Pool(2, engine="threads") as pool:
        pool.map_overlap(np.negative, source, depth={1: 9, 2: 9}, chunks=chunks)
        report = pool.last_run.report
    assert report.unit_reads > 1.25
    assert due in report.advice if due else "of a store" not in report.advice


def test_the_opening_of_a_store_belongs_to_no_chunk(tmp_path):
    """A slow opener makes the chunks no slower: a cluster sizes its spans by their time."""
    np.save(tmp_path / "x.npy", np.arange(100.0))

    def slowly(path):
        time.sleep(0.1)
        return np.load(path, mmap_mode="r")

    store = shmpar.opened(slowly, str(tmp_path / "x.npy"))
    with shmpar.Pool(engine="serial") as pool:
        pool.map_blocks(np.negative, store, chunks=10)
        report = pool.last_run.report
    # Why not less than 0.1: a busy machine may delay any of the chunks.
    assert report.serial_seconds <= report.seconds - 0.1
    assert report.store_seconds <= report.seconds - 0.1
