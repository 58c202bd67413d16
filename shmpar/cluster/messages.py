"""Messages between a client and the hosts of its pool; every field pickles.

The elements of arrays lie in contiguous arrays of bytes, which a transport may send out of band.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from shmpar.cluster.spans import Box
from shmpar.ipc.protocol import Environment, PackedError, StoreTraffic, Warned
from shmpar.memory.allocate import SHM
from shmpar.memory.locate import locate
from shmpar.memory.segment import Segment
from shmpar.plan import Announcement, Plan, Shape
from shmpar.version import __version__

Array = np.ndarray[Any, Any]


class Versions(NamedTuple):
    """Versions that must agree between a client and its hosts."""

    python: str
    numpy: str
    shmpar: str

    @classmethod
    def here(cls) -> Versions:
        """Return those of this process."""
        return cls("{}.{}".format(*sys.version_info[:2]), np.__version__, __version__)

    def disagrees(self, host: Versions) -> str | None:
        """Return how a host differs from this client, None if it does not.

        Only the minor version of Python and the major version of NumPy decide: others exchange
        functions and arrays.

        Examples
        --------
        >>> Versions("3.12", "2.1.0", "1.0").disagrees(Versions("3.11", "2.1.0", "1.0"))
        'the host has Python 3.11, and this process has Python 3.12'
        """
        for name, here, there in zip(("Python", "NumPy", "shmpar"), self, host, strict=True):
            decides = 1 if name == "NumPy" else None
            if here.split(".")[:decides] != there.split(".")[:decides]:
                return f"the host has {name} {there}, and this process has {name} {here}"
        return None


@cache
def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def machine() -> str:
    """Return a name that two processes share if one can open the memory of the other.

    It consists of the boot of the kernel, the process namespace and the user.
    """
    try:
        boot = _boot()
        space, memory = os.stat("/proc/self/ns/pid").st_ino, os.stat(SHM).st_dev
    except OSError:
        return f"unknown {os.urandom(8).hex()}"
    return f"{boot} {space} {memory} {os.getuid()}"


class Probe(NamedTuple):
    """Facts of a host.

    Attributes
    ----------
    versions : Versions
        Its versions.
    machine : str
        As of :func:`machine`.
    cpus : int
        CPUs that it may use.
    name : str
        Name of its machine.
    """

    versions: Versions
    machine: str
    cpus: int
    name: str


class Settings(NamedTuple):
    """Settings of the pool of each host.

    Attributes
    ----------
    pool : str
        Name of the client's pool, unique among all machines.
    workers : int
        Local workers.
    env : dict
        Added to their environment.
    threads : int
        Cap on the threads of BLAS in each.
    initializer : bytes or None
        The pickled initializer with its arguments.
    tasks : int or None
        Chunks after which a worker is replaced.
    versions : Versions
        Those of the client.
    control : Memory or None
        Memory of the client through which it tells the hosts on its own machine to stop.
    """

    pool: str
    workers: int
    env: dict[str, str]
    threads: int
    initializer: bytes | None
    tasks: int | None
    versions: Versions
    control: Memory | None = None


class Memory(NamedTuple):
    """Memory of the client that a host on the same machine maps: nothing is copied.

    Attributes
    ----------
    machine : str
        Where it is.
    pid, fd : int
        The client's process, and its descriptor of the memory.
    device, inode : int
        Identity of the file.
    size : int
        Bytes of the file.
    kind : str
        Kind of the segment.
    """

    machine: str
    pid: int
    fd: int
    device: int
    inode: int
    size: int
    kind: str

    @classmethod
    def of(cls, segment: Segment) -> Memory:
        """Return the address of the memory of a segment."""
        segment.own, fd, identity = False, segment.fileno(), segment.identity()
        return cls(machine(), os.getpid(), fd, *identity, segment.size, segment.kind)


class Located(NamedTuple):
    """A whole input in memory that a host on the client's machine can map."""

    memory: Memory
    offset: int
    shape: Shape
    strides: tuple[int, ...]
    dtype: Any

    @classmethod
    def of(cls, array: Array) -> Located | None:
        """Return the address of an array in a segment; None if it lies in plain memory."""
        place = locate(array)
        if place is None:
            return None
        memory = Memory.of(place.segment)
        return cls(memory, place.offset, array.shape, array.strides, array.dtype)


