"""The wire: messages arrive whole, with their descriptors, or not at all."""

from __future__ import annotations

import fcntl
import os
import pickle
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmpar.errors import SegmentError
from shmpar.ipc import wire as wires
from shmpar.ipc.wire import Wire
from shmpar.memory import system
from tests.interpreters import run_python

LIMIT = wires._INLINE


@pytest.fixture
def ends() -> Iterator[tuple[Wire, Wire]]:
    """Make the end of the parent, which does not block, and the end of the worker, which does."""
    ours, theirs = Wire.pair()
    pair = Wire(ours), Wire(theirs)
    yield pair
    for end in pair:
        end.close()


def padded(size: int) -> bytes:
    """Make a value whose pickle has this many bytes."""
    value = bytes(size - len(pickle.dumps(bytes(size), 5)) + size)
    assert len(pickle.dumps(value, 5)) == size
    return value


def test_messages_keep_their_bounds_and_order(ends: Any) -> None:
    """Several messages in a row are read one by one, in either direction."""
    parent, worker = ends
    sent = [("plan", 1), None, {"a": [1, 2]}, b"", "x" * 1_000]
    for message in sent:
        parent.send(message)
    assert [worker.receive() for _ in sent] == [(message, []) for message in sent]
    worker.send("hello")
    assert parent.receive() == ("hello", [])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(value=st.recursive(st.integers() | st.text() | st.binary(), st.lists))
def test_any_value_arrives_unchanged(ends: Any, value: Any) -> None:
    """Any value that pickles can be sent."""
    parent, worker = ends
    parent.send(value)
    assert worker.receive() == (value, [])


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1, 3_000_000])
def test_messages_of_any_length_arrive(ends: Any, size: int) -> None:
    """The length may be on either side of the limit for messages in memory."""
    parent, worker = ends
    value = padded(size)
    parent.send(value)
    assert worker.receive() == (value, [])


def test_a_message_arrives_where_sockets_have_little_memory() -> None:
    """A message that is too long for the socket goes into memory, with its descriptors."""
    ours, theirs = Wire.pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    parent, worker = Wire(ours), Wire(theirs)
    read, write = os.pipe()
    for size in (1_000, 30_000, LIMIT):
        parent.send(padded(size), [read])
        value, (found,) = worker.receive()
        assert value == padded(size)
        assert os.path.samestat(os.fstat(found), os.fstat(read))
        os.close(found)
    for fd in (read, write):
        os.close(fd)
    parent.close()
    worker.close()


@pytest.mark.parametrize("size", [100, LIMIT + 1], ids=["short", "long"])
def test_descriptors_come_with_their_message(ends: Any, size: int) -> None:
    """The receiver gets duplicates in the order of sending, which are closed at exec."""
    parent, worker = ends
    read, write = os.pipe()
    parent.send(padded(size), [write, read])
    parent.send("next")
    os.close(write)
    _, (their_write, their_read) = worker.receive()
    assert worker.receive() == ("next", [])
    for fd in (their_write, their_read):
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.write(their_write, b"x")
    assert os.read(read, 1) == b"x"
    for fd in (their_write, their_read, read):
        os.close(fd)


