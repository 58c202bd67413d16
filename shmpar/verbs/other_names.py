"""Names and keywords that a pool, its methods or this package lack: the call to write instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np

from shmpar.errors import closest, with_keyword_advice
from shmpar.verbs.options import Options

P = ParamSpec("P")
R = TypeVar("R")

NO_CONTEXT: Final = "leave it out: workers are executed, neither forked nor spawned"
_ADVICE_ON_NAMES: Final = {
    "Array": "write pool.zeros(shape, dtype): workers share its memory",
    "Client": "write pool = shmpar.Pool()",
    "LocalCluster": "write pool = shmpar.Pool(n_workers)",
    "Lock": "write pool.zeros(shape).lock",
    "Manager": "leave it out: workers share the arrays of pool.zeros(shape)",
    "Memory": "write ledger=path in the call, which resumes from that file",
    "Parallel": "write pool = shmpar.Pool(n_workers), and pool.parallel_map(f, items)",
    "ProcessPoolExecutor": "write shmpar.Pool(n_workers), which is an Executor",
    "ProgressBar": "write progress=True in the call, or Pool(progress=True)",
    "RawArray": "write pool.zeros(shape, dtype): workers share its memory",
    "SharedMemory": "write pool.zeros(shape, dtype): workers share its memory",
    "ThreadPool": 'write shmpar.Pool(n_workers, engine="threads")',
    "ThreadPoolExecutor": 'write shmpar.Pool(n_workers, engine="threads"), which is an Executor',
    "Value": "write pool.zeros(1, dtype): workers share its memory",
    "Barrier": "wait for the futures in the caller: workers do not wait for each other",
    "BrokenProcessPool": "write shmpar.WorkerDied: the pool goes on after it",
    "Event": "let the function take a parameter task, and look at task.cancelled",
    "Executor": "write shmpar.Pool(n_workers), which is an Executor",
    "Future": "write concurrent.futures.Future",
    "InterpreterPoolExecutor": "write shmpar.Pool(n_workers), which is an Executor",
    "Pipe": "return the values, or write to an array of pool.zeros(shape)",
    "Process": "write pool.submit(f, *arguments)",
    "Queue": "return the values; pool.imap_unordered(f, items) gives them as they come",
    "RLock": "write pool.zeros(shape).lock",
    "RawValue": "write pool.zeros(1, dtype): workers share its memory",
    "Semaphore": "write pool.zeros(shape).lock",
    "ShareableList": "write pool.array(values): workers share its memory",
    "SharedMemoryManager": "write pool.zeros(shape, dtype): the pool owns the memory",
    "TimeoutError": "write TimeoutError, the builtin exception",
    "abort": "write terminate()",
    "active_children": "write multiprocessing.active_children(), or pool.n_workers",
    "adapt": "write shmpar.Pool(n_workers): the number of workers is fixed",
    "apply_gufunc": "write pool.map_blocks(f, x, drop_axis=..., new_axis=...)",
    "apply_over_axes": "write pool.sum(x, axis=(0, 1)), or another reduction",
    "apply_ufunc": "write pool.map_blocks(f, x), which keeps the names of a DataArray",
    "apply_parallel": "write pool.map_overlap(f, x, depth=...)",
    "arange": "write pool.asarray(np.arange(...))",
    "as_completed": "write concurrent.futures.as_completed(futures)",
    "average": "write pool.mean(x)",
    "blockwise": "write pool.map_blocks(f, x, y), whose inputs broadcast",
    "argtopk": "write pool.block_reduce(f, x), and np.argpartition on its result",
    "cancel": "write future.cancel()",
    "cluster": "write Pool(engine=client) for a cluster of Dask",
    "coarsen": "write pool.block_reduce(f, x, chunks=...)",
    "compute": "leave it out: verbs return NumPy arrays; after submit write future.result()",
    "config": "pass options to shmpar.Pool(...), or to the call",
    "count_nonzero": "write pool.sum(x != 0)",
    "cpu_count": "write os.cpu_count(), or pool.n_workers",
    "current_process": "write multiprocessing.current_process()",
    "dashboard_link": "write pool.last_run.report",
    "delayed": "write pool.submit(f, *arguments), or pool.parallel_map(f, items)",
    "diagnostics": "write progress=True in the call, and pool.last_run.report",
    "dump": "write np.save(path, x), or pass x to the verb: workers share it",
    "effective_n_jobs": "write pool.n_workers",
    "freeze_support": "leave it out: workers are executed, and do not run the script",
    "from_array": "write pool.asarray(x), and pass chunks= to the verb",
    "from_dask": "pass the array of Dask to the verb",
    "from_delayed": "write pool.parallel_map(f, items)",
    "from_npy_stack": "write pool.parallel_map(f, paths)",
    "from_tiff": "write shmpar.open(path), and pass it to the verb",
    "from_zarr": "write shmpar.open(path), and pass it to the verb",
    "gather": "write [future.result() for future in futures]",
    "get": "write pool.parallel_map(f, items), or future.result() after submit",
    "get_context": NO_CONTEXT,
    "get_task_stream": "write pool.last_run.report",
    "hash": "write joblib.hash(x)",
    "imread": "write shmpar.open(path), and pass it to the verb",
    "kill": "write terminate()",
    "linspace": "write pool.asarray(np.linspace(...))",
    "load": "write shmpar.open(path), and pass it to the verb",
    "memmap": "write np.memmap, which is not copied",
    "map_partitions": "write pool.map_blocks(f, x)",
    "max_workers": "write pool.n_workers",
    "n_jobs": "write pool.n_workers",
    "nanprod": "write pool.block_reduce(np.nanprod, x), and reduce its result with NumPy",
    "ncores": "write pool.n_workers",
    "nthreads": "write pool.n_workers",
    "nesting_level": "joblib takes shmpar.integrations.joblib.ShmparBackend(pool=pool) as backend",
    "nbytes": "write pool.memory",
    "num_workers": "write pool.n_workers",
    "nworkers": "write pool.n_workers",
    "open_zarr": "write shmpar.open(path), and pass it to the verb",
    "parallel_backend": 'write joblib.parallel_config(backend="shmpar")',
    "parallel_config": 'write joblib.parallel_config(backend="shmpar")',
    "performance_report": "write pool.last_run.report",
    "persist": "leave it out: verbs return NumPy arrays, in memory",
    "pmap": "write pool.parallel_map(f, items)",
    "print_progress": "write progress=True in the call, or Pool(progress=True)",
    "processes": "write pool.n_workers",
    "profile": "write pool.last_run.report",
    "progress": "write progress=True in the call, or Pool(progress=True)",
    "publish_dataset": "send array.address to the other process, which calls shmpar.attach()",
    "random": "name a parameter rng: pool.map_blocks(f, x) passes f a generator",
    "rebalance": "leave it out: workers share the memory",
    "rechunk": "pass chunks= to the verb: an array has no chunks of its own",
    "reduce": "write pool.block_reduce(f, x), and reduce its result with NumPy",
    "reduction": "write pool.block_reduce(f, x), and reduce its result with NumPy",
    "register_parallel_backend": "leave it out: shmpar is a backend of joblib when it is installed",
    "register_plugin": "write Pool(initializer=f)",
    "replicate": "leave it out: workers share the memory",
    "results": "write pool.last_run.result(), or keep the futures",
    "retry": "write run.resume()",
    "run": "write pool.submit(f), or Pool(initializer=f) for a call in each worker",
    "save": 'write out="result.npy" in the verb',
    "scheduler_info": "write print(pool), or pool.memory",
    "scale": "write shmpar.Pool(n_workers): the number of workers is fixed",
    "shared_memory": "write pool.zeros(shape, dtype): workers share its memory",
    "scatter": "write pool.asarray(x): workers share its memory",
    "set_start_method": NO_CONTEXT,
    "starcall": "write pool.starmap(f, tuples)",
    "stop": "write close() or terminate()",
    "store": "write out=target in the verb",
    "sync": "leave it out: verbs wait for their result",
    "to_hdf5": "write out=dataset in the verb",
    "to_npy": 'write out="result.npy" in the verb',
    "to_zarr": 'write out="result.zarr" in the verb',
    "topk": "write pool.block_reduce(f, x), and np.partition on its result",
    "tqdm": "write progress=True in the call, or Pool(progress=True)",
    "vectorize": "write pool.parallel_map(f, items)",
    "upload_file": "write shmpar.from_file(path, name), which sends a function of a file",
    "visualize": "write run.report.plot(), after run = pool.last_run",
    "wait": "write concurrent.futures.wait(futures)",
    "wait_for_workers": "leave it out: the first call waits for them",
    "who_has": "leave it out: workers share the memory",
    "workers": "write pool.n_workers",
    "wrap_non_picklable_objects": "leave it out: functions are sent by cloudpickle",
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
    if name in _ADVICE_ON_NAMES:
        return _ADVICE_ON_NAMES[name]
    function = vars(np).get(name)
    if isinstance(function, np.ufunc) and function.signature is None:
        return f"write pool.map_blocks(np.{name}, x)"
    if callable(function) and not isinstance(function, type):
        return f"write np.{name}, which takes shared arrays too"
    close = closest(name, [one for one in known if one[0] != "_"])
    return f"did you mean {close}?" if close else ""


_ARGUMENTS: Final = frozenset({"args", "kwargs", "kwds"})
_OF_VERBS: Final = frozenset(Options.__annotations__) | {"axis", "dtype", "out"}
_OF_CALLS: Final = {
    **dict.fromkeys(
        ("callback", "error_callback"),
        "write pool.map_async(f, items, callback=...), or future.add_done_callback(f)",
    ),
    **dict.fromkeys(
        ("func", "function", "iterable", "iterables", "items"),
        "pass the function and the items by position",
    ),
    "batch_size": "write chunksize=",
    "chunk_size": "write chunksize=",
    "chunks": "write chunksize=",
    "key": "leave it out: a future needs no name",
    "max_workers": "write shmpar.Pool(n_workers=...)",
    "n_jobs": "write shmpar.Pool(n_workers=...)",
    "ordered": "write pool.imap_unordered(f, items) for the order of completion",
    "pre_dispatch": "write pool.map(f, items, buffersize=...)",
    "priority": "leave it out: calls begin in the order in which they are submitted",
    "processes": "write shmpar.Pool(n_workers=...)",
    "pure": "leave it out: each call is made",
    "timeout": "write next(timeout) of the iterator, or result(timeout) of the future",
}
_CHECKED: Final = _ARGUMENTS | _OF_VERBS | frozenset(_OF_CALLS)


def check_callable(method: str, func: Any, remedy: str = "") -> None:
    """Raise ``TypeError`` for a function that cannot be called; the message ends with `remedy`."""
    code = getattr(func, "__code__", None)
    of_joblib = getattr(code, "co_name", "") == "delayed_function"
    # Why: a function of joblib's or Dask's `delayed` calls nothing.
    if of_joblib or type(func).__module__ == "dask.delayed":
        raise TypeError(f"{method}: leave delayed out: write {method}(f, ...), not delayed(f)")
    if not callable(func):
        kind = type(func).__name__
        raise TypeError(f"{method}: the function comes first; {kind} is not callable{remedy}")


def check_call(method: str, func: Any, keywords: Iterable[str] = ()) -> None:
    """Raise ``TypeError`` for a function that cannot be called, or for ``args=`` of a thread."""
    check_callable(method, func, f": write {method}(f, x), not {method}(f(x))")
    for name in _CHECKED.intersection(keywords) if keywords else ():
        if not _takes_keyword(func, name):
            raise TypeError(f"{method}: the function has no {name}=; {_instead_of(name, method)}")


def _takes_keyword(func: Any, name: str) -> bool:
    # Why not the wrapped function: the wrapper may take it.
    try:
        signature = inspect.signature(func, follow_wrapped=False)
    except (TypeError, ValueError):
        return True
    several = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    return several or name in signature.parameters


def _instead_of(name: str, method: str) -> str:
    """Return advice for a keyword that a method for calls does not have."""
    if method == "submit" and name in _ARGUMENTS:
        return (
            "pass the arguments of the function as they are, as in submit(f, x, key=1), or write "
            "pool.apply_async(f, args, kwds)"
        )
    if name in _OF_CALLS:
        return _OF_CALLS[name]
    if name in _OF_VERBS:
        return f"parallel_map has it: write pool.parallel_map(f, items, {name}=...)"
    return f"for a keyword of the function write functools.partial(f, {name}=...)"


def names_keywords(method: Callable[P, R]) -> Callable[P, R]:
    """Return a method whose error for a keyword that it lacks names the call to write.

    A decorator around it hides its frames.
    """
    return with_keyword_advice(method, lambda name: _instead_of(name, method.__name__))
