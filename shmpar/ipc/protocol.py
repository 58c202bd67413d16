"""Messages between a parent and its worker processes, and the events of a run.

There is one vocabulary. A worker process sends an event as its message, the engine gives the same
record to the pool thread, and the scheduler reads it. On the wire an exception is a
:class:`PackedError` and an object that a function returned is a :class:`PackedValue`; the engine
replaces both by the values that they hold.
"""

# Why no annotations from __future__, here and where else records are: a record would compile the
# text of each of them, which delays the start of each worker.
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from shmpar.engines.engine import Exit
    from shmpar.stores.store import Store

Reference: TypeAlias = "tuple[int, int, tuple[int, ...], tuple[int, ...], Any] | Store"
"""Key of a segment, offset (bytes), shape, strides (bytes), dtype or its name; or a store."""


# Parts of messages


class PartReference(NamedTuple):
    """A part of a larger array: its memory, its first position there, the larger shape."""

    memory: Reference
    origin: tuple[int, ...]
    shape: tuple[int, ...]


Input: TypeAlias = "Reference | PartReference"
"""An input: where it lies in memory, or how it is opened."""

StoreTraffic: TypeAlias = tuple[int, int, float]
"""Bytes that were read from stores and written to stores, and the seconds that this took."""

NO_TRAFFIC: StoreTraffic = (0, 0, 0.0)


def add_traffic(one: StoreTraffic, other: StoreTraffic) -> StoreTraffic:
    """Return the sums of two records."""
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


class SegmentRecord(NamedTuple):
    """A segment whose descriptor comes with the message."""

    key: int
    size: int
    kind: str
    writable: bool
    private: bool
    reserved: bool = True


class LogLevels(NamedTuple):
    """The levels of the loggers of the parent.

    Attributes
    ----------
    disabled : int
        Level up to which :func:`logging.disable` has switched off all loggers.
    root : int
        Level of the root logger.
    levels : dict of str to int
        Levels of the other loggers that have any.
    """

    disabled: int = 0
    root: int = 30
    levels: Mapping[str, int] = {}


class Environment(NamedTuple):
    """The parent's state that a function may depend on; sent when it has changed.

    Attributes
    ----------
    directory : bytes or None
        Its working directory; None if that was removed.
    path : list of bytes or None
        Its ``sys.path``, as the names of files; None for workers with a path of their own.
    errors : dict
        NumPy's error handling.
    filters : list of bytes
        The warning filters, each pickled.
    variables : dict of bytes to (bytes or None)
        The environment variables that it has changed since the pool was made; None is deleted.
    error_call : bytes or None
        The pickled callback of ``np.seterrcall``, if an error state calls it.
    log_levels : LogLevels or None
        Levels of its loggers; None leaves the records to the handlers of the worker.
    """

    directory: bytes | None
    path: list[bytes] | None
    errors: dict[str, Any]
    filters: list[bytes]
    variables: dict[bytes, bytes | None]
    error_call: bytes | None = None
    log_levels: LogLevels | None = None


class PackedValue(NamedTuple):
    """An object of a worker: its pickle, and the segments that the pickle names."""

    body: bytes
    segments: list[SegmentRecord]


class PackedError(NamedTuple):
    """An exception of a worker: its pickle, None if it has none, and texts.

    Attributes
    ----------
    body : bytes or None
        Its pickle.
    text : str
        Its traceback.
    summary : str
        Its type and message.
    """

    body: bytes | None
    text: str
    summary: str


# Messages to a worker


class Work(NamedTuple):
    """A generation of a run, for all workers; the body of :class:`RunPlan`.

    Attributes
    ----------
    run, generation : int
        Numbers of the run and of the generation.
    todo : tuple of int or None
        Chunks of the generation; None is the whole grid.
    tickets : str
        Kind of the ticket counter, whose descriptor is the first of the message.
    origin : float
        When the run began, by the clock that all processes share.
    workers, chunks : int
        Size of the ledger.
    ledger : int
        Key of the ledger's segment.
    arrays : tuple of Input
        The inputs.
    outputs : tuple of Reference or None
        None if they are not known yet.
    is_tuple : bool or None
        Whether the function returns a tuple; None if that is not known yet.
    in_place : bool
        An output is an input.
    small_outputs : bool
        Outputs that are not known yet go into the ledger's spare memory if they fit.
    reports : bool
        Whether the worker reports each claim that it has finished.
    checksums : Reference or None
        Array for the checksum of each chunk's output.
    plan, function : bytes
        The pickled plan, and the payload of the function.
    stateless : bool
        Whether the function can be reused for an equal payload.
    held : tuple of int
        Keys of the payload's segments, in its order; ~key for a private one.
    """

    run: int
    generation: int
    todo: tuple[int, ...] | None
    tickets: str
    origin: float
    workers: int
    chunks: int
    ledger: int
    arrays: tuple[Input, ...]
    outputs: tuple[Reference, ...] | None
    is_tuple: bool | None
    in_place: bool
    small_outputs: bool
    reports: bool
    checksums: "Reference | None"
    plan: bytes
    function: bytes
    stateless: bool
    held: tuple[int, ...]


