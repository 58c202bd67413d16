"""``ledger=`` notices what has changed in the user's own modules."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.interpreters import run_python

# Why many programs in one interpreter: its start takes most of the time.
RUN = """
import json, sys, types
for folder, program in json.load(sys.stdin):
    sys.path.insert(0, folder)
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(program, "<string>", "exec"), vars(module))
    sys.path.remove(folder)
    for name in ("helper", "other"):
        sys.modules.pop(name, None)
"""
PROGRAM = """
import sys
import numpy as np, shmpar
{importing}

{function}

with shmpar.Pool(2, engine=sys.argv[1]) as pool:
    try:
        print(pool.map_blocks(
            function, np.ones(4), chunks=2, out={folder!r} + "/out.npy", ledger={folder!r} + "/l"
        ).tolist())
    except ValueError as error:
        print(str(error).partition(";")[0].rpartition("differs in: ")[2])
"""
# Each way to reach a constant: the import, the function, and the module.
WAYS = {
    "attribute": ("import helper", "def function(b): return b * helper.K", "K = {k}"),
    "name": ("from helper import K", "def function(b): return b * K", "K = {k}"),
    "function": (
        "from helper import times",
        "def function(b): return times(b)",
        "K = {k}\ndef times(b): return b * K",
    ),
    "importable": ("from helper import function", "", "K = {k}\ndef function(b): return b * K"),
    "attribute of attribute": (
        "import helper",
        "def function(b): return helper.other.times(b)",
        "import other",
    ),
    "second module": (
        "from helper import times",
        "def function(b): return times(b)",
        "from other import times as inner\ndef times(b): return inner(b)",
    ),
    "class": (
        "from helper import Model",
        "def function(b): return Model().times(b)",
        "K = {k}\nclass Model:\n    def times(self, b): return b * K",
    ),
    "instance": (
        "import helper",
        "function = helper.Model()",
        "K = {k}\nclass Model:\n    def __call__(self, b): return b * K",
    ),
    "import inside": (
        "",
        "def function(b):\n    import helper\n    return b * helper.K",
        "K = {k}",
    ),
    "name inside": ("", "def function(b):\n    from helper import K\n    return b * K", "K = {k}"),
    "decorated": (
        "from helper import factor",
        "def function(b): return b * factor()",
        "import functools\nK = {k}\n@functools.cache\ndef factor(): return K",
    ),
    "partial": (
        "import functools, helper",
        "function = functools.partial(helper.times)",
        "K = {k}\ndef times(b): return b * K",
    ),
    "dict": (
        "import helper",
        "def function(b): return b * helper.CONFIG['k']",
        "CONFIG = {{'k': {k}, 'z': {{1, 2}}}}",
    ),
}


def outputs(folders: dict[str, Path], engine: str, seed: str) -> dict[str, str]:
    """Run the program of each way, whose modules lie in its folder; return the line it prints."""
    programs = []
    for way, folder in folders.items():
        importing, function, _ = WAYS[way]
        text = PROGRAM.format(folder=str(folder), importing=importing, function=function)
        programs.append((str(folder), text))
    # Why no bytecode: a module that is written again within a second looks the same.
    env = {"PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"}
    done = run_python(RUN, engine, input=json.dumps(programs), env=env)
    assert (done.stderr, done.returncode) == ("", 0)
    return dict(zip(folders, done.stdout.splitlines(), strict=True))


def test_a_changed_constant_of_the_users_module_is_another_call(tmp_path: Path) -> None:
    """The same constant resumes in another process; another one is refused by name.

    A refused call leaves the ledger as it is. The engine does not matter; two ways show both.
    """
    folders = {way: tmp_path / str(number) for number, way in enumerate(WAYS)}
    for folder in folders.values():
        folder.mkdir()

    def run(k: int, engine: str = "serial", seed: str = "0", ways: tuple[str, ...] = ()) -> Any:
        for way, folder in folders.items():
            (folder / "helper.py").write_text(WAYS[way][2].format(k=k))
            (folder / "other.py").write_text(f"K = {k}\ndef times(b): return b * K\n")
        return outputs({way: folders[way] for way in ways or WAYS}, engine, seed)

    right = dict.fromkeys(WAYS, "[3.0, 3.0, 3.0, 3.0]")
    assert run(3, seed="1") == right
    assert run(3, seed="2") == right
    assert run(4) == dict.fromkeys(WAYS, "function")
    for way in ("name", "instance"):
        assert run(3, "processes", ways=(way,)) == {way: right[way]}


def test_other_constants_of_the_module_do_not_count(tmp_path: Path) -> None:
    """Only names that the code uses are part of the call."""
    for more in ("", "\nUNUSED = 7\ndef also(b): return UNUSED\n"):
        (tmp_path / "helper.py").write_text(WAYS["function"][2].format(k=3) + more)
        assert outputs({"function": tmp_path}, "serial", "0") == {
            "function": "[3.0, 3.0, 3.0, 3.0]"
        }


def test_installed_packages_count_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed global of NumPy is not noticed, and costs no time."""
    from shmpar.runtime.call_identity import fingerprint

    def function(b: Any) -> Any:
        return np.mean(b) * np.pi

    before = fingerprint(function)
    monkeypatch.setattr(np, "pi", 3)
    assert fingerprint(function) == before


