"""Rules of the source that are read from the source: layers, sizes, language."""

from __future__ import annotations

import ast
import doctest
import graphlib
import io
import os
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGE = os.path.join(ROOT, "shmpar")
PAGE = os.path.join(ROOT, "docs", "explain", "architecture.md")

# The modules and packages of shmpar, lowest first. Each imports only from those before it, and
# from its own package. The table of layers in docs/explain/architecture.md has the same order.
LAYERS = (
    "tracebacks",
    "errors",
    "version",
    "display",
    "grid",
    "plan",
    "memory",
    "stores",
    "arrays",
    "ipc",
    "pickling",
    "worker",
    "engines",
    "report",
    "runtime",
    "cluster",
    "verbs",
    "pool",
    "defaults",
    "integrations",
    "__init__",
    "cli",
    "__main__",
)

IMPURE = {
    "asyncio", "concurrent", "ctypes", "datetime", "fcntl", "io", "mmap", "multiprocessing",
    "numpy", "os", "pathlib", "queue", "random", "secrets", "select", "selectors", "signal",
    "socket", "subprocess", "sys", "tempfile", "threading", "time",
}  # fmt: skip

MODULES = 118
TOP_LEVEL = 7
LINES = 750
FUNCTION_LINES = 60

OPENING = re.compile(r"(what|who|whoever|whom|whose|how|whether|where|one)\b", re.IGNORECASE)
PRONOUN = re.compile(r"\b(what|who|whoever|whom)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Module:
    """A source file and its dotted name below ``shmpar``."""

    name: str
    path: str

    @property
    def text(self) -> str:
        """The source."""
        with open(self.path, encoding="utf-8") as file:
            return file.read()

    @property
    def package(self) -> list[str]:
        """The package that relative imports start from, without ``shmpar``."""
        return self.name.split(".")[:-1]


@cache
def modules() -> dict[str, Module]:
    """Return every module by name; the file of a package itself ends in ``__init__``."""
    found = {}
    for folder, _, files in os.walk(PACKAGE):
        parts = os.path.relpath(folder, PACKAGE).split(os.sep)
        for file in sorted(files):
            if file.endswith(".py"):
                name = ".".join([*(part for part in parts if part != "."), file[:-3]])
                found[name] = Module(name, os.path.join(folder, file))
    return found


def layer(name: str) -> str:
    """Return the package of a module, or the module itself at the top level."""
    return name.partition(".")[0]


def resolve(parts: list[str]) -> str:
    """Return the module that dotted names below ``shmpar`` lead to; the rest is in it."""
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in modules():
            return name
        if f"{name}.__init__" in modules():
            return f"{name}.__init__"
    return "__init__"


class Imports(ast.NodeVisitor):
    """Collects the imports of a module, at any depth, except those for type checkers only."""

    def __init__(self, package: list[str]) -> None:
        self.package = package
        self.ours: set[str] = set()
        self.others: set[str] = set()
        self.aliases: set[str] = set()

    def add(self, dotted: str) -> None:
        """Note an imported name."""
        top, *rest = dotted.split(".")
        if top == "shmpar":
            self.ours.add(resolve(rest))
        else:
            self.others.add(top)

    def visit_If(self, node: ast.If) -> None:
        """Skip the part that only type checkers read."""
        if ast.unparse(node.test) not in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            self.generic_visit(node)
            return
        for statement in node.orelse:
            self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        """Note `import a, b.c as d`."""
        for name in node.names:
            if name.name == "shmpar":  # the attributes that are used count, see visit_Attribute
                self.aliases.add(name.asname or "shmpar")
            else:
                self.add(name.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Note `from a import b`, relative ones too."""
        base = node.module.split(".") if node.module else []
        if node.level:
            above = self.package[: len(self.package) - node.level + 1]
            base = ["shmpar", *above, *base]
        for name in node.names:
            self.add(".".join([*base, name.name]))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note the attributes that are used of a bare `import shmpar`."""
        dunder = node.attr.startswith("__")  # shmpar.__file__ is no import
        if isinstance(node.value, ast.Name) and node.value.id in self.aliases and not dunder:
            self.add(f"shmpar.{node.attr}")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Note `import_module("a.b")`."""
        called = ast.unparse(node.func).rpartition(".")[2]
        first = node.args[0] if node.args else None
        if called in {"import_module", "__import__"} and isinstance(first, ast.Constant):
            self.add(str(first.value))
        self.generic_visit(node)


@cache
def imports(module: Module, text: str | None = None) -> Imports:
    """Read the imports of a module, or those of a text in its place."""
    found = Imports(module.package)
    found.visit(ast.parse(module.text if text is None else text))
    return found


def complaint(importer: str, imported: str) -> str | None:
    """Return the fault of an import; None if it has none."""
    here, there = layer(importer), layer(imported)
    for name in (here, there):
        if name not in LAYERS:
            return f"{name} is in no layer: add it to LAYERS"
    if here == there or LAYERS.index(there) < LAYERS.index(here):
        return None
    return f"{importer} imports {imported}, which lies above it"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function, from `def` to its end, without decorators and docstring."""
    lines = (node.end_lineno or 0) - node.lineno + 1
    if ast.get_docstring(node, clean=False) is None:
        return lines
    docstring = node.body[0]
    return lines - ((docstring.end_lineno or 0) - docstring.lineno + 1)


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield each docstring and each comment of a source, with the number of its line."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            lines = first.value.value.strip().splitlines()
            examples = (">>>", "...")
            yield (
                first.lineno,
                "\n".join(line for line in lines if not line.lstrip().startswith(examples)),
            )
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def inverted(text: str) -> list[str]:
    """Return the docstrings and comments of a source that are not in plain English."""
    return [
        f"line {number}: {words.splitlines()[0]}"
        for number, words in sorted(prose(text))
        if OPENING.match(words) or PRONOUN.search(words)
    ]


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table under a heading of the page of the architecture."""
    with open(PAGE, encoding="utf-8") as file:
        section = file.read().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


each_module = pytest.mark.parametrize("module", modules().values(), ids=modules())


@each_module
def test_imports_go_down(module):
    """A module is in a layer, and imports only from lower layers and from its own package."""
    assert layer(module.name) in LAYERS, "add it to LAYERS in tests/test_layers.py"
    found = (complaint(module.name, imported) for imported in sorted(imports(module).ours))
    assert not [text for text in found if text]


@pytest.mark.parametrize("package", [name for name in LAYERS if f"{name}.__init__" in modules()])
def test_a_package_has_no_circle(package):
    """The imports inside a package form no circle."""
    graph = {
        name: {imported for imported in imports(module).ours if layer(imported) == package}
        for name, module in modules().items()
        if layer(name) == package
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_page_shows_the_layers():
    """The page of the architecture has a row for each layer, highest first, with its modules."""
    table = {cells[0].strip("`"): re.findall(r"`(\w+)`", cells[1]) for cells in rows("Layers")}
    assert list(table) == list(reversed(LAYERS))
    for name, shown in table.items():
        parts = [other.partition(".") for other in modules() if layer(other) == name]
        inside = {rest for _, _, rest in parts} - {"", "__init__"}
        assert set(shown) == inside, f"correct the row of {name}"


def test_the_example_of_the_page_is_right():
    """Each statement in the example of the page of the architecture prints the lines below it."""
    with open(PAGE, encoding="utf-8") as file:
        blocks = re.findall(r"^ *```pycon\n(.*?)^ *```", file.read(), re.MULTILINE | re.DOTALL)
    text = "\n".join(map(textwrap.dedent, blocks))
    example = doctest.DocTestParser().get_doctest(text, {}, "the example", PAGE, 0)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_there_are_few_modules():
    """Neither the package nor its top level has more modules than the limits above."""
    top = {name for name in modules() if "." not in name}
    assert len(top - {"__init__", "__main__", "version"}) <= TOP_LEVEL
    assert len(modules()) <= MODULES


@each_module
def test_modules_and_functions_are_short(module):
    """No module is longer than 750 lines, no function than 60 lines, its docstring aside."""
    assert module.text.count("\n") <= LINES, "split it by concept"
    sizes = {node.name: length(node) for node in functions(ast.parse(module.text))}
    assert {name: lines for name, lines in sizes.items() if lines > FUNCTION_LINES} == {}


@each_module
def test_docstrings_and_comments_are_plain_english(module):
    """No docstring or comment begins with How, One or the like, or has What or Who as a pronoun."""
    assert inverted(module.text) == []


def test_the_scheduler_is_pure():
    """The scheduler and the modules that it imports use no clock, process, thread or array."""
    found, ahead = set(), {"runtime.scheduler"}
    while ahead:
        name = ahead.pop()
        found.add(name)
        read = imports(modules()[name])
        assert read.others & IMPURE == set(), name
        ahead |= read.ours - found
    assert found == {"runtime.scheduler", "ipc.protocol"}


@pytest.mark.parametrize(
    ("text", "imported"),
    [
        ("import shmpar.grid", {"grid.__init__"}),
        ("import shmpar.grid.axis as axis", {"grid.axis"}),
        ("from shmpar import errors", {"errors"}),
        ("from shmpar import Pool", {"__init__"}),
        ("from shmpar.errors import PlanError", {"errors"}),
        ("from shmpar.engines import engine", {"engines.engine"}),
        ("from . import local", {"engines.local"}),
        ("from .engine import Exit", {"engines.engine"}),
        ("from .. import errors", {"errors"}),
        ("from ..grid import Grid", {"grid.__init__"}),
        ("def f():\n    from shmpar.plan import Plan", {"plan"}),
        ("try:\n    from shmpar.plan import Plan\nexcept ImportError:\n    pass", {"plan"}),
        ("import shmpar\nshmpar.__file__", set()),
        ("import shmpar\nshmpar.map_blocks(f, x)", {"__init__"}),
        ("import shmpar as s\ns.errors.PlanError", {"errors"}),
        ("import importlib\nimportlib.import_module('shmpar.ipc.ledger')", {"ipc.ledger"}),
        ("if TYPE_CHECKING:\n    from shmpar.plan import Plan", set()),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import shmpar.plan", {"plan"}),
        ("NAMES = {'Pool': 'shmpar.pool'}", set()),
    ],
)
def test_every_way_to_import_is_seen(text, imported):
    """The reader of imports knows all forms; names in a table of strings are none."""
    reader = Module("engines.processes", "")
    assert imports(reader, text).ours == imported


@pytest.mark.parametrize(
    ("importer", "imported", "words"),
    [
        ("plan", "runtime.run", "lies above it"),
        ("memory.names", "arrays.__init__", "lies above it"),
        ("worker.loop", "engines.engine", "lies above it"),
        ("grid.axis", "__init__", "lies above it"),
        ("errors", "version", "lies above it"),
        ("grid.axis", "novelty", "add it to LAYERS"),
        ("novelty.part", "errors", "add it to LAYERS"),
    ],
)
def test_a_wrong_import_is_named(importer, imported, words):
    """A complaint names the import and its fault."""
    assert words in (complaint(importer, imported) or "")


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("arrays.sharedarray", "memory.names"),
        ("memory.names", "errors"),
        ("engines.local", "engines.engine"),
        ("__main__", "cli"),
    ],
)
def test_a_right_import_has_no_complaint(importer, imported):
    """An import from a lower layer or from the same package is right."""
    assert complaint(importer, imported) is None


def test_a_docstring_does_not_count():
    """The length of a function is that of its code."""
    tree = ast.parse('@cache\ndef f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    return x\n')
    assert [length(node) for node in functions(tree)] == [4]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('"""What it is."""', 1),
        ('"""Return it."""\ndef f():\n    """Whether it is so."""', 1),
        ('"""Return it.\n\n    Say who did it.\n    """', 1),
        ("x = 1  # where it lies", 1),
        ("# one of them", 1),
        ("# Why: it is so", 0),
        ('"""Return it, and show where it lies.\n\n>>> f(what=1)\n"""', 0),
        ("x = 'what'", 0),
    ],
)
def test_inverted_language_is_seen(text, count):
    """Docstrings and comments are read; examples and other strings are not."""
    assert len(inverted(text)) == count
