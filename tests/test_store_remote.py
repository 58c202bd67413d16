"""Stores behind URLs: a zarr array that an HTTP server of this machine hands out."""

from __future__ import annotations

import http.server
import threading
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import shmpar

fsspec = pytest.importorskip("fsspec")

X = np.random.default_rng(0).integers(0, 60_000, (60, 80)).astype("u2")
PROTOCOL = ("plain", "tests.plain_http.PlainHTTP")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve a folder, and fail as often as the server is told, for the values alone."""

    server: Server

    def do_GET(self) -> None:
        """Send a file, or an error of the server."""
        if "/c/" in self.path and self.server.fails():
            self.send_error(503)
        else:
            self.server.requests.append(self.path)
            super().do_GET()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Server(http.server.ThreadingHTTPServer):
    """Count requests, and the failures to come."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.failures = 0
        self._lock = threading.Lock()
        self.requests: list[str] = []
        self.place = f"127.0.0.1:{self.server_port}"

    def fails(self) -> bool:
        """Return whether a request fails; two threads do not take the same failure."""
        with self._lock:
            failing = self.failures > 0
            self.failures -= failing
        return failing


@pytest.fixture
def server(zarr, nothing_left, tmp_path):
    """A server of the folder of the test, in a thread."""
    fsspec.register_implementation(*PROTOCOL, clobber=True)
    with Server(tmp_path) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


# Why by stress: aiohttp takes a second or more to import, in each process.
HTTP_MARKS = [
    pytest.mark.stress,
    pytest.mark.skipif(find_spec("aiohttp") is None, reason="no aiohttp"),
]


@pytest.fixture(params=["plain", pytest.param("http", marks=HTTP_MARKS)])
def url(request, zarr, server, tmp_path):
    """The URL of an array with the values of `X`, of which one unit is missing."""
    made = zarr.create_array(tmp_path / "x.zarr", shape=X.shape, dtype=X.dtype, chunks=(20, 20))
    made[...] = X
    (tmp_path / "x.zarr" / "c" / "2" / "3").unlink()
    return f"{request.param}://{server.place}/x.zarr"


@pytest.fixture
def workers(nothing_left):
    """Two worker processes."""
    with shmpar.Pool(2, initializer=fsspec.register_implementation, initargs=PROTOCOL) as pool:
        yield pool


DUE = X.copy()
DUE[40:, 60:] = 0


def test_a_url_is_read_by_the_workers(workers, zarr, url, server, tmp_path):
    """Blocks, halos and reductions of an array behind a URL; this process reads no value."""
    store = shmpar.open(url)
    assert (store.kind, store.shape, store.unit) == ("zarr", X.shape, (20, 20))
    out = zarr.create_array(tmp_path / "out.zarr", shape=X.shape, dtype=X.dtype, chunks=(20, 20))
    server.requests.clear()
    assert workers.map_blocks(np.invert, store, chunks=(20, 40), out=out) is out
    np.testing.assert_array_equal(out[...], ~DUE)
    values = [path for path in server.requests if "/c/" in path]
    assert len(values) == len(set(values)) >= 11  # each unit is asked for once
    array = zarr.open_array(url, mode="r")
    how = {"depth": 3, "boundary": "periodic", "chunks": (40, 40)}
    got = workers.map_overlap(np.negative, array, **how)
    np.testing.assert_array_equal(got, -DUE)
    assert workers.sum(array) == DUE.sum()


def test_an_error_of_the_server_that_passes_is_tried_again(workers, url, server):
    """Errors of a server are tried again; if they stay they are the cause of the error."""
    store = shmpar.open(url)
    server.failures = 2
    got = workers.map_blocks(np.negative, store, chunks=(20, 40), io_retries=3)
    np.testing.assert_array_equal(got, -DUE)
    assert server.failures == 0
    server.failures = 1_000
    with pytest.raises(shmpar.ChunkError, match="503") as caught:
        workers.map_blocks(np.negative, store, chunks=(20, 40), io_retries=1)
    assert isinstance(caught.value.__cause__, shmpar.StoreError)


def test_urls_that_have_no_array(zarr, server):
    """A URL without an array is an error before a call, and this process' memory is refused."""
    with pytest.raises(FileNotFoundError, match=r"y\.zarr"):
        shmpar.open(f"plain://{server.place}/y.zarr")
    with pytest.raises((TypeError, FileNotFoundError)):
        shmpar.open("memory://y.zarr")
    zarr.create_array("memory://y.zarr", shape=3, chunks=1, dtype="u1", overwrite=True)
    with pytest.raises(TypeError, match="memory of this process"):
        shmpar.open("memory://y.zarr")
