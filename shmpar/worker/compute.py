"""Compute a chunk: get its arguments, call the function, store the result in its window.

Arguments are views of the inputs, and special parameters. Work that does not depend on the chunk
is done once per plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from operator import index
from sys import maxsize
from time import monotonic_ns, perf_counter
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from shmpar.errors import SegmentFull
from shmpar.grid import Axis, Grid, Halo
from shmpar.ipc.ledger import CURSOR, SINCE, Ledger
from shmpar.ipc.tickets import Tickets
from shmpar.memory.copying import is_masked
from shmpar.plan import (
    SMALLER_WINDOW,
    Announcement,
    Blocks,
    Function,
    InBlocks,
    Items,
    PerItem,
    Plan,
    ResultError,
    ResultsFile,
    Rows,
)
from shmpar.stores.store import OpenStores, Store, StoreRows
from shmpar.worker.environment import exit_if_forked, revoke
from shmpar.worker.store import (
    Reserve,
    ScalarTarget,
    StoreResult,
    Use,
    announce,
    band_of_pages,
    reserver,
    storer,
    trimmed,
)
from shmpar.worker.verify import with_checksums

T = TypeVar("T")
Array = np.ndarray[Any, Any]
Axes = tuple[int | None, ...]
Getter = Callable[[int], Any]
Compute = Callable[[int], None]
ComputeRange = Callable[[int, int], None]
Info = dict[int | None, dict[str, Any]]

_READ_SECONDS = 0.1  # Why: reading takes a small part of the time of slower rows.
_PAGES_SECONDS = 0.01  # Why: making pages takes a small part of the time of slower chunks.
_SMALL_OUTPUT = 4 * 1024  # Why: copying fewer bytes is faster than the set-up of direct writes.


def bind_inputs(
    plan: Plan, inputs: Sequence[Any], bind: Callable[[Any], Any], stores: OpenStores
) -> list[Any]:
    """Return the inputs of a run in the memory of this worker; its stores are not open yet.

    Parameters
    ----------
    bind : callable
        Returns the array of an input in memory, or a part, protected from writes.
    stores : OpenStores
        Those of the worker.
    """
    rows = {one.array for one in plan.arguments if isinstance(one, Rows)}
    return [
        (StoreRows(stores.bind(one)) if number in rows else stores.bind(one))
        if isinstance(one, Store)
        else bind(one)
        for number, one in enumerate(inputs)
    ]


class Abandoned(Exception):
    """The run ended while this worker waited for its outputs."""


class Channel(Protocol):
    """Connection of a worker to the run.

    Attributes
    ----------
    interruptible : bool
        A KeyboardInterrupt comes from the user and ends the work. Otherwise it is an exception of
        the function.
    """

    interruptible: bool

    def enough(self) -> bool:
        """Return whether the worker must return before its next claim."""

    def allocate(self, announcement: Announcement) -> tuple[Sequence[Array], bool]:
        """Announce the outputs and wait for them; return them and whether they form a tuple.

        The first announcement of any worker decides. Raises `Abandoned` if the run is over.
        """

    def reject(self, error: BaseException) -> None:
        """Report that the run cannot go on."""

    def failed(self, chunk: int, error: BaseException, shape: tuple[int, ...] | None) -> None:
        """Report a chunk that failed, with the shape of its block."""

    def values(self, values: Sequence[tuple[int, Any]]) -> None:
        """Take results of a run that returns objects, as (chunk, result)."""

    def finished(self, generation: int, first: int, last: int) -> None:
        """Report that the tickets ``first <= t < last`` are done or failed."""

    def flush(self) -> None:
        """Send all results that were taken, so that none is lost if this worker dies."""


@dataclass(eq=False, repr=False, slots=True)
class Assignment:
    """A plan in the memory of one process, with the tickets of one generation.

    Attributes
    ----------
    plan, function
        The plan of the call, and the user's function.
    arrays : sequence of (ndarray, Store, StoreRows or Part)
        The inputs, read-only.
    outputs : sequence of ndarray or None
        The outputs, writable; None until the first result determines their shapes and dtypes.
    is_tuple : bool or None
        The function returns a tuple; None while the outputs are not known.
    tickets : Tickets
        The counter of the generation. A ticket is an index into `todo`.
    todo : sequence of int or None
        The chunks of the generation; None for all chunks of the grid.
    generation : int
        Number of the generation.
    ledger : Ledger
        The state of each chunk.
    worker : int
        Number of this worker.
    slot : memoryview
        The slot of this worker in the ledger.
    workers : int
        Number of workers that share the tickets.
    reports : bool
        The worker reports each claim that it has finished.
    sums : ndarray of uint32 or None
        The checksum of each chunk's output.
    origin : float
        When the run began, by :func:`time.perf_counter`, which is one clock for all processes.
    received : float
        When this worker received the plan, by the same clock; 0 stands for its first claim.
    max_tickets : int
        Number of tickets that this worker may claim.
    claimed : int
        Number of tickets that this worker has claimed.
    handed_out : int or None
        Number of tickets that all workers had claimed when this worker stopped the counter; None
        if it did not stop the counter.
    left : list of int
        Chunks of its tickets that this worker has not begun, since others took long.
    waited : float
        Seconds that this worker has waited for outputs.
    targets : sequence of (ndarray, set of type)
        The outputs that take one number per chunk.
    written : dict of int to ndarray
        The values of the latest chunk in each output outside memory, by its number, if chunks
        have checksums.
    """

    plan: Plan
    function: Function
    arrays: Sequence[Any]
    outputs: Sequence[Array] | None
    is_tuple: bool | None
    tickets: Tickets
    todo: Sequence[int] | None
    generation: int
    ledger: Ledger
    worker: int
    slot: memoryview
    workers: int
    reports: bool = False
    sums: Array | None = None
    origin: float = 0.0
    received: float = 0.0
    max_tickets: int = maxsize
    claimed: int = 0
    handed_out: int | None = None
    left: list[int] = field(default_factory=list)
    waited: float = 0.0
    targets: Sequence[ScalarTarget] = ()
    written: dict[int, Array] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of tickets of this generation."""
        return self.plan.chunks if self.todo is None else len(self.todo)

    def abandon(self) -> None:
        """Make every write fail, in a child that the function has forked."""
        self.slot.release()
        flat = [target[0] for target in self.targets]
        sums = () if self.sums is None else (self.sums,)
        ledger = (self.ledger.status, *self.ledger.times)
        for array in (*(self.outputs or ()), *flat, *sums, *ledger):
            if isinstance(array, np.ndarray):  # Why: no child writes to an output outside memory
                revoke(array)

    def chunk(self, ticket: int) -> int:
        """Return the chunk of a ticket."""
        return ticket if self.todo is None else self.todo[ticket]

    def chunks(self, first: int, last: int) -> Any:
        """Return the chunks of ``first <= t < last``, as an index of the ledger's arrays."""
        if last == first + 1:
            return self.chunk(first)
        return slice(first, last) if self.todo is None else list(self.todo[first:last])

    def getters(self) -> list[Getter]:
        """Return for each argument the function that returns the argument for a chunk.

        Notes
        -----
        Cost of a call: a view; a copy only of a window that a boundary pads.
        """
        plan, arrays, values = self.plan, self.arrays, self.function.values
        return [_getter(plan, argument, arrays, values) for argument in plan.arguments]

    def block_shape(self, chunk: int) -> tuple[int, ...] | None:
        """Return the shape of the first block of a chunk, for messages; None without a block."""
        if any(not isinstance(array, np.ndarray) for array in self.arrays):
            return self._shape_in_plan(chunk)  # Why: reading a store again may fail, or take long.
        blocks = (get(chunk) for get in self.getters())
        return next((one.shape for one in blocks if isinstance(one, np.ndarray)), None)

    def _shape_in_plan(self, chunk: int) -> tuple[int, ...] | None:
        for argument in self.plan.arguments:
            if isinstance(argument, Rows):
                return tuple(self.arrays[argument.array].shape[1:])
            if isinstance(argument, Blocks):
                info = _block_info(self.plan, self.arrays, chunk)
                number = self.plan.arguments.index(argument)
                return tuple([stop - start for start, stop in info[number]["array-location"]])
        return None


