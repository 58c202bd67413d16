"""The error tree: what is what, and what survives pickling."""

from __future__ import annotations

import copy
import pickle

import pytest

from shmpar import errors
from shmpar.errors import (
    ChunkError,
    PlanError,
    SegmentError,
    SegmentFull,
    SegmentGone,
    ShmparError,
    TaskTimeout,
    WorkerDied,
)

REGION = (slice(0, 4), slice(3, 6))
AT_CHUNK = (ChunkError, WorkerDied, TaskTimeout)
CLASSES = [getattr(errors, name) for name in errors.__all__]
ARGUMENTS = {ChunkError: {"shape": (4, 3)}, WorkerDied: {"exitcode": -11}, TaskTimeout: {}}

PARENTS = {
    ShmparError: Exception,
    ChunkError: ShmparError,
    WorkerDied: ShmparError,
    TaskTimeout: ShmparError,
    PlanError: ShmparError,
    SegmentError: ShmparError,
    SegmentGone: SegmentError,
    SegmentFull: SegmentError,
}
BUILTINS = {TaskTimeout: TimeoutError, SegmentGone: FileNotFoundError, SegmentFull: MemoryError}


def raised(cls: type[ShmparError]) -> ShmparError:
    """One error of each class, with all that it can carry."""
    if cls in AT_CHUNK:
        return cls("it broke", chunk=7, region=REGION, run=object(), **ARGUMENTS[cls])
    return cls("it broke")


def test_the_tree_is_complete():
    """Every public error has its place in the tree that these tests know."""
    assert set(CLASSES) == set(PARENTS)


@pytest.mark.parametrize(("cls", "parent"), PARENTS.items())
def test_a_parent_catches_its_child(cls, parent):
    """`except` with a class higher in the tree catches the class."""
    with pytest.raises(parent, match="it broke"):
        raise raised(cls)


@pytest.mark.parametrize(("cls", "builtin"), BUILTINS.items())
def test_a_builtin_catches_what_it_stands_for(cls, builtin):
    """Code that knows only the builtin error catches ours, and ours comes first."""
    with pytest.raises(builtin, match="it broke"):
        raise raised(cls)
    assert cls.__mro__.index(ShmparError) < cls.__mro__.index(builtin)


@pytest.mark.parametrize("cls", sorted(set(CLASSES) - set(BUILTINS), key=lambda c: c.__name__))
def test_only_three_are_builtins_too(cls):
    """No other error is caught by accident with an operating system's or memory error."""
    assert not issubclass(cls, OSError | MemoryError | ValueError | TypeError)


@pytest.mark.parametrize("cls", AT_CHUNK)
def test_errors_of_a_chunk_are_siblings(cls):
    """No error of a chunk is caught as another one."""
    assert not issubclass(cls, tuple(set(AT_CHUNK) - {cls}))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_type_and_message(cls, protocol):
    """An error arrives as what it was."""
    arrived = pickle.loads(pickle.dumps(raised(cls), protocol))
    assert type(arrived) is cls
    assert str(arrived) == "it broke"
    assert arrived.args == ("it broke",)


@pytest.mark.parametrize("cls", AT_CHUNK)
@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_pickling_keeps_what_it_carries_but_the_run(cls, again):
    """Chunk, region, shape and exit code travel; the run, with its processes, does not."""
    sent = raised(cls)
    sent.add_note("worker 3")
    arrived = again(sent)
    assert vars(arrived) == {**vars(sent), "run": None}
    assert (arrived.chunk, arrived.region, arrived.__notes__) == (7, REGION, ["worker 3"])
    assert sent.run is not None


def test_a_run_that_does_not_pickle_is_no_obstacle():
    """Dropping the run happens before anything of it is looked at."""
    arrived = pickle.loads(pickle.dumps(ChunkError("it broke", run=lambda: None)))
    assert arrived.run is None


@pytest.mark.parametrize("cls", AT_CHUNK)
def test_nothing_is_known_by_default(cls):
    """Where a failure belongs to no chunk its attributes are there, and None."""
    assert set(vars(cls("it broke")).values()) == {None}
    assert {"chunk", "region", "run"} <= set(vars(cls("it broke")))


def test_several_travel_as_a_group():
    """An `ExceptionGroup` of chunk errors, as `on_error="collect"` raises, pickles whole."""
    group = ExceptionGroup("two chunks failed", [raised(ChunkError), raised(WorkerDied)])
    arrived = pickle.loads(pickle.dumps(group))
    assert [type(error) for error in arrived.exceptions] == [ChunkError, WorkerDied]
    assert [error.chunk for error in arrived.exceptions] == [7, 7]
