"""Names and keywords of other libraries, with the call to write here.

A row of a table has all names that a text is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from shmpar.errors import closest


def look_up(table: Mapping[str, str], name: str) -> str:
    """Return the text for a name, empty if there is none; the keys of a table have several names.

    Examples
    --------
    >>> look_up({"abort kill": "write terminate()"}, "kill")
    'write terminate()'
    """
    return next((text for names, text in table.items() if name in names.split()), "")


NO_CONTEXT: Final = "leave it out: workers are executed, neither forked nor spawned"
_ENGINE: Final = 'write engine="processes", engine="threads" or engine="serial"'

# Names of other libraries that are looked up in a pool, or in this package
_NAMES: Final = {
    "abort kill": "write terminate()",
    "active_children": "write multiprocessing.active_children(), or pool.n_workers",
    "adapt scale": "write shmpar.Pool(n_workers): the number of workers is fixed",
    "apply_gufunc": "write pool.map_blocks(f, x, drop_axis=..., new_axis=...)",
    "apply_over_axes": "write pool.sum(x, axis=(0, 1)), or another reduction",
    "apply_parallel": "write pool.map_overlap(f, x, depth=...)",
    "apply_ufunc": "write pool.map_blocks(f, x), which keeps the names of a DataArray",
    "arange": "write pool.asarray(np.arange(...))",
    "argtopk": "write pool.block_reduce(f, x), and np.argpartition on its result",
    "Array RawArray": "write pool.zeros(shape, dtype): workers share its memory",
    "shared_memory SharedMemory": "write pool.zeros(shape, dtype): workers share its memory",
    "as_completed": "write concurrent.futures.as_completed(futures)",
    "average": "write pool.mean(x)",
    "Barrier": "wait for the futures in the caller: workers do not wait for each other",
    "blockwise": "write pool.map_blocks(f, x, y), whose inputs broadcast",
    "BrokenProcessPool": "write shmpar.WorkerDied: the pool goes on after it",
    "cancel": "write future.cancel()",
    "Client": "write pool = shmpar.Pool()",
    "cluster": "write Pool(engine=client) for a cluster of Dask",
    "coarsen": "write pool.block_reduce(f, x, chunks=...)",
    "compute": "leave it out: verbs return NumPy arrays; after submit write future.result()",
    "config": "pass options to shmpar.Pool(...), or to the call",
    "count_nonzero": "write pool.sum(x != 0)",
    "cpu_count": "write os.cpu_count(), or pool.n_workers",
    "current_process": "write multiprocessing.current_process()",
    "dashboard_link get_task_stream performance_report profile": "write pool.last_run.report",
    "delayed": "write pool.submit(f, *arguments), or pool.parallel_map(f, items)",
    "diagnostics": "write progress=True in the call, and pool.last_run.report",
    "dump": "write np.save(path, x), or pass x to the verb: workers share it",
    "effective_n_jobs max_workers n_jobs ncores nthreads": "write pool.n_workers",
    "num_workers nworkers processes workers": "write pool.n_workers",
    "Event": "let the function take a parameter task, and look at task.cancelled",
    "freeze_support": "leave it out: workers are executed, and do not run the script",
    "from_array": "write pool.asarray(x), and pass chunks= to the verb",
    "from_dask": "pass the array of Dask to the verb",
    "from_delayed pmap vectorize": "write pool.parallel_map(f, items)",
    "from_npy_stack": "write pool.parallel_map(f, paths)",
    "from_tiff from_zarr imread": "write shmpar.open(path), and pass it to the verb",
    "load open_zarr": "write shmpar.open(path), and pass it to the verb",
    "Future": "write concurrent.futures.Future",
    "gather": "write [future.result() for future in futures]",
    "get": "write pool.parallel_map(f, items), or future.result() after submit",
    "get_context set_start_method": NO_CONTEXT,
    "hash": "write joblib.hash(x)",
    "linspace": "write pool.asarray(np.linspace(...))",
    "LocalCluster": "write pool = shmpar.Pool(n_workers)",
    "Lock RLock Semaphore": "write pool.zeros(shape).lock",
    "Manager": "leave it out: workers share the arrays of pool.zeros(shape)",
    "map_partitions": "write pool.map_blocks(f, x)",
    "memmap": "write np.memmap, which is not copied",
    "Memory": "write ledger=path in the call, which resumes from that file",
    "nanprod": "write pool.block_reduce(np.nanprod, x), and reduce its result with NumPy",
    "nbytes": "write pool.memory",
    "nesting_level": "joblib takes shmpar.integrations.joblib.ShmparBackend(pool=pool) as backend",
    "Parallel": "write pool = shmpar.Pool(n_workers), and pool.parallel_map(f, items)",
    "parallel_backend parallel_config": 'write joblib.parallel_config(backend="shmpar")',
    "persist": "leave it out: verbs return NumPy arrays, in memory",
    "Pipe": "return the values, or write to an array of pool.zeros(shape)",
    "Process": "write pool.submit(f, *arguments)",
    "Executor InterpreterPoolExecutor": "write shmpar.Pool(n_workers), which is an Executor",
    "ProcessPoolExecutor": "write shmpar.Pool(n_workers), which is an Executor",
    "print_progress progress": "write progress=True in the call, or Pool(progress=True)",
    "ProgressBar tqdm": "write progress=True in the call, or Pool(progress=True)",
    "publish_dataset": "send array.address to the other process, which calls shmpar.attach()",
    "Queue": "return the values; pool.imap_unordered(f, items) gives them as they come",
    "random": "name a parameter rng: pool.map_blocks(f, x) passes f a generator",
    "rebalance replicate who_has": "leave it out: workers share the memory",
    "rechunk": "pass chunks= to the verb: an array has no chunks of its own",
    "reduce reduction": "write pool.block_reduce(f, x), and reduce its result with NumPy",
    "register_parallel_backend": "leave it out: shmpar is a backend of joblib when it is installed",
    "register_plugin": "write Pool(initializer=f)",
    "results": "write pool.last_run.result(), or keep the futures",
    "retry": "write run.resume()",
    "run": "write pool.submit(f), or Pool(initializer=f) for a call in each worker",
    "save to_npy": 'write out="result.npy" in the verb',
    "scatter": "write pool.asarray(x): workers share its memory",
    "scheduler_info": "write print(pool), or pool.memory",
    "ShareableList": "write pool.array(values): workers share its memory",
    "SharedMemoryManager": "write pool.zeros(shape, dtype): the pool owns the memory",
    "starcall": "write pool.starmap(f, tuples)",
    "stop": "write close() or terminate()",
    "store": "write out=target in the verb",
    "sync": "leave it out: verbs wait for their result",
    "ThreadPool": 'write shmpar.Pool(n_workers, engine="threads")',
    "ThreadPoolExecutor": 'write shmpar.Pool(n_workers, engine="threads"), which is an Executor',
    "TimeoutError": "write TimeoutError, the builtin exception",
    "to_hdf5": "write out=dataset in the verb",
    "to_zarr": 'write out="result.zarr" in the verb',
    "topk": "write pool.block_reduce(f, x), and np.partition on its result",
    "upload_file": "write shmpar.from_file(path, name), which sends a function of a file",
    "RawValue Value": "write pool.zeros(1, dtype): workers share its memory",
    "visualize": "write run.report.plot(), after run = pool.last_run",
    "wait": "write concurrent.futures.wait(futures)",
    "wait_for_workers": "leave it out: the first call waits for them",
    "wrap_non_picklable_objects": "leave it out: functions are sent by cloudpickle",
}

# Keywords of a verb: the option that is meant, or the reason why there is none
_OPTIONS: Final = {
    "block": "wait",
    "block_shape block_size blocks blocksize chunk_size": "chunks",
    "chunksize size tile_size tiles": "chunks",
    "border cval mode": "boundary",
    "cache checkpoint restart resume": "ledger",
    "dim": "axis",
    "errors": "on_error",
    "extra_arguments extra_keywords func_kwargs kwds": "kwargs",
    "fill": "fill_value",
    "halo overlap padding": "depth",
    "meta": "dtype",
    "output": "out",
    "progress_bar verbose": "progress",
    "random_state": "seed",
    "retry": "retries",
    "timeout": "task_timeout",
}
_NO_OPTIONS: Final = {
    "align_arrays allow_rechunk": "the inputs of a call have the same chunks",
    "batch_size chunk_size chunksize": "a worker takes up to 8 ms of rows at a time",
    "concatenate": "each block arrives whole",
    "enforce_ndim": "the shape of each result is checked",
    "max_nbytes": "arrays always travel through shared memory",
    "mmap_mode": "blocks are read-only views of shared memory",
    "name token": "a result is computed at once, and needs no name",
    "pre_dispatch": "workers take their items themselves",
    "return_as": "with wait=False, run.completed() yields results as they come",
    "size": "a chunk is one row or item",
    "split_every": "partial results are combined in one step",
    "temp_folder": "arrays lie in shared memory",
}

# Keywords of a pool: those that mean the same, and advice on others
POOL_KEYWORDS: Final = {
    "max_tasks_per_child maxtasksperchild": "max_tasks_per_worker",
    "max_workers n_jobs n_processes nprocs": "n_workers",
    "num_processes num_workers processes workers": "n_workers",
}
NO_POOL_KEYWORDS: Final = {
    "backend prefer require scheduler": _ENGINE,
    "batch_size": "write pool.map(f, items, chunksize=...); the verbs choose it themselves",
    "chunks": "pass it to the call, as in pool.map_blocks(f, x, chunks=...)",
    "chunksize": "pass it to the call, as in pool.map(f, items, chunksize=...)",
    "context mp_context": NO_CONTEXT,
    "inner_max_num_threads": "write threads_per_worker=...",
    "max_nbytes": "leave it out: arrays always travel through shared memory",
    "memory_limit": "leave it out: workers share the memory of the machine",
    "mmap_mode": "leave it out: blocks are read-only views of shared memory",
    "pre_dispatch": "write pool.map(f, items, buffersize=...)",
    "return_as": "write pool.map(f, items), or pool.imap_unordered(f, items), for an iterator",
    "temp_folder": "leave it out: arrays lie in shared memory",
    "thread_name_prefix": "leave it out: workers have names of their own",
    "timeout": "write task_timeout=..., or pass timeout= to result()",
    "verbose": "write progress=True",
}
_OF_POOL: Final = POOL_KEYWORDS | {
    "backend engine prefer require scheduler": "engine",
    "inner_max_num_threads": "threads_per_worker",
    "n_workers": "n_workers",
}

# Keywords of a method that calls a function, such as submit
CALL_KEYWORDS: Final = {
    "batch_size chunk_size chunks": "write chunksize=",
    "callback error_callback": "write pool.map_async(f, items, callback=...), or "
    "future.add_done_callback(f)",
    "func function items iterable iterables": "pass the function and the items by position",
    "key": "leave it out: a future needs no name",
    "max_workers n_jobs processes": "write shmpar.Pool(n_workers=...)",
    "ordered": "write pool.imap_unordered(f, items) for the order of completion",
    "pre_dispatch": "write pool.map(f, items, buffersize=...)",
    "priority": "leave it out: calls begin in the order in which they are submitted",
    "pure": "leave it out: each call is made",
    "timeout": "write next(timeout) of the iterator, or result(timeout) of the future",
}


def advice(name: str, known: Iterable[str]) -> str:
    """Return advice for a name that a pool, or this package, does not have; empty if there is none.

    Examples
    --------
    >>> advice("from_array", [])
    'write pool.asarray(x), and pass chunks= to the verb'
    >>> advice("map_block", ["map_blocks", "submit"])
    'did you mean map_blocks?'
    """
    if text := look_up(_NAMES, name):
        return text
    function = vars(np).get(name)
    if isinstance(function, np.ufunc) and function.signature is None:
        return f"write pool.map_blocks(np.{name}, x)"
    if callable(function) and not isinstance(function, type):
        return f"write np.{name}, which takes shared arrays too"
    close = closest(name, [one for one in known if one[0] != "_"])
    return f"did you mean {close}?" if close else ""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return advice for an unknown keyword: the name that was meant, as far as that is clear.

    Examples
    --------
    >>> suggestion("chunksize", ["axis", "chunks"])
    '; did you mean chunks=?'
    """
    known, other = list(known), look_up(_OPTIONS, name)
    if close := other if other in known else closest(name, known):
        return f"; did you mean {close}=?"
    if option := look_up(_OF_POOL, name):
        return f"; a pool has it: shmpar.Pool({option}=...)"
    if reason := look_up(_NO_OPTIONS, name):
        return f"; leave it out: {reason}"
    return ""
