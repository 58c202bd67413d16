"""``pool.memory`` lists the segments of a pool that are in use."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import shmpar
from shmpar.memory import huge
from shmpar.memory.segment import Segment


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


def test_arguments_and_results_of_calls(nothing_left: None) -> None:
    """A large argument is listed during its call, and a large result while it lives."""

    def work(values: np.ndarray, gate: np.ndarray) -> np.ndarray:
        while not gate[0]:
            time.sleep(0.001)
        return values * 2

    with shmpar.Pool(1) as pool:
        gate = pool.zeros(1, "u1")
        call = pool.submit(work, np.ones(100_000), gate)
        assert by_purpose(pool) == {"argument": 800_000, "array": 1}
        gate[0] = 1
        result = call.result()
        assert by_purpose(pool) == {"result": 800_000, "array": 1}
        del result, call
        pool._loop.settle()  # Why: the pool thread may still return from the end of the call.
        assert by_purpose(pool) == {"array": 1}
        held = np.ones(100_000)
        run = pool.map_blocks(lambda block: block + held[0], np.ones(9), wait=False)
        assert run.result().sum() == 18
        parts = pool.parallel_map(lambda number: np.full(20_000, number), range(3), dtype=object)
        found = [one.nbytes for one in pool.memory if one.purpose == "result"]
        assert found == [160_000] * 3
        del parts, run, gate


def test_small_outputs(nothing_left: None) -> None:
    """Outputs are listed: those of more than 128 KiB each, smaller ones as a common segment."""
    with shmpar.Pool(1) as pool:
        larger = pool.map_blocks(np.negative, np.ones(16_385))
        assert by_purpose(pool) == {"output": 131_080}
        # 10,000 numbers do not fit into the spare memory, and a worker maps their segment.
        small = [pool.map_blocks(np.negative, np.full(n, n * 1.0)) for n in (9, 10_000, 16_384, 9)]
        sizes = [one.nbytes for one in pool.memory if one.purpose == "output"]
        assert sizes == [1 << 20, 131_080, 64 << 10]
        assert [(one == -len(one)).all() for one in small] == [True] * 4
        del larger, small


def test_other_threads_make_segments_meanwhile(
    monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """The list is one of a moment, whatever runs are begun while it is made."""
    made, busy = list[np.ndarray](), list[bool]()
    closed, here = Segment.closed, threading.get_ident()
    with shmpar.Pool(1) as pool:
        arrays = [pool.ones(9) for _ in range(3)]
        for array in arrays:
            pool.map_blocks(np.negative, array)

        def begin_a_run(self: Segment) -> bool:
            if threading.get_ident() == here and not busy and len(made) < 9:
                busy.append(True)
                made.append(pool.ones(9))
                pool.map_blocks(np.negative, made[-1])
                busy.clear()
            return bool(closed.fget(self))

        with monkeypatch.context() as patch:
            patch.setattr(Segment, "closed", property(begin_a_run))
            listed = pool.memory
        assert len([one for one in listed if one.purpose == "array"]) >= 3
        del arrays, array, made[:]
