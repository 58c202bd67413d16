"""Tests of one verb: ``python -m pytest --verb map_overlap``.

This plugin of the test suite adds the marker ``verb(name)`` to each test that checks a verb. With
``--verb`` only the tests of that verb run, and only their files are imported.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_REDUCTIONS = {"tests/contract/test_reductions.py", "tests/contract/test_reductions_numpy.py"}
_PLACES = {"tests/contract/test_places_and_counts.py"}
_QUANTILES = {"tests/contract/test_quantiles.py"}
_MORE = {"tests/contract/test_more_reductions.py"}

FILES = {
    "map_blocks": {"tests/test_grid.py", "tests/contract/test_blocks_without_an_array.py"},
    "map_overlap": {
        "shmpar/grid/halo.py",
        "tests/test_halo.py",
        "tests/contract/test_overlap.py",
        "tests/contract/test_overlap_axes.py",
        "tests/contract/test_scipy.py",
    },
    "block_reduce": set(),
    "parallel_map": {"tests/test_batches.py"},
    "apply_along_axis": {"tests/contract/test_along_axis.py"},
    "sum": _REDUCTIONS,
    "mean": _REDUCTIONS,
    "var": _REDUCTIONS,
    "std": _REDUCTIONS,
    "min": _REDUCTIONS,
    "max": _REDUCTIONS,
    **dict.fromkeys(["prod", "any", "all", "nansum", "nanmin", "nanmax"], _MORE),
    **dict.fromkeys(["nanmean", "nanvar", "nanstd", "argmin", "argmax"], _PLACES),
    **dict.fromkeys(["bincount", "unique"], _PLACES),
    **dict.fromkeys(["median", "nanmedian", "percentile", "nanpercentile"], _QUANTILES),
    **dict.fromkeys(["quantile", "nanquantile"], _QUANTILES),
    "histogram": _REDUCTIONS | {"tests/contract/test_histogram.py"},
}
"""Files whose tests belong to a verb, except those that have another verb as their parameter."""

SHARED = {
    "shmpar/verbs/blocks.py",
    "shmpar/verbs/counts.py",
    "shmpar/verbs/quantiles.py",
    "shmpar/verbs/reductions.py",
    "tests/contract/test_direct_writes.py",
    "tests/contract/test_empty_inputs.py",
    "tests/contract/test_verbs.py",
    "tests/test_bad_verbs.py",
    "tests/test_check.py",
}
"""Files of which a test belongs to the verbs that it names; to all if it names none."""

# Why not all names: "sum" in the source of a test is mostly NumPy's.
_LONG_NAMES = {verb for verb in FILES if "_" in verb}


def verbs_of(item: pytest.Item) -> set[str]:
    """Return the verbs that a test checks; none for a test of any other file."""
    path = os.path.relpath(item.path, ROOT)
    owners = {verb for verb, files in FILES.items() if path in files}
    if not owners and path not in SHARED:
        return set()
    if isinstance(item, pytest.DoctestItem):
        return owners or {item.name.rpartition(".")[2]} & set(FILES)
    parameters = set(re.findall(r"\w+", item.name.partition("[")[2])) & set(FILES)
    if parameters:
        return parameters
    return owners or _named(item.function) or set(FILES)


@functools.cache
def _named(function: Any) -> set[str]:
    """Return the verbs with long names that the source of a function has."""
    return set(re.findall(r"\w+", inspect.getsource(function))) & _LONG_NAMES


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``--verb`` skip the files that have no test of the verb."""
    verb = config.getoption("verb")
    if verb is None or collection_path.is_dir():
        return None
    path = os.path.relpath(collection_path, ROOT)
    return None if path in FILES[verb] | SHARED else True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of verbs; with ``--verb`` deselect all others."""
    for item in items:
        for verb in sorted(verbs_of(item)):
            item.add_marker(pytest.mark.verb(verb))
    verb = config.getoption("verb")
    if verb is not None:
        chosen = [item for item in items if verb in verbs_of(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
