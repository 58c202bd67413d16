"""Every option of a verb is in its signature, its completion and its docstring."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

import shmpar
import shmpar.pool
from shmpar.verbs import Options
from shmpar.verbs.options import PassOptions, ReductionOptions
from tests.verbs import FILES

FUNCTIONS = ["map_blocks", "map_overlap", "block_reduce", "parallel_map"]
PASSES = ["histogram", "bincount", "unique"]
VERBS = [verb for verb in FILES if verb != "apply_along_axis"]
DEFAULTS = {
    "kwargs": None, "progress": False, "on_error": "raise", "fill_value": None, "retries": 1,
    "task_timeout": None, "io_retries": 2, "seed": None, "pass_out": False, "ledger": None,
    "wait": True,
    "chunks": "auto", "keepdims": False,
}  # fmt: skip


def options_of(verb: str) -> set[str]:
    kind = {**dict.fromkeys(FUNCTIONS, Options), **dict.fromkeys(PASSES, PassOptions)}
    return set(kind.get(verb, ReductionOptions).__annotations__)


@pytest.mark.parametrize("owner", [shmpar, shmpar.Pool], ids=["module", "Pool"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_signature_shows_every_option_with_its_default(owner: object, verb: str) -> None:
    """No ``**options`` is left, and the docstring explains every parameter with its default."""
    method = getattr(owner, verb)
    parameters = dict(inspect.signature(method).parameters)
    parameters.pop("self", None)
    assert options_of(verb) <= set(parameters)
    assert not [one for one in parameters.values() if one.kind is one.VAR_KEYWORD]
    described = inspect.getdoc(method).partition("Parameters\n")[2].partition("Returns\n")[0]
    entries = dict(re.findall(r"^(\w+)((?:, \*?\w+)* : .*)$", described, re.MULTILINE))
    for name in options_of(verb):
        assert parameters[name].default == DEFAULTS[name]
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        written = str(DEFAULTS[name]) if DEFAULTS[name] not in {"auto", "raise"} else DEFAULTS[name]
        assert re.search(rf'(default|default ")?{written}', entries[name]), name


def test_the_defaults_that_are_shown_are_those_of_a_pool() -> None:
    """A pool without arguments has the same."""
    shown = inspect.signature(shmpar.Pool).parameters
    for name in ("progress", "retries", "task_timeout", "on_error"):
        assert shown[name].default == DEFAULTS[name]


@pytest.mark.parametrize("verb", VERBS)
def test_completion_shows_every_option(verb: str) -> None:
    """IPython's and jedi's completion inside the parentheses of a call."""
    jedi = pytest.importorskip("jedi")
    completer = pytest.importorskip("IPython.core.completer")
    space = {"shmpar": shmpar, "np": np}
    line = f"shmpar.{verb}(np.ones(3), "
    interpreter = jedi.Interpreter(line, [space])
    found = interpreter.complete(1, len(line))
    assert {f"{name}=" for name in options_of(verb)} <= {one.name for one in found}
    (signature,) = interpreter.get_signatures(1, len(line))
    assert options_of(verb) <= {one.name for one in signature.params}
    plain = completer.IPCompleter(namespace=space, global_namespace=space)
    plain.use_jedi = False
    with completer.provisionalcompleter():
        names = {one.text for one in plain.completions(line, len(line))}
    assert {f"{name}=" for name in options_of(verb)} <= names
