"""Functions by the text of their file, for workers of any environment.

Guarantees
----------
- This process reads the signature from the text. It does not run the file, so the packages that the
  file imports need not be there.
- A worker runs the text that was read, even if the file has changed since or cannot be read there.
- A text runs once in each process. Workers and this process know its module by the same name, so
  objects of its classes and its exceptions come back.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import linecache
import os
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_PREFIX = "_shmpar_file_"
_HEADER_LINES = 100  # lines in which the header of a function ends
_Definition = ast.FunctionDef | ast.AsyncFunctionDef


def from_file(path: str | os.PathLike[str], name: str) -> FileFunction:
    """Return a function of a file of Python, for workers of another environment.

    Parameters
    ----------
    path : path
        The file. It is read now, and its text is sent with each call: workers do not look for it,
        and later changes have no effect.
    name : str
        A function that the file defines at its top level.

    Returns
    -------
    callable
        Pass it to verbs, to :meth:`Pool.submit` or as the initializer of a pool. Any version of
        Python runs it. In this process, and so on the engines threads and serial, the first call
        runs the file.

    Raises
    ------
    OSError
        If the file cannot be read.
    SyntaxError
        If the file does not parse, nor does the first line of the function alone. Else its other
        lines may be for a newer Python, and the error comes from the workers.
    ValueError
        If the file defines no such function; the error lists those that it defines.

    Notes
    -----
    A worker runs the text as a module of its own, so ``if __name__ == "__main__"`` is false there.
    The module may import the modules in the folder of its file; installed modules come first. It
    is no part of a package: relative imports fail. Objects of the classes of the file come back
    only if this process can run the file too.

    Cost: reading the file. A worker runs the text once.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np, shmpar
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "segment.py")
    ...     with open(path, "w") as file:
    ...         _ = file.write("def segment(image, level=0.5): return image > level")
    ...     segment = shmpar.from_file(path, "segment")
    >>> segment
    <function segment of segment.py>
    >>> with shmpar.Pool(2) as pool:
    ...     pool.map_blocks(segment, np.array([0.1, 0.9]), kwargs={"level": 0.3})
    array([False,  True])
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a function is a str, not {name!r}")
    where = os.path.abspath(os.fspath(path))
    with tokenize.open(where) as file:  # Why: it obeys a line such as "# coding: latin-1".
        text = file.read()
    return FileFunction(where, name, text)


