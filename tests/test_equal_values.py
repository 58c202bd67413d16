"""Values that compare equal and differ do not take each other's place in a later call."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import shmpar
from tests import pools


class Text(str):
    """Text that is equal to plain text."""

    __slots__ = ()


class Number(int):
    """A number that is equal to a plain one."""


def nan(payload: int) -> float:
    return struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_0000 + payload))[0]


EQUAL = {
    "zeros": (0.0, -0.0, 0, False, 0j, -0j, np.float64(0), np.float64(-0.0), np.False_, Decimal(0)),
    "ones": (1, True, 1.0, 1 + 0j, np.int8(1), np.float32(1), Number(1), Fraction(1)),
    "texts": ("wrap", Text("wrap"), np.str_("wrap")),
    "bytes": (b"a", np.bytes_(b"a")),
    "nans": (nan(0), nan(1), -nan(0)),
    "tuples": ((0.0,), (-0.0,), (0,), (False,)),
    "sets": (frozenset({1}), frozenset({True}), frozenset({1.0})),
    "types": (np.dtype("f8"), np.dtype("f8", metadata={"unit": "m"}), np.dtype("f8", align=True)),
}


def spelled(value: Any) -> str:
    """Return a text that differs for values that are equal and not the same."""
    if isinstance(value, np.dtype):
        return f"{value!r} {dict(value.metadata or {})}"
    if isinstance(value, (tuple, frozenset)):
        return str([spelled(one) for one in value])
    bits = struct.pack("<d", value).hex() if isinstance(value, float) else repr(value)
    return f"{type(value).__name__} {bits}"


@pytest.fixture(scope="module", params=pools.ENGINES)
def pool(request: pytest.FixtureRequest) -> Iterator[shmpar.Pool]:
    with pools.warm(request.param, 1) as made:
        yield made


def with_default(value: Any) -> Callable[..., str]:
    return lambda _, held=value, tell=spelled: tell(held)


def with_closure(value: Any) -> Callable[..., str]:
    return lambda _: spelled(value)


WAYS: dict[str, Callable[[shmpar.Pool, Any], Any]] = {
    "submit": lambda pool, value: pool.submit(spelled, value).result(),
    "map": lambda pool, value: next(pool.map(spelled, [value])),
    "kwargs": lambda pool, value: pool.parallel_map(
        lambda _, held: spelled(held), [0], kwargs={"held": value}, dtype=object
    )[0],
    "item": lambda pool, value: pool.parallel_map(spelled, [value], dtype=object)[0],
    "default": lambda pool, value: pool.parallel_map(with_default(value), [0], dtype=object)[0],
    "closure": lambda pool, value: pool.parallel_map(with_closure(value), [0], dtype=object)[0],
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("values", EQUAL.values(), ids=EQUAL)
def test_each_value_arrives_as_it_is(
    pool: shmpar.Pool, values: tuple[Any, ...], way: Callable[[shmpar.Pool, Any], Any]
) -> None:
    """The type, the sign of a zero, and the bits of a NaN are those of the value that was given."""
    # Each value comes right after each other one.
    order = [*itertools.chain.from_iterable(itertools.combinations(values, 2)), values[0]]
    assert [way(pool, value) for value in order] == [spelled(value) for value in order]
    pools.drop_caches(pool)


@pytest.mark.parametrize("boundary", [(0.0, -0.0), (-0.0, 0.0), (nan(0), nan(1)), (0, -0.0)])
def test_boundaries_keep_their_bits(pool: shmpar.Pool, boundary: tuple[Any, Any]) -> None:
    """A constant at the border has the sign, or the bits, of the latest call."""
    array = np.ones(6)
    for value in (*boundary, *boundary[::-1]):
        for given in (value, {0: value}, ((value, value),)):
            found = pool.map_overlap(
                lambda block: block[:-2], array, depth=1, boundary=given, chunks=3, trim=False
            )
            assert found[:1].tobytes() == np.float64(value).tobytes()
    pools.drop_caches(pool)


def test_constants_among_the_arrays_keep_their_bits(pool: shmpar.Pool) -> None:
    """A scalar argument of a ufunc is the one of the latest call."""
    array = np.ones(4)
    for value in (0.0, -0.0, 0.0, -0.0):
        found = pool.map_blocks(np.multiply, array, value, chunks=2)
        assert np.signbit(found).tolist() == [bool(np.signbit(value))] * 4
    for value in (1, True, 1.0, np.float32(1)):
        found = pool.map_blocks(lambda block, one: block * one, array.astype("i2"), value)
        assert found.dtype == np.multiply(array.astype("i2"), value).dtype
    pools.drop_caches(pool)


def test_dtypes_keep_their_metadata(pool: shmpar.Pool) -> None:
    """Arrays and results have the metadata of the latest call."""
    plain, tagged = EQUAL["types"][:2]
    for dtype in (plain, tagged, plain, tagged):
        array = np.ones(4).astype(dtype)
        assert array.dtype.metadata == dtype.metadata
        due = [str(dtype.metadata)] * 2
        tell = pool.block_reduce(lambda b: str(b.dtype.metadata), array, chunks=2, dtype=object)
        assert tell.tolist() == due
    pools.drop_caches(pool)


@pytest.mark.parametrize("chunks", [(2, True), (True, 2), (1, True), (True, 1), (1, 1.0)])
def test_chunks_of_another_type_are_read_anew(pool: shmpar.Pool, chunks: tuple[Any, Any]) -> None:
    """The answer to chunks=True, or 1.0, does not depend on the call before."""

    def answer(value: Any) -> str:
        try:
            return str(pool.block_reduce(len, np.ones(4), chunks=value).tolist())
        except (TypeError, ValueError) as error:
            return f"{type(error).__name__} {error}"

    first, second = chunks
    alone = answer(second)
    for _ in range(2):
        answer(first)
        assert answer(second) == alone
    pools.drop_caches(pool)
