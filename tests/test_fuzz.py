"""Random addresses and ledgers are refused with a short error or are right; no other file opens."""

from __future__ import annotations

import copy
import importlib.util
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import shmpar
from shmpar.arrays import attach
from shmpar.arrays import creation as sa
from tests.fuzz.targets import FIELDS, NUMBERS, OTHERS, REFUSALS, TEXTS, LedgerTarget, touch
from tests.interpreters import run_python

NUMBER = st.sampled_from(NUMBERS) | st.integers()
DTYPE = st.deferred(
    lambda: (
        st.sampled_from(TEXTS)
        | st.from_regex(r"[<>|=][a-zA-Z][0-9]{0,10}(\[[0-9]{0,3}[a-z]{0,3}\])?", fullmatch=True)
        | st.fixed_dictionaries({"base": DTYPE, "shape": st.lists(NUMBER, max_size=3)})
        | st.fixed_dictionaries(
            {
                "names": st.lists(st.text(max_size=2), max_size=3),
                "formats": st.lists(DTYPE, max_size=3),
                "offsets": st.lists(NUMBER, max_size=3),
                "titles": st.lists(st.none() | st.text(max_size=2), max_size=3),
                "itemsize": NUMBER,
                "aligned": st.booleans(),
                "record": st.booleans(),
            }
        )
    )
)
ANYTHING = st.recursive(
    NUMBER | st.floats() | st.text(max_size=8) | st.sampled_from([*TEXTS, *OTHERS]) | DTYPE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
NEAR = st.fixed_dictionaries(
    {},
    optional={
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, 4, 12]), max_size=3),
        "strides": st.lists(st.sampled_from([0, 8, -8, 32, -32, 1]), max_size=3),
        "offset": st.integers(-8, 104),
        "dtype": st.sampled_from(["<f8", "|u1", ">i2", "<U2", "|V12", "<M8[s]", "|S0"]),
        "size": st.integers(90, 97),
    },
)


@pytest.fixture(scope="module")
def owner() -> Iterator[Any]:
    """Share an array."""
    with sa.array(np.arange(12.0).reshape(3, 4)) as array:
        assert array.sum() == 66  # Why: memory counts as used after its first access
        assert array.name
        yield array


@pytest.fixture
def good(owner: Any, nothing_left: None) -> dict[str, Any]:
    return owner.address


def check(address: Any, good: dict[str, Any]) -> None:
    """Assert that the address is refused with a short error, or lies in the segment."""
    try:
        found = attach(address)
    except REFUSALS as error:
        text = str(error)
    else:
        touch(found)
        assert found._handle.segment.identity() == (good["device"], good["inode"])
        text = "accepted"
    assert 0 < len(text) < 1000


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(change=st.dictionaries(st.sampled_from(FIELDS), ANYTHING, min_size=1, max_size=3))
@example(change={"size": 10**10_000})
@example(change={"offset": math.nan})
@example(change={"strides": [10**10_000, 1]})
@example(change={"shape": [0, 1], "strides": [2**63 - 1, 2**63 - 1]})
@example(change={"file": True, "name": "/" + "x" * 10_000})
@example(change={"file": True, "name": "/etc/passwd\0"})
@example(change={"file": True, "name": "/etc/passwd"})
@example(change={"file": True, "name": "/dev/zero"})
@example(change={"name": "/proc/1/fd/0"})
@example(change={"version": True})
def test_an_address_with_changed_entries(change: dict[str, Any], good: dict[str, Any]) -> None:
    """Entries may be negative, huge, nested, of another type, or the name of another segment."""
    check({**copy.copy(good), **change}, good)


@pytest.mark.parametrize("field", FIELDS)
def test_deeply_nested_entries(field: str, good: dict[str, Any]) -> None:
    """Entries may be nested deeper than the stack of the interpreter."""
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    for value in (nested, {"base": nested, "shape": nested}, {"base": "<f8", "shape": nested}):
        check({**good, field: value}, good)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(change=NEAR)
def test_an_address_close_to_a_valid_one(change: dict[str, Any], good: dict[str, Any]) -> None:
    """An accepted array can be read and written as a whole."""
    check({**good, **change}, good)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(address=ANYTHING)
def test_any_value_as_an_address(address: Any, good: dict[str, Any]) -> None:
    """A name needs a shape and a dtype; other values are no address."""
    check(address, good)


