"""Compute one chunk: get its arguments, call the function, store the result in its window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic_ns, perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np

from shmpar.ipc.ledger import CURSOR, SINCE, Ledger
from shmpar.ipc.tickets import Tickets
from shmpar.plan import (
    Announcement,
    Blocks,
    Function,
    InBlocks,
    Items,
    PerItem,
    Plan,
    ResultError,
    Rows,
)
from shmpar.worker.arguments import Getter, getters, special_arguments
from shmpar.worker.context import exit_if_forked
from shmpar.worker.prefault import prefaulter
from shmpar.worker.store import announce, explain_overlap_shape, scalar_target, storer
from shmpar.worker.verify import with_checksums

Array = np.ndarray[Any, Any]


class Abandoned(Exception):
    """The run ended while this worker waited for its outputs."""


class Channel(Protocol):
    """How a worker talks to the run.

    Attributes
    ----------
    interruptible : bool
        Whether a KeyboardInterrupt is the user's, and ends the work; else it is the function's.
    """

    interruptible: bool

    def enough(self) -> bool:
        """Whether to return between two claims."""
        ...

    def allocate(self, announcement: Announcement) -> tuple[Sequence[Array], bool]:
        """Say what the outputs must be; wait for them, and for whether they are is_tuple.

        They are what the first announcement said. Raises `Abandoned` if the run is over.
        """
        ...

    def failed(self, chunk: int, error: BaseException, shape: tuple[int, ...] | None) -> None:
        """Report a chunk that failed, with the shape of its block."""
        ...

    def values(self, values: Sequence[tuple[int, Any]]) -> None:
        """Hand over the results of a run that collects objects, as (chunk, result)."""
        ...

    def finished(self, generation: int, first: int, last: int) -> None:
        """Say that the tickets ``first <= t < last`` are done, or have failed."""
        ...

    def flush(self) -> None:
        """Return once nothing that was handed over could be lost with this worker."""
        ...


@dataclass(eq=False, slots=True)
class Assignment:
    """A plan bound to the memory of one process, with the tickets of one generation.

    Attributes
    ----------
    plan, function
        What to do.
    arrays : sequence of ndarray
        The inputs, read-only.
    outputs : sequence of ndarray or None
        Writable; None until the first result has said what they must be.
    is_tuple : bool or None
        Whether the function returns a tuple; None while the outputs are unknown.
    tickets : Tickets
        Indices into `todo`.
    todo : sequence of int or None
        Numbers of the chunks of this generation; None: all of the grid.
    generation : int
        Which one it is.
    ledger : Ledger
        Where it says what it holds and has done.
    worker : int
        Its number.
    slot : memoryview
        Its slot in the ledger.
    workers : int
        How many share the tickets.
    claimed : int
        Tickets that this worker has had.
    handed : int or None
        Tickets that all had had when this worker stopped the counter; None while it has not.
    reports : bool
        Whether the run wants to hear of each claim that is finished.
    sums : ndarray of uint32 or None
        Where the checksum of each chunk's output goes.
    most : int or None
        Tickets that this worker may have; None: as many as there are.
    origin : float
        When the run began, by :func:`time.perf_counter`, which is one clock for all processes.
    joined : float
        When this worker was given the plan, likewise; 0: with its first claim.
    waited : float
        Seconds that it has waited for outputs.
    """

    plan: Plan
    function: Function
    arrays: Sequence[Array]
    outputs: Sequence[Array] | None
    is_tuple: bool | None
    tickets: Tickets
    todo: Sequence[int] | None
    generation: int
    ledger: Ledger
    worker: int
    slot: memoryview
    workers: int
    claimed: int = 0
    handed: int | None = None
    reports: bool = False
    sums: Array | None = None
    most: int | None = None
    origin: float = 0.0
    joined: float = 0.0
    waited: float = 0.0

    @property
    def count(self) -> int:
        """Tickets of this generation."""
        return self.plan.chunks if self.todo is None else len(self.todo)


class ApplyAlongAxis:
    """Calls a function on each line of a block.

    Attributes
    ----------
    func1d : callable
        The user's function of a one-dimensional array.
    axis : int
        The axis along which the lines lie.
    args, kwargs : tuple, dict
        What else it gets.
    """

    __slots__ = ("args", "axis", "func1d", "kwargs")

    def __init__(
        self,
        func1d: Callable[..., Any],
        axis: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.func1d = func1d
        self.axis = axis
        self.args = args
        self.kwargs = kwargs

    def __repr__(self) -> str:
        return f"ApplyAlongAxis({self.func1d!r}, axis={self.axis})"

    def __call__(self, block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The results of the block's lines."""
        return np.apply_along_axis(self.func1d, self.axis, block, *self.args, **self.kwargs)


Compute = Callable[[int], None]
Store = Callable[[int, Any], None]
Stretch = Callable[[int, int], None]

_LITTLE = 4 * 1024  # bytes of an output: to copy these takes less than to get ready to write there