class RunPlan(NamedTuple):
    """Work on a generation; the body has the fields of :class:`Work`, pickled for all workers."""

    body: bytes
    environment: Environment | None
    segments: list[SegmentRecord]


class UseOutputs(NamedTuple):
    """Write to these outputs."""

    run: int
    outputs: tuple[Reference, ...]
    is_tuple: bool
    segments: list[SegmentRecord]


class AbandonRun(NamedTuple):
    """Stop waiting for outputs: the run is over."""

    run: int


class RunCall(NamedTuple):
    """Make one submitted call.

    Attributes
    ----------
    call : int
        Its number.
    function : bytes
        The payload of a stateless function; then the other payload is that of plain arguments.
    payload : bytes
        The payload of the function with its arguments.
    more : tuple
        Further arguments.
    ticket : int
        The number that the worker claims from its counter of calls when it begins the call. If the
        worker gets another number, the call was withdrawn.
    held : tuple of int
        Keys of the payload's segments, in its order; ~key for private ones.
    """

    call: int
    function: bytes
    payload: bytes
    more: tuple[Any, ...]
    ticket: int
    held: tuple[int, ...]
    environment: Environment | None
    segments: list[SegmentRecord]


class CountCalls(NamedTuple):
    """Claim the tickets of calls from the counter of this kind whose descriptor comes along."""

    kind: str


class Initialize(NamedTuple):
    """Call the pool's initializer."""

    payload: bytes
    held: tuple[int, ...]
    segments: list[SegmentRecord]


class SetTaskLimit(NamedTuple):
    """Exit after this number of chunks and calls."""

    tasks: int


class AddSegments(NamedTuple):
    """Take segments ahead of the message that names them."""

    segments: list[SegmentRecord]


class ForgetSegment(NamedTuple):
    """Drop a segment that the parent has released."""

    key: int


class ExitNow(NamedTuple):
    """Exit: no more messages follow."""


# Events of a worker


class Slice(NamedTuple):
    """The results of a call over items of which one has failed.

    Attributes
    ----------
    values : list
        The results of the items before it.
    error : BaseException
        Its exception; on the wire a :class:`PackedError`.
    """

    values: list[Any]
    error: Any


SOCKET_LOST = 113
"""Exit status of a worker whose socket the user's code has closed or replaced."""


class WorkerReady(NamedTuple):
    """A worker has started."""

    worker: int


class Inherit(NamedTuple):
    """A worker asks for the ``"key"`` or the ``"tracker"`` of the parent's multiprocessing.

    The descriptor of the message is a wire that takes the answer.
    """

    part: str


class Warned(NamedTuple):
    """A function has emitted a warning that the filters let through.

    Attributes
    ----------
    run, call : int or None
        Number of the run or of the call; both are None for the pool's initializer.
    body : bytes or None
        The pickled warning, if it has a pickle.
    builtin : str
        Name of its class in Python, or of a base of its class.
    text, filename, lineno
        As of the warning.
    module : str or None
        Name of the module of that line, if it is known.
    """

    run: int | None
    call: int | None
    body: bytes | None
    builtin: str
    text: str
    filename: str
    lineno: int
    module: str | None


class Logged(NamedTuple):
    """A logging record that no handler of the worker takes.

    Attributes
    ----------
    fields : dict
        The attributes of every record, with the text as ``msg``.
    more : dict of str to bytes
        The attributes that the user has added, each pickled.
    """

    fields: dict[str, Any]
    more: dict[str, bytes]


class OutputsNeeded(NamedTuple):
    """A worker has a first result and waits for outputs; `announcement` describes them."""

    worker: int
    run: int
    announcement: Any


class ChunkFailed(NamedTuple):
    """The function raised on a chunk, or returned a result that does not fit.

    Attributes
    ----------
    run, chunk : int
        Numbers of the run and of the chunk.
    error : BaseException
        The exception, or a :class:`shmpar.plan.ResultError`.
    shape : tuple of int or None
        Shape of the block that the function got.
    final : bool
        The exception is the error of the run itself, for instance a `WorkerDied` of a host.
    """

    run: int
    chunk: int
    error: Any = None
    shape: tuple[int, ...] | None = None
    final: bool = False


class ClaimFinished(NamedTuple):
    """A worker has computed the tickets ``first <= t < last``; each is done or failed."""

    run: int
    generation: int
    first: int
    last: int


