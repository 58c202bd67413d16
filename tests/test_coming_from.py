"""The code of docs/coming-from.md runs and leaves no segment."""

from __future__ import annotations

import functools  # noqa: F401 - a row uses it
import importlib
import multiprocessing
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed  # noqa: F401 - a row uses it
from contextlib import contextmanager

import dask
import dask.array as da
import joblib
import numpy as np
import pytest
from joblib import delayed  # noqa: F401 - a row uses it
from skimage.util import apply_parallel  # noqa: F401 - a row uses it

import shmpar
from tests.interpreters import ROOT, run_python

PAGE = os.path.join(ROOT, "docs", "coming-from.md")


def sections():
    """Yield the title and the Python code of each section."""
    with open(PAGE, encoding="utf-8") as file:
        parts = re.split(r"^## (.+)$", file.read(), flags=re.MULTILINE)
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        yield title, "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


SECTIONS = {title: code for title, code in sections() if code}  # "First guesses" has none
SETUP = """
import numpy as np
import shmpar

x = np.arange(12.0).reshape(3, 4)
"""
# Why: up to Python 3.12 an attached SharedMemory removes our name, as the page warns.
NO_TRACKER = """
from multiprocessing import resource_tracker
resource_tracker.register = resource_tracker.unregister = lambda *_: None
"""


@pytest.mark.parametrize("title", SECTIONS)
def test_the_code_of_each_section_runs(title, tmp_path):
    """Every assertion holds, and the program prints no error."""
    before = set(os.listdir("/dev/shm"))
    quiet = NO_TRACKER if title == "The standard library" else ""
    done = run_python(SETUP + quiet + SECTIONS[title], cwd=tmp_path)
    assert (done.stderr, done.returncode) == ("", 0)
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name == "MyMemory"}


def test_every_library_has_a_section():
    """The page has a section with code for each of six libraries; one of them has two."""
    assert len(SECTIONS) == 7
    assert all(SECTIONS.values())


# Tables of two columns, both of them code: the same value on both sides

SAME = re.compile(
    r"^\| (.+) \| shmpar, the same result \|\n\| --- \| --- \|\n((?:\|.+\|\n)+)", re.MULTILINE
)
with open(PAGE, encoding="utf-8") as _file:
    _TEXT = _file.read()
ROWS = [
    (library, *re.fullmatch(r"\| `(.+)` \| `(.+)` \|", line).groups())
    for library, lines in SAME.findall(_TEXT)
    for line in lines.splitlines()
]


_FUNCTIONS = re.search(r"^```python\n(def spread.+?)^```", _TEXT, re.MULTILINE | re.DOTALL)


@contextmanager
def names(functions):
    """Yield the names of the tables; Dask and joblib compute without processes."""
    with (
        multiprocessing.get_context("spawn").Pool(2) as mp,
        ThreadPoolExecutor(2) as executor,
        shmpar.Pool(2) as pool,
        dask.config.set(scheduler="synchronous"),
    ):
        image = np.random.default_rng(0).integers(0, 64, (8, 8)).astype(float)
        yield (
            globals()
            | vars(functions)
            | {
                "mp": mp,
                "executor": executor,
                "pool": pool,
                "image": image,
                "rgb": np.stack([image, image + 1, image + 2], axis=-1),
                "items": [-3, 1, 2],
                "parallel": joblib.Parallel(n_jobs=2, backend="threading"),
                "d": da.from_array(image, chunks=(4, 4)),
            }
        )
        mp.close()
        mp.join()


def test_both_sides_of_each_row_have_the_same_value(tmp_path, monkeypatch):
    """The two calls of a row return equal values; floats may differ by rounding."""
    # Why a module of their own: each worker imports it, and this module imports much.
    (tmp_path / "functions_of_rows.py").write_text(f"import numpy as np\n\n{_FUNCTIONS[1]}")
    monkeypatch.syspath_prepend(tmp_path)
    with names(importlib.import_module("functions_of_rows")) as given:
        for _, theirs, ours in ROWS:
            expected, found = (np.asarray(eval(code, given)) for code in (theirs, ours))  # noqa: S307
            assert found.shape == expected.shape, ours
            np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=ours)


def test_five_libraries_have_a_table():
    """Each of the five libraries has a table with at least six calls, and says when to stay."""
    counts = Counter(library for library, _, _ in ROWS)
    assert len(counts) == 5
    assert min(counts.values()) >= 6
    assert _TEXT.count("**Stay with ") == 5