class _Sink(NamedTuple):
    """The outputs of a run, once they are known, and the functions that fill them.

    Attributes
    ----------
    compute : callable
        Calls the function for a chunk and stores its result.
    store : callable
        Stores the result of a chunk.
    stretch : callable or None
        As :attr:`Chunks.stretch`.
    prefault : callable or None
        Maps the windows of chunks before they are written.
    """

    compute: Compute
    store: Store
    stretch: Stretch | None = None
    prefault: Callable[[Sequence[int]], None] | None = None


class Chunks:
    """Computes the chunks of an assignment.

    While the outputs are unknown, it computes its first chunk, announces which outputs the result
    needs, waits for them, and stores the result: no chunk is computed twice, none on made-up data.

    Invariant: no object but its maker refers to it, so that a worker drops the inputs with it.

    Attributes
    ----------
    assignment : Assignment
        The work.
    """

    __slots__ = ("_call", "_channel", "_getters", "_sink", "assignment")

    def __init__(self, assignment: Assignment, channel: Channel) -> None:
        self.assignment, self._channel = assignment, channel
        self._getters = getters(assignment.plan, assignment.arrays, assignment.function.values)
        self._call = _caller(assignment, self._getters)
        self._sink: _Sink | None = None
        if assignment.plan.returns_objects:
            self._sink = _collected(self._call, channel)
        elif assignment.outputs is not None:
            self._sink = self._into(assignment.outputs, bool(assignment.is_tuple))

    def claimed(self, chunks: Sequence[int]) -> Compute:
        """Return the function that computes a chunk of a claim; map the claim's windows.

        It is another function once the outputs are known. Raises `Abandoned` if the run ended
        meanwhile.
        """
        sink = self._sink
        if sink is None:
            return self._first
        if sink.prefault is not None:
            sink.prefault(chunks)
        return sink.compute

    @property
    def stretch(self) -> Stretch | None:
        """Function that computes the chunks of consecutive tickets, given the first and the end.

        It moves the cursor ahead of each. Where it exists it does the work of :meth:`claimed` in
        less time.
        """
        return None if self._sink is None else self._sink.stretch

    def _first(self, chunk: int) -> None:
        if self._sink is not None:  # an earlier chunk of the same claim has announced the outputs
            self._sink.compute(chunk)
            return
        assignment = self.assignment
        value = self._call(chunk)
        exit_if_forked()
        announcement = announce(assignment.plan, chunk, value)
        began = perf_counter()
        # Why 0: a chunk that waits for the parent does not use up its task_timeout.
        assignment.slot[SINCE] = 0
        outputs, is_tuple = self._channel.allocate(announcement)
        assignment.slot[SINCE] = monotonic_ns()
        assignment.waited += perf_counter() - began
        assignment.outputs, assignment.is_tuple = outputs, is_tuple
        self._sink = sink = self._into(outputs, is_tuple)
        if sink.prefault is not None:
            sink.prefault((chunk,))
        with_checksums(assignment, outputs, lambda chunk: sink.store(chunk, value))(chunk)

    def _into(self, outputs: Sequence[Array], is_tuple: bool) -> _Sink:
        assignment, call, gets = self.assignment, self._call, self._getters
        plan = assignment.plan
        store, stretch = storer(plan, outputs, is_tuple), None
        if plan.pass_out:
            compute = _in_place(assignment, outputs, gets)
        elif _writes_by_itself(assignment, outputs):
            compute = _ufunc(_in_place(assignment, outputs, gets), store, call)
        elif (single := _single(assignment, store, gets)) is not None:
            compute, stretch = single, _stretch(assignment, outputs, store)
        else:
            compute = _called(call, store)
        compute = with_checksums(assignment, outputs, compute)
        return _Sink(compute, store, stretch, prefaulter(plan, outputs))


def _called(call: Callable[[int], Any], store: Store) -> Compute:
    return lambda chunk: store(chunk, call(chunk))


def _single(assignment: Assignment, store: Store, gets: Sequence[Getter]) -> Compute | None:
    """The user's function where one argument is all that it gets, with the fewest calls."""
    plan, user = assignment.plan, assignment.function.call
    if assignment.function.keywords or plan.special_parameters or len(plan.arguments) != 1:
        return None
    if plan.halo is None and plan.arguments[0] == Blocks(0, tuple(range(plan.grid.ndim))):
        array, cut = assignment.arrays[0], plan.grid.cutter()
        return lambda chunk: store(chunk, user(array[cut(chunk)]))
    if plan.halo is not None and plan.trim:
        return None
    (argument,) = gets
    return lambda chunk: store(chunk, user(argument(chunk)))


def _stretch(assignment: Assignment, outputs: Sequence[Array], store: Store) -> Stretch | None:
    """Return a loop over rows with scalar results; it calls the user's function alone."""
    plan, slot, user = assignment.plan, assignment.slot, assignment.function.call
    if plan.timed or assignment.sums is not None or assignment.todo is not None:
        return None
    match plan.arguments[0]:
        case Rows(array):
            rows: Any = assignment.arrays[array]
        case Items(value):
            rows = assignment.function.values[value]
        case _:
            return None
    where = scalar_target(plan, outputs, bool(assignment.is_tuple))
    if where is None:
        return None
    flat, exact = where

    def stretch(first: int, last: int) -> None:
        for chunk in range(first, last):
            slot[CURSOR] = chunk
            value = user(rows[chunk])
            if type(value) in exact:
                try:
                    flat[chunk] = value
                    continue
                except OverflowError:  # a Python int
                    pass
            store(chunk, value)

    return stretch