class Window(NamedTuple):
    """A window of an array, with its values.

    Attributes
    ----------
    values : ndarray
        Its elements, dense, with the axes in `order`; an axis of step 0 has one element.
    origin : tuple of int
        Position of the window in the array.
    lengths : tuple of int
        Its shape.
    shape : tuple of int
        Shape of the array.
    dtype : dtype
        Dtype of the array; the values lose its byte order in a pickle of protocol 4.
    order : tuple of int
        Axes of the array, from the largest step in memory to the smallest.
    backward : tuple of int
        Axes along which the array runs backward in memory.
    gaps : tuple of bool
        For each axis of `order`: in the array its end and its next begin do not touch in memory.
    sparse : bool
        Neighbours along the last axis of `order` do not touch in memory.
    """

    values: Array
    origin: Shape
    lengths: Shape
    shape: Shape
    dtype: Any
    order: tuple[int, ...]
    backward: tuple[int, ...]
    gaps: tuple[bool, ...]
    sparse: bool

    @classmethod
    def of(cls, array: Array, window: tuple[slice, ...]) -> Window:
        """Copy a window of an array.

        Examples
        --------
        >>> found = Window.of(np.arange(12).reshape(3, 4), (slice(1, 3), slice(0, 2)))
        >>> found.values.tolist(), found.origin, found.gaps
        ([[4, 5], [8, 9]], (1, 0), (False, True))
        """
        where: Any = (*window, ...)
        part, strides = array[where], array.strides
        order = tuple(sorted(range(array.ndim), key=lambda axis: -abs(strides[axis])))
        one: Any = (*[slice(0, 1) if not step else slice(None) for step in strides], ...)
        turned: Any = (*[slice(None, None, -1 if step < 0 else 1) for step in strides], ...)
        kept = part[one][turned].transpose(order)
        dense = np.ascontiguousarray(kept).reshape(kept.shape)  # Why: no axes would become one
        gaps = [False] * array.ndim
        for k in range(1, array.ndim):
            outer, inner = order[k - 1], order[k]
            whole = part.shape[inner] == array.shape[inner]
            gaps[k] = not (whole and abs(strides[outer]) == abs(strides[inner]) * part.shape[inner])
        return cls(
            values=dense,
            origin=tuple([one.start for one in window]),
            lengths=part.shape,
            shape=array.shape,
            dtype=array.dtype,
            order=order,
            backward=tuple([k for k, step in enumerate(strides) if step < 0]),
            gaps=tuple(gaps),
            sparse=bool(order) and abs(strides[order[-1]]) not in {0, array.itemsize},
        )


class File(NamedTuple):
    """An array in a file that all hosts see under the same path."""

    path: str
    offset: int
    shape: Shape
    strides: tuple[int, ...]
    dtype: Any
    writable: bool

    @classmethod
    def of(cls, array: Array) -> File | None:
        """Return the address of an array in a mapped file; None if it lies elsewhere."""
        place = locate(array)
        if place is None or place.segment.kind != "file" or place.segment.path is None:
            return None
        segment, where = place.segment, (array.shape, array.strides, array.dtype)
        return cls(str(segment.path), place.offset, *where, segment.writable)


