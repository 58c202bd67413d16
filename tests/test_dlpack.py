"""Arrays of other libraries, through DLPack and the array interface of NumPy."""

from __future__ import annotations

import numpy as np
import pytest

import shmpar


def test_shared_arrays_and_results_export_their_memory(any_pool: shmpar.Pool) -> None:
    shared = any_pool.array(np.arange(6.0))
    view = np.from_dlpack(shared)
    shared[2] = 7
    assert view[2] == 7
    assert np.shares_memory(view, shared)
    result = any_pool.map_blocks(np.negative, shared, chunks=2)
    assert np.shares_memory(np.from_dlpack(result), result)
    again = any_pool.map_blocks(np.negative, view, chunks=2)
    np.testing.assert_array_equal(again, result)
    if any_pool.engine == "processes":
        kinds = [kind for kind, _ in any_pool.last_run.report.inputs]
        assert kinds == [any_pool.memory[0].kind], "the view of shared memory was copied"
    del shared, view, result, again


def test_tensors_of_torch_are_inputs(any_pool: shmpar.Pool) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    tensor = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    values = tensor.numpy()
    np.testing.assert_array_equal(any_pool.map_blocks(np.negative, tensor, chunks=2), -values)
    np.testing.assert_array_equal(any_pool.parallel_map(np.sum, tensor), values.sum(axis=1))
    assert float(any_pool.sum(tensor)) == float(tensor.sum())
    turned = any_pool.map_blocks(np.negative, tensor.T, chunks=(3, 4))
    np.testing.assert_array_equal(turned, -values.T)
    whole = any_pool.map_overlap(lambda w: w, tensor, depth=1, chunks=2)
    np.testing.assert_array_equal(whole, values)


def test_torch_sees_shared_memory_without_a_copy(any_pool: shmpar.Pool) -> None:
    torch = pytest.importorskip("torch")
    shared = any_pool.array(np.zeros(8, np.float32))
    tensor = torch.from_dlpack(shared)
    tensor[3] = 5
    assert shared[3] == 5
    assert float(any_pool.max(tensor)) == 5
    result = torch.from_numpy(any_pool.map_blocks(np.negative, tensor, chunks=2))
    assert float(result.min()) == -5
    del shared, tensor, result


def test_tensors_that_need_a_gradient_are_refused(any_pool: shmpar.Pool) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(3, requires_grad=True)
    with pytest.raises((TypeError, RuntimeError), match="detach"):
        any_pool.map_blocks(np.negative, tensor, chunks=1)
