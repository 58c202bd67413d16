"""Subclasses of ndarray: those that are more than their bytes are refused, others work."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

import shmpar


class Quantity(np.ndarray):
    """An array with a unit, in an attribute of the array."""

    def __new__(cls, values: Any, unit: Any) -> Self:
        """Make one."""
        self = np.asarray(values, "f8").view(cls)
        self.unit = unit
        return self

    def __array_finalize__(self, parent: Any) -> None:
        self.unit = getattr(parent, "unit", None)

    def __reduce__(self) -> Any:
        return Quantity, (np.asarray(self), self.unit)


class Sized(np.ndarray):
    """An array with a unit, in a property named as in other libraries."""

    @property
    def units(self) -> str:
        """The unit."""
        return "kg"


class Table(np.recarray):
    """A record array whose columns have a scale, as tables of FITS files have."""

    def __array_finalize__(self, parent: Any) -> None:
        super().__array_finalize__(parent)
        self.__dict__["_coldefs"] = {"flux": 32768}


class Scaled(np.ndarray):
    """An array whose elements are computed."""

    def __getitem__(self, key: Any) -> Any:
        """Return elements, in the unit of the scale."""
        return np.asarray(self)[key] * 10


class Named(np.ndarray):
    """An array with information that does not change its values."""

    def __array_finalize__(self, parent: Any) -> None:
        self.info = getattr(parent, "info", "sunrise")


LENGTHS = Quantity(np.arange(12.0), "m")
TABLE = np.zeros(12, [("flux", ">i2"), ("unit", "f8")]).view(Table)
MORE_THAN_BYTES = {
    "unit": (LENGTHS, r"would lose its unit \(m\); .*np\.asarray\(x\)"),
    "units": (np.arange(12.0).view(Sized), r"would lose its unit \(kg\)"),
    "table": (TABLE, r"would lose the scale of its columns; .*np\.array\(table\['name'\]\)"),
}


@pytest.mark.parametrize("kind", list(MORE_THAN_BYTES))
def test_inputs_and_outputs_that_are_more_than_their_bytes_are_refused(
    pool: shmpar.Pool, kind: str
) -> None:
    """The error names the loss and the remedy, in each verb and for shared copies."""
    array, match = MORE_THAN_BYTES[kind]
    plain = np.zeros(array.shape, array.dtype)
    for call in (
        lambda: pool.map_blocks(np.copy, array),
        lambda: pool.map_blocks(np.copy, plain, out=array),
        lambda: pool.map_overlap(np.copy, array, depth=1),
        lambda: pool.block_reduce(np.size, array),
        lambda: pool.parallel_map(np.copy, array),
        lambda: pool.apply_along_axis(np.copy, 0, array),
        lambda: pool.sum(array),
        lambda: pool.array(array),
        lambda: pool.asarray(array),
    ):
        with pytest.raises(TypeError, match=match):
            call()


@pytest.mark.parametrize("dtype", [None, "f8"])
def test_results_with_a_unit_are_refused(pool: shmpar.Pool, dtype: Any) -> None:
    """The function should return the numbers; the error says so."""
    for call in (
        lambda: pool.map_blocks(lambda b: Quantity(b, "m"), np.arange(12.0), dtype=dtype),
        lambda: pool.map_overlap(lambda b: Quantity(b, "m"), np.arange(12.0), depth=1, dtype=dtype),
        lambda: pool.block_reduce(lambda b: Quantity(3, "m"), np.arange(12.0), dtype=dtype),
        lambda: pool.parallel_map(lambda row: (row, Quantity(row, "m")), np.ones((3, 2))),
    ):
        with pytest.raises(shmpar.ChunkError, match="returned a Quantity, which would lose"):
            call()


def test_masked_results_of_map_overlap_are_refused(pool: shmpar.Pool) -> None:
    """The mask is not dropped where the halo is cut off."""
    with pytest.raises(shmpar.ChunkError, match="masked array, whose mask would be lost"):
        pool.map_overlap(lambda b: np.ma.masked_less(b, 3), np.arange(12.0), depth=1)


def test_values_with_a_unit_reach_the_function_as_objects(pool: shmpar.Pool) -> None:
    """In kwargs, as items and as arguments of submit, an array stays what it is."""

    def unit(block: Any, scale: Any = None) -> Any:
        return (block if scale is None else scale).unit

    assert pool.block_reduce(
        unit, np.zeros(3), dtype=object, kwargs={"scale": LENGTHS}
    ).tolist() == ["m"]
    assert list(pool.parallel_map(unit, [LENGTHS, LENGTHS])) == ["m", "m"]
    assert pool.submit(unit, LENGTHS).result() == "m"


def test_a_subclass_that_computes_its_elements_is_warned_about(pool: shmpar.Pool) -> None:
    """The warning says that the function gets the bytes, and how to say that this is meant."""
    scaled = np.arange(12.0).view(Scaled)
    with pytest.warns(RuntimeWarning, match=r"of the bytes of a Scaled.*np\.asarray") as caught:
        result = pool.map_blocks(np.copy, scaled)
    assert [one.filename for one in caught] == [__file__]
    np.testing.assert_array_equal(result, np.arange(12.0))


def test_subclasses_that_are_their_bytes_work(pool: shmpar.Pool, tmp_path: Path) -> None:
    """Matrices, records with a field named unit, mapped files and arrays with information."""
    x = np.arange(12.0).reshape(3, 4)
    np.save(tmp_path / "x.npy", x)
    records = np.zeros(3, [("unit", "f8"), ("units", "i4"), ("_coldefs", "i4")])
    kinds = {
        "matrix": x.view(np.matrix),
        "named": x.view(Named),
        "memmap": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "no unit": Quantity(x, None),
        "shared": pool.array(x),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in kinds.values():
            np.testing.assert_array_equal(pool.map_blocks(np.negative, kind), -x)
        records["unit"] = 7
        for kind in (records, records.view(np.recarray), pool.array(records.view(np.recarray))):
            result = pool.map_blocks(np.copy, kind)
            assert result["unit"].tolist() == [7, 7, 7]
