"""Imports go down, modules and functions stay small: rules that are read from the source."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest

PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "shmpar")

# What is in which layer.  A name stands for the module or package and all that is in it, unless
# a longer name says otherwise.  Names that do not exist yet may stand here.
LAYERS = {
    "errors": 0,
    "lazy": 0,
    "version": 0,
    "cpus": 0,
    "interrupts": 0,
    "grid": 0,
    "segment": 0,
    "arrays": 0,
    "tickets": 0,
    "ledger": 0,
    "checksum": 0,
    "pattern": 0,
    "masked": 0,
    "named": 0,
    "wire": 0,
    "placement": 1,
    "plan": 1,
    "travel": 1,
    "engines.__init__": 1,  # it runs whenever engines.protocol is imported
    "engines.exits": 1,
    "engines.protocol": 1,
    "worker": 2,
    "scheduler": 3,
    "engines": 3,
    "outputs": 3,
    "account": 3,
    "report": 3,
    "failures": 3,
    "policy": 3,
    "news": 3,
    "scratch": 3,
    "identity": 3,
    "ledgerfile": 3,
    "outcome": 3,
    "verification": 3,
    "conductor": 4,
    "tasks": 4,
    "run": 4,
    "driver": 4,
    "progress": 5,
    "verbs": 5,  # as a class that Pool extends, so they lie below it
    "pool": 6,
    "reductions": 6,
    "interop": 7,
    "__init__": 7,
    "cli": 8,
    "__main__": 8,
}

# Edges inside a layer; everything may import errors.
BESIDE = {
    ("arrays", "segment"),
    ("arrays", "masked"),
    ("cpus", "segment"),
    ("segment", "lazy"),
    ("ledger", "segment"),
    ("tickets", "segment"),
    ("plan", "placement"),
    ("travel", "plan"),
    ("engines.__init__", "engines.exits"),
    ("engines.protocol", "plan"),
    ("engines.protocol", "engines.exits"),
    ("scratch", "outputs"),
    ("outputs", "ledgerfile"),
    ("outcome", "failures"),
    ("outcome", "outputs"),
    ("outcome", "policy"),
    ("verification", "outputs"),
    ("report", "account"),
    ("run", "conductor"),
    ("driver", "tasks"),
    ("driver", "run"),
    ("driver", "conductor"),
    ("verbs", "progress"),
    ("reductions", "pool"),
    ("interop", "__init__"),
    ("__main__", "cli"),
}

IMPURE = {
    "asyncio", "concurrent", "ctypes", "datetime", "fcntl", "io", "mmap", "multiprocessing",
    "numpy", "os", "pathlib", "queue", "random", "secrets", "select", "selectors", "signal",
    "socket", "subprocess", "sys", "tempfile", "threading", "time",
}  # fmt: skip

LINES = 450
FUNCTION_LINES = 40


@dataclass(frozen=True)
class Module:
    """One source file, known by its dotted name below ``shmpar``."""

    name: str
    path: str

    @property
    def text(self) -> str:
        """Its source."""
        with open(self.path, encoding="utf-8") as file:
            return file.read()

    @property
    def package(self) -> list[str]:
        """Names of the package that relative imports start from, without ``shmpar``."""
        return self.name.split(".")[:-1]


@cache
def modules() -> dict[str, Module]:
    """Every module of the package by name; a package's own file ends in ``__init__``."""
    found = {}
    for folder, _, files in os.walk(PACKAGE):
        parts = os.path.relpath(folder, PACKAGE).split(os.sep)
        for file in sorted(files):
            if file.endswith(".py"):
                name = ".".join([*(part for part in parts if part != "."), file[:-3]])
                found[name] = Module(name, os.path.join(folder, file))
    return found


def unit(name: str) -> str | None:
    """Find the longest name in the table that a module belongs to; None if it has no layer."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in LAYERS:
            return ".".join(parts[:length])
    return None


def resolve(parts: list[str]) -> str:
    """Name the module that dotted names below ``shmpar`` lead to; the rest is in it."""
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in modules():
            return name
        if f"{name}.__init__" in modules():
            return f"{name}.__init__"
    return parts[0] if parts and parts[0] in LAYERS else "__init__"


class Imports(ast.NodeVisitor):
    """Collects what a module imports, wherever it does, except for type checkers only."""

    def __init__(self, package: list[str]) -> None:
        self.package = package
        self.ours: set[str] = set()
        self.others: set[str] = set()
        self.aliases: set[str] = set()

    def add(self, dotted: str) -> None:
        """Note one imported name."""
        top, *rest = dotted.split(".")
        if top == "shmpar":
            self.ours.add(resolve(rest))
        else:
            self.others.add(top)

    def visit_If(self, node: ast.If) -> None:
        """Pass over what only type checkers read."""
        if ast.unparse(node.test) not in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            self.generic_visit(node)
            return
        for statement in node.orelse:
            self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        """Note `import a, b.c as d`."""
        for name in node.names:
            if name.name == "shmpar":  # what is used of it counts, see visit_Attribute
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
        """Note what is used of a bare `import shmpar`."""
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


def imports(module: Module, text: str | None = None) -> Imports:
    """Read what a module imports."""
    found = Imports(module.package)
    found.visit(ast.parse(module.text if text is None else text))
    return found


def complaint(importer: str, imported: str) -> str | None:
    """Say what is wrong with an import, if anything is."""
    here, there = unit(importer), unit(imported)
    if here is None or there is None:
        return f"{importer if here is None else imported} is in no layer: add it to LAYERS"
    down = LAYERS[there] < LAYERS[here]
    if here == there or down or there == "errors" or (here, there) in BESIDE:
        return None
    way = "beside it" if LAYERS[there] == LAYERS[here] else "above it"
    return f"{importer} (layer {LAYERS[here]}) imports {imported} ({way}, layer {LAYERS[there]})"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, from `def` to its end, without decorators and docstring."""
    lines = (node.end_lineno or 0) - node.lineno + 1
    if ast.get_docstring(node, clean=False) is None:
        return lines
    docstring = node.body[0]
    return lines - ((docstring.end_lineno or 0) - docstring.lineno + 1)