def test_descriptors_are_closed_at_exec_where_the_kernel_does_not_do_it(
    ends: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without MSG_CMSG_CLOEXEC the receiver sets the flag at once."""
    monkeypatch.setattr(wires, "_CLOEXEC", 0)
    parent, worker = ends
    parent.send("message", [0])
    _, (fd,) = worker.receive()
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize("size", [100, LIMIT + 1], ids=["short", "long"])
def test_a_message_carries_the_largest_number_of_descriptors(ends: Any, size: int) -> None:
    """A long message carries one more for its body."""
    parent, worker = ends
    parent.send(padded(size), [0] * wires.MAX_DESCRIPTORS)
    _, descriptors = worker.receive()
    assert len(descriptors) == wires.MAX_DESCRIPTORS
    for fd in descriptors:
        os.close(fd)


def test_a_message_that_lost_descriptors_is_an_error() -> None:
    """A receiver without room for all descriptors closes them and ends the other process."""
    done = run_python("""
        import os, pickle, resource
        from shmpar.errors import SegmentError
        from shmpar.ipc.wire import Wire
        ours, theirs = Wire.pair()
        ended = []
        parent, worker = Wire(ours, lambda: ended.append(True)), Wire(theirs)
        for body in ("short", "long" * 50_000):
            before = os.listdir("/proc/self/fd")
            worker.send(body, [0] * 20)
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 5, 4096))
            try:
                print(parent.receive())
            except SegmentError as error:
                print(error)
            resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
            assert os.listdir("/proc/self/fd") == before
        assert len(ended) == 2
    """)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.count("of its descriptors had room; close files") == 2


def test_a_long_message_lies_in_memory_that_cannot_change() -> None:
    """A holder of its descriptor can neither write to it nor truncate it."""
    fd = wires._sealed(b"body")
    for change in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 1)):
        with pytest.raises(PermissionError):
            change()
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_a_message_in_memory_that_can_change_is_copied(ends: Any) -> None:
    """Its writer can change it no more once it is read; a message that is cut short is an error."""
    parent, worker = ends
    body = pickle.dumps(b"right", 5)
    fd = os.memfd_create("open", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, body)
    read = wires._read(fd, len(body))
    os.pwrite(fd, bytes(len(body)), 0)
    assert bytes(read) == body
    os.pwrite(fd, body, 0)
    for size in (len(body), len(body) + 1):
        worker._sendmsg(wires._BODY_IN_MEMORY, size.to_bytes(8, "little"), [fd])
    os.close(fd)
    assert parent.receive() == (b"right", [])
    with pytest.raises(SegmentError, match="1 bytes of it are missing"):
        parent.receive()


def test_a_long_message_uses_a_file_on_systems_without_sealed_memory(
    ends: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is sent in a temporary file."""
    monkeypatch.setattr(system, "_absent", set())
    monkeypatch.delattr(os, "memfd_create")
    parent, worker = ends
    value = padded(100_000)
    parent.send(value)
    assert worker.receive() == (value, [])


def test_a_packed_message_is_unpacked_by_its_receiver(ends: Any) -> None:
    """A message to all workers is pickled only once."""
    parent, worker = ends
    parent.send_packed(pickle.dumps(["once"], 5))
    assert worker.receive() == (["once"], [])


def test_a_full_wire_does_not_block_the_parent(ends: Any) -> None:
    """The parent gets an error, and no part of the message is sent."""
    parent, worker = ends
    sent: list[int] = []

    def fill() -> None:
        while True:
            parent.send((len(sent), b"x" * 1_000))
            sent.append(len(sent))

    with pytest.raises(BlockingIOError):
        fill()
    assert len(sent) > 10
    assert [worker.receive()[0][0] for _ in sent] == sent
    with pytest.raises(BlockingIOError):
        worker.receive(wait=False)
    parent.send("again")
    assert worker.receive() == ("again", [])


def test_an_empty_wire_does_not_block_a_caller_that_does_not_wait(ends: Any) -> None:
    """Neither the end of the parent blocks nor a worker that does not wait."""
    parent, worker = ends
    with pytest.raises(BlockingIOError):
        parent.receive()
    with pytest.raises(BlockingIOError):
        worker.receive(wait=False)


def test_messages_that_were_sent_before_the_end_are_read(ends: Any) -> None:
    """Each receive after the last message gives the end of file."""
    parent, worker = ends
    worker.send("last words")
    worker.send(padded(LIMIT + 1))
    worker.close()
    assert parent.receive()[0] == "last words"
    assert len(parent.receive()[0]) > LIMIT // 2
    for _ in range(2):
        with pytest.raises(EOFError):
            parent.receive()


def test_a_closed_end_with_unread_messages_is_an_end_of_file(ends: Any) -> None:
    """The kernel reports a reset connection."""
    parent, worker = ends
    parent.send("never read")
    worker.close()
    with pytest.raises(EOFError):
        parent.receive()


def test_messages_of_an_end_with_unread_messages_are_read(ends: Any) -> None:
    """Reports of a dead worker arrive though it has not read its last plan."""
    parent, worker = ends
    parent.send("one more plan")
    worker.send("failed")
    worker.send("drained")
    worker.close()
    assert [parent.receive(wait=False)[0] for _ in range(2)] == ["failed", "drained"]
    with pytest.raises(EOFError):
        parent.receive(wait=False)


@pytest.mark.parametrize("size", [100, LIMIT + 1], ids=["short", "long"])
def test_sending_to_a_closed_end_is_an_error(ends: Any, size: int) -> None:
    """No signal is raised, and no descriptor stays open."""
    parent, worker = ends
    worker.close()
    with pytest.raises(BrokenPipeError):
        parent.send(padded(size))
