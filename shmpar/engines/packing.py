"""Messages of the processes engine: pack the work of a run, unpack the results of workers.

Guarantees
----------
- :func:`pack_run` and :func:`pack_call` run the user's pickling code, so they run in the thread
  that made the call, never in the pool thread.
- Any exception of unpickling in the pool thread, ``SystemExit`` too, is the outcome of that chunk
  or call alone.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from importlib.machinery import FileFinder
from typing import Any

import numpy as np

from shmpar import tracebacks
from shmpar.engines.engine import ActivePlan, Generation
from shmpar.errors import PlanError, SegmentError, SegmentFull, ShmparError, summarize
from shmpar.ipc import protocol
from shmpar.memory.copying import share
from shmpar.memory.locate import locate
from shmpar.memory.segment import Segment
from shmpar.memory.system import working_directory
from shmpar.pickling.pack import Interpreter, Payload, cached, pack, pack_stateless
from shmpar.pickling.plain import pack_plain
from shmpar.pickling.unpack import unpack
from shmpar.plan import Function, Plan, ResultError, spell
from shmpar.stores.store import Part, Store
from shmpar.worker.items import call_each
from shmpar.worker.logs import current_levels

Array = np.ndarray[Any, Any]
Adopt = Callable[[protocol.SegmentRecord, int], Segment]
"""Makes a segment of a record and a descriptor that a worker has sent."""


# The parent's state


def search_path(behind: Iterable[str] = ()) -> list[bytes]:
    """Return ``sys.path`` and more folders as names, without entries that imports pass over.

    A folder that was relative to an earlier working directory has its whole name.
    """
    found = []
    for entry in list[Any]([*sys.path, *behind]):
        # Why UnicodeEncodeError: no folder has a name that the locale cannot spell.
        with contextlib.suppress(TypeError, UnicodeEncodeError):
            finder = sys.path_importer_cache.get(os.fsdecode(entry))
            found.append(os.fsencode(finder.path if isinstance(finder, FileFinder) else entry))
    return found


class State:
    """The state of this process that the workers of a pool are sent.

    Each part is made again only when it has changed. Any thread may ask for it.

    Parameters
    ----------
    own_path : bool
        The workers have a ``sys.path`` of their own.
    fixed : collection of str
        The environment variables that the pool has set for its workers.
    behind : sequence of str
        Folders behind ``sys.path``.
    logs : bool
        Workers send the logging records that they have no handler for.
    """

    def __init__(
        self,
        *,
        own_path: bool,
        fixed: Iterable[str] = (),
        behind: Sequence[str] = (),
        logs: bool = True,
    ) -> None:
        self._own_path, self._behind, self._logs = own_path, behind, logs
        self._fixed = frozenset(map(os.fsencode, fixed))
        self._paths: tuple[list[str], list[bytes]] = [], []
        self._filters: tuple[list[Any], list[bytes]] = [], []
        changed: dict[bytes, bytes | None] = {}
        self._variables = _variables().copy(), changed
        self._latest: protocol.Environment | None = None

    def current(self, python: Interpreter | None) -> protocol.Environment:
        """Return it for workers, which may have another Python."""
        directory = working_directory()
        errors: dict[str, Any] = np.geterr()  # type: ignore[assignment]
        if self._paths[0] != sys.path:
            self._paths = sys.path.copy(), search_path(self._behind)
        if self._filters[0] != warnings.filters:
            taken = list(warnings.filters)
            self._filters = taken, _packed_filters(taken, python)
        if self._variables[0] != _variables():
            self._note_variables(_variables().copy())
        path = None if self._own_path else self._paths[1]
        levels = current_levels() if self._logs else None
        parts = directory, path, errors, self._filters[1], self._variables[1], None, levels
        # Why the same object: many calls that wait would hold as many copies.
        latest = self._latest
        if latest is not None and tuple.__eq__(latest, parts):
            return latest
        found = protocol.Environment(*parts)
        if not {"call", "log"}.isdisjoint(errors.values()):
            return found._replace(error_call=_pack_error_call(python))
        self._latest = found
        return found

    def _note_variables(self, new: dict[bytes, bytes]) -> None:
        old, changed = self._variables[0], self._variables[1].copy()
        for name in old.keys() | new.keys():
            if old.get(name) != new.get(name) and name not in self._fixed:
                # Invariant: a variable that has its first value again stays in the record.
                changed[name] = new.get(name)
        self._variables = new, changed


def _variables() -> dict[bytes, bytes]:
    """Return the environment variables, which the caller must not change."""
    # Why private: a comparison of all values by public means takes as long as a small call.
    found: dict[bytes, bytes] | None = getattr(os.environ, "_data", None)
    if found is None:  # Why: tests put a plain dict in its place.
        found = {os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()}
    return found


def _packed_filters(filters: list[Any], python: Interpreter | None) -> list[bytes]:
    packed = []
    for one in filters:
        with contextlib.suppress(PlanError):  # Why: no worker knows a category without a pickle.
            packed.append(pack(one, python).body)
    return packed


def _pack_error_call(python: Interpreter | None) -> bytes:
    """Pickle the callback of np.seterrcall(), which the error state calls in workers."""
    try:
        payload = pack(np.geterrcall(), python)
    except PlanError as error:
        remedy = 'use engine="threads", or np.errstate without "call" and "log"'
        raise PlanError(f"np.seterrcall: {error}; {remedy}") from error
    if payload.segments:
        raise PlanError("np.seterrcall: the callback holds an array of more than 64 KiB")
    return payload.body


# Outgoing


@dataclass(eq=False, repr=False, slots=True)
class PreparedCall:
    """A submitted call that can be sent.

    Attributes
    ----------
    body : bytes
        The pickle of the function with its arguments, or of plain arguments alone.
    environment : Environment
        The caller's, when the call was submitted.
    function : bytes
        The pickle of the function if it is stateless and its arguments, or items, are plain.
    payload : Payload or None
        The pickle with its segments, if it has any.
    """

    body: bytes
    environment: protocol.Environment
    function: bytes = b""
    payload: Payload | None = None

    @property
    def nbytes(self) -> float:
        """Bytes that are sent for it; infinite if it holds large arrays, which end with it."""
        return len(self.body) if self.payload is None else math.inf


@dataclass(eq=False, repr=False, slots=True)
class PreparedRun:
    """The parts of a run that are the same for all workers; keeps their segments alive.

    Attributes
    ----------
    plan : bytes
        The pickled plan.
    payload : Payload
        The function with the objects that it holds.
    references : tuple of Input
        Where the inputs lie.
    segments : dict of int to Segment
        The segments that every worker maps, by key.
    held : tuple of int
        Keys of the payload's segments, in its order; ~key for private ones.
    environment : Environment
        The caller's, when the verb was called.
    bodies : dict
        The pickled :class:`Work` and the segments that it names, by generation and whether its
        outputs are known.
    ledger : int
        Key of the ledger's segment.
    checksums : Reference or None
        Where the checksums of the chunks go.
    """

    plan: bytes
    payload: Payload
    references: tuple[protocol.Input, ...]
    segments: dict[int, Segment]
    held: tuple[int, ...]
    environment: protocol.Environment
    bodies: dict[tuple[int, bool], tuple[bytes, dict[int, Segment]]]
    ledger: int = 0
    checksums: protocol.Reference | None = None

    def open(self, active: ActivePlan, ledger: Segment) -> None:
        """Add the memory that the pool thread has made for the run."""
        self.ledger = ledger.key
        self.segments[ledger.key] = ledger
        if active.checksums is not None:
            self.checksums = _reference(active.checksums, self.segments)

    def outputs(
        self, active: ActivePlan
    ) -> tuple[tuple[protocol.Reference, ...] | None, dict[int, Segment]]:
        """Return where the outputs lie, if they are known, and the segments of a worker."""
        if active.outputs is None or active.plan.returns_objects:
            return None, self.segments
        segments = dict(self.segments)
        return tuple(_reference(out, segments) for out in active.outputs), segments

    def work(self, active: ActivePlan, generation: Generation) -> tuple[bytes, dict[int, Segment]]:
        """Return the pickled :class:`Work` and its segments; made once for all workers."""
        key = generation.number, active.outputs is not None
        if key not in self.bodies:
            outputs, segments = self.outputs(active)
            work = protocol.Work(
                run=active.number,
                generation=generation.number,
                todo=generation.todo,
                tickets=generation.tickets.kind,
                origin=active.origin,
                workers=active.ledger.workers,
                chunks=active.plan.chunks,
                ledger=self.ledger,
                arrays=self.references,
                outputs=outputs,
                is_tuple=active.is_tuple,
                in_place=active.in_place,
                small_outputs=active.small_outputs,
                reports=active.reports,
                checksums=self.checksums,
                plan=self.plan,
                function=self.payload.body,
                stateless=self.payload.stateless,
                held=self.held,
            )
            self.bodies[key] = pickle.dumps(tuple(work), 5), segments
        return self.bodies[key]


def held_keys(payload: Payload) -> tuple[int, ...]:
    """Return the keys of a payload's segments, in its order; ~key for private ones."""
    pairs = zip(payload.segments, payload.private, strict=True)
    return tuple([~one.key if private else one.key for one, private in pairs])


