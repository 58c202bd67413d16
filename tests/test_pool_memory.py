"""``pool.memory`` lists the segments of a pool that are in use."""

from __future__ import annotations

import numpy as np
import pytest

import shmpar
from shmpar.memory import huge


def by_purpose(pool: shmpar.Pool) -> dict[str, int]:
    return {one.purpose: one.nbytes for one in pool.memory if one.purpose != "ledger"}


def test_segments_come_and_go(nothing_left: None) -> None:
    """Arrays and outputs are listed while they live, the largest first."""
    with shmpar.Pool(2) as pool:
        assert by_purpose(pool) == {}
        values = pool.array(np.ones(100_000))
        assert by_purpose(pool) == {"array": 800_000}
        result = pool.map_blocks(lambda block: block.astype("f4"), values)
        assert by_purpose(pool) == {"array": 800_000, "output": 400_000}
        sizes = [one.nbytes for one in pool.memory]
        assert sizes == sorted(sizes, reverse=True)
        assert pool.memory.nbytes == sum(sizes)
        del result
        assert by_purpose(pool) == {"array": 800_000}
        values.close()
        assert by_purpose(pool) == {}
        del values


def test_copies_of_inputs_and_arguments(nothing_left: None) -> None:
    """Copies that a call makes are listed with their purpose while they are in use."""
    with shmpar.Pool(2) as pool:
        plain = np.ones(100_000)
        run = pool.map_blocks(lambda block: block, plain, wait=False)
        assert by_purpose(pool).get("copy of an input", 800_000) == 800_000
        run.result()
        del run
        pool.map_blocks(np.negative, np.ones(10))
        assert (
            "copy of an input" not in by_purpose(pool) or by_purpose(pool)["copy of an input"] < 99
        )
        result = pool.submit(np.negative, plain).result()
        assert result.sum() == -100_000


def test_names_and_huge_pages(nothing_left: None) -> None:
    """A record has the name of its segment, and its bytes in huge pages."""
    with shmpar.Pool(2) as pool:
        values = pool.array(np.ones(1_000_000), name="shmpar-test-memory")
        result = pool.map_blocks(lambda block: block + 1, values)
        (array,) = [one for one in pool.memory if one.purpose == "array"]
        (output,) = [one for one in pool.memory if one.purpose == "output"]
        assert (array.name, array.kind, output.name) == ("shmpar-test-memory", "shm", None)
        if huge.refusal() is None:
            assert array.huge_bytes == output.huge_bytes == 6 << 20
        assert pool.last_run.report.huge_bytes == array.huge_bytes + output.huge_bytes
        assert "shmpar-test-memory" in str(pool.memory)
        assert result[0] == 2


@pytest.mark.parametrize("engine", ["threads", "serial"])
def test_engines_without_processes(engine: str, nothing_left: None) -> None:
    """Arrays of the pool are listed on every engine."""
    with shmpar.Pool(2, engine=engine) as pool:
        values = pool.array(np.ones(1000))
        assert [one.purpose for one in pool.memory] == ["array"]
        pool.map_blocks(np.negative, values)
    assert len(pool.memory) == 0
