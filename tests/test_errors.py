"""The tree of errors, and their pickling."""

from __future__ import annotations

import copy
import pickle

import pytest

from shmpar import errors
from shmpar.errors import (
    ChunkError,
    FailedChunks,
    HostsLost,
    PlanError,
    SecurityWarning,
    SegmentError,
    SegmentFull,
    SegmentGone,
    ShmparError,
    StoreError,
    TaskTimeout,
    WorkerDied,
)

REGION = (slice(0, 4), slice(3, 6))
AT_CHUNK = (ChunkError, WorkerDied, TaskTimeout)
CLASSES = [
    value
    for name, value in vars(errors).items()
    if isinstance(value, type)
    and issubclass(value, BaseException)
    and not name.startswith("_")
    and value is not FailedChunks  # tests/test_failed_chunks.py
]
ARGUMENTS = {ChunkError: {"shape": (4, 3)}, WorkerDied: {"exitcode": -11}, TaskTimeout: {}}

PARENTS = {
    ShmparError: Exception,
    ChunkError: ShmparError,
    WorkerDied: ShmparError,
    TaskTimeout: ShmparError,
    PlanError: ShmparError,
    HostsLost: ShmparError,
    StoreError: ShmparError,
    SecurityWarning: UserWarning,
    SegmentError: ShmparError,
    SegmentGone: SegmentError,
    SegmentFull: SegmentError,
}
BUILTINS = {
    TaskTimeout: TimeoutError, StoreError: OSError, SegmentGone: FileNotFoundError,
    SegmentFull: MemoryError,
}  # fmt: skip


def raised(cls: type[ShmparError]) -> ShmparError:
    """Make an error with every attribute that its class has."""
    if cls in AT_CHUNK:
        return cls("it broke", chunk=7, region=REGION, run=object(), **ARGUMENTS[cls])
    return cls("it broke")


def test_the_tree_is_complete():
    """These tests cover each public error."""
    assert set(CLASSES) == set(PARENTS)


@pytest.mark.parametrize(("cls", "parent"), PARENTS.items())
def test_a_parent_catches_its_child(cls, parent):
    """``except`` with a parent class catches the class."""
    with pytest.raises(parent, match="it broke"):
        raise raised(cls)


@pytest.mark.parametrize(("cls", "builtin"), BUILTINS.items())
def test_a_builtin_exception_catches_the_error(cls, builtin):
    """``except`` with the builtin exception catches the error, and ours comes first."""
    with pytest.raises(builtin, match="it broke"):
        raise raised(cls)
    assert cls.__mro__.index(ShmparError) < cls.__mro__.index(builtin)


@pytest.mark.parametrize("cls", sorted(set(CLASSES) - set(BUILTINS), key=lambda c: c.__name__))
def test_only_four_are_builtin_exceptions_too(cls):
    """``except OSError`` and the like catch no other error by accident."""
    assert not issubclass(cls, OSError | MemoryError | ValueError | TypeError)


@pytest.mark.parametrize("cls", AT_CHUNK)
def test_errors_of_a_chunk_do_not_catch_each_other(cls):
    """No class of an error of a chunk is a subclass of another."""
    assert not issubclass(cls, tuple(set(AT_CHUNK) - {cls}))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_type_and_message(cls, protocol):
    """An error has the same type, message and arguments after pickling."""
    arrived = pickle.loads(pickle.dumps(raised(cls), protocol))
    assert type(arrived) is cls
    assert str(arrived) == "it broke"
    assert arrived.args == ("it broke",)


@pytest.mark.parametrize("cls", AT_CHUNK)
@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_pickling_keeps_the_attributes_except_the_run(cls, again):
    """Chunk, region, shape and exit code are kept; the run, with its processes, is not."""
    sent = raised(cls)
    sent.add_note("worker 3")
    arrived = again(sent)
    assert vars(arrived) == {**vars(sent), "run": None}
    assert (arrived.chunk, arrived.region, arrived.__notes__) == (7, REGION, ["worker 3"])
    assert sent.run is not None


@pytest.mark.parametrize("cls", [ChunkError, HostsLost])
def test_an_error_pickles_even_if_its_run_does_not(cls):
    """The run is dropped before the pickling, and the notes are kept."""
    sent = cls("it broke", run=lambda: None)
    sent.add_note("see the log")
    arrived = pickle.loads(pickle.dumps(sent))
    assert arrived.run is None
    assert arrived.__notes__ == ["see the log"]


@pytest.mark.parametrize("cls", AT_CHUNK)
def test_attributes_are_none_by_default(cls):
    """An error that belongs to no chunk has the attributes too."""
    assert set(vars(cls("it broke")).values()) == {None}
    assert {"chunk", "region", "run"} <= set(vars(cls("it broke")))


def test_a_group_of_errors_pickles():
    """The group of errors, as ``on_error="collect"`` raises it, pickles as a whole."""
    group = FailedChunks("two chunks failed", [raised(ChunkError), raised(WorkerDied)])
    arrived = pickle.loads(pickle.dumps(group))
    assert type(arrived) is FailedChunks
    assert [type(error) for error in arrived.exceptions] == [ChunkError, WorkerDied]
    assert [error.chunk for error in arrived.exceptions] == [7, 7]


def test_each_class_makes_its_objects_by_name():
    """Other libraries pickle an error as a call of ``__new__``; distributed installs one."""
    for cls in CLASSES:
        assert type(cls.__new__(cls)) is cls


CHANGED_BASE = """
from shmpar.errors import SegmentFull, ShmparError
ShmparError.__new__ = lambda cls, *args: BaseException.__new__(cls, *args)
del ShmparError.__new__
print(SegmentFull("it broke"))
"""


def test_a_lack_of_memory_is_told_after_a_change_of_its_base(run_python):
    """Python looks for the function that makes an object anew, and finds one that fits."""
    assert run_python(CHANGED_BASE).stdout == "it broke\n"
