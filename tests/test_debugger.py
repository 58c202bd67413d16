"""A debugger stops in a function that runs in the process of the caller."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest

import shmpar

SCRIPT = """
import pdb

import numpy as np
import shmpar


def double(block):
    result = block * 2
    {stop}
    return result


with shmpar.Pool(engine="serial") as pool:
    doubled = pool.{call}
print("doubled:", doubled.tolist())
"""

COMMANDS = """\
p block.shape
p block.tolist()
continue
p result.tolist()
where
continue
"""


def test_a_breakpoint_in_a_worker_names_the_serial_engine() -> None:
    """Another debugger, which the variable names, is called."""
    with shmpar.Pool(1) as pool:
        with pytest.raises(RuntimeError, match='engine="serial"'):
            pool.submit(breakpoint).result()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONBREAKPOINT", "builtins.abs")
            assert pool.submit(breakpoint, -1).result() == 1


@pytest.mark.parametrize("stop", ["breakpoint()", "pdb.set_trace()"])
@pytest.mark.parametrize(
    ("call", "shape"),
    [
        ("map_blocks(double, np.arange(4).reshape(2, 2), chunks=(1, 2))", "(1, 2)"),
        ("parallel_map(double, np.arange(4).reshape(2, 2))", "(2,)"),
    ],
    ids=["map_blocks", "parallel_map"],
)
def test_pdb_stops_in_the_function_on_the_serial_engine(
    run_python: Callable[..., CompletedProcess[str]],
    tmp_path: Any,
    stop: str,
    call: str,
    shape: str,
) -> None:
    """Pdb stops once per chunk, reads commands from standard input, and shows the block."""
    script = tmp_path / "debugged.py"
    script.write_text(SCRIPT.format(stop=stop, call=call))
    done = run_python(script, input=COMMANDS, env={"PYTHONBREAKPOINT": ""})
    assert done.returncode == 0, done.stderr
    first, *answers = done.stdout.split("(Pdb) ")
    assert "double()\n-> " in first
    assert answers[0].strip() == shape
    nested = shape == "(1, 2)"
    assert answers[1].strip() == ("[[0, 1]]" if nested else "[0, 1]")
    assert "double()\n-> " in answers[2]
    assert answers[3].strip() == ("[[4, 6]]" if nested else "[4, 6]")
    assert call in answers[4], "the user's own call is on the stack"
    assert answers[5].strip() == "doubled: [[0, 2], [4, 6]]"
    assert len(answers) == 6
