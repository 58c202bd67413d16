"""From a user's ``chunks=`` to the axes of a grid.

Imports :mod:`shmpar.grid.axis`, and from :mod:`shmpar.grid.halo` how a depth is read.

Guarantees
----------
What "auto" chooses depends on the shape, the itemsize and the halo's depth, and on nothing
else: never on the number of workers, so that a result does not either.  Arguments are checked
whole before anything is made of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any, TypeAlias

from shmpar.grid.axis import Axis, axis_number, per_axis, whole_number
from shmpar.grid.halo import parse_depth

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BLOCK_BYTES", "Chunks", "auto_lengths", "block_bytes", "cut_axes"]

#: One axis: elements, -1 or None for a whole axis, "auto", or the length of every chunk.
AxisChunks: TypeAlias = int | str | Sequence[int] | None
#: One for all axes, one an axis, or a dict of axes, where a missing one is not cut.
Chunks: TypeAlias = int | str | Sequence[AxisChunks] | Mapping[int, AxisChunks] | None

LEAST_BYTES = 64 * 1024
BLOCK_BYTES = 1024 * 1024
"""What "auto" makes a block at most, for functions whose temporaries are to stay in the cache."""
FEWEST_BLOCKS = 64

_REMEDY = 'pass a positive int, -1 or None for the whole axis, "auto", or a tuple of lengths'


def cut_axes(
    shape: Sequence[int],
    chunks: Chunks,
    *,
    itemsize: int,
    depth: Any,
    whole: Iterable[int],
    most: int = BLOCK_BYTES,
) -> tuple[Axis, ...]:
    """Cut each axis of an array; arguments as in :meth:`shmpar.grid.Grid.cut`.

    Raises
    ------
    TypeError, ValueError
        For anything in `chunks`, `depth` or `whole` that does not fit the shape.

    Examples
    --------
    >>> cut_axes((9, 4), (4, None), itemsize=8, depth=None, whole=())
    (Axis(size=9, step=4, count=3, edges=None), Axis(size=4, step=4, count=1, edges=None))
    """
    sizes = _sizes(shape)
    entries = per_axis(
        "chunks", chunks, len(sizes), missing=None, array=f"an array of shape {sizes}"
    )
    axes = [
        _cut_one(entry, size, f"chunks={brief(chunks)}, axis {k} of shape {sizes}")
        for k, (entry, size) in enumerate(zip(entries, sizes, strict=True))
    ]
    uncut = {axis_number(axis, len(sizes), f"whole={whole}") for axis in whole}
    reach = [sum(pair) for pair in parse_depth(0 if depth is None else depth, len(sizes))]
    fixed = [
        axis.step if axis is not None else (size if k in uncut else None)
        for k, (axis, size) in enumerate(zip(axes, sizes, strict=True))
    ]
    lengths = auto_lengths(sizes, fixed, whole_number(itemsize, "itemsize"), reach, most)
    return tuple(
        Axis.regular(size, length) if axis is None else axis
        for axis, size, length in zip(axes, sizes, lengths, strict=True)
    )


def _sizes(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(whole_number(size, f"shape={tuple(shape)}") for size in shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape={sizes}: an axis cannot have fewer than 0 elements")
    return sizes


def _cut_one(entry: Any, size: int, where: str) -> Axis | None:
    """Cut one axis by its entry of ``chunks=``; None leaves it to "auto"."""
    if entry is None:
        return Axis.regular(size, max(1, size))
    if isinstance(entry, str):
        if entry != "auto":
            raise ValueError(f'{where}: {entry!r} is unknown, the only word is "auto"; {_REMEDY}')
        return None
    if isinstance(entry, (tuple, list)):
        return _cut_by_lengths(entry, size, where)
    try:
        step = whole_number(entry, where)
    except TypeError:
        raise TypeError(f"{where}: {entry!r} is a {type(entry).__name__}; {_REMEDY}") from None
    if step < 1 and step != -1:
        raise ValueError(f"{where}: a chunk cannot have {step} elements; {_REMEDY}")
    return Axis.regular(size, step if step > 0 else max(1, size))


def _cut_by_lengths(lengths: Sequence[Any], size: int, where: str) -> Axis:
    numbers = [whole_number(n, f"{where}, entry {i}") for i, n in enumerate(lengths)]
    if sum(numbers) != size:
        raise ValueError(
            f"{where}: lengths {brief(lengths)} sum to {sum(numbers)}, not to {size}; pass the "
            f"length of every chunk, or one int"
        )
    try:
        return Axis.explicit(numbers)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def block_bytes(shape: Sequence[int], itemsize: int, most: int = BLOCK_BYTES) -> int:
    """Return the bytes that "auto" aims at for one block, which no block exceeds by itself.

    `most` (1 MiB), less where that would give fewer than 64 blocks, but 64 KiB at the least.

    Examples
    --------
    >>> block_bytes((1000, 1000), 8)
    125000
    """
    return min(most, max(LEAST_BYTES, prod(shape) * itemsize // FEWEST_BLOCKS))


def auto_lengths(
    shape: Sequence[int],
    fixed: Sequence[int | None],
    itemsize: int,
    reach: Sequence[int],
    most: int = BLOCK_BYTES,
) -> list[int]:
    """Choose chunk lengths, in elements, for the axes that are not fixed.

    Without a halo, blocks are runs of memory: the last axes whole, the first ones cut, because
    a tile of an image is twice as slow to stream as a band of rows with as many bytes.  Axes
    with a halo share what there is in proportion to it, which reads the fewest elements twice.

    Parameters
    ----------
    shape : sequence of int
        Elements along each axis.
    fixed : sequence of int or None
        Elements of the longest chunk where that is settled, None where it is to be chosen.
    itemsize : int
        Bytes of one element.
    reach : sequence of int
        What the halo adds along each axis, both sides together, in elements.
    most : int
        Bytes that a block may have.

    Examples
    --------
    >>> auto_lengths((10_000, 10_000), (None, None), 8, (0, 0))
    [13, 10000]
    >>> auto_lengths((10_000, 10_000), (None, None), 8, (4, 4))
    [257, 500]
    """
    free = [k for k, length in enumerate(fixed) if length is None]
    budget = block_bytes(shape, max(1, itemsize), most) // max(1, itemsize)
    lengths = [
        max(1, min(size, 2 * around)) if length is None else max(1, length)
        for size, length, around in zip(shape, fixed, reach, strict=True)
    ]
    _widen(lengths, shape, _weights(free, reach), budget)
    for k in reversed(free):
        room = budget // prod(lengths[:k] + lengths[k + 1 :])
        lengths[k] = max(lengths[k], min(shape[k], room))
    for k in free:
        lengths[k] = _even(shape[k], lengths[k], 2 * reach[k])
    return lengths


def _weights(free: Sequence[int], reach: Sequence[int]) -> dict[int, int]:
    """Return how much each free axis gains from length, for those that gain anything."""
    weights = {k: reach[k] for k in free}
    last = len(reach) - 1
    if last in weights:
        # Longer runs of memory are worth a few elements more that are read twice.
        weights[last] = max(2 * weights[last], *weights.values(), 0)
    return {k: weight for k, weight in weights.items() if weight}


def _widen(lengths: list[int], shape: Sequence[int], weights: dict[int, int], budget: int) -> None:
    """Lengthen, in place and by an eighth at a time, the axis that is short for its weight."""
    growing = set(weights)
    while growing:
        # Compared as integers: 32 bits below the point tell any two useful ratios apart.
        k = max(growing, key=lambda k: ((weights[k] << 32) // lengths[k], k))
        longer = min(shape[k], lengths[k] + max(1, lengths[k] // 8))
        others = prod(lengths[:k] + lengths[k + 1 :])
        if longer <= lengths[k] or others * longer > budget:
            growing.remove(k)
        else:
            lengths[k] = longer


def _even(size: int, length: int, least: int) -> int:
    """Shorten `length` as far as the number of chunks allows, so that the last is no sliver."""
    count = -(-size // length)
    if least:
        count = min(count, size // least)
    count = max(1, count)
    return max(1, -(-size // count))