class ApplyAlongAxis:
    """Function of a block that applies the user's function to each line of the block.

    Attributes
    ----------
    func1d : callable
        The user's function of a one-dimensional array.
    axis : int
        The axis of the lines.
    args, kwargs : tuple, dict
        Further arguments of the user's function.
    """

    def __init__(
        self, func1d: Callable[..., Any], axis: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.func1d, self.axis, self.args, self.kwargs = func1d, axis, args, kwargs

    def __call__(self, block: Array) -> Array:
        """Return the results of the block's lines."""
        return np.apply_along_axis(self._checked, self.axis, block)

    def _checked(self, line: Array) -> Any:
        value = self.func1d(line, *self.args, **self.kwargs)
        exit_if_forked()  # Why here: else the child would call the function on all further lines.
        # Why here: NumPy would write the results of the lines into a plain array.
        if type(value) is not np.ndarray and is_masked(value):
            raise ResultError(
                "the function returned a masked array, whose mask would be lost; return "
                "values.filled(...), and take np.ma.getmaskarray(values) by a second call"
            )
        return value


class Band(NamedTuple):
    """Consecutive chunks for a claim, if they are quick.

    Attributes
    ----------
    chunks : int
        Their number.
    seconds : float
        They are quick if they take no longer together.
    """

    chunks: int
    seconds: float


class Chunks:
    """The chunks of an assignment, and the functions that compute them.

    While the outputs are not known, the worker computes its first chunk, announces the outputs that
    the result needs, waits for them, and stores the result. So no chunk is computed twice, and none
    is computed on made-up data.

    Invariant: only the object's maker refers to it, so that a worker drops the inputs with it.

    Attributes
    ----------
    compute_range : callable or None
        Computes the chunks of consecutive tickets, given the first ticket and the end, and moves
        the cursor ahead of each chunk. It replaces the function that :meth:`begin_claim` returns,
        and is faster. Most plans have none.
    bands : list of Band
        Chunks that workers should not take in turn: each of them would read the same rows of a
        store, or make the same huge pages of an output.
    """

    def __init__(self, assignment: Assignment, channel: Channel) -> None:
        self._assignment, self._channel = assignment, channel
        self._getters = assignment.getters()
        self._compute: Compute | None = None
        self._store: StoreResult | None = None
        self._reserve: Reserve | None = None
        self.compute_range: ComputeRange | None = None
        inputs: Sequence[Any] = assignment.arrays
        rows = [one.band for one in inputs if isinstance(one, StoreRows)]
        self.bands = [Band(band, _READ_SECONDS) for band in rows]
        if assignment.plan.returns_objects:
            store = _object_store(channel, assignment.plan.results_file)
            self._compute = _caller(assignment, self._getters, store)

    def begin_claim(self, chunks: Sequence[int]) -> Compute:
        """Return the function that computes a chunk of a claim; reserve its windows.

        The function raises `Abandoned` if the run ends while the worker waits for outputs; this
        method does so if there is no room for the windows any more.
        """
        if self._compute is None:
            if self._assignment.outputs is None:
                return self._compute_first
            self._compute = self._writer(self._assignment.outputs)
        self._reserve_windows(chunks)
        return self._compute

    def _reserve_windows(self, chunks: Sequence[int]) -> None:
        if self._reserve is not None:
            try:
                self._reserve(chunks)
            except SegmentFull as error:
                self._channel.reject(error)
                raise Abandoned from error

    def _compute_first(self, chunk: int) -> None:
        assignment = self._assignment
        if assignment.outputs is not None:  # An earlier chunk of the same claim announced them.
            self.begin_claim((chunk,))(chunk)
            return
        value = _caller(assignment, self._getters, lambda _chunk, value: value)(chunk)
        exit_if_forked()
        announcement = announce(assignment.plan, chunk, value)
        began = perf_counter()
        # Why 0: a chunk that waits for the parent does not use up its task_timeout.
        assignment.slot[SINCE] = 0
        outputs, is_tuple = self._channel.allocate(announcement)
        assignment.outputs, assignment.is_tuple = outputs, is_tuple
        assignment.slot[SINCE] = monotonic_ns()
        assignment.waited += perf_counter() - began
        store = self._open_outputs(outputs)
        self._reserve_windows((chunk,))
        # Why not _writer(): a plan of a single chunk needs no function for further chunks.
        with_checksums(assignment, outputs, lambda chunk: store(chunk, value))(chunk)

    def _open_outputs(self, outputs: Sequence[Array]) -> StoreResult:
        """Return the function that stores a result in these outputs; reserve their memory."""
        if self._store is None:
            assignment = self._assignment
            plan, share = assignment.plan, assignment.worker / assignment.workers
            kept = None if assignment.sums is None else assignment.written
            is_tuple = bool(assignment.is_tuple)
            self._store, assignment.targets = storer(plan, outputs, is_tuple, kept)
            self._reserve = reserver(plan, outputs, share)
            self.bands.append(Band(band_of_pages(plan, outputs), _PAGES_SECONDS))
        return self._store

    def _writer(self, outputs: Sequence[Array]) -> Compute:
        """Return the function that computes a chunk and writes it to these outputs."""
        assignment, gets, store = self._assignment, self._getters, self._open_outputs(outputs)
        if assignment.plan.pass_out:
            compute = _caller(assignment, gets, _ignore, outputs)
        else:
            compute = _caller(assignment, gets, store)
            if _writes_directly(assignment, outputs):
                compute = _either(_caller(assignment, gets, _ignore, outputs), compute)
            else:
                self.compute_range = _range_computer(assignment, store)
        return with_checksums(assignment, outputs, compute)


def _ignore(_chunk: int, _value: Any) -> None:
    """Ignore a return value: the function has written its result to ``out``."""


def _object_store(channel: Channel, file: ResultsFile | None) -> StoreResult:
    def store(chunk: int, value: Any) -> None:
        exit_if_forked()
        channel.values([(chunk, value)])

    if file is None:
        return store
    from shmpar.worker.results import append  # Why here: few runs have a ledger.

    def record(chunk: int, value: Any) -> None:
        exit_if_forked()
        append(file, chunk, value)
        store(chunk, value)
        channel.flush()  # Why: a result that is recorded is not computed again.

    return record


def _caller(
    assignment: Assignment, gets: Sequence[Getter], use: Use, outputs: Sequence[Array] = ()
) -> Getter:
    """Return the function that calls the user's function for a chunk.

    Parameters
    ----------
    use : callable
        Gets the chunk and the value of the user's function. Its value is returned.
    outputs : sequence of ndarray
        Outputs that the user's function writes to; it gets its windows as ``out``.
    """
    plan, (call, keywords, _) = assignment.plan, assignment.function
    special = special_arguments(plan, assignment.arrays)
    if outputs:
        special["out"] = _windows_getter(plan, outputs, bool(assignment.is_tuple))
    elif plan.halo is not None and plan.trim:
        use = trimmed(plan, plan.halo, use)
    if list(special) == ["out"]:
        window = special["out"]  # Why: no dict per chunk, for functions that are fast.
        return lambda chunk: call(*[get(chunk) for get in gets], out=window(chunk), **keywords)
    if special:

        def compute(chunk: int) -> Any:
            more = {name: get(chunk) for name, get in special.items()}
            return use(chunk, call(*[get(chunk) for get in gets], **keywords, **more))

        return compute
    if keywords or len(gets) != 1:
        return lambda chunk: use(chunk, call(*[get(chunk) for get in gets], **keywords))
    (get,) = gets  # Why: one argument is the usual case, and this is the cheapest call of it.
    return lambda chunk: use(chunk, call(get(chunk)))


def _windows_getter(plan: Plan, outputs: Sequence[Array], is_tuple: bool) -> Getter:
    window_of = plan.placement.windows(plan.grid, outputs[0].shape)

    def get(chunk: int) -> Any:
        where = (*window_of(chunk), ...)
        windows = tuple([output[where] for output in outputs])
        return windows if is_tuple else windows[0]

    return get


def _range_computer(assignment: Assignment, store: StoreResult) -> ComputeRange | None:
    """Return the loop over chunks that turns a row or an item into a number, without calls."""
    plan, slot, (user, keywords, values) = assignment.plan, assignment.slot, assignment.function
    if plan.timed or plan.base or assignment.sums is not None or assignment.todo is not None:
        return None
    if keywords or plan.special_parameters or assignment.is_tuple or len(assignment.targets) != 1:
        return None
    match plan.arguments:
        case (Rows(number),):
            rows: Any = assignment.arrays[number]
        case (Items(number),):
            rows = values[number]
        case _:
            return None
    ((flat, exact),) = assignment.targets

    def compute_range(first: int, last: int) -> None:
        for chunk in range(first, last):
            slot[CURSOR] = chunk
            value = user(rows[chunk])
            if type(value) in exact:
                try:
                    flat[chunk] = value
                    continue
                except OverflowError:  # A Python int may not fit.
                    pass
            store(chunk, value)

    return compute_range


def _writes_directly(assignment: Assignment, outputs: Sequence[Array]) -> bool:
    """Return whether the function is a ufunc whose results have exactly the shapes of its windows.

    The results have the shape that the blocks broadcast to: the shape of the chunk or of the row.
    A window of any other shape needs the checks of a returned result.
    """
    plan, (call, keywords, _) = assignment.plan, assignment.function
    if not isinstance(call, np.ufunc) or call.signature or keywords or plan.halo is not None:
        return False
    if call.nout != len(outputs) or (call.nout > 1 and not assignment.is_tuple):
        return False
    memory = all(isinstance(output, np.ndarray) for output in outputs)
    if not memory or outputs[0].nbytes <= _SMALL_OUTPUT:
        return False
    placement = plan.placement
    if isinstance(placement, PerItem):
        rows = [assignment.arrays[one.array] for one in plan.arguments if isinstance(one, Rows)]
        try:
            shape = np.broadcast_shapes(*[array.shape[1:] for array in rows])
        except ValueError:  # Why: the call of each chunk raises it, and so fails its chunk alone.
            return False
        fits = len(rows) == len(plan.arguments) and shape != ()
        return fits and all(output.shape[1:] == shape for output in outputs)
    return (
        isinstance(placement, InBlocks)
        # Why: the result of constants alone is a scalar, which NumPy would broadcast.
        and any(isinstance(one, Blocks) for one in plan.arguments)
        and all(placement.follows(plan.grid, output.shape) for output in outputs)
    )


def _either(direct: Compute, checked: Compute) -> Compute:
    """Return a function that writes directly; a result that cannot be cast is checked instead."""

    def compute(chunk: int) -> None:
        try:
            direct(chunk)
        except TypeError:  # Why: the stores explain why a result does not fit.
            checked(chunk)

    return compute


# Arguments of the user's function


def _getter(plan: Plan, argument: Any, arrays: Sequence[Array], values: Sequence[Any]) -> Getter:
    match argument:
        case Items(value):
            return values[value].__getitem__  # type: ignore[no-any-return]
        case Rows(number):
            return arrays[number].__getitem__
        case Blocks(number, _, halo) if halo is not None:
            return _window_getter(plan.grid, argument, halo, arrays[number])
        case Blocks(number, axes):
            return _block_getter(plan.grid, arrays[number], axes)
        case _:  # Whole
            constant = values[argument.value]
            return lambda _chunk: constant


def _block_getter(grid: Grid, array: Array, axes: Axes) -> Getter:
    if axes == ():
        return lambda _chunk: array[...]  # Why: the function may change the shape of its view
    if axes == tuple(range(grid.ndim)):
        cut = grid.cutter()
        return lambda chunk: array[cut(chunk)]

    return lambda chunk: array[_select(axes, grid.core(chunk), slice(None))]


def _window_getter(grid: Grid, argument: Blocks, halo: Halo, array: Array) -> Getter:
    """Return the getter of the block of an array with its halo."""
    own_grid, number = _own_grid(grid, argument, array.shape)

    def window(chunk: int) -> Array:
        try:
            return halo.gather(array, own_grid, number(chunk))
        except MemoryError:
            bounds = halo.window(own_grid, number(chunk))
            shape = tuple([stop - start for start, stop in bounds])
            raise ResultError(
                f"with its halo of depth {halo.depth} it makes a window of shape {shape}, which "
                f"takes {prod(shape) * array.itemsize:,} bytes, more than this worker has left; "
                f"{SMALLER_WINDOW}"
            ) from None

    return window


def _own_grid(
    grid: Grid, argument: Blocks, shape: Sequence[int]
) -> tuple[Grid, Callable[[int], int]]:
    """Return the grid of an array, and the function from a chunk of the plan to its chunk there.

    An axis that is not cut is one chunk.
    """
    axes = argument.axes
    if axes == tuple(range(grid.ndim)):
        return grid, index
    cuts = zip(_select(axes, grid.axes, None), shape, strict=True)
    own = Grid(tuple(Axis.regular(n, max(1, n)) if cut is None else cut for cut, n in cuts))
    return own, lambda chunk: own.number(_select(axes, grid.index(chunk), 0))


def special_arguments(plan: Plan, arrays: Sequence[Array]) -> dict[str, Getter]:
    """Return the functions for those of ``block_id``, ``block_info`` and ``rng`` that are passed.

    The values follow from the plan alone: a function must not see which chunk was the first.
    """
    if not plan.special_parameters:
        return {}
    random = np.random
    getters: dict[str, Getter] = {
        "block_id": plan.grid.index,
        "block_info": lambda chunk: _block_info(plan, arrays, chunk),
        "rng": lambda chunk: random.default_rng(random.SeedSequence(plan.seed, spawn_key=(chunk,))),
    }
    return {name: get for name, get in getters.items() if name in plan.special_parameters}


def _block_info(plan: Plan, arrays: Sequence[Array], chunk: int) -> Info:
    """Return the dictionary that Dask's ``map_blocks`` passes under this name."""
    info: Info = {}
    grid, index = plan.grid, plan.grid.index(chunk)
    core = [(part.start, part.stop) for part in grid.core(chunk)]
    for position, argument in enumerate(plan.arguments):
        if isinstance(argument, Blocks | Rows):
            array = arrays[argument.array]
            shape = array.shape
            if isinstance(argument, Blocks):
                axes = argument.axes
            else:
                rows, *others = shape
                shape = (*others[: argument.axis], rows, *others[argument.axis :])
                axes = tuple([0 if k == argument.axis else None for k in range(len(shape))])
            cuts = zip(_select(axes, core, None), shape, strict=True)
            where = [(0, n) if cut is None else cut for cut, n in cuts]
            if isinstance(argument, Blocks) and argument.halo is not None:
                # A window that is padded begins below 0 or ends beyond the array.
                own_grid, number = _own_grid(grid, argument, array.shape)
                where = list(argument.halo.window(own_grid, number(chunk)))
            info[position] = {
                "shape": shape,
                "num-chunks": _select(axes, grid.numblocks, 1),
                "chunk-location": _select(axes, index, 0),
                "array-location": where,
                "dtype": array.dtype,
            }
    info[None] = {
        "shape": grid.shape,
        "num-chunks": grid.numblocks,
        "chunk-location": index,
        "array-location": core,
        "chunk-shape": tuple(stop - start for start, stop in core),
        "dtype": plan.dtypes[0] if plan.dtypes else None,
    }
    return info


def _select(axes: Axes, values: Sequence[T], uncut: T) -> tuple[T, ...]:
    """Return the value of the grid's axis for each axis, and `uncut` for an axis without one."""
    return tuple([uncut if axis is None else values[axis] for axis in axes])
