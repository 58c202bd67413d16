"""Objects with a meaning in one process alone are refused by name; none is sent as a number."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import multiprocessing.reduction
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing import sharedctypes
from typing import Any, NamedTuple

import numpy as np
import pytest

import shmpar
from tests import pools
from tests.interpreters import run_python


class Case(NamedTuple):
    """An object of this process, the name of its type in an error, and a word of the remedy."""

    make: Callable[[], Any]
    name: str
    remedy: str


class Device:
    """An object of the user's with the number of a descriptor."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def fileno(self) -> int:
        return self.number


class Registered:
    """An object of the user's that multiprocessing alone can send."""


class Reopened(Device):
    """An object with a descriptor, whose author says how it is pickled."""

    def __reduce__(self) -> Any:
        return Reopened, (7,)


def connection() -> Any:
    return multiprocessing.Pipe()[0]


multiprocessing.reduction.register(Registered, lambda one: (Registered, ()))

CASES = {
    "connection": Case(connection, "multiprocessing.connection.Connection", "Manager().Queue()"),
    "socket": Case(socket.socket, "socket.socket", "initializer"),
    "queue": Case(multiprocessing.SimpleQueue, "multiprocessing.queues.SimpleQueue", "Manager()"),
    "lock": Case(multiprocessing.Lock, "multiprocessing.synchronize.Lock", "array.lock"),
    "event": Case(multiprocessing.Event, "multiprocessing.synchronize.Event", "Manager()"),
    "semaphore": Case(
        multiprocessing.Semaphore, "multiprocessing.synchronize.Semaphore", "Manager()"
    ),
    "raw array": Case(
        lambda: sharedctypes.RawArray("d", 3), "sharedctypes.c_double_Array_3", "shmpar.array"
    ),
    "value": Case(lambda: multiprocessing.Value("i"), "sharedctypes.Synchronized", "shmpar.array"),
    "thread lock": Case(threading.Lock, "_thread.lock", "array.lock"),
    "thread queue": Case(queue.Queue, "queue.Queue", "Manager().Queue()"),
    "library": Case(lambda: ctypes.CDLL(None), "ctypes.CDLL", "load the library inside"),
    "device": Case(Device, "test_process_local.Device", "initializer"),
    "registered": Case(Registered, "test_process_local.Registered", "__reduce__"),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[shmpar.Pool]:
    with pools.warm("processes", 2) as made:
        yield made


@pytest.fixture(scope="module")
def objects() -> Iterator[dict[str, Any]]:
    """Make each object once."""
    made = {name: case.make() for name, case in CASES.items()}
    yield made
    for name in ("connection", "socket", "queue"):
        made[name].close()
    made.clear()


@pytest.fixture(params=CASES, ids=[name.replace(" ", "-") for name in CASES])
def case(request: pytest.FixtureRequest, objects: dict[str, Any]) -> tuple[Any, str, str]:
    """Return an object, the name of its type, and a word of the remedy."""
    return objects[request.param], *CASES[request.param][1:]


def first(value: Any, *more: Any, **keywords: Any) -> int:
    return 1


def returning(make: Callable[[], Any]) -> Callable[..., Any]:
    return lambda _: {"held": [make()]}


def captured(obj: Any) -> Callable[..., int]:
    nested = [{"deep": (obj,)}]
    return lambda _: len(nested)


SENDERS: dict[str, Callable[[shmpar.Pool, Any], Any]] = {
    "submit": lambda pool, obj: pool.submit(captured(obj), 0).result(),
    "item of submit": lambda pool, obj: pool.submit(first, obj).result(),
    "keyword of submit": lambda pool, obj: pool.submit(first, 0, held=[obj]).result(),
    "item of map": lambda pool, obj: list(pool.map(first, [obj])),
    "function of map": lambda pool, obj: list(pool.map(captured(obj), [1])),
    "verb": lambda pool, obj: pool.map_blocks(captured(obj), np.ones(4), chunks=2),
    "kwargs": lambda pool, obj: pool.block_reduce(
        first, np.ones(4), chunks=2, kwargs={"held": {"a": obj}}
    ),
    "items": lambda pool, obj: pool.parallel_map(first, [1, {2: obj}]),
    "partial": lambda pool, obj: pool.parallel_map(functools.partial(first, more=obj), [1]),
}


@pytest.mark.parametrize("send", SENDERS.values(), ids=[name.replace(" ", "-") for name in SENDERS])
def test_it_is_refused_by_name_on_the_way_to_a_worker(
    pool: shmpar.Pool, case: tuple[Any, str, str], send: Callable[[shmpar.Pool, Any], Any]
) -> None:
    """The error names the type of the object and the remedy, wherever the object is held."""
    obj, name, _ = case
    with pytest.raises(shmpar.PlanError) as caught:
        send(pool, obj)
    text = str(caught.value)
    assert name.rpartition(".")[2] in text
    assert "to a worker" in text


def test_the_error_names_the_variable_and_the_remedy(
    pool: shmpar.Pool, case: tuple[Any, str, str]
) -> None:
    """The user reads the name of the variable, the type, and the code to write instead."""
    obj, name, remedy = case
    with pytest.raises(shmpar.PlanError) as caught:
        pool.submit(lambda: obj)
    text = str(caught.value)
    assert "closure variable 'obj'" in text
    assert name in text
    assert remedy in text


@pytest.mark.parametrize("verb", ["submit", "parallel_map"])
@pytest.mark.parametrize("name", ["connection", "lock", "library", "device"])
def test_it_is_refused_as_a_result(pool: shmpar.Pool, name: str, verb: str) -> None:
    """A worker does not return a number of its own process either."""
    case = CASES[name]
    function = returning(case.make)
    calls = {
        "submit": lambda: pool.submit(function, 0).result(),
        "parallel_map": lambda: pool.parallel_map(function, np.ones(2), dtype=object),
    }
    with pytest.raises(shmpar.ShmparError) as caught:
        calls[verb]()
    pools.drop_caches(pool)
    error: BaseException | None = caught.value
    texts = ""
    while error is not None:
        texts += f"{error}\n" + "\n".join(getattr(error, "__notes__", ()))
        error = error.__cause__
    assert case.name in texts


def test_it_is_refused_in_an_exception(pool: shmpar.Pool) -> None:
    """An exception that holds the end of a pipe arrives without it, as text."""

    def fail() -> None:
        raise ValueError("the reason", multiprocessing.Pipe()[0])

    with pytest.raises(shmpar.ShmparError, match="the reason"):
        pool.submit(fail).result()


def test_a_class_that_says_how_it_is_pickled_is_sent(pool: shmpar.Pool) -> None:
    """The author of a class knows best."""
    sent = Reopened(3)
    assert pool.submit(lambda: sent.number).result() == 7


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_it_works_in_this_process(engine: str, case: tuple[Any, str, str]) -> None:
    """Threads share all objects."""
    obj = case[0]
    with shmpar.Pool(2, engine=engine) as pool:
        assert pool.submit(lambda: id(obj)).result() == id(obj)
        assert pool.parallel_map(lambda _: id(obj), [1, 2]) == [id(obj)] * 2


def test_a_pipe_does_not_write_into_the_files_of_a_worker() -> None:
    """The array is as it was, and the pipe is empty."""
    done = run_python(
        """
        import multiprocessing, numpy as np, shmpar
        near, far = multiprocessing.Pipe()
        data = np.arange(200_000.0)
        def tell(block):
            far.send_bytes(b"x" * 4000)
            return block.sum()
        with shmpar.Pool(2) as pool:
            shared = pool.array(data)
            for attempt in range(3):
                try:
                    pool.block_reduce(tell, shared, chunks=50_000)
                except shmpar.PlanError as error:
                    print("refused" if "connection.Connection" in str(error) else error)
            print((shared == data).all(), near.poll())
        """
    )
    assert (done.stdout.split(), done.stderr) == (["refused"] * 3 + ["True", "False"], "")
    assert done.returncode == 0