@pytest.mark.filterwarnings("ignore:Data type alias:DeprecationWarning")  # NumPy's, for "a"
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    name=st.sampled_from(TEXTS) | st.text(max_size=20),
    shape=NUMBER | st.lists(NUMBER, max_size=4) | st.sampled_from(OTHERS),
    dtype=st.sampled_from(TEXTS) | st.text(max_size=4) | st.sampled_from(OTHERS),
)
def test_any_name_shape_and_dtype(name: str, shape: Any, dtype: Any, good: dict[str, Any]) -> None:
    """attach() refuses each name, since no segment has it."""
    with pytest.raises(REFUSALS):
        attach(name, shape, dtype)


BATCH = """
import sys
from tests.fuzz.targets import AddressTarget, LedgerTarget, watched_opens
import numpy, random
target = {"address": AddressTarget, "ledger": LedgerTarget}[sys.argv[1]]()
home = getattr(target, "path", "none")
rng = random.Random(20_000)
with watched_opens() as wrong:
    for _ in range(int(sys.argv[2])):
        target(bytes([rng.randrange(8)]) + rng.randbytes(rng.randrange(60)))
target.close()
print({one for one in wrong if not one.startswith(home)} or "", target.accepted > 20)
"""


@pytest.mark.parametrize(("target", "calls"), [("address", 20_000), ("ledger", 5_000)])
def test_a_fixed_batch_ends_without_a_signal(target: str, calls: int) -> None:
    """No file outside of /dev/shm and /proc is opened, and no data is unpickled or executed."""
    done = run_python(BATCH, target, str(calls), timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == (" True\n", "", 0)


@pytest.fixture
def ledger() -> Iterator[LedgerTarget]:
    """Return a ledger of three chunks, two of which are done."""
    target = LedgerTarget()
    yield target
    target.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(kind=st.integers(0, 5), data=st.binary(max_size=200))
@example(kind=1, data=b"[" * 100_000)
@example(kind=1, data=b'{"chunks": ' + b"9" * 10_000 + b', "seed": null, "identity": {}}')
@example(kind=1, data=b'{"chunks": true, "seed": null, "identity": {}}')
@example(kind=1, data='{"chunks": 3, "seed": [1, 2], "identity": {}}'.encode("utf-16"))
def test_a_ledger_of_any_bytes_is_refused_or_right(
    kind: int, data: bytes, ledger: LedgerTarget
) -> None:
    """The error names the file; each chunk that counts as done has its output."""
    ledger(bytes([kind]) + data)


def drawn(block: Any, rng: np.random.Generator) -> Any:
    return block + rng.random(block.shape)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    changes=st.lists(st.tuples(st.integers(0, 700), st.integers(1, 255)), min_size=1, max_size=3),
    cut=st.none() | st.integers(0, 700),
)
def test_a_call_with_a_changed_ledger_fails_or_is_right(
    changes: list[tuple[int, int]], cut: int | None, tmp_path: Path
) -> None:
    """The call raises an error that names the ledger, or gives the result of the first call."""
    x = np.arange(20.0)
    files = {"chunks": 2, "out": tmp_path / "out.npy", "ledger": tmp_path / "ledger"}
    for one in tmp_path.iterdir():
        one.unlink()
    with shmpar.Pool(1, engine="serial") as pool:
        expected = np.array(pool.map_blocks(drawn, x, **files))
        content = bytearray(files["ledger"].read_bytes())
        for place, change in changes:
            content[place % len(content)] ^= change
        files["ledger"].write_bytes(content if cut is None else content[:cut])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* not in the output as written")
            try:
                found = pool.map_blocks(drawn, x, **files)
            except ValueError as error:
                text = str(error)
            else:
                text = f"right: {files['ledger']}"
                np.testing.assert_array_equal(found, expected)
        assert str(files["ledger"]) in text


@pytest.mark.stress
@pytest.mark.parametrize("how", ["guided", "blind"])
@pytest.mark.parametrize("target", ["address", "ledger"])
def test_a_campaign_finds_nothing(
    target: str, how: str, pytestconfig: pytest.Config, stress_seed: int
) -> None:
    """A campaign runs for ``--fuzz-seconds``; atheris, if installed, guides it by coverage."""
    if how == "guided" and importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install -e '.[fuzz]'")
    seconds = pytestconfig.getoption("fuzz_seconds")
    arguments = [target, "--seconds", str(seconds), "--seed", str(stress_seed % 2**31)]
    blind = ["--blind"] if how == "blind" else []
    code = "import sys; from tests.fuzz.__main__ import main; main()"
    done = run_python(code, *arguments, *blind, timeout=seconds + 120)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert f"{how}: " in done.stdout
    assert "no finding" in done.stdout