each_module = pytest.mark.parametrize("module", modules().values(), ids=modules())


@each_module
def test_a_module_has_a_layer(module):
    """Who adds a module says where it belongs."""
    assert unit(module.name) is not None, f"add {module.name!r} to LAYERS in tests/test_layers.py"


@each_module
def test_imports_go_down(module):
    """A module imports from layers below it, and beside it only what BESIDE allows."""
    found = (complaint(module.name, imported) for imported in sorted(imports(module).ours))
    assert not [text for text in found if text]


@each_module
def test_a_module_fits_in_one_reading(module):
    """No module is longer than 450 lines."""
    lines = module.text.count("\n")
    assert lines <= LINES, "split it by concept"


@each_module
def test_a_function_fits_on_one_screen(module):
    """No function is longer than 40 lines, its docstring aside."""
    sizes = {node.name: length(node) for node in functions(ast.parse(module.text))}
    assert {name: lines for name, lines in sizes.items() if lines > FUNCTION_LINES} == {}


def test_the_scheduler_is_pure():
    """The scheduler knows no clock, no process, no thread and no array."""
    parts = [module for name, module in modules().items() if unit(name) == "scheduler"]
    assert parts, "there is no scheduler: name the module here that took its place"
    for module in parts:
        assert imports(module).others & IMPURE == set()


def test_edges_inside_a_layer_are_no_circle():
    """What BESIDE allows joins names of one layer, and leads back nowhere."""
    assert all(LAYERS[here] == LAYERS[there] for here, there in BESIDE)
    order = sorted(LAYERS, key=lambda name: len(reachable(name)))
    assert all(order.index(there) < order.index(here) for here, there in BESIDE)


def reachable(name: str) -> set[str]:
    """All that a name leads to inside its layer."""
    found: set[str] = set()
    ahead = {name}
    while ahead - found:
        found |= ahead
        ahead = {there for here, there in BESIDE if here in found}
    return found


@pytest.mark.parametrize(
    ("text", "imported"),
    [
        ("import shmpar.grid", {"grid.__init__"}),
        ("import shmpar.grid.axis as axis", {"grid.axis"}),
        ("from shmpar import errors", {"errors"}),
        ("from shmpar import Pool", {"__init__"}),
        ("from shmpar.errors import PlanError", {"errors"}),
        ("from shmpar.engines import protocol", {"engines.protocol"}),
        ("from . import serial", {"engines.serial"}),
        ("from .protocol import Execution", {"engines.protocol"}),
        ("from .. import errors", {"errors"}),
        ("from ..grid import Grid", {"grid.__init__"}),
        ("def f():\n    from shmpar.plan import Plan", {"plan"}),
        ("import shmpar\nshmpar.__file__", set()),
        ("import shmpar\nshmpar.map_blocks(f, x)", {"__init__"}),
        ("import shmpar as s\ns.errors.PlanError", {"errors"}),
        ("import importlib\nimportlib.import_module('shmpar.ledger')", {"ledger"}),
        ("if TYPE_CHECKING:\n    from shmpar.plan import Plan", set()),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import shmpar.plan", {"plan"}),
        ("NAMES = {'Pool': 'shmpar.pool'}", set()),
    ],
)
def test_every_way_to_import_is_seen(text, imported):
    """The reader of imports knows all forms; names in a table of strings are none."""
    reader = Module("engines.threads", "")
    assert imports(reader, text).ours == imported


@pytest.mark.parametrize(
    ("importer", "imported", "words"),
    [
        ("plan", "run", "above it"),
        ("segment.marker", "arrays", "beside it"),
        ("engines.protocol", "engines.serial", "above it"),
        ("engines.__init__", "engines.serial", "above it"),
        ("grid.axis", "novelty", "add it to LAYERS"),
    ],
)
def test_a_wrong_import_is_named(importer, imported, words):
    """A complaint says which import, and what is wrong with it."""
    assert words in (complaint(importer, imported) or "")


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("arrays", "segment.marker"),
        ("segment.room", "errors"),
        ("engines.serial", "engines.protocol"),
        ("engines.threads", "engines.serial"),
    ],
)
def test_a_right_import_is_not(importer, imported):
    """Down, inside one package, to errors, or where BESIDE says so."""
    assert complaint(importer, imported) is None


def test_a_docstring_does_not_count():
    """Length is that of the code."""
    tree = ast.parse('@cache\ndef f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    return x\n')
    assert [length(node) for node in functions(tree)] == [4]
