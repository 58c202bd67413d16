"""What shmpar aims at, and what a run gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.peers import figures, workloads
from benchmarks.peers.kept import PEERS, PROCESSES, Kept, Missing, title

Aim = tuple[str, str, Callable[[Kept], str]]


def _against(workload: str, names: tuple[str, ...], **point: object) -> Callable[[Kept], str]:
    """How much longer the fastest of some took than ours, and which it was."""

    def measured(kept: Kept) -> str:
        fastest = kept.fastest(workload, names, **point)
        ours = kept.best(workload, "ours", **point)
        which = "" if len(names) == 1 else f" ({title(fastest['system'])})"
        return f"{figures.ratio(fastest, ours):.3g}{which}"

    return measured


def _added(verb: str) -> Callable[[Kept], str]:
    def measured(kept: Kept) -> str:
        points = [p for p in kept.points("many_chunks") if p["verb"] == verb]
        chunks = max(point["chunks"] for point in points)
        ours = kept.best("many_chunks", "ours", verb=verb, chunks=chunks)
        ceiling = kept.best("many_chunks", "ceiling", verb=verb, chunks=chunks)
        # each of the workers does its part of the chunks: what it adds to each is what counts
        added = (ours["median"] - ceiling["median"]) * kept.all["workers"] / chunks
        return f"{added * 1e6:.2f} µs"

    return measured


def _growth(verb: str) -> Callable[[Kept], str]:
    def measured(kept: Kept) -> str:
        points = [p["chunks"] for p in kept.points("many_chunks") if p["verb"] == verb]
        few, many = 1_000, max(points)
        costs = [
            kept.best("many_chunks", "ours", verb=verb, chunks=count)["median"] / count
            for count in (few, many)
        ]
        return f"{costs[1] / costs[0]:.2f} ({many:,} chunks)"

    return measured


def _halo_memory(kept: Kept) -> str:
    ours = kept.best("memory", "ours", verb="halo")
    theirs = kept.fastest("memory", ("dask_threads", "dask_processes"), verb="halo")
    return f"{ours['median'] / theirs['median']:.2f}"


def _beyond(kept: Kept) -> str:
    point = kept.points("memory")[0]
    due = workloads.load("memory").job(point).nbytes
    peak = kept.best("memory", "ours", **point)["median"]
    return f"{(peak - due) / 1e6 / (kept.all['workers'] + 1):.0f} MB"


def _cold(one: str, other: str) -> Callable[[Kept], str]:
    def measured(kept: Kept) -> str:
        seconds = []
        for name in (one, other):
            way = "process" if name.startswith("import") else "pool"
            seconds.append(kept.best("cold", name, way=way)["median"])
        return f"{seconds[0] / seconds[1]:.2f}"

    return measured


def _floor(kept: Kept) -> str:
    return figures.show(kept.best("floor", "ours")["median"], "seconds")


def _workers(kept: Kept) -> str:
    counts = [point["workers"] for point in kept.points("workers")]
    few, many = (2 if 2 in counts else min(counts)), max(counts)
    times = [kept.best("workers", "ours", workers=count)["median"] for count in (few, many)]
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
    ("row sums of 800 MB: numba's time / ours", "≥ 0.95", _against("row_sums", ("numba",))),
    ("tiles: ceiling's", "≥ 0.96", _against("tiles", ("ceiling",))),
    ("tiles: fastest peer's", "> 1", _against("tiles", PEERS)),
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
    (
        "`Pool()` to first result / `import numpy, cloudpickle`",
        "≤ 1.5",
        _cold("ours", "import numpy, cloudpickle"),
    ),
    ("`Pool()` to first result: joblib's first call / ours", "> 1", _cold("joblib", "ours")),
    ("warm call that does nothing", "≤ 0.3 ms", _floor),
    ("the same: fastest process-based peer's / ours", "> 1", _against("floor", PROCESSES)),
    ("peak memory beyond input and output, a process", "≤ 30 MB", _beyond),
    ("cost a row with many / with 1,000", "≤ 1.3", _growth("rows")),
    ("cost a block with many / with 1,000", "≤ 1.3", _growth("blocks")),
    ("chunks of 1 ms: time with more workers than cores / as many", "≤ 1.1", _workers),
)


def lines(kept: Kept) -> Iterator[str]:
    """A row of the table for each aim that the run has figures for."""
    for label, aim, measured in AIMS:
        try:
            yield f"| {label} | {aim} | {measured(kept)} |"
        except Missing:
            yield f"| {label} | {aim} | not measured |"