def pack_function(call: Function, python: Interpreter | None, *, frozen: bool) -> Payload:
    """Pickle a function with its arguments; raises `PlanError` if that is not possible."""
    if isinstance(call.call, Payload):
        return call.call  # Why: another machine has pickled it
    alone = python is None and not (call.keywords or call.values)
    if alone and (body := cached(call.call)) is not None:
        return Payload(body, stateless=True)
    return pack(call, python, frozen=frozen)


def pack_call(call: Function, state: State, python: Interpreter | None) -> PreparedCall:
    """Make a submitted call ready to be sent."""
    if python is None:
        function, values = call.call, call.values
        if function is call_each:
            function, values = values[0], values[1:]
        plain = pack_plain((call.keywords or None, *values))
        try:
            body = pack_stateless(function) if plain else None
        except Exception:  # noqa: BLE001 - the full pickle below raises the error that explains it
            body = None
        if plain and body:
            return PreparedCall(plain, state.current(python), body)
    payload = pack_function(call, python, frozen=True)
    held = payload if payload.segments else None
    return PreparedCall(payload.body, state.current(python), payload=held)


def pack_run(
    plan: Plan,
    function: Function,
    arrays: Sequence[Any],
    state: State,
    python: Interpreter | None,
    *,
    frozen: bool,
) -> PreparedRun:
    """Pickle the function, and copy the inputs that are not in shared memory.

    Parameters
    ----------
    state : State
        The state of this process.
    python : Interpreter or None
        The Python of the workers, if it has other bytecode.
    frozen : bool
        Copy the plain arrays that the function holds, also from shared memory.

    Raises
    ------
    PlanError
        If the function cannot be pickled.
    SegmentFull
        If there is no room for a copy of an input.
    """
    payload = pack_function(function, python, frozen=frozen)
    pairs = zip(payload.segments, payload.private, strict=True)
    segments = {one.key: one for one, private in pairs if not private}
    references = tuple([_reference(array, segments, copy=True) for array in arrays])
    return PreparedRun(
        plan=pickle.dumps(plan, 5),
        payload=payload,
        references=references,
        segments=segments,
        held=held_keys(payload),
        environment=state.current(python),
        bodies={},
    )


