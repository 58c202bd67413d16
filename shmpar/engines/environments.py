"""Environments of Python for workers, made by uv once and kept in the user's cache directory.

Guarantees
----------
- An environment is complete when its record lies in it. The record is written last, in one step.
- A file lock excludes all others while an environment is made or removed. The process of uv holds
  the lock too, so it lasts as long as anything writes there.
- An environment without a record, or without its interpreter, is removed and made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from shmpar.errors import ShmparError, shortened
from shmpar.memory.system import is_at

_NAME = re.compile(r"[0-9a-f]{16}")
_RECORD = "shmpar.json"
_LOCK = ".lock"
_OLDEST_NUMPY = "numpy>=1.26"
_MOST_OF_OUTPUT = 3000  # characters of the output of uv in an error

Path = str | os.PathLike[str]


class Environment(NamedTuple):
    """An environment in the cache directory.

    Attributes
    ----------
    path : str
        Its folder.
    complete : bool
        Everything was installed.
    python : str
        The version of Python that was asked for.
    requirements, installed : list of str
        The requirements, and the packages with their versions.
    nbytes : int
        Size of its files. Most of them may share their disk space with the cache of uv.
    """

    path: str
    complete: bool
    python: str
    requirements: list[str]
    installed: list[str]
    nbytes: int


def environment(
    requirements: Iterable[str], *, python: Path | None = None, cache: Path | None = None
) -> str:
    """Return an interpreter that has these packages, for ``Pool(python=...)``.

    The first call makes an environment, with `uv <https://docs.astral.sh/uv/>`_. Later calls with
    equal arguments find it, also those of other programs.

    Parameters
    ----------
    requirements : iterable of str
        As for pip: ``"scikit-image"``, ``"numpy==1.26.*"``, or the path of a project. NumPy, and
        the cloudpickle of this process, are installed in any case.
    python : str or path, optional
        A version, such as ``"3.12"``, or an interpreter. By default the interpreter of this
        process. uv looks for a version on this machine, then downloads it.
    cache : path, optional
        The folder of the environments. By default ``shmpar/environments`` in the user's cache
        directory, which is ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Returns
    -------
    str
        The path of the interpreter.

    Raises
    ------
    ShmparError
        If there is no uv, neither on the ``PATH`` nor as a package of this Python; or if uv cannot
        make the environment. Its output is in the error. Or if this user has no home directory.
    OSError
        If the cache directory cannot be written.

    Notes
    -----
    The packages are those of the first call; a newer release is no reason to install anything.
    ``python -m shmpar environments --remove`` removes all environments.

    uv has its usual settings: its indexes come from its files and from variables such as
    ``UV_DEFAULT_INDEX``.

    Cost: about the time of the downloads. A later call reads a small file.

    Examples
    --------
    >>> import shmpar
    >>> python = shmpar.environment(["scikit-image"], python="3.12")  # doctest: +SKIP
    >>> with shmpar.Pool(python=python) as pool:  # doctest: +SKIP
    ...     edges = shmpar.from_file("edges.py", "edges")
    ...     found = pool.map_overlap(edges, image, depth=1, boundary="reflect")
    >>> shmpar.environment("scikit-image")
    Traceback (most recent call last):
    ...
    TypeError: requirements is a list, such as ['scikit-image']
    """
    if fcntl is None:
        raise NotImplementedError("engine='processes' needs POSIX, so Windows has no environments")
    wanted = _wanted(requirements)
    version = _version(python)
    folder = os.path.join(_cache(cache), _digest(wanted, version))
    found = os.path.join(folder, "bin", "python")
    if _is_complete(folder, found):
        return found
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with _locked(folder) as lock:
        # Why again: another process may have made it while this one waited for the lock.
        if not _is_complete(folder, found):
            _make(folder, found, wanted, version, lock)
    return found


def environments(cache: Path | None = None) -> list[Environment]:
    """Return the environments in the cache directory, by their paths."""
    root = _cache(cache)
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    folders = [os.path.join(root, name) for name in names if _NAME.fullmatch(name)]
    return [_describe(one) for one in folders if os.path.isdir(one)]


def remove(path: str) -> bool:
    """Remove an environment; return False if it is being made at the moment."""
    try:
        with _locked(path, wait=False):
            _remove_files(path)
            # Why under the lock: a process that waits for it makes the file anew, see `_locked`.
            os.unlink(path + _LOCK)
    except BlockingIOError:
        return False
    return True


def _wanted(requirements: Iterable[str]) -> list[str]:
    if isinstance(requirements, str):
        raise TypeError(f"requirements is a list, such as [{requirements!r}]")
    import cloudpickle  # Why here: it is slow to import, and a list of environments needs none.

    given = list[Any](requirements)
    for one in given:
        if not isinstance(one, str) or one.startswith("-") or not one.strip():
            raise TypeError(f"a requirement is a str such as 'numpy==1.26.*', not {one!r}")
    # Why absolute: another program may have another working directory.
    local = (".", "~", os.sep)
    given = [x.strip() for x in given]
    given = [os.path.abspath(os.path.expanduser(x)) if x.startswith(local) else x for x in given]
    # Why the same version: the functions of a pickle are those of the cloudpickle that wrote it.
    return sorted({*given, _OLDEST_NUMPY, f"cloudpickle=={cloudpickle.__version__}"})


def _version(python: Path | None) -> str:
    if python is None:
        return f"{sys.version_info[0]}.{sys.version_info[1]}"
    given = os.fspath(python)
    return os.path.abspath(os.path.expanduser(given)) if os.sep in given else given


def _cache(cache: Path | None) -> str:
    if cache is not None:
        return os.path.abspath(os.path.expanduser(cache))
    usual = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    root = os.environ.get("XDG_CACHE_HOME", "")
    # Why absolute: the standard of these variables says that others are to be ignored.
    root = root if os.path.isabs(root) else os.path.expanduser(usual)
    if not os.path.isabs(root):  # Why: a container may run users that it does not list.
        raise ShmparError("this user has no home directory: pass cache=, or set XDG_CACHE_HOME")
    return os.path.join(root, "shmpar", "environments")


def _digest(requirements: list[str], version: str) -> str:
    key = json.dumps([requirements, version, sys.platform, platform.machine()])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _is_complete(folder: str, python: str) -> bool:
    # Why the interpreter: it is a link to one that may have been removed since.
    return os.path.exists(os.path.join(folder, _RECORD)) and os.path.exists(python)


@contextlib.contextmanager
def _locked(folder: str, *, wait: bool = True) -> Iterator[int]:
    """Hold the lock of an environment; yield its descriptor.

    Raises `BlockingIOError` if another process has the lock and `wait` is False.
    """
    while True:
        fd = os.open(folder + _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Why: the file may have been removed, and another process holds the lock of a new one.
            if is_at(fd, folder + _LOCK):
                yield fd
                return
        finally:
            os.close(fd)


def _make(folder: str, python: str, requirements: list[str], version: str, lock: int) -> None:
    uv = _find_uv()
    what = f"the environment of {', '.join(requirements)} for Python {version}"
    _remove_files(folder)
    # Why: uv finds an interpreter on PATH alone, and would fetch another one of this version.
    source = sys.executable if sys.executable and version == _version(None) else version
    _run([uv, "venv", "--quiet", "--no-project", "--python", source, folder], what, lock)
    _run([uv, "pip", "install", "--quiet", "--python", python, *requirements], what, lock)
    installed = _run([uv, "pip", "freeze", "--quiet", "--python", python], what, lock).split("\n")
    record = {
        "python": version,
        "requirements": requirements,
        "installed": [one for one in installed if one],
    }
    unfinished = os.path.join(folder, _RECORD + ".new")
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, os.path.join(folder, _RECORD))


def _find_uv() -> str:
    """Return the program uv: that on the PATH, else that of the package."""
    found = shutil.which("uv")
    if found is None:
        with contextlib.suppress(ImportError, FileNotFoundError):
            found = importlib.import_module("uv").find_uv_bin()
    if found is None:
        raise ShmparError(
            "shmpar.environment() needs the program uv, which is neither on the PATH nor a package "
            f"of this Python; install it with {sys.executable} -m pip install uv, or make the "
            "environment yourself, with numpy and cloudpickle, and pass its interpreter as "
            "Pool(python=...)"
        )
    return str(found)


def _run(command: list[str], what: str, lock: int) -> str:
    """Run uv; return its output, or raise an error that holds it."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        pass_fds=[lock],  # Why: uv goes on if this process is killed, and nobody may come between.
    )
    if done.returncode:
        output = shortened((done.stderr or done.stdout).strip(), _MOST_OF_OUTPUT)
        raise ShmparError(
            f"uv cannot make {what}, see requirements= and python=, which takes a version or the "
            f"path of an interpreter:\n{output}"
        )
    return done.stdout


def _remove_files(folder: str) -> None:
    # Invariant: the record goes first, so an interrupt leaves no environment that looks complete.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, _RECORD))
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _describe(folder: str) -> Environment:
    record: dict[str, Any] = {}
    with (
        contextlib.suppress(OSError, ValueError),
        open(os.path.join(folder, _RECORD), encoding="utf-8") as file,
    ):
        record = json.load(file)
    return Environment(
        path=folder,
        complete=_is_complete(folder, os.path.join(folder, "bin", "python")),
        python=record.get("python", ""),
        requirements=record.get("requirements", []),
        installed=record.get("installed", []),
        nbytes=_size(folder),
    )


def _size(folder: str) -> int:
    """Return the size of the files below a folder; a process may remove them meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