class FileFunction:
    """A function of a file; workers get the text of the file.

    Attributes
    ----------
    path, name, text : str
        The file, its function and its text.
    """

    def __init__(self, path: str, name: str, text: str) -> None:
        self.path, self.name, self.text = path, name, text
        self.__name__ = self.__qualname__ = name
        self.__signature__ = _signature(path, name, text)
        self.__module__ = _note(path, text)
        self._call: Any = None

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function in this process."""
        if self._call is None:
            self._call = load(self.path, self.name, self.text)
        return self._call(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileFunction) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[str, str, str]:
        return self.path, self.name, self.text

    def __reduce__(self) -> tuple[Any, ...]:
        return load, self._key()

    def __copy__(self) -> FileFunction:
        return self

    def __deepcopy__(self, _: Any) -> FileFunction:
        return self

    def __repr__(self) -> str:
        return f"<function {self.name} of {os.path.basename(self.path)}>"


def load(path: str, name: str, text: str) -> Any:
    """Return a function of a text, which is run unless it has been; pickles call this function."""
    module = importlib.import_module(_note(path, text))
    try:
        return getattr(module, name)
    except AttributeError:
        raise ImportError(
            f"{path!r} has no {name!r} after it was run: the function is defined in a branch, or "
            "deleted"
        ) from None


class _Files:
    """Finds the modules of texts, and those in the folders of the files of such modules.

    Why a finder: a folder in ``sys.path`` would not survive, since a worker has the parent's path.
    """

    def __init__(self) -> None:
        self.texts: dict[str, tuple[str, str]] = {}  # the path and the text of each module
        self._folders: dict[str, None] = {}  # of the files that were run

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, _: Any = None
    ) -> ModuleSpec | None:
        """Return the spec of a text, or of a module beside one; None for others."""
        if name in self.texts:
            spec = ModuleSpec(name, self, origin=self.texts[name][0])  # type: ignore[arg-type]
            spec.has_location = True  # Why: then the module gets a __file__.
            return spec
        # Why a look at the path: the modules inside of a package are found in its folder.
        return PathFinder.find_spec(name, [*self._folders]) if path is None else None

    def create_module(self, _: ModuleSpec) -> None:
        """Let the import make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run a text."""
        path, text = self.texts[module.__name__]
        # Why: a traceback shows the lines that run, also if the file has changed.
        linecache.cache[path] = len(text), None, text.splitlines(keepends=True), path
        self._folders[os.path.dirname(path)] = None
        exec(compile(text, path, "exec", dont_inherit=True), vars(module))  # noqa: S102 - its purpose

    def get_source(self, name: str) -> str:
        """Return the text of a module."""
        return self.texts[name][1]


_files = _Files()


def _note(path: str, text: str) -> str:
    """Return the name of the module of a text, which can be imported from now on."""
    digest = hashlib.sha256(f"{path}\0{text}".encode(errors="surrogatepass")).hexdigest()
    # Why the name of the file too: tracebacks show it with the exceptions of the file.
    stem = re.sub(r"\W", "_", os.path.splitext(os.path.basename(path))[0])
    name = f"{_PREFIX}{stem}_{digest[:16]}"
    _files.texts.setdefault(name, (path, text))
    if _files not in sys.meta_path:
        sys.meta_path.append(_files)
    return name


# The signature


def _signature(path: str, name: str, text: str) -> inspect.Signature:
    """Return the signature of a function as it is written."""
    try:
        tree = ast.parse(text, path)
    except SyntaxError:
        # Why: the text may be for a newer Python of workers. Its header is enough for a signature.
        found = _definition_alone(name, text)
        if found is None:
            raise
    else:
        found = _definition(tree, path, name)
    if isinstance(found, ast.AsyncFunctionDef):
        text = f"{name} of {path!r} is a coroutine function: call asyncio.run in a function"
        raise ValueError(text)  # noqa: TRY004 - as for a name that the file does not define
    return inspect.signature(_function_with(found.args))


def _definition(tree: ast.Module, path: str, name: str) -> _Definition:
    known = {one.name: one for one in _definitions(tree.body)}  # Why a dict: the last one counts.
    if name not in known:
        has = f"it defines {', '.join(known)}" if known else "it defines no function"
        raise ValueError(f"{path!r} defines no function {name!r} at its top level; {has}")
    return known[name]


def _definitions(body: list[ast.stmt]) -> Iterator[_Definition]:
    """Yield the functions of a module, also those inside of `if`, `try` and `with`."""
    for node in body:
        if isinstance(node, _Definition):
            yield node
        elif not isinstance(node, ast.ClassDef):
            for part in ("body", "handlers", "orelse", "finalbody"):
                yield from _definitions(getattr(node, part, []))


def _definition_alone(name: str, text: str) -> _Definition | None:
    """Return the header of a function of a text that does not parse; None if there is none."""
    lines = text.splitlines()
    for first, line in enumerate(lines):
        if not line.startswith((f"def {name}(", f"def {name}[", f"async def {name}(")):
            continue
        for last in range(first + 1, min(first + _HEADER_LINES, len(lines)) + 1):
            try:
                node = ast.parse("\n".join(lines[first:last]) + " ...").body[0]
            except SyntaxError:
                continue
            return node if isinstance(node, _Definition) else None
    return None


def _function_with(args: ast.arguments) -> Callable[..., Any]:
    """Return a function with these parameters; an ellipsis stands for computed defaults."""
    for node in ast.walk(args):
        if isinstance(node, ast.arg):
            node.annotation = None
    args.defaults = [_literal(one) for one in args.defaults]
    args.kw_defaults = [one and _literal(one) for one in args.kw_defaults]
    tree = ast.fix_missing_locations(ast.Expression(ast.Lambda(args, ast.Constant(None))))
    made: Callable[..., Any] = eval(compile(tree, "<signature>", "eval"))  # noqa: S307 - literals
    return made


def _literal(default: ast.expr) -> ast.expr:
    try:
        ast.literal_eval(default)
    except ValueError:
        return ast.Constant(...)
    return default
