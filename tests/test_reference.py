"""The reference has each attribute, option and extra that a page of the site mentions."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import shmpar
from shmpar.integrations import joblib as joblib_backend
from shmpar.integrations import napari as napari_layers
from shmpar.report import HostTraffic, LostClaim, Report, SlowChunk, WorkerTime
from shmpar.runtime.items import Table
from shmpar.stores.store import Store
from shmpar.worker.task import Progress, Task
from tests.interpreters import ROOT

DOCS = Path(ROOT, "docs")
REFERENCE = DOCS / "reference"
TEXTS = {
    page.stem: page.read_text(encoding="utf-8")
    for page in [Path(ROOT, "README.md"), *DOCS.glob("*.md"), *(DOCS / "guide").glob("*.md")]
}
# The name that the pages give to an object, its class, and the page of the reference
OBJECTS = {
    "pool": (shmpar.Pool, "pool"),
    "run": (shmpar.Run, "run"),
    "report": (Report, "run"),
    "store": (Store, "stores"),
    "task": (Task, "environments"),
}
# The attributes of concurrent.futures.Future have a sentence on the page, not an entry.
OF_FUTURES = {"done", "cancelled", "exception"}


def used(name: str) -> set[str]:
    """Return the attributes of an object that any page uses, in code or between backticks."""
    # Why: the tables of first guesses have names of other libraries.
    texts = [text for page, text in TEXTS.items() if page != "coming-from"]
    found = {word for text in texts for word in re.findall(rf"\b{name}\.([a-z]\w*)", text)}
    return found - {"md", "png", "ledger"}  # names of files


def entries(page: str, of_class: type) -> set[str]:
    """Return the members of a class that a page of the reference documents."""
    text = (REFERENCE / f"{page}.md").read_text(encoding="utf-8")
    names = set(re.findall(r"^ +\.\. auto(?:property|method):: (\w+)", text, re.MULTILINE))
    options = re.search(
        rf"^\.\. autoclass:: [\w.]*\b{of_class.__name__}\b.*\n((?: +:.+\n(?: {{6,}}.+\n)*)*)",
        text,
        re.MULTILINE,
    )
    for line in re.findall(r":members: (.+)", options[1] if options else ""):
        names |= set(line.split(", "))
    if options and re.search(r":members:$", options[1], re.MULTILINE):
        hidden = re.search(r":exclude-members:((?:.+\n?)+)", options[1])
        excluded = set(re.findall(r"\w+", hidden[1])) if hidden else set()
        names |= {name for name in dir(of_class) if name[0] != "_"} - excluded
        names |= excluded & (set(shmpar.__all__))  # functions with pages of their own
    return names | section(of_class, "Attributes")


def section(of_class: type, title: str) -> set[str]:
    """Return the names that a section of a docstring explains."""
    text = (inspect.getdoc(of_class) or "").partition(f"{title}\n{'-' * len(title)}\n")[2]
    lines = re.findall(r"^(\w[\w, ]*)(?: :.*)?$", text.partition("\n---")[0], re.MULTILINE)
    return {name for line in lines for name in line.split(", ")}


@pytest.mark.parametrize("name", OBJECTS)
def test_each_attribute_that_a_page_uses_is_in_the_reference(name: str) -> None:
    """The guide promises nothing that the reference does not describe."""
    of_class, page = OBJECTS[name]
    known = entries(page, of_class) | OF_FUTURES
    assert used(name), name
    assert used(name) - known == set()


def test_the_records_of_a_report_are_in_the_reference() -> None:
    """Each class that a report or a run hands out has an entry."""
    text = (REFERENCE / "run.md").read_text(encoding="utf-8")
    for one in (Report, WorkerTime, SlowChunk, LostClaim, HostTraffic):
        assert f"\n.. autoclass:: shmpar.report.{one.__name__}()" in text
    assert f"\n.. autoclass:: {Table.__module__}.Table()" in text
    text = (REFERENCE / "environments.md").read_text(encoding="utf-8")
    assert all(f".{one.__name__}()" in text for one in (Task, Progress))


@pytest.mark.parametrize("module", [joblib_backend, napari_layers])
def test_each_integration_has_a_page(module: Any) -> None:
    """The names stand in the reference as a user imports them, and lead to the guide."""
    text = (REFERENCE / f"{module.__name__.rpartition('.')[2]}.md").read_text(encoding="utf-8")
    names = re.findall(rf"^\.\. auto\w+:: {re.escape(module.__name__)}\.(\w+)", text, re.MULTILINE)
    assert names
    assert "../guide/" in text
    public = {
        name
        for name, value in vars(module).items()
        if name[0] != "_" and getattr(value, "__module__", "") == module.__name__
        and (inspect.isfunction(value) or inspect.isclass(value))
    }  # fmt: skip
    assert public == set(names)


def test_each_argument_of_a_pool_is_explained() -> None:
    """The page of the pool has a parameter for each argument of the constructor."""
    assert (
        set(inspect.signature(shmpar.Pool).parameters) - section(shmpar.Pool, "Parameters") == set()
    )


def test_each_extra_is_on_the_page_of_the_installation() -> None:
    """The table has exactly the extras of the project."""
    with open(Path(ROOT, "pyproject.toml"), "rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    text = (DOCS / "install.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
    assert extras == {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_each_example_is_on_the_site() -> None:
    """The page of examples shows the code of each program and links each notebook."""
    text = (DOCS / "examples.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"literalinclude\} \.\./examples/(\w+\.py)", text))
    assert shown == {path.name for path in Path(ROOT, "examples").glob("*.py")}
    notebooks = set(re.findall(r"^notebooks/(\w+)$", text, re.MULTILINE))
    assert notebooks == {path.stem for path in Path(ROOT, "examples").glob("*.ipynb")}
    pictures = re.findall(r"\]\((images/.+?)\)", text)
    assert len(pictures) == 5
    assert all((DOCS / path).exists() for path in pictures)


def test_each_page_of_the_guide_is_reached_from_the_readme_or_another_page() -> None:
    """No page of the guide is an orphan, and the index has them all."""
    index = (DOCS / "guide" / "index.md").read_text(encoding="utf-8")
    pages = {page.stem for page in (DOCS / "guide").glob("*.md")} - {"index"}
    assert set(re.findall(r"^([a-z-]+)$", index, re.MULTILINE)) == pages
    linked = {name for text in TEXTS.values() for name in re.findall(r"[(/]([a-z-]+)\.md", text)}
    assert pages - linked == set()


def test_each_test_that_a_page_names_exists() -> None:
    """A claim with a test is checked by it, and the commands of the pages find their files."""
    pages = [Path(ROOT, "CONTRIBUTING.md"), *DOCS.glob("*.md"), *DOCS.glob("*/*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    tests = list(Path(ROOT, "tests").rglob("*.py"))
    sources = "\n".join(test.read_text(encoding="utf-8") for test in tests)
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named
    assert named - set(re.findall(r"def (test_\w+)\(", sources)) == set()
    files = set(re.findall(r"\b(tests/[\w/]+\.py)\b", text))
    assert files - {str(test.relative_to(ROOT)) for test in tests} == set()


def test_each_line_of_parameters_is_a_name_or_belongs_to_one() -> None:
    """Text that is not indented would be a parameter of its own on the page."""
    found = []
    for name in shmpar.__all__:
        for method in (getattr(shmpar, name), getattr(shmpar.Pool, name, None)):
            text = inspect.cleandoc(getattr(method, "__doc__", None) or "")
            section = re.search(r"Parameters\n-+\n(.*?)(?=\n\n\w+\n-+\n|\Z)", text, re.DOTALL)
            lines = section[1].split("\n") if section else []
            found += [
                (name, line)
                for line in lines
                if re.match(r"\S", line) and not re.match(r"[*\w, ]+( : .+)?$", line)
            ]
    assert not found
