"""What shmpar aims at, and what a run gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.peers import cold, figures, workloads
from benchmarks.peers.kept import PEERS, PROCESSES, Kept, Missing, title

# What is said of a system: ours, or a limit in its place.
Measured = Callable[[Kept, str], str]
Aim = tuple[str, str, Measured]


def _against(workload: str, names: tuple[str, ...], theirs: str = "", **point: object) -> Measured:
    """How much longer the fastest of some took (in that way of theirs) than a system; which."""

    def measured(kept: Kept, system: str) -> str:
        if names == (system,):
            raise Missing(system)
        fastest = kept.fastest(workload, names, **({"way": theirs} if theirs else {}), **point)
        ours = kept.best(workload, system, **point)
        which = "" if len(names) == 1 else f" ({title(fastest['system'])})"
        return f"{figures.ratio(fastest, ours):.3g}{which}"

    return measured


def _added(verb: str) -> Measured:
    def measured(kept: Kept, system: str) -> str:
        points = [p for p in kept.points("many_chunks") if p["verb"] == verb]
        chunks = max(point["chunks"] for point in points)
        ours = kept.best("many_chunks", system, verb=verb, chunks=chunks)
        ceiling = kept.best("many_chunks", "ceiling", verb=verb, chunks=chunks)
        if system == "ceiling":
            raise Missing(system)
        # each of the workers does its part of the chunks: what it adds to each is what counts
        added = (ours["median"] - ceiling["median"]) * kept.all["workers"] / chunks
        return f"{added * 1e6:.2f} µs"

    return measured


def _growth(verb: str) -> Measured:
    def measured(kept: Kept, system: str) -> str:
        points = [p["chunks"] for p in kept.points("many_chunks") if p["verb"] == verb]
        few, many = 1_000, max(points)
        costs = [
            kept.best("many_chunks", system, verb=verb, chunks=count)["median"] / count
            for count in (few, many)
        ]
        return f"{costs[1] / costs[0]:.2f} ({many:,} chunks)"

    return measured


def _halo_memory(kept: Kept, system: str) -> str:
    halo = [point for point in kept.points("memory") if point["verb"] == "halo"]
    point = max(halo, key=lambda point: point["side"])
    theirs = kept.fastest("memory", ("dask_threads", "dask_processes"), **point)["median"]
    if system == "ours":
        ours = kept.best("memory", "ours", **point)["median"]
    else:
        ours = workloads.load("memory").job(point).nbytes
    return f"{ours / theirs:.2f}"


def _beyond(kept: Kept, system: str) -> str:
    if system != "ours":
        raise Missing(system)
    point = kept.points("memory")[0]
    due = workloads.load("memory").job(point).nbytes
    peak = kept.best("memory", "ours", **point)["median"]
    return f"{(peak - due) / 1e6 / kept.all['workers']:.0f} MB"


def _start(kept: Kept, system: str) -> str:
    """From the pool on, or what as many interpreters as workers take, to one that imports NumPy."""
    one = kept.best("cold", "import numpy, cloudpickle", way="process")
    which = {"system": "ours", "way": "pool"} if system == "ours" else {"system": cold.AT_ONCE}
    return f"{kept.best('cold', **which)['median'] / one['median']:.2f}"


def _first_call(kept: Kept, system: str) -> str:
    if system != "ours":
        raise Missing(system)
    seconds = [kept.best("cold", name, way="pool")["median"] for name in ("joblib", "ours")]
    return f"{seconds[0] / seconds[1]:.2f}"


def _floor(kept: Kept, system: str) -> str:
    return figures.show(kept.best("floor", system)["median"], "seconds")


def _workers(kept: Kept, system: str) -> str:
    counts = [point["workers"] for point in kept.points("workers")]
    few, many = (2 if 2 in counts else min(counts)), max(counts)
    times = [kept.best("workers", system, workers=count)["median"] for count in (few, many)]
    return f"{times[1] / times[0]:.2f} ({many} to {few})"


AIMS: tuple[Aim, ...] = (
    ("added to a row that costs nothing", "≤ 0.5 µs", _added("rows")),
    ("added to a block that costs nothing", "≤ 3 µs", _added("blocks")),
    (
        "tiny rows: `mp.Pool.map`'s time / ours",
        "≥ 1.8",
        _against("tiny_rows", ("pool",), way="same"),
    ),
    (
        "tiny rows: joblib's or mpire's",
        "≥ 5",
        _against("tiny_rows", ("joblib", "mpire"), way="same"),
    ),
    ("tiny rows: dask threads'", "≥ 300", _against("tiny_rows", ("dask_threads",), way="same")),
    *(
        (
            f"ceiling's time / ours, chunks of {figures.show(cost * 1e-6, 'seconds')}",
            f"≥ {aim}",
            _against("chunk_cost", ("ceiling",), cost_us=cost),
        )
        for cost, aim in ((10, 0.85), (100, 0.95), (1_000, 0.98))
    ),
    (
        "row sums of 800 MB: numba's time / ours",
        "≥ 0.95",
        _against("row_sums", ("numba",), theirs="same"),
    ),
    (
        "the same, numba adding in any order (`fastmath`)",
        "≥ 0.95",
        _against("row_sums", ("numba",), theirs="own"),
    ),
    ("tiles: ceiling's", "≥ 0.96", _against("tiles", ("ceiling",))),
    ("tiles: fastest peer's, a tile a task", "> 1", _against("tiles", PEERS, theirs="same")),
    ("tiles: fastest peer's, loops by hand too", "> 1", _against("tiles", PEERS)),
    ("pure-Python rows: ceiling's", "≥ 0.98", _against("python_rows", ("ceiling",))),
    (
        "uneven rows, clustered: ceiling's",
        "≥ 0.98",
        _against("uneven_rows", ("ceiling",), order="clustered"),
    ),
    ("Gaussian with halo: ceiling's", "≥ 0.98", _against("gaussian", ("ceiling",))),
    ("Gaussian with halo: fastest peer's", "≥ 1", _against("gaussian", PEERS)),
    ("Gaussian with halo: our memory / dask's", "≤ 0.5", _halo_memory),
    ("copying in: time of `view[:] = x` / ours", "≥ 1.75", _against("copy_in", ("pool",))),
    ("`Pool()` to first result / `import numpy, cloudpickle`", "≤ 1.5", _start),
    ("`Pool()` to first result: joblib's first call / ours", "> 1", _first_call),
    ("warm call that does nothing", "≤ 0.3 ms", _floor),
    ("the same: fastest process-based peer's / ours", "> 1", _against("floor", PROCESSES)),
    (
        "peak memory beyond input and output, a worker (the parent's counted too)",
        "≤ 30 MB",
        _beyond,
    ),
    ("cost a row with many / with 1,000", "≤ 1.3", _growth("rows")),
    ("cost a block with many / with 1,000", "≤ 1.3", _growth("blocks")),
    ("chunks of 1 ms: time with more workers than cores / as many", "≤ 1.1", _workers),
)


def lines(kept: Kept) -> Iterator[str]:
    """A row of the table for each aim, where the run has figures for it."""
    for label, aim, measured in AIMS:
        cells = [_cell(kept, measured, system) for system in ("ours", "ceiling")]
        yield f"| {label} | {aim} | {cells[0] or 'not measured'} | {cells[1]} |"


def _cell(kept: Kept, measured: Measured, system: str) -> str:
    try:
        return measured(kept, system)
    except Missing:
        return ""