def _reference(array: Any, segments: dict[int, Segment], *, copy: bool = False) -> Any:
    """Return where an array or part lies; add its segment. A store is its own reference.

    With `copy`, an array that lies in no shared memory is copied into it.
    """
    if isinstance(array, Store):
        return array
    if isinstance(array, Part):
        memory = _reference(array.array, segments, copy=copy)
        return protocol.PartReference(memory, array.origin, array.shape)
    place = locate(array)
    if place is None and copy:
        _, array = share(array)
        place = locate(array)
    if place is None:
        raise TypeError(f"an array of shape {array.shape} is not in shared memory")
    segments[place.segment.key] = place.segment
    return place.segment.key, place.offset, array.shape, array.strides, spell(array.dtype)


# Incoming


def unpack_error(packed: protocol.PackedError) -> BaseException:
    """Return the exception of a worker, or a stand-in if it cannot be unpickled."""
    if packed.body is not None:
        with contextlib.suppress(BaseException):
            found = unpack(packed.body)[0]
            if isinstance(found, BaseException):
                return _noted(found, packed.text)
    text = f"{packed.summary} (an exception that does not survive pickling)"
    return _noted(ShmparError(text), packed.text)


def _noted(error: BaseException, text: str) -> BaseException:
    """Return an exception with the text as a note, if it takes notes."""
    with contextlib.suppress(BaseException):
        # Why: the class may refuse new attributes; then only its dict takes the list.
        vars(error).setdefault("__notes__", [])
        BaseException.add_note(error, tracebacks.IN_WORKER + tracebacks.with_sources(text.rstrip()))
    return error