UNCHANGING = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types of results that travel in a message as they are."""


class ObjectsReturned(NamedTuple):
    """Results of a run that returns objects, as (chunk, result)."""

    run: int
    values: Sequence[tuple[int, Any]]


class CounterExhausted(NamedTuple):
    """A worker found no tickets left in a generation, or exits and takes no more; it holds none.

    Attributes
    ----------
    worker, run, generation : int
        Numbers of the worker, of the run and of the generation.
    claimed : int
        Tickets of the generation that the worker claimed; 0 if the engine does not count them.
    handed_out : int or None
        Tickets that all workers had claimed when this worker stopped the counter; None if it did
        not stop the counter.
    announcement : object or None
        The outputs that the worker has put into the ledger's spare memory.
    left : sequence of int
        Chunks of these tickets that the worker has not begun, for any worker to take.
    exiting : bool
        The worker has reached its task limit and exits, so tickets may be left.
    huge_bytes : sequence of (int, int)
        Keys of segments, each with the bytes that the worker has put into huge pages.
    traffic : StoreTraffic
        That of the worker.
    """

    worker: int
    run: int
    generation: int
    claimed: int = 0
    handed_out: int | None = None
    announcement: Any = None
    left: Sequence[int] = ()
    exiting: bool = False
    huge_bytes: Sequence[tuple[int, int]] = ()
    traffic: StoreTraffic = NO_TRAFFIC


class WorkerExiting(NamedTuple):
    """A worker has reached its task limit, and exits."""

    worker: int


class PlanRejected(NamedTuple):
    """A run cannot go on: a worker cannot load it, or there is no memory for its outputs."""

    run: int
    error: Any = None


class CallFinished(NamedTuple):
    """A submitted call has returned or raised.

    Attributes
    ----------
    call : int
        Its number.
    value : object
        The value that it returned.
    error : BaseException or None
        The exception that it raised.
    started : bool
        False if the function was not called: it does not load, or the initializer had failed.
    unreadable : bool
        It has returned, but the result does not unpickle here.
    """

    call: int
    value: Any = None
    error: Any = None
    started: bool = True
    unreadable: bool = False


class InitializerFailed(NamedTuple):
    """The pool's initializer raised in a worker."""

    error: Any


class WorkerLost(NamedTuple):
    """A worker is gone and has been reaped: its slot in the ledger does not change any more.

    Attributes
    ----------
    worker : int
        Its number; its successor has the same one.
    exit : Exit or None
        Exit status of the process.
    announced : bool
        The worker announced its exit, after which it had no work.
    killed_for : int or None
        Number of the run for which the engine killed the worker.
    blamed : int or None
        The chunk that the worker computed, in the run that receives the event.
    unfinished : tuple of int
        Chunks of that run that the worker held and had not begun.
    waiting : tuple of int
        Calls that it had and had not begun.
    at_startup : bool
        The worker had no chunk and no call: it died while it started, or loaded a plan of the run
        that receives the event.
    loading : int or None
        Number of the run whose plan it had first; None if it had none.
    idle : bool
        It had worked before, and had no plan.
    run : int or None
        Number of the run that alone has lost it, and was stopped. Other runs and calls keep it.
    """

    worker: int
    exit: "Exit | None" = None
    announced: bool = False
    killed_for: int | None = None
    blamed: int | None = None
    unfinished: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    at_startup: bool = False
    loading: int | None = None
    idle: bool = False
    run: int | None = None


_KINDS: tuple[type[Any], ...] = (
    RunPlan, UseOutputs, AbandonRun, RunCall, CountCalls, Initialize, SetTaskLimit, AddSegments,
    ForgetSegment, ExitNow, WorkerReady, Inherit, Warned, Logged, OutputsNeeded, ChunkFailed,
    ClaimFinished, ObjectsReturned, CounterExhausted, WorkerExiting, PlanRejected, CallFinished,
    InitializerFailed,
)  # fmt: skip
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}


def encoded(message: Any) -> Any:
    """Return a message for the wire: a tuple of its number and its fields.

    Why: the pickle of a named tuple has the name of its class, which takes long to look up.

    Examples
    --------
    >>> decoded(encoded(ForgetSegment(7)))
    ForgetSegment(key=7)
    """
    number = _NUMBERS.get(type(message))
    if number is not None:
        return number, *message
    return (None, message) if type(message) is tuple else message


def decoded(found: Any) -> Any:
    """Return the message, or the other object, that was encoded."""
    if type(found) is not tuple:
        return found
    number, *fields = found
    return fields[0] if number is None else _KINDS[number](*fields)


RunEvent = OutputsNeeded | ChunkFailed | ClaimFinished | ObjectsReturned | CounterExhausted | Warned
WorkerEvent = WorkerReady | WorkerExiting | PlanRejected | InitializerFailed | WorkerLost
Event = RunEvent | WorkerEvent | CallFinished | Logged