class Head(NamedTuple):
    """The parts of a run that all its spans share; sent once to a host.

    Attributes
    ----------
    run : int
        Number of the run.
    plan : Plan
        The plan.
    function : bytes
        Body of the function's payload.
    held : tuple of ndarray
        Bytes of the segments of the payload.
    environment : Environment
        The state of the client's process.
    retries : int
        How often a chunk whose local worker died is computed again.
    task_timeout : float or None
        Seconds that a chunk may take.
    inputs : tuple of (Located, File, Store or None)
        Inputs that travel as their address; None for one whose windows come with the spans.
    outputs : tuple of (Store or File) or None
        Outputs that the hosts write themselves.
    sums : bool
        The workers compute checksums.
    """

    run: int
    plan: Plan
    function: bytes
    held: tuple[Array, ...]
    environment: Environment
    retries: int
    task_timeout: float | None
    inputs: tuple[Any, ...] = ()
    outputs: tuple[Any, ...] | None = None
    sums: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the function with the arrays that it holds."""
        return len(self.function) + sum([one.nbytes for one in self.held])


class SpanBox(NamedTuple):
    """A box of chunks: their numbers and bounds, and the windows of the inputs that they read.

    A window is None for an input of which the head has the address.
    """

    chunks: Sequence[int]
    box: Box
    inputs: tuple[Window | None, ...]


class Span(NamedTuple):
    """Work for a host.

    Attributes
    ----------
    run : int
        Number of the run.
    boxes : tuple of SpanBox
        Chunks with their inputs.
    verb : str
        Name of the verb.
    announcement : Announcement or None
        Shapes and dtypes of the outputs, if they are known.
    """

    run: int
    boxes: tuple[SpanBox, ...]
    verb: str
    announcement: Announcement | None

    @property
    def nbytes(self) -> int:
        """Bytes of the windows."""
        windows = [one for box in self.boxes for one in box.inputs if one is not None]
        return sum([one.values.nbytes for one in windows])


class Submitted(NamedTuple):
    """A submitted call: the payload of its function, with the client's state.

    Attributes
    ----------
    name : str
        Name of the function, for errors.
    more : tuple
        Further arguments: the items ``first <= i < last`` of a call over items.
    number : int
        Its number, by which it is stopped; those of runs are 0 or more, and its is less.
    verb : str
        As of a span, in the names of tasks.
    """

    function: bytes
    held: tuple[Array, ...]
    environment: Environment
    retries: int
    name: str
    more: tuple[int, int] | tuple[()] = ()
    number: int = -1
    verb: str = "call"

    @property
    def nbytes(self) -> float:
        """Bytes that are sent for it; infinite if it holds large arrays, which end with it."""
        return math.inf if self.held else len(self.function)


class BoxResult(NamedTuple):
    """The results of the chunks of a box.

    Attributes
    ----------
    done : sequence of int
        Chunks that are done.
    failed : list of (int, PackedError, tuple or None, bool)
        Chunks that failed: the exception, the shape of the block, and whether the exception is the
        error of the run itself.
    fatal : PackedError or None
        The error that ended the work as a whole.
    announcement : Announcement or None
        Shapes and dtypes of the outputs.
    parts : list of (ndarray, tuple) or None
        The windows of the outputs, and their positions.
    values : list of (int, bytes)
        Results that are objects, pickled.
    sums : ndarray or None
        Checksum of each chunk's output.
    """

    done: Sequence[int]
    failed: list[tuple[int, PackedError, Shape | None, bool]]
    fatal: PackedError | None
    announcement: Announcement | None
    parts: list[tuple[Array, Shape]] | None
    values: list[tuple[int, bytes]]
    sums: Array | None


class SpanResult(NamedTuple):
    """The answer of a host to a span.

    Attributes
    ----------
    boxes : list of BoxResult
        Results, box by box.
    seconds : float
        Time that the chunks took, divided by the local workers.
    deaths : int
        Local workers that died in a chunk.
    warned : list of Warned
        Warnings of the function.
    traffic : StoreTraffic
        That of the local workers.
    """

    boxes: list[BoxResult]
    seconds: float
    deaths: int
    warned: list[Warned]
    traffic: StoreTraffic


class CallResult(NamedTuple):
    """The answer of a host to a submitted call."""

    value: bytes | None
    error: PackedError | None
    warned: list[Warned]


class Missing(NamedTuple):
    """The answer of a host that lacks something: ``"head"``, or ``"memory"`` of the client."""

    part: str


class Refused(NamedTuple):
    """The answer of a host that cannot serve the client at all."""

    reason: str
