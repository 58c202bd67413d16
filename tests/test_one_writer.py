"""Two chunks never write into one unit of a store: refused exactly where they would."""

from __future__ import annotations

import itertools
import random
from functools import partial

import numpy as np
import pytest

import shmpar

LOST = "one of the two writes would be lost"


@pytest.fixture(scope="module")
def pool():
    """A serial pool: the law does not depend on the number of workers."""
    with shmpar.Pool(engine="serial") as made:
        yield made


def cuts(rng, size):
    """Return chunk lengths along an axis: of one length, or of any lengths."""
    if rng.random() < 0.6:
        step = rng.randint(1, size)
        return [min(step, size - start) for start in range(0, size, step)]
    edges = sorted(rng.sample(range(1, size), rng.randint(0, min(4, size - 1))))
    return np.diff([0, *edges, size]).tolist()


class Numbered:
    """Functions of a block whose results hold the number of their chunk, from 1."""

    def __init__(self, numblocks):
        self.numblocks = numblocks

    def number(self, block_id):
        """Return the number of a chunk."""
        return int(np.ravel_multi_index(block_id, self.numblocks)) + 1

    def same(self, block, block_id):
        """Keep the shape."""
        return np.full(block.shape, self.number(block_id), "i4")

    def half(self, block, block_id):
        """Halve the shape, as for a pyramid."""
        return np.full([-(-n // 2) for n in block.shape], self.number(block_id), "i4")

    def total(self, block, block_id):
        """Reduce the block."""
        return self.number(block_id)


def call(rng, pool):
    """Return a call of a random verb, whose results hold the numbers of their chunks."""
    ndim = rng.choice([1, 1, 2, 2, 3])
    shape = [rng.randint(1, 10 // ndim) for _ in range(ndim)]
    lengths = [cuts(rng, size) for size in shape]
    array, cut = np.zeros(shape, "i4"), {"chunks": tuple(map(tuple, lengths))}
    made, axis = Numbered(tuple(map(len, lengths))), rng.randrange(ndim)
    halves = tuple(tuple(-(-n // 2) for n in axis) for axis in lengths)
    row = [1 + n for n in shape[1:]]
    calls = {
        "blocks": partial(pool.map_blocks, made.same, array, **cut),
        "overlap": partial(pool.map_overlap, made.same, array, depth=1, **cut),
        "reduce": partial(pool.block_reduce, made.total, array, **cut),
        "rows": partial(
            pool.parallel_map, lambda n: np.full(row, n, "i4"), np.arange(1, shape[0] + 1)
        ),
        "pyramid": partial(pool.map_blocks, made.half, array, out_chunks=halves, **cut),
        "new": partial(
            pool.map_blocks,
            lambda block, block_id: np.stack([made.same(block, block_id)] * 2, axis),
            array,
            new_axis=axis,
            **cut,
        ),
    }
    if ndim > 1:
        whole = tuple(-1 if k == axis else one for k, one in enumerate(cut["chunks"]))
        flat = Numbered(tuple(1 if k == axis else len(one) for k, one in enumerate(lengths)))
        calls["drop"] = partial(
            pool.map_blocks,
            lambda block, block_id: flat.same(block, block_id).max(axis),
            array,
            chunks=whole,
            drop_axis=axis,
        )
    return calls[rng.choice(sorted(calls))]


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
        ends = np.flatnonzero(
            np.diff(owners, axis=axis).any(tuple(set(range(len(shape))) - {axis}))
        )
        edges = [int(end) + 1 for end in ends] or [size]
        fits = [n for n in range(1, size + 1) if all(edge % n == 0 for edge in edges)]
        unit.append(rng.choice(fits) if rng.random() < 0.6 else rng.randint(1, size + 2))
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


MESSAGE = (
    "{} is stored 20 elements at a time along axis 0, and a chunk ends at {}: two workers would "
    "write into one piece of the store, and one of the two writes would be lost; {}"
)


def test_the_message_names_place_and_remedy(pool, zarr, tmp_path):
    """The message has the unit, the axis, the end of the chunk, and the chunks that fit."""
    x, path = np.zeros((60, 40), "i4"), tmp_path / "x.zarr"
    out = zarr.create_array(path, shape=x.shape, dtype="i4", chunks=(10, 10), shards=(20, 20))
    with pytest.raises(ValueError, match=LOST) as error:
        pool.map_blocks(np.negative, x, chunks=(15, 20), out=out)
    remedy = "pass chunks= a multiple of 20 there"
    assert str(error.value) == MESSAGE.format(f"map_blocks: out= ({path})", 15, remedy)
    with pytest.raises(ValueError, match=LOST) as error:
        pool.parallel_map(np.negative, x, out=out)
    remedy = (
        "make the store with chunks of 1 element along axis 0, or call map_blocks with chunks= a "
        "multiple of 20 there"
    )
    assert str(error.value) == MESSAGE.format(f"parallel_map: out= ({path})", 1, remedy)
