"""Fixtures for tests of stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def zarr(nothing_left: None) -> Iterator[object]:
    """The library zarr, whose threads end with the test."""
    module = pytest.importorskip("zarr")
    from zarr.core.sync import cleanup_resources

    yield module
    cleanup_resources()
