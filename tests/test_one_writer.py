"""Two chunks never write into one unit of a store: refused exactly where they would."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

import shmpar
from tests.stored import zarr  # noqa: F401 - a fixture

LOST = "one of the two writes would be lost"


@pytest.fixture(scope="module")
def pool():
    """A serial pool: the law does not depend on the number of workers."""
    with shmpar.Pool(engine="serial") as made:
        yield made


def numbered(owner, shape):
    """Return a block in which each element is the number of its chunk, from 1."""
    return np.full(shape, owner, "i4")


def cuts(rng, size):
    """Return chunk lengths along an axis: of one length, or of any lengths."""
    if rng.random() < 0.6:
        step = rng.randint(1, size)
        return [min(step, size - start) for start in range(0, size, step)]
    edges = sorted(rng.sample(range(1, size), rng.randint(0, min(4, size - 1))))
    return np.diff([0, *edges, size]).tolist()


def call(rng, pool):
    """Return a call of a random verb, whose results hold the numbers of their chunks."""
    ndim = rng.choice([1, 1, 2, 2, 3])
    shape = [rng.randint(1, 14 // ndim) for _ in range(ndim)]
    lengths = [cuts(rng, size) for size in shape]
    numblocks = tuple(map(len, lengths))
    array, chunks = np.zeros(shape, "i4"), tuple(map(tuple, lengths))

    def number(block_id):
        return int(np.ravel_multi_index(block_id, numblocks)) + 1

    def same(block, block_id):
        return numbered(number(block_id), block.shape)

    def half(block, block_id):
        return numbered(number(block_id), [-(-n // 2) for n in block.shape])

    def total(block, block_id):
        return number(block_id)

    kind = rng.choice(["blocks", "overlap", "reduce", "rows", "pyramid", "drop", "new"])
    if kind == "blocks":
        return lambda **out: pool.map_blocks(same, array, chunks=chunks, **out)
    if kind == "overlap":
        return lambda **out: pool.map_overlap(same, array, depth=1, chunks=chunks, **out)
    if kind == "reduce":
        return lambda **out: pool.block_reduce(total, array, chunks=chunks, **out)
    if kind == "rows":
        rows = np.arange(1, shape[0] + 1)
        result = [1 + n for n in shape[1:]]
        return lambda **out: pool.parallel_map(lambda row: numbered(row, result), rows, **out)
    if kind == "pyramid":
        halves = tuple(tuple(-(-n // 2) for n in axis) for axis in lengths)
        return lambda **out: pool.map_blocks(half, array, chunks=chunks, out_chunks=halves, **out)
    axis = rng.randrange(ndim)
    if kind == "new":

        def added(block, block_id):
            return np.stack([same(block, block_id)] * 2, axis)

        return lambda **out: pool.map_blocks(added, array, chunks=chunks, new_axis=axis, **out)
    if ndim == 1:
        return lambda **out: pool.map_blocks(same, array, chunks=chunks, **out)
    whole = tuple((-1,) if k == axis else one for k, one in enumerate(chunks))
    numblocks = tuple(1 if k == axis else n for k, n in enumerate(numblocks))
    whole = tuple(-1 if k == axis else one for k, one in enumerate(chunks))

    def dropped(block, block_id):
        return same(block, block_id).max(axis)

    return lambda **out: pool.map_blocks(dropped, array, chunks=whole, drop_axis=axis, **out)


def units_with_two_owners(owners, unit):
    """Return how many units hold elements of several chunks, by looking into each of them."""
    starts = [range(0, size, step) for size, step in zip(owners.shape, unit, strict=True)]
    found = 0
    for corner in itertools.product(*starts):
        window = tuple(slice(a, a + n) for a, n in zip(corner, unit, strict=True))
        found += len(np.unique(owners[window])) > 1
    return found


def a_store(rng, shape, owners):
    """Return a zarr array with random units, often those of the grid, and its units."""
    unit = []
    for axis, size in enumerate(shape):
        ends = np.flatnonzero(np.diff(owners, axis=axis).any(tuple(set(range(len(shape))) - {axis})))
        edges = [int(end) + 1 for end in ends] or [size]
        fits = [n for n in range(1, size + 1) if all(edge % n == 0 for edge in edges)]
        unit.append(rng.choice(fits) if rng.random() < 0.7 else rng.randint(1, size + 2))
    inner, shards = tuple(unit), None
    if rng.random() < 0.3:
        inner = tuple(rng.choice([n for n in range(1, u + 1) if u % n == 0]) for u in unit)
        shards = tuple(unit)
    version = 3 if shards else rng.choice([2, 3])
    return unit, {"chunks": inner, "shards": shards, "zarr_format": version}


def check(seed, pool, zarr, path):
    """Make a random call twice, into memory and into a store; return whether it was refused."""
    rng = random.Random(seed)
    verb = call(rng, pool)
    owners = verb(dtype="i4")
    unit, how = a_store(rng, owners.shape, owners)
    store = zarr.create_array(path, shape=owners.shape, dtype="i4", **how)
    shared = units_with_two_owners(owners, unit)
    if not shared:
        assert verb(out=store) is store
        np.testing.assert_array_equal(store[...], owners)
        return False
    with pytest.raises(ValueError, match=LOST):
        verb(out=store)
    assert not store[...].any()  # nothing was written
    return True


def test_refused_exactly_where_two_chunks_share_a_unit(pool, zarr, tmp_path):
    """In 200 random calls of all placements, the refusal agrees with a look at every unit."""
    refused = [check(seed, pool, zarr, tmp_path / f"{seed}.zarr") for seed in range(200)]
    assert 40 < sum(refused) < 160  # Why: each side has been seen often


@pytest.mark.stress
def test_many_more_calls(pool, zarr, tmp_path, stress_seed):
    """The same for calls that are drawn anew each time."""
    for seed in range(stress_seed, stress_seed + 3_000):
        check(seed, pool, zarr, tmp_path / f"{seed}.zarr")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda pool, x, out: pool.map_blocks(np.negative, x, chunks=(15, 20), out=out),
            "map_blocks: out= ({}) is stored 20 elements at a time along axis 0, and a chunk ends "
            "at 15: two workers would write into one piece of the store, and one of the two writes "
            "would be lost; pass chunks= a multiple of 20 there",
        ),
        (
            lambda pool, x, out: pool.parallel_map(np.negative, x, out=out),
            "parallel_map: out= ({}) is stored 20 elements at a time along axis 0, and a chunk "
            "ends at 1: two workers would write into one piece of the store, and one of the two "
            "writes would be lost; make the store with chunks of 1 element along axis 0, or call "
            "map_blocks with chunks= a multiple of 20 there",
        ),
    ],
)
def test_the_message_names_place_and_remedy(call, text, pool, zarr, tmp_path):
    """The message has the unit, the axis, the end of the chunk, and the chunks that fit."""
    x, path = np.zeros((60, 40), "i4"), tmp_path / "x.zarr"
    out = zarr.create_array(path, shape=x.shape, dtype="i4", chunks=(10, 10), shards=(20, 20))
    with pytest.raises(ValueError, match=LOST) as error:
        call(pool, x, out)
    assert str(error.value) == text.format(path)
