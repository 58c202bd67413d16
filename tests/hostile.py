"""Functions that attack the worker in which they are called: descriptors, signals, programs.

Workers import this module by name, so it imports nothing slow.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

CHUNK = 5  # numbers in a chunk of the input
TOP = 200  # descriptors below this number are closed or replaced

# Acts of a function against its worker. The names that they use are imported in `act`.


def close_all() -> None:
    os.closerange(3, TOP)


def replace_all(flags: int, path: str) -> None:
    fd = os.open(path, flags)
    for number in range(3, TOP):
        if number != fd:
            os.dup2(fd, number)


def replace_by_zeros() -> None:
    replace_all(os.O_RDWR, "/dev/zero")


def replace_by_null() -> None:
    replace_all(os.O_RDWR, "/dev/null")


def replace_by_file() -> None:
    import tempfile

    with tempfile.TemporaryFile() as file:
        file.write(bytes(5000))
        file.seek(3)
        for number in range(3, TOP):
            if number != file.fileno():
                os.dup2(file.fileno(), number)


def replace_by_memory() -> None:
    fd = os.memfd_create("hostile")
    os.ftruncate(fd, 1 << 20)
    os.lseek(fd, 20, os.SEEK_SET)
    for number in range(3, TOP):
        if number != fd:
            os.dup2(fd, number)


def replace_by_sockets() -> None:
    import socket

    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near, far = near.detach(), far.detach()
    for number in range(3, TOP):
        if number not in {near, far}:
            os.dup2(far, number)


def replace_by_pipes() -> None:
    read, write = os.pipe()
    for number in range(3, TOP):
        if number not in {read, write}:
            os.dup2(read if number % 2 else write, number)


def close_and_open_files() -> None:
    import socket

    os.closerange(3, TOP)
    for _ in range(10):
        os.open("/dev/zero", os.O_RDWR)
        os.memfd_create("hostile")
        os.pipe()
        for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
            end.detach()


def leave_the_group() -> None:
    os.setpgid(0, os.getpgid(os.getppid()))


def make_a_session() -> None:
    if os.fork():
        with suppress(ChildProcessError):  # Why: the kernel reaps the child if SIGCHLD is ignored.
            os.wait()
    else:
        os.setsid()
        os._exit(0)


def ignore_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if number < 32:
            signal.signal(number, signal.SIG_IGN)


def block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def reset_death_signal() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(1, 0)


def start_a_program() -> None:
    import subprocess

    subprocess.Popen(["sleep", "600"])


def fork_and_return() -> None:
    os.fork()


def leave_a_thread() -> None:
    import threading

    threading.Thread(target=signal.sigwait, args=([signal.SIGUSR2],)).start()


def crash() -> None:
    import ctypes

    ctypes.string_at(0)


def exit_at_once() -> None:
    os._exit(0)


DESCRIPTORS = {
    act.__name__: act
    for act in (
        close_all,
        replace_by_zeros,
        replace_by_null,
        replace_by_file,
        replace_by_memory,
        replace_by_sockets,
        replace_by_pipes,
        close_and_open_files,
    )
}
KEEPERS = {
    act.__name__: act
    for act in (
        leave_the_group,
        make_a_session,
        ignore_signals,
        block_signals,
        reset_death_signal,
    )
}
OTHERS = {
    act.__name__: act
    for act in (start_a_program, fork_and_return, leave_a_thread, crash, exit_at_once)
}
ACTS = {**DESCRIPTORS, **KEEPERS, **OTHERS}


def attacking(names: list[str], chunk: int, *, late: bool = False) -> Any:
    """Return a function of a block that acts in one chunk, before it computes or after."""
    acts = [ACTS[name] for name in names]

    def work(block: Any) -> Any:
        hit = block.flat[0] == chunk * CHUNK
        if hit and not late:
            for act in acts:
                act()
        result = block * 2
        if hit and late:
            for act in acts:
                act()
        return result

    return work


def starting(how: str) -> Callable[[Path], None]:
    """Return a function that starts processes which sleep, notes them, and sleeps itself."""

    def work(path: Path) -> None:
        if how == "program":
            pids = [subprocess.Popen(["sleep", "600"]).pid]
        elif how == "shell":
            pids = [subprocess.Popen(["sh", "-c", "sleep 600 & wait"]).pid]
        elif how == "multiprocessing":
            import multiprocessing

            pool = multiprocessing.get_context("fork").Pool(2)
            pids = [process.pid for process in multiprocessing.active_children()]
            pool.apply_async(time.sleep, (600,))
        else:
            from concurrent.futures import ProcessPoolExecutor

            executor = ProcessPoolExecutor(2)
            executor.submit(time.sleep, 600)
            pids = list(executor._processes)
        new = path.with_suffix(".new")
        new.write_text(" ".join(map(str, pids)))
        new.rename(path)
        time.sleep(600)

    return work


def crash_at_one(block: Any) -> Any:
    if block[0] == 0:
        ctypes.string_at(0)
    return block