def _unpack_value(packed: protocol.PackedValue, descriptors: list[int], adopt: Adopt) -> Any:
    """Return a result; take its segments' descriptors off the list."""
    segments = [adopt(record, descriptors.pop(0)) for record in packed.segments]
    return unpack(packed.body, segments)[0]


def unpack_call(
    event: protocol.CallFinished,
    descriptors: list[int],
    broken: BaseException | None,
    *,
    adopt: Adopt,
    own_path: bool,
) -> protocol.CallFinished:
    """Unpickle the end of a call; a result that does not unpickle here is the call's error.

    Parameters
    ----------
    broken : BaseException or None
        The error of the initializer.
    own_path : bool
        The workers have a ``sys.path`` of their own.
    """
    if event.error is not None:
        error = unpack_error(event.error)
        if not event.started:
            error = rejection(error, own_path=own_path)
        return event._replace(error=error)
    if not event.started:
        # Why: a restart of the pool may have come first.
        return event._replace(error=broken or InitializerError("the pool's initializer failed"))
    try:
        if type(event.value) is not protocol.PackedValue:
            return event  # Why: the message itself has a plain result.
        value = _unpack_value(event.value, descriptors, adopt)
        if type(value) is protocol.Slice:
            value = value._replace(error=unpack_error(value.error))
        return event._replace(value=value)
    except BaseException as error:  # noqa: BLE001 - whatever unpickling raises
        with contextlib.suppress(BaseException):  # Why: its class may be the user's
            BaseException.add_note(error, f"In the caller: {_NOT_LOADED}.")
        return event._replace(value=None, error=error, unreadable=True)


def unpack_objects(
    event: protocol.ObjectsReturned, descriptors: list[int], adopt: Adopt
) -> Iterator[protocol.Event]:
    """Yield the results; one that does not unpickle here is a failure of its chunk."""
    values = []
    for chunk, packed in event.values:
        if type(packed) in protocol.UNCHANGING:
            values.append((chunk, packed))
            continue
        try:
            values.append((chunk, _unpack_value(packed, descriptors, adopt)))
        except SegmentFull as error:  # Why: no fault of the function, and the next fails too.
            yield protocol.PlanRejected(event.run, error)
        except BaseException as error:  # noqa: BLE001 - whatever unpickling raises
            yield protocol.ChunkFailed(event.run, chunk, _not_loaded(error))
    yield event._replace(values=values)


_NOT_LOADED = "the function returned an object that was pickled, but does not load here"
_CORRECT_PICKLE = "correct how its class is pickled (__reduce__, __setstate__)"


def _not_loaded(cause: BaseException) -> ResultError:
    """Return the error of a chunk whose result does not unpickle in this process."""
    reason = f"{_NOT_LOADED} ({summarize(cause)})"
    failed = ResultError(f"{reason}; {_CORRECT_PICKLE}, or return plain values")
    failed.__cause__ = cause
    return failed


def rejection(cause: BaseException, *, own_path: bool) -> BaseException:
    """Return the error of a run that a worker rejects: mostly, its function does not load.

    Parameters
    ----------
    own_path : bool
        The workers have a ``sys.path`` of their own.
    """
    # Why an OSError: a worker may be out of descriptors.
    if isinstance(cause, PlanError | SegmentError | OSError):
        return cause
    remedy = f"{_CORRECT_PICKLE}, or make the object inside the function"
    if isinstance(cause, ImportError | AttributeError):
        remedy = (
            "a worker must be able to import each name that it refers to: define it in a module "
            "that workers can import, or have its module sent along by "
            "cloudpickle.register_pickle_by_value(module)"
        )
    if own_path and isinstance(cause, ImportError):
        remedy = (
            "the workers of python= do not have the sys.path of this process, so install the "
            'module there, or pass env={"PYTHONPATH": folder} to the pool'
        )
    rejected = PlanError(
        "the function, or a value that it holds or is given, was sent but does not load in a "
        f"worker ({summarize(cause)}); {remedy}"
    )
    rejected.__cause__ = cause
    return rejected


class InitializerError(ShmparError, BrokenExecutor):
    """The error of every run and call of a pool whose initializer raised, which is its cause."""


def initializer_failed(cause: BaseException) -> InitializerError:
    """Return the error of a pool whose initializer raised."""
    failed = InitializerError(f"the pool's initializer failed: {summarize(cause)}")
    failed.__cause__ = cause
    return failed
