"""The ceiling: bare forked processes that do their share of a loop, with nothing around it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bare(loop: Callable[[int, int], None], workers: int) -> Iterator[Callable[[], None]]:
    """Fork processes that call ``loop(worker, workers)`` each time the block's function is called.

    They are up and waiting before the block begins, so that a call costs one byte through a pipe
    each way.
    """
    pipes = []
    for worker in range(workers):
        go_read, go_write = os.pipe()
        done_read, done_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            _serve(loop, worker, workers, go_read, done_write)
        os.close(go_read)
        os.close(done_write)
        pipes.append((pid, go_write, done_read))

    def run() -> None:
        for _, go, _ in pipes:
            os.write(go, b"g")
        for _, _, done in pipes:
            if os.read(done, 1) != b"d":
                raise RuntimeError("a bare process failed")

    try:
        yield run
    finally:
        for pid, go, done in pipes:
            os.close(go)
            os.close(done)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _serve(loop: Callable[[int, int], None], worker: int, workers: int, go: int, done: int) -> None:
    while os.read(go, 1):
        loop(worker, workers)
        os.write(done, b"d")
    os._exit(0)