def test_a_long_chain_of_functions_has_a_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three thousand functions that call each other, and the constant of the last one."""
    from shmpar.runtime.call_identity import fingerprint

    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for k in (1, 1, 2):
        lines = [f"def f{n}(b): return f{n + 1}(b)" for n in range(3_000)]
        source = "\n".join([f"K = {k}", *lines, "def f3000(b): return b * K"])
        (tmp_path / "chain.py").write_text(source + "\n" * len(found))
        sys.modules.pop("chain", None)
        chain = __import__("chain")
        found.append(fingerprint(chain.f0))
    assert found[0] == found[1] != found[2]
    sys.modules.pop("chain", None)


def test_swapped_functions_differ() -> None:
    """Lambdas have one name, so their code counts where they are named."""
    from shmpar.runtime.call_identity import fingerprint

    def made(first: Callable[..., Any], second: Callable[..., Any]) -> Any:
        space: dict[str, Any] = {"__name__": __name__, "first": first, "second": second}
        exec("def function(b): return first(second(b))", space)  # noqa: S102 (ours)
        return space["function"]

    one, other = (lambda b: b + 1), (lambda b: b * 2)
    assert fingerprint(made(one, other)) != fingerprint(made(other, one))
    assert fingerprint(made(one, other)) == fingerprint(made(one, other))
    assert fingerprint(functools.partial(one)) != fingerprint(functools.partial(other))


def test_a_script_is_not_imported_for_an_attribute_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only statements that import count, not names."""
    from shmpar.runtime.call_identity import fingerprint

    (tmp_path / "setup.py").write_text("raise SystemExit('it was executed')")
    monkeypatch.syspath_prepend(tmp_path)
    assert fingerprint(lambda b: b.setup)
    with pytest.raises(SystemExit):
        import setup  # type: ignore[import-not-found]  # noqa: F401


def test_a_resumed_checked_run_passes(pool: shmpar.Pool, tmp_path: Path) -> None:
    """``check=True`` counts the chunks of the run before as what they are."""
    gate = tmp_path / "open"

    def double(block: Any) -> Any:
        if block[0] == 4 and not gate.exists():
            raise OSError("not yet")
        return block * 2

    with shmpar.Pool(2, engine=pool.engine, check=True) as checking:
        for options in ({}, {"dtype": "f8"}, {"out": np.empty(10)}, {"out": tmp_path / "a.npy"}):
            gate.unlink(missing_ok=True)
            with pytest.raises(shmpar.ChunkError) as caught:
                checking.map_blocks(double, np.arange(10.0), chunks=2, **options)
            gate.touch()
            result = caught.value.run.resume().result()
            np.testing.assert_array_equal(result, np.arange(10.0) * 2)
