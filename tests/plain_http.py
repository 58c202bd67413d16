"""Read URLs by the standard library, as a file system of fsspec.

Why not fsspec's own: that one needs aiohttp.
"""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from typing import Any

from fsspec.asyn import AsyncFileSystem


class PlainHTTP(AsyncFileSystem):
    """Files of ``plain://host:port/path``, each read by a request."""

    protocol = "plain"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("plain://").rstrip("/")

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        values = await asyncio.to_thread(read, self._strip_protocol(path))
        return values[start:end]

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(await self._cat_file(path)), "type": "file"}

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        raise FileNotFoundError(path)


def read(path: str) -> bytes:
    """Return the bytes of a file of the server."""
    try:
        with urllib.request.urlopen(f"http://{path}", timeout=30) as reply:
            return reply.read()  # type: ignore[no-any-return]
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            raise FileNotFoundError(path) from None
        raise OSError(5, f"{error.code} {error.reason}", path) from None