def _collected(call: Callable[[int], Any], channel: Channel) -> _Sink:
    def store(chunk: int, value: Any) -> None:
        channel.values([(chunk, value)])

    def compute(chunk: int) -> None:
        value = call(chunk)
        exit_if_forked()
        store(chunk, value)

    return _Sink(compute, store)


def _all(gets: Sequence[Getter]) -> Getter:
    return lambda chunk: [get(chunk) for get in gets]


def _caller(assignment: Assignment, gets: Sequence[Getter]) -> Callable[[int], Any]:
    """The function of a chunk's number that calls the user's function."""
    plan, function = assignment.plan, assignment.function
    call, keywords, arguments = function.call, function.keywords, _all(gets)
    more = special_arguments(plan, assignment.arrays)
    trim = _trimmer(plan)
    if more is not None:
        return lambda chunk: trim(chunk, call(*arguments(chunk), **keywords, **more(chunk)))
    if plan.halo is not None and plan.trim:
        return lambda chunk: trim(chunk, call(*arguments(chunk), **keywords))
    if keywords:
        return lambda chunk: call(*arguments(chunk), **keywords)
    return lambda chunk: call(*arguments(chunk))


def _trimmer(plan: Plan) -> Callable[[int, Any], Any]:
    """The function that cuts the halo off a result."""
    if plan.halo is None or not plan.trim:
        return lambda _chunk, value: value
    halo, grid = plan.halo, plan.grid

    def trim(chunk: int, value: Any) -> Any:
        core, window = halo.trim(grid, chunk), halo.window(grid, chunk)
        due = tuple(stop - start for start, stop in window)

        def trimmed(part: Any) -> Any:
            if part is None:  # what is due is said where results are looked at
                return None
            array = np.asarray(part)
            if array.shape != due:
                raise ResultError(explain_overlap_shape(plan, chunk, array.shape))
            return array[core]

        return tuple(map(trimmed, value)) if isinstance(value, tuple) else trimmed(value)

    return trim


def _in_place(assignment: Assignment, outputs: Sequence[Array], gets: Sequence[Getter]) -> Compute:
    """For functions that write into their window themselves, as a ufunc does."""
    plan, function = assignment.plan, assignment.function
    call, keywords, arguments = function.call, function.keywords, _all(gets)
    more = special_arguments(plan, assignment.arrays) or (lambda _chunk: {})
    window_of = plan.placement.windows(plan.grid, outputs[0].shape)

    def compute(chunk: int) -> None:
        where = (*window_of(chunk), ...)
        windows = tuple([output[where] for output in outputs])
        out = windows if assignment.is_tuple else windows[0]
        call(*arguments(chunk), out=out, **keywords, **more(chunk))

    return compute


def _writes_by_itself(assignment: Assignment, outputs: Sequence[Array]) -> bool:
    """Whether the function is a ufunc whose results are just what its windows take.

    Its results have the shape that its blocks broadcast to: the chunk's, or the row's. A window
    of any other shape is left to the checks of what a function returns.
    """
    plan, function = assignment.plan, assignment.function
    call = function.call
    if not isinstance(call, np.ufunc) or function.keywords or plan.halo is not None:
        return False
    if call.nout != len(outputs) or (call.nout > 1 and not assignment.is_tuple):
        return False
    if outputs[0].nbytes <= _LITTLE:
        return False
    if isinstance(plan.placement, PerItem):
        rows = [assignment.arrays[one.array] for one in plan.arguments if isinstance(one, Rows)]
        if len(rows) < len(plan.arguments):
            return False
        shape = np.broadcast_shapes(*[array.shape[1:] for array in rows])
        return shape != () and all(output.shape[1:] == shape for output in outputs)
    placed = plan.placement
    return isinstance(placed, InBlocks) and all(
        placed.follows(plan.grid, output.shape) for output in outputs
    )


def _ufunc(compute: Compute, store: Store, call: Callable[[int], Any]) -> Compute:
    """Write directly; what does not cast is told as of any other function."""

    def direct(chunk: int) -> None:
        try:
            compute(chunk)
        except TypeError:
            store(chunk, call(chunk))

    return direct


def block_shape(assignment: Assignment, chunk: int) -> tuple[int, ...] | None:
    """Shape of the first block that the function gets for a chunk, for messages."""
    gets = getters(assignment.plan, assignment.arrays, assignment.function.values)
    try:
        blocks = (get(chunk) for get in gets)
        return next((one.shape for one in blocks if isinstance(one, np.ndarray)), None)
    except Exception:  # noqa: BLE001 - an iterable of the user may raise anything; this is a message
        return None
