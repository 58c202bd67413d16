"""Make the same array in every format that a verb reads.

Workers import this module with that of the test, so it imports dask and xarray where it uses them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import tifffile
import zarr

import shmpar

Array = np.ndarray[Any, Any]

_numbers = itertools.count()

# Why: zarr starts its threads with the first array, and they stay until the interpreter exits.
zarr.config.set({"threading.max_workers": 1})
zarr.create_array({}, shape=4, chunks=2, dtype="u1")[...] = zarr.ones(4)[...]


def _zarr(folder: str, x: Array, unit: tuple[int, ...], **how: Any) -> Any:
    path = os.path.join(folder, f"{next(_numbers)}.zarr")
    made = zarr.create_array(path, shape=x.shape, chunks=unit, dtype=x.dtype, **how)
    made[...] = x
    return made


def zarr2(folder: str, x: Array, unit: tuple[int, ...]) -> Any:
    """Return an array of zarr's second format."""
    return _zarr(folder, x, unit, zarr_format=2)


def zarr3(folder: str, x: Array, unit: tuple[int, ...]) -> Any:
    """Return an array of zarr's third format."""
    return _zarr(folder, x, unit)


def sharded(folder: str, x: Array, unit: tuple[int, ...]) -> Any:
    """Return an array with four chunks or so per shard."""
    return _zarr(folder, x, unit, shards=tuple(2 * n for n in unit))


def _hdf5(folder: str, x: Array, **how: Any) -> str:
    path = os.path.join(folder, f"{next(_numbers)}.h5")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=x, **how)
    return path


def hdf5(folder: str, x: Array, unit: tuple[int, ...]) -> Any:
    """Return a compressed dataset of an open file."""
    chunks = tuple(min(n, size) for n, size in zip(unit, x.shape, strict=True))
    return h5py.File(_hdf5(folder, x, chunks=chunks, compression="gzip"), "r")["x"]


def contiguous(folder: str, x: Array, unit: tuple[int, ...]) -> Any:
    """Return a dataset that is one run of bytes."""
    return h5py.File(_hdf5(folder, x), "r")["x"]


def opened(folder: str, x: Array, unit: tuple[int, ...]) -> Any:
    """Return a store that is opened by a function of the test."""
    path = zarr3(folder, x, unit).store.root
    return shmpar.opened(zarr.open_array, str(path), mode="r")


def opened_hdf5(folder: str, x: Array, unit: tuple[int, ...]) -> Any:
    """Return a dataset by its path."""
    return shmpar.open(f"{hdf5(folder, x, unit).file.filename}:/x")


def dask_array(folder: str, x: Array, unit: tuple[int, ...]) -> Any:
    """Return a Dask array over zarr, with a step of arithmetic."""
    import dask.array

    stored = zarr3(folder, x, unit)
    return dask.array.from_zarr(str(stored.store.root)) + x.dtype.type(0)


def lazy_xarray(folder: str, x: Array, unit: tuple[int, ...]) -> Any:
    """Return a DataArray that reads its values when they are asked for."""
    import xarray

    path = os.path.join(folder, f"{next(_numbers)}.zarr")
    names = [f"d{k}" for k in range(x.ndim)]
    xarray.Dataset({"x": (names, x)}).to_zarr(path, consolidated=False)
    return xarray.open_zarr(path, chunks=None, consolidated=False)["x"]


def tiff(folder: str, x: Array, unit: tuple[int, ...]) -> Any:
    """Return a compressed TIFF file."""
    path = os.path.join(folder, f"{next(_numbers)}.tif")
    tifffile.imwrite(path, x, compression="zlib", photometric="minisblack")
    return shmpar.open(path)


FORMATS: dict[str, Callable[[str, Array, tuple[int, ...]], Any]] = {
    one.__name__: one
    for one in (
        zarr2, zarr3, sharded, hdf5, contiguous, opened, opened_hdf5, dask_array, lazy_xarray,
    )
}  # fmt: skip
