"""Examples in docstrings: each runs once, and those of the verbs share a pool.

``conftest.py`` registers this module as a plugin, since it covers the package, not ``tests``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

import shmpar
from tests import pools

POOL = "with shmpar.Pool(2) as"


def _of_verbs(node: pytest.Item | pytest.Collector) -> bool:
    return node.path.parent.name == "verbs"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the functions of the package that have the docstring of a method of `Pool`."""
    examples = [item for item in items if isinstance(item, pytest.DoctestItem)]
    methods = {item.dtest.docstring for item in examples if _of_verbs(item)}
    copies = {
        item
        for item in examples
        if item.path.name == "__init__.py" and item.dtest.docstring in methods
    }
    items[:] = [item for item in items if item not in copies]


@pytest.fixture(scope="module", autouse=True)
def pool_of_examples(request: pytest.FixtureRequest) -> Iterator[shmpar.Pool | None]:
    """A pool for the examples of a module of verbs, since its start takes most of their time."""
    if _of_verbs(request.node) and POOL in request.node.path.read_text(encoding="utf-8"):
        with pools.warm("processes") as pool:
            yield pool
    else:
        yield None


@pytest.fixture(autouse=True)
def shared_pool(
    request: pytest.FixtureRequest, pool_of_examples: shmpar.Pool | None, nothing_left: None
) -> Iterator[None]:
    """Let the examples of a docstring use the pool of the module in place of `Pool(2)`."""
    if pool_of_examples is None:
        yield
        return
    test = request.node.dtest
    test.globs["shared"] = nullcontext(pool_of_examples)
    for example in test.examples:
        example.source = example.source.replace(POOL, "with shared as")
    yield
    pools.drop_caches(pool_of_examples)
