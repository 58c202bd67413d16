"""The code of the guide prints the shown output, and its pictures are up to date.

Most pages take seconds, and are marked ``stress``: `.ci/run` has a step for them.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

import shmpar
import shmpar.defaults
from tests.interpreters import ROOT, run_python

GUIDE = Path(ROOT, "docs", "guide")
PAGES = sorted(page for page in GUIDE.glob("*.md") if page.name != "index.md")
REFERENCE = Path(ROOT, "docs", "reference")
IMAGES = Path(ROOT, "docs", "images")


def sections(page):
    """Yield the title, code and output of each section; the code includes the page's first code."""
    first, *parts = re.split(r"^## (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        code = blocks("python", text)
        yield title, code and blocks("python", first) + code, blocks("text", text)


def blocks(kind, text):
    """Join all code blocks of a language."""
    return "".join(re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


SECTIONS = {
    f"{page.stem}: {title}": (code, output)
    for page in PAGES
    for title, code, output in sections(page)
    if code
}


# Why: one interpreter and one pool for several pages, since their start takes most of the time.
OWN = re.compile(r"^with shmpar\.Pool\(2?\) as pool\b", re.MULTILINE)
SHARED = "with __import__('contextlib').nullcontext(shared()) as pool"
ABOUT_POOLS = {"arrays", "workers"}
LIBRARIES = {"joblib", "more-machines"}  # Why: each worker imports scikit-learn or distributed
APART = ABOUT_POOLS | LIBRARIES
SLOW = {*LIBRARIES, "some", "others"}
TOGETHER = [page.stem for page in PAGES if page.stem not in APART]
# Why: a worker of Dask whose heartbeat is in flight while its cluster closes logs a traceback.
QUIET = {"DASK_LOGGING": "{'distributed.worker': 'critical'}"}
GROUPS = {page: [page] for page in sorted(APART)} | {
    "some": TOGETHER[::2],
    "others": TOGETHER[1::2],
}
PROGRAM = """
import functools, json, logging, os, sys, types

@functools.cache
def shared():
    import atexit, shmpar
    pool = shmpar.Pool()
    atexit.register(pool.shutdown)
    return pool

for number, code in enumerate(json.load(sys.stdin)):
    print("== section", number, flush=True)
    os.mkdir(str(number))
    os.chdir(str(number))
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.shared = shared
    exec(compile(code, "<string>", "exec"), vars(module))
    sys.stdout.flush()
    vars(module).clear()  # Why: arrays end before the interpreter does
    logging.root.handlers.clear()  # Why: `basicConfig` of a later section would do nothing
    os.chdir("..")
"""


def can_import(code):
    """Return whether the optional libraries that the code imports are installed."""
    names = re.findall(
        r"^(?:import|from) (xarray|pandas|torch|zarr|h5py|napari|distributed)\b", code, re.MULTILINE
    )
    return all(importlib.util.find_spec(name) for name in names)


@pytest.mark.parametrize(
    "group",
    [pytest.param(group, marks=[pytest.mark.stress] * (group in SLOW)) for group in GROUPS],
)
def test_the_code_of_each_section_prints_the_shown_output(group, tmp_path):
    """The code blocks of a section form a program, and its text blocks are the output."""
    shown = {
        title: given
        for title, given in SECTIONS.items()
        if title.partition(": ")[0] in GROUPS[group] and can_import(given[0])
    }
    codes = [code if group in ABOUT_POOLS else OWN.sub(SHARED, code) for code, _ in shown.values()]
    done = run_python(PROGRAM, input=json.dumps(codes), cwd=tmp_path, env=QUIET, timeout=120)
    printed = re.split(r"^== section \d+\n", done.stdout, flags=re.MULTILINE)[1:]
    for (title, (_, output)), text in zip(shown.items(), printed, strict=False):
        assert (text, done.stderr) == (output, ""), title
    assert (len(printed), done.stderr, done.returncode) == (len(shown), "", 0)


def test_every_verb_has_a_section():
    """Each verb has a section with code, and its reference page links to the section."""
    verbs = {name for name in shmpar.defaults.__all__ if name != "default_pool"}
    titles = [name.partition(": ")[2] for name in SECTIONS if name.startswith("which-verb")]
    assert verbs <= {verb for title in titles for verb in title.split(", ")}
    for verb in verbs:
        assert "../guide/which-verb.md#" in (REFERENCE / f"{verb}.md").read_text(encoding="utf-8")


def test_every_public_name_is_in_the_reference():
    """Each name that the package exports has an entry on a page."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    shown = set(re.findall(r"^\.\. (?:auto\w+|class):: (\w+)", pages, re.MULTILINE))
    assert set(shmpar.__all__) - shown == {"__version__"}


def test_the_pictures_are_up_to_date(tmp_path):
    """`python docs/drawings.py` draws exactly the pictures of the pages."""
    done = run_python(Path(ROOT, "docs", "drawings.py"), str(tmp_path))
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    drawn = sorted(tmp_path.iterdir())
    assert drawn
    for picture in drawn:
        assert picture.read_bytes() == (IMAGES / picture.name).read_bytes(), picture.name
    used = {name for page in PAGES for name in re.findall(r"images/(\w+\.svg)", page.read_text())}
    assert used == {picture.name for picture in drawn}
