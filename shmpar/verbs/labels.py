"""Names of axes, coordinates and indexes: inputs of xarray and pandas, and their results.

A verb computes with positions and plain arrays. The functions here turn names of axes into
positions before it begins, and give its result the labels of the inputs. Nothing is imported for
it: without the library in this process there is no object of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from inspect import unwrap
from typing import Any, TypeVar

import numpy as np

from shmpar.grid import Axis
from shmpar.grid.axis import axes_tuple, output_axes
from shmpar.plan import Along, InBlocks, PerChunk, Plan
from shmpar.stores.recognise import wrap
from shmpar.verbs.functions import types_of

Array = np.ndarray[Any, Any]
Names = tuple[Hashable, ...]
C = TypeVar("C")


class BlockLabels:
    """Names, coordinates and attributes of the inputs of a call, along the axes of its grid.

    Parameters
    ----------
    verb : str
        Name of the verb, for messages.
    arrays : sequence of DataArray
        The inputs that have names.
    """

    def __init__(self, verb: str, arrays: Sequence[Any]) -> None:
        self.verb = verb
        self.dims: Names = tuple(dict.fromkeys(dim for one in arrays for dim in one.dims))
        self.coords = _merged(verb, arrays)
        self.attrs = dict(arrays[0].attrs)
        names = {one.name for one in arrays}
        self.name = names.pop() if len(names) == 1 else None
        self.inputs: list[Names] = []  # the axes of each argument, as it is passed on
        self.added: list[Hashable] = []  # the new axes of the result, in their order

    def numbered(self, option: str, given: Any) -> Any:
        """Replace the names of axes in the value of an option by their positions."""
        if isinstance(given, list) and option in {"depth", "boundary"}:  # an entry per input
            if len(given) != len(self.inputs):  # Why: the verb refuses it, and counts the entries.
                return given
            pairs = zip(given, self.inputs, strict=True)
            return [_numbered(self.verb, option, one, dims) for one, dims in pairs]
        return _numbered(self.verb, option, given, self.dims)

    def axes(self, option: str, given: Any) -> Any:
        """Replace names of axes by their positions; a single one may stand alone."""
        if given is None or isinstance(given, int | np.integer):
            return given
        # Why: a tuple may be a name.
        if isinstance(given, str) or (isinstance(given, tuple) and given in self.dims):
            return _number(self.verb, option, given, self.dims)
        if isinstance(given, Iterable):
            return tuple([_number(self.verb, option, one, self.dims) for one in given])
        return given

    def placed(self, dropped: Any, new_axis: Any, out_chunks: Any) -> tuple[Any, Any, Any]:
        """Read the axes that a function drops and adds, and the chunks of its result, by names.

        Parameters
        ----------
        new_axis
            Also a name or a list of them, for axes that come first, or a dict from names to
            positions.
        """
        dropped = self.axes("drop_axis", dropped)
        if new_axis is None:
            places: list[int] = []
        elif isinstance(new_axis, Mapping):
            places, self.added = list(new_axis.values()), list(new_axis)
        else:
            several = isinstance(new_axis, Iterable) and not isinstance(new_axis, str)
            entries: list[Any] = list(new_axis) if several else [new_axis]
            named = bool(entries) and not isinstance(entries[0], int | np.integer)
            places = list(range(len(entries))) if named else entries
            self.added = entries if named else []
        axes = output_axes(len(self.dims), axes_tuple("drop_axis", dropped, len(self.dims)), places)
        fresh = _unused(self.dims)
        added = self.added or [next(fresh) for _ in places]
        order = sorted(zip([place % len(axes) for place in places], added, strict=True))
        self.added = [name for _, name in order]
        new = iter(self.added)
        result = [next(new) if k is None else self.dims[k] for k in axes]
        if twice := {one for one in result if result.count(one) > 1}:
            raise ValueError(f"{self.verb}: new_axis: the result would have {twice.pop()!r} twice")
        positions = None if new_axis is None else tuple(places)
        return dropped, positions, _numbered(self.verb, "out_chunks", out_chunks, result)

    def attach(self, plan: Plan, values: Any) -> Any:
        """Give the result of a plan the names and coordinates that hold for it."""
        if isinstance(values, tuple):
            return tuple([self.attach(plan, one) for one in values])
        if not isinstance(values, np.ndarray | np.generic):
            return values
        placement, grid = plan.placement, plan.grid
        fresh = _unused((*self.dims, *self.added))
        names: list[Hashable]
        same: set[Hashable]
        if isinstance(placement, PerChunk):
            names = [*self.dims, *(next(fresh) for _ in range(values.ndim - grid.ndim))]
            cuts = dict(zip(self.dims, grid.axes, strict=True))
            return self.array(values, names, _means(self.coords, cuts))
        if isinstance(placement, Along):
            axis, added = placement.axis, values.ndim - grid.ndim + 1
            first = self.dims[axis]
            names = [first] if added == 1 else [next(fresh) for _ in range(added)]
            names = [*self.dims[:axis], *names, *self.dims[axis + 1 :]]
            same = {one for one in names if one != first or values.shape[axis] == grid.shape[axis]}
            return self.array(values, names, self._kept(same))
        assert isinstance(placement, InBlocks)
        new = iter(self.added)
        names = [next(new) if k is None else self.dims[k] for k in placement.axes]
        same = {
            self.dims[k]
            for k, cut, length in zip(placement.axes, placement.cuts, values.shape, strict=True)
            if k is not None and cut in {None, grid.axes[k]} and length == grid.shape[k]
        }
        return self.array(values, names, self._kept(same))

    def reduced(
        self, values: Any, axes: Any, leading: tuple[str, Any] | None, keepdims: Any
    ) -> Any:
        """Give the result of a reduction the names and coordinates of the axes that are left.

        Parameters
        ----------
        leading : tuple of (str, array_like), optional
            Name and values of the coordinate that comes first.
        """
        count = len(self.dims)
        gone = set(range(count) if axes is None else np.atleast_1d(axes) % count if count else ())
        left = {dim for k, dim in enumerate(self.dims) if k not in gone}
        names = [dim for dim in self.dims if keepdims or dim in left]
        coords = self._kept(left)
        if leading is not None:
            name, points = leading
            depth = np.ndim(values) - len(names)
            names = [*([name] if depth == 1 else [f"{name}_{k}" for k in range(depth)]), *names]
            if depth <= 1:
                points = np.asarray(points, float)
                coords = coords.assign_coords({name: ((name,) * depth, points)})
        return self.array(values, names, coords)

    def _kept(self, dims: Iterable[Hashable]) -> Any:
        left = set(dims)
        return self.coords.drop_dims([dim for dim in self.coords.dims if dim not in left])

    def array(self, values: Any, names: Sequence[Hashable], coords: Any) -> Any:
        """Make a DataArray of the memory of a result."""
        make = sys.modules["xarray"].DataArray
        return make(values, coords.coords, tuple(names), self.name, self.attrs)


class RowLabels:
    """Labels of the rows of a DataFrame, a Series or a DataArray.

    Parameters
    ----------
    value : DataFrame, Series or DataArray
        The argument of the verb.
    axis : int
        Axis of its rows.
    """

    def __init__(self, value: Any, axis: int) -> None:
        self.columns = self.index = self.coords = None
        # Why not of a DataFrame: a column may have this name.
        self.name = value.name if value.ndim == 1 or hasattr(value, "dims") else None
        if hasattr(value, "dims"):
            self.dim = value.dims[axis]
            self.attrs = dict(value.attrs)
            coords = value.coords.to_dataset()
            self.coords = coords.drop_dims([one for one in coords.dims if one != self.dim])
        else:
            self.index = value.axes[axis]
            if len(value.axes) == 2:  # noqa: PLR2004
                self.columns = value.axes[1 - axis]

    def check(self, verb: str, other: RowLabels) -> None:
        """Raise ``ValueError`` if the rows of another argument have other labels."""
        if self.index is not None and other.index is not None:
            same = self.index.equals(other.index)
        else:
            pair = self.coords, other.coords
            mine, theirs = (None if one is None else one.indexes.get(self.dim) for one in pair)
            same = mine is None or theirs is None or mine.equals(theirs)
        if not same:
            raise ValueError(
                f"{verb}: the indexes of the arguments differ, and rows are passed by position; "
                "align the arguments first, or pass their values, x.to_numpy()"
            )

    def attach(self, _plan: Plan, values: Any) -> Any:
        """Give the results of rows the labels of the rows."""
        if isinstance(values, tuple):
            return tuple([self.attach(_plan, one) for one in values])
        if self.index is not None:
            return self._table(values)
        if not isinstance(values, np.ndarray):
            return values
        fresh = _unused((self.dim,))
        names = [self.dim, *(next(fresh) for _ in range(values.ndim - 1))]
        make = sys.modules["xarray"].DataArray
        assert self.coords is not None
        return make(values, self.coords.coords, names, self.name, self.attrs)

    def _table(self, values: Any) -> Any:
        """Make a Series of one value per row, and a DataFrame of several."""
        pandas = sys.modules["pandas"]
        if isinstance(values, list):
            return pandas.Series(values, self.index, object, self.name)
        if not isinstance(values, np.ndarray) or not 1 <= values.ndim <= 2:  # noqa: PLR2004
            return values
        if values.dtype.names is not None:  # Why: pandas takes fields for columns.
            return values
        if values.ndim == 1:
            # Why the dtype: pandas makes text, and NaN of None, of objects that are both.
            kind = object if values.dtype.hasobject else None
            return pandas.Series(values, self.index, kind, self.name, copy=False)
        # As DataFrame.apply(raw=True) of pandas.
        same = self.columns is not None and len(self.columns) == values.shape[1]
        return pandas.DataFrame(values, self.index, self.columns if same else None, copy=False)


def read_labels(verb: str, given: Sequence[Any]) -> tuple[Sequence[Any], BlockLabels | None]:
    """Return the arrays of a verb by position, and the labels; None without any DataArray.

    Arrays with names broadcast by names, as in xarray: each is transposed to the order in which
    the names first come, and gets an axis of length 1 for a name that it lacks.

    Raises
    ------
    TypeError
        For a Dataset, which has several arrays.
    ValueError
        If the inputs have different indexes, or an array without names has too many axes.
    """
    if "xarray" not in sys.modules:  # Why: quicker for most calls.
        return given, None
    kind = types_of("xarray", "DataArray")
    arrays = [one for one in given if isinstance(one, kind)]
    refuse_dataset(verb, given)
    if not arrays:
        return given, None
    labels = BlockLabels(verb, arrays)
    axes = len(labels.dims)
    found = []
    for value in given:
        if isinstance(value, kind):
            dims = _dims_between(value, labels.dims)
            labels.inputs.append(dims)
            found.append(_by_position(verb, value, dims))
            continue
        count = value.ndim if hasattr(value, "ndim") else np.ndim(value)
        if count > axes:
            if not axes:  # Why: a DataArray without axes is a constant.
                return [one.values if isinstance(one, kind) else one for one in given], None
            raise ValueError(
                f"{verb}: an array of {count} axes beside a DataArray with the axes "
                f"{_spelled(labels.dims)}: make it a DataArray too, whose axes have names"
            )
        labels.inputs.append(labels.dims[axes - count :])
        found.append(value)
    return found, labels


def refuse_dataset(verb: str, given: Iterable[Any]) -> None:
    """Raise ``TypeError`` for a Dataset, with the words to write instead."""
    kind = types_of("xarray", "Dataset")
    for value in given:
        if isinstance(value, kind):
            first = next(iter(value.data_vars), "name")
            func = "func, " if verb in _WITH_FUNCTION else ""
            raise TypeError(
                f"{verb}: a Dataset has several arrays; pass one of them, ds[{first!r}], or write "
                f"ds.map(lambda one: pool.{verb}({func}one, ...)) for each of them"
            )


_WITH_FUNCTION = {"map_blocks", "map_overlap", "block_reduce", "parallel_map", "apply_along_axis"}


def row_labels(verb: str, value: Any, axis: Any) -> tuple[RowLabels | None, Any]:
    """Return the labels of the rows of an argument, None without, and the axis as a number."""
    if isinstance(value, np.ndarray):
        return None, axis
    refuse_dataset(verb, (value,))
    if isinstance(value, types_of("xarray", "DataArray")):
        if not isinstance(axis, int | np.integer):
            axis = _number(verb, "axis", axis, value.dims)
    elif not isinstance(value, types_of("pandas", "DataFrame", "Series")):
        return None, axis
    # Why the conditions: the verb refuses any other axis.
    known = isinstance(axis, int | np.integer) and -value.ndim <= axis < value.ndim
    return (RowLabels(value, int(axis) % value.ndim) if known else None), axis


def with_axis_names(kind: type[C]) -> type[C]:
    """Let the reductions of a class take and return arrays whose axes have names."""
    for name in dir(kind):
        method = getattr(kind, name)
        parameters = getattr(getattr(unwrap(method), "__code__", None), "co_varnames", ())
        if not name.startswith("_") and parameters[1:2] == ("array",):
            setattr(kind, name, _by_names(method))
    return kind


def _by_names(method: Callable[..., Any]) -> Callable[..., Any]:
    verb, code = method.__name__, unwrap(method).__code__
    positional = code.co_varnames[2 : code.co_argcount]
    place = positional.index("axis") if "axis" in positional else None

    @wraps(method)
    def reduction(self: Any, array: Any, *args: Any, **kwargs: Any) -> Any:
        weights, inputs = kwargs.get("weights"), [array]
        if weights is not None and _same_dims(array, weights):
            # Why: weights with names belong to the elements in any order of the axes.
            inputs.append(weights)
        (values, *named), labels = read_labels(verb, inputs)
        if labels is None:
            return method(self, array, *args, **kwargs)
        if named:
            (kwargs["weights"],) = named
        if "chunks" in kwargs:
            kwargs["chunks"] = labels.numbered("chunks", kwargs["chunks"])
        if place is None:
            return method(self, values, *args, **kwargs)
        given = list(args)
        if len(given) > place:
            axis = given[place] = labels.axes("axis", given[place])
        else:
            axis = kwargs["axis"] = labels.axes("axis", kwargs.get("axis"))
        result = method(self, values, *given, **kwargs)
        leading = None
        if "q" in positional:
            name = "quantile" if "quantile" in verb else "percentile"
            leading = name, given[0] if given else kwargs["q"]
        return labels.reduced(result, axis, leading, kwargs.get("keepdims"))

    return reduction


def _same_dims(one: Any, other: Any) -> bool:
    return set(getattr(one, "dims", ())) == set(getattr(other, "dims", ()))


def _merged(verb: str, arrays: Sequence[Any]) -> Any:
    """Return the coordinates of all arrays; those that differ are left out."""
    found = [one.coords.to_dataset() for one in arrays]
    if len(found) == 1:
        return found[0]
    xarray = sys.modules["xarray"]
    try:
        xarray.align(*arrays, join="exact", copy=False)
        return xarray.merge(found, compat="minimal", join="exact", combine_attrs="override")
    except ValueError as error:
        raise ValueError(
            f"{verb}: the inputs have different labels; align them first with xarray.align: {error}"
        ) from None


def _dims_between(array: Any, dims: Names) -> Names:
    """Return the axes of an array as it is passed on: from the first of its own to the last."""
    first = min([dims.index(dim) for dim in array.dims], default=len(dims))
    return dims[first:]


def _by_position(verb: str, array: Any, dims: Names) -> Any:
    """Return the values, or the store, of a DataArray with these axes."""
    own = tuple([dim for dim in dims if dim in array.dims])
    array = array if own == array.dims else array.transpose(*own)
    if own != dims:
        if getattr(array.variable, "_in_memory", True) or array.chunks is not None:
            array = array.expand_dims([dim for dim in dims if dim not in own]).transpose(*dims)
        else:
            raise TypeError(
                f"{verb}: the lazy DataArray {array.name} lacks the axes between "
                f"{_spelled(dims)}; pass array.load(), or array.chunk()"
            )
    try:
        return wrap(array)
    except TypeError as error:
        raise TypeError(f"{verb}: {error}") from None


def _means(coords: Any, cuts: Mapping[Hashable, Axis]) -> Any:
    """Return the mean of each coordinate over the chunks, as ``coarsen`` of xarray."""
    xarray = sys.modules["xarray"]
    found = {}
    several = {name for name, one in coords.xindexes.items() if len(one.create_variables()) > 1}
    variable: Any
    for name, variable in coords.variables.items():
        if variable.dims:
            if variable.dtype.kind not in "biufmM" or not variable.size or name in several:
                continue
            variable = variable.to_base_variable()  # noqa: PLW2901 - an index has no mean
        for dim in variable.dims:
            cut = cuts[dim]
            spans = [slice(*cut.span(k)) for k in range(cut.count)]
            means = [variable.isel({dim: span}).mean(dim, keep_attrs=True) for span in spans]
            order = variable.dims
            variable = xarray.Variable.concat(means, dim).transpose(*order)  # noqa: PLW2901
        found[name] = variable
    return xarray.Dataset(coords=found)


def _numbered(verb: str, option: str, given: Any, dims: Sequence[Hashable]) -> Any:
    """Replace names that are keys of a dict by positions; return anything else as it is."""
    if not isinstance(given, Mapping):
        return given
    found = {_number(verb, option, key, dims): one for key, one in given.items()}
    if len(found) < len(given):
        raise ValueError(f"{verb}: {option}={given!r} names an axis twice")
    return found


def _number(verb: str, option: str, name: Any, dims: Sequence[Hashable]) -> Any:
    if name in dims:
        return dims.index(name)
    if isinstance(name, int | np.integer):
        return name
    raise ValueError(f"{verb}: {option}: there is no axis {name!r}; the axes are {_spelled(dims)}")


def _spelled(dims: Iterable[Hashable]) -> str:
    return ", ".join(map(repr, dims))


def _unused(names: Iterable[Hashable]) -> Iterator[Any]:
    taken = set(names)
    return (name for k in range(1 << 20) if (name := f"dim_{k}") not in taken)
