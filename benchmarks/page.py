"""Write docs/benchmarks.md and its pictures from a file of figures that `peers` wrote.

All numbers come from the file of figures; the texts below hold none.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator

from benchmarks import figures, systems, workloads
from benchmarks.figures import ALONE, LIMITS, PEERS, PROCESSES, Missing, Record, Results, show
from benchmarks.harness import ROOT
from benchmarks.systems import title
from benchmarks.workloads import Point, cold

DOCS = os.path.join(ROOT, "docs")
SECTIONS = (  # heading, picture, workloads
    ("Cost per chunk", "overhead", ("chunk_cost",)),
    ("Many chunks", "many_chunks", ("many_chunks",)),
    ("Rows and tiles", None, ("tiny_rows", "row_sums", "tiles")),
    ("Functions in Python", None, ("python_rows", "uneven_rows")),
    ("Arrays in, arrays out", None, ("gaussian", "ufunc", "chain", "copy_in")),
    ("Workers", "workers", ("workers",)),
    ("Bytes", "bytes", ("bytes",)),
    ("Start and floor", "start", ("cold", "floor")),
    ("Memory", "memory", ("memory",)),
)
GLANCE: tuple[tuple[str, Point, str], ...] = (  # workloads with a single figure, and their names
    ("tiny_rows", {}, "tiny rows"),
    ("row_sums", {}, "row sums"),
    ("tiles", {}, "tiles, mean and std"),
    ("python_rows", {}, "pure-Python rows"),
    ("uneven_rows", {"order": "clustered"}, "uneven rows, clustered"),
    ("uneven_rows", {"order": "random"}, "uneven rows, random"),
    ("gaussian", {}, "Gaussian with halo"),
    ("ufunc", {}, "ufunc"),
    ("chain", {}, "chain of three maps"),
    ("copy_in", {}, "copying in"),
    ("floor", {}, "a call that does nothing"),
)
ANSWERS = ("joblib", "dask_threads", "pool", "threads")  # the peers of the answer

NOISE = """
### Noise

The machine is a virtual one that it shares with others, and a single time means little. So all
systems take turns within a run, in an order that is drawn again for each round. Systems that wait
are stopped with all of their processes (SIGSTOP). A ratio is the median over rounds side by side.
The memory that a process happens to get makes it faster or slower for as long as it lives. So
all processes start three times where memory decides. Times are medians of warm calls, with the
middle half of all rounds in brackets. Answers are checked.
"""

SIZES = """
### Sizes and fairness

The authors of shmpar wrote this comparison, so doubt it. The code is in `benchmarks/`, a plain
file per system, and one command runs it again on your machine.

- A function that takes long enough makes all of these libraries equal. Your workload is not here.
- Two cores are few. For 16 cores, see [larger machines](explain/performance.md#larger-machines).
- Each system is measured with the same chunks as shmpar and in the way that its documentation
  recommends. Pictures and tables show the better of both; the file of figures has both. Only
  the same chunks count where the cost per chunk is the question.
- Unfair to the others: Dask, distributed and Ray are made for clusters, for data larger than
  memory and for graphs of many steps. Here they get one machine and one step. The time to build
  Dask's graph counts, because a user writes it for each call. Dask's processes read chunks from
  a mapped file, which is faster than a copy through a pipe.
- Unfair to shmpar: a pool made by hand is made for its one array, and its results are written
  where they are already wanted.
"""

LOSSES = """
### Where shmpar loses, and the better tool there

- **A whole-array expression exists** (`a.sum(axis=1)`, `np.sqrt(a)`): use it. A single process
  without calls in Python beats a call per row or tile, and often several processes.
- **The function can be compiled**: use numba. Rewritten as loops, the function has no interpreter
  left to parallelise. shmpar is for functions that exist already and cannot be compiled.
- **The function releases the interpreter lock** and its chunks are large, as in SciPy filters,
  large ufuncs and compression. A thread pool is as fast, with nothing to copy or start.
  `shmpar.Pool(engine="threads")` is such a pool.
- **A chain of cheap elementwise steps**: fuse them in one function, or let Dask do it. Three maps
  read and write memory three times.
- **You write the loop yourself**: a pool of the standard library that hands out spans of rows adds
  nothing to a row. You write the shared output, the loop and the clean-up by hand. shmpar
  spares you that work; it does not beat it.
- **A single call in a short script**: a forked pool or threads start in milliseconds, since they
  import nothing.
- **Graphs of many steps over data larger than memory, or over many machines**: Dask, Ray or Spark.
  Nothing here measures their purpose.
"""

ABSENT = """
- loky, pebble, billiard: they start processes and send arguments as `ProcessPoolExecutor` and
  joblib do, which are here.
- multiprocess, pathos: `multiprocessing` with another pickler.
- ipyparallel, Parsl, Spark, Modin, cubed: made for many machines; distributed and Ray stand for
  them.
- xarray, `dask.dataframe`: they run on Dask, which is here.
"""

CAPTIONS = {
    "at_a_glance": (
        "Time of each peer as a multiple of shmpar's time. Right of the line shmpar is faster. "
        "The ceiling is bare forked processes in a loop."
    ),
    "overhead": (
        "Speed that is left of the ceiling's, by the cost of a chunk. Higher is better. The "
        "ceiling is bare forked processes in a loop."
    ),
    "many_chunks": (
        "Time per chunk of a function that does nothing, by the number of chunks. Lower is better."
    ),
    "workers": (
        "Chunks of 1 ms, with more and more workers. Lower is better; past the cores flat is best."
    ),
    "bytes": "Sums of rows of 1 MB, by the size of the array. Higher is better.",
    "start": "A fresh process that sums eight rows. Lower is better.",
    "memory": (
        "Peak memory of all processes of a system together (proportional set size), with the "
        "interpreter and its imports. The heading gives the size of input and output. Lower is "
        "better."
    ),
    "chunk_cost": (
        "Time per chunk, all workers together. The least possible time is the cost divided by the "
        "number of workers."
    ),
    "row_sums": ("Bound by memory. *numba prange* may add in any order here (`fastmath=True`)."),
    "copy_in": "Time until workers can see a plain array. *NumPy alone* is `x.copy()`.",
    "ufunc": "Into an existing output, except for Dask and `apply_parallel`, which allocate one.",
    "floor": "A warm map that has nothing to do.",
}

AGAIN = """
## Run the benchmarks again

```sh
python -m pip install -e ".[benchmarks]"
python -m benchmarks peers --json figures.json  # all: about an hour on 2 idle cores
python -m benchmarks peers tiles floor --systems ours,pool,joblib --quick
python -m benchmarks page figures.json  # this page and its pictures
python -m benchmarks floor  # one of the single measurements; `--help` lists them
```

This page was made from `{source}`.

## Compare two checkouts

`compare` tells whether a change makes shmpar faster or slower. It needs another checkout of the
project, such as the commit before the change:

```sh
git worktree add ../before HEAD~1
python -m benchmarks compare ../before  # all workloads, 15 rounds: some minutes on 2 cores
python -m benchmarks compare ../before floor floor_busy --rounds 45
python -m benchmarks compare ../before copy_in ufunc --large  # arrays of 800 MB
```

The result is a ratio, the other checkout's figure divided by this one's: 2.0 means that this
checkout takes half the time. If the middle half of the ratios includes 1, the run is no evidence of
a change. Compare two equal checkouts first: their ratios show the noise of your machine.
`python -m benchmarks compare --help` has the method and the workloads.
"""


def main(arguments: list[str]) -> None:
    """Write the page and draw its pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks page", description=__doc__)
    parser.add_argument("file", help="figures that `python -m benchmarks peers --json` wrote")
    parser.add_argument("--docs", default=DOCS, help="where to write the page and its images/")
    options = parser.parse_args(arguments)
    from benchmarks import pictures

    results = Results(options.file)
    os.makedirs(os.path.join(options.docs, "images"), exist_ok=True)
    pictures.draw(results, os.path.join(options.docs, "images"))
    with open(os.path.join(options.docs, "benchmarks.md"), "w", encoding="utf-8") as file:
        file.write(text(results, os.path.relpath(os.path.abspath(options.file), ROOT)))


def text(results: Results, source: str) -> str:
    """Return the page."""
    parts = ["# Benchmarks", *_answer(results, source), *_doubts(results), *_targets(results)]
    for heading, picture, names in SECTIONS:
        parts += _section(results, heading, picture, names)
    parts += [*_machine(results), *_systems(results), AGAIN.format(source=source)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


# The answer -----------------------------------------------------------------------------------


def _answer(results: Results, source: str) -> Iterator[str]:
    found = results.all
    yield (
        f"shmpar beside its peers on {found['machine']['cores']} cores: warm calls, "
        f"{found['workers']} workers, the same arrays and functions. Each library is measured in "
        "its better way. For pools and joblib that is often a loop over spans of rows that the "
        "user writes by hand."
    )
    caption = CAPTIONS["at_a_glance"]
    yield f"![{caption}](images/benchmark_at_a_glance.svg)"
    yield caption
    ratios = {name: glance(results, name) for name in ANSWERS}
    yield "\n".join(_against(name, found) for name, found in ratios.items() if found)
    # Workloads that were measured again, and the commits.
    later = [f", `{name}` with {commit}" for name, commit in found.get("later", {}).items()]
    yield (
        f"Measured on {found['date']} with commit {found['commit'][:12]}{''.join(later)}. All "
        f"figures are in `{source}`."
    )


def glance(results: Results, name: str) -> dict[str, float]:
    """Return a system's time divided by shmpar's for each workload of the first picture."""
    ratios = {}
    for workload, point, label in GLANCE:
        try:
            ratios[label] = results.ratio(workload, name, **point)
        except Missing:
            continue
    return ratios


def _against(name: str, ratios: dict[str, float]) -> str:
    least, most = (pick(ratios, key=ratios.__getitem__) for pick in (min, max))
    return (
        f"- **{title(name)}** takes {statistics.median(ratios.values()):.3g} times as long as "
        f"shmpar, the median of {len(ratios)} workloads: from {ratios[least]:.2g} ({least}) to "
        f"{ratios[most]:.3g} ({most}). `python -m benchmarks peers --systems ours,{name}`"
    )


# The doubts -----------------------------------------------------------------------------------


def _doubts(results: Results) -> Iterator[str]:
    yield "## Doubts"
    yield NOISE
    yield _spread(results)
    yield SIZES
    yield LOSSES
    yield (
        "In this run, these took less than 0.95 of shmpar's time or memory, each in its better "
        "way. The middle halves of both do not overlap:"
    )
    lines = ["| work | faster or smaller than shmpar |", "| --- | --- |"]
    found: dict[tuple[str, str], list[str]] = {}
    for workload, name, where, ratio in _faster(results):
        times = f"{1 / ratio:.0f}x" if ratio < 0.1 else f"{1 / ratio:.2g}x"
        found.setdefault((workload, where), []).append(f"{title(name)} {times}")
    for (workload, where), names in found.items():
        work = workloads.load(workload).title + (f", {where}" if where else "")
        lines.append(f"| {work} | {', '.join(names)} |")
    yield "\n".join(lines)


def _spread(results: Results) -> str:
    found = results.all
    spreads = [
        (record["quartiles"][1] - record["quartiles"][0]) / record["median"]
        for record in results.records
        if len(record.get("seconds", ())) >= 3
    ]
    sentences, doubts = [], []
    if spreads:
        spread, count = statistics.median(spreads), len(spreads)
        sentences.append(
            f"The middle half of the rounds spans {spread:.0%} of the median ({count} records)."
        )
    if found["size"] != "full":
        doubts.append("The run was a quick one: small sizes, few rounds.")
    if found["load"][0] > 0.25:
        doubts.append(
            f"Other programs ran on the machine at the same time: {found['load'][0]:g} wanted one "
            f"of its {found['machine']['cores']} cores when the run began."
        )
    if doubts:
        doubts.append(
            "So these figures are **provisional**: read ratios, not times, and no ratio more "
            "closely than its spread."
        )
    return " ".join([*sentences, *doubts])


def _faster(results: Results) -> Iterator[tuple[str, str, str, float]]:
    """Yield (workload, system, place, ratio) wherever a system took clearly less than shmpar."""
    for workload, where, ours, other in _pairs(results):
        low = ours["quartiles"][0] / ours.get("chunks", 1)
        high = other["quartiles"][1] / other.get("chunks", 1)
        ratio = figures.ratio(other, ours)
        if ratio < 0.95 and high < low:
            yield workload, other["system"], where, ratio


def _pairs(results: Results) -> Iterator[tuple[str, str, Record, Record]]:
    """Yield shmpar's record and another system's, each in its better way, wherever both exist."""
    places = [
        (name, _where(point), point)
        for name in workloads.NAMES
        if name != "cold"
        for point in results.points(name)
    ]
    places.append(("cold", "from the start", {"way": "process"}))
    places.append(("cold", "from `Pool()` on", {"way": "pool"}))
    for workload, where, point in places:
        for rival in (*ALONE, "numba", *PEERS):
            if all(results.at(workload, system=one, **point) for one in ("ours", rival)):
                ours, other = (results.best(workload, one, **point) for one in ("ours", rival))
                yield workload, where, ours, other


def _where(point: Point) -> str:
    """Describe a point."""
    workers = "{} worker" if point.get("workers") == 1 else "{} workers"
    forms = {"verb": "{}", "order": "{}", "workers": workers}
    parts = [form.format(point[key]) for key, form in forms.items() if key in point]
    if "verb" in point and "side" in point:
        parts.append("{0:,} x {0:,}".format(point["side"]))
    if "cost_us" in point and "workers" not in point:
        parts.append(f"chunks of {show(point['cost_us'] * 1e-6)}")
    if "verb" in point and "rows" not in point and "side" not in point:
        parts.append(f"{point['chunks']:,} chunks")
    if set(point) == {"chunks", "gigabytes"}:
        parts.append(f"{point['gigabytes']:g} GB")
    return ", ".join(parts)


# The targets ----------------------------------------------------------------------------------

# A figure of a system: of shmpar, or of a limit in its place.
Measured = Callable[[Results, str], str]
Target = tuple[str, str, Measured]


def _compared_with(
    workload: str, names: tuple[str, ...], other_way: str = "", **point: object
) -> Measured:
    """Return the ratio of the fastest of some systems, in a way of theirs, to shmpar."""

    def measured(results: Results, system: str) -> str:
        if names == (system,):
            raise Missing(system)
        fastest = results.fastest(
            workload, names, **({"way": other_way} if other_way else {}), **point
        )
        ours = results.best(workload, system, **point)
        which = "" if len(names) == 1 else f" ({title(fastest['system'])})"
        return f"{figures.ratio(fastest, ours):.3g}{which}"

    return measured


def _added(verb: str) -> Measured:
    def measured(results: Results, system: str) -> str:
        points = results.some_points("many_chunks", verb=verb)
        chunks = max(point["chunks"] for point in points)
        ours = results.best("many_chunks", system, verb=verb, chunks=chunks)
        ceiling = results.best("many_chunks", "ceiling", verb=verb, chunks=chunks)
        if system == "ceiling":
            raise Missing(system)
        # Why: each worker computes its part of the chunks, so time per chunk counts once a worker.
        added = (ours["median"] - ceiling["median"]) * results.all["workers"] / chunks
        return f"{added * 1e6:.2f} µs"

    return measured


def _growth(verb: str) -> Measured:
    def measured(results: Results, system: str) -> str:
        points = results.some_points("many_chunks", verb=verb)
        few, many = 1_000, max(point["chunks"] for point in points)
        costs = [
            results.best("many_chunks", system, verb=verb, chunks=count)["median"] / count
            for count in (few, many)
        ]
        return f"{costs[1] / costs[0]:.2f} ({many:,} chunks)"

    return measured


def _halo_memory(results: Results, system: str) -> str:
    point = max(results.some_points("memory", verb="halo"), key=lambda point: point["side"])
    dask = results.fastest("memory", ("dask_threads", "dask_processes"), **point)["median"]
    if system == "ours":
        ours = results.best("memory", "ours", **point)["median"]
    else:
        ours = workloads.load("memory").job(point).nbytes
    return f"{ours / dask:.2f}"


def _beyond(results: Results, system: str) -> str:
    if system != "ours":
        raise Missing(system)
    point = results.some_points("memory")[0]
    arrays = workloads.load("memory").job(point).nbytes
    peak = results.best("memory", "ours", **point)["median"]
    return f"{(peak - arrays) / 1e6 / results.all['workers']:.0f} MB"


def _start(results: Results, system: str) -> str:
    """Return the time from `Pool()` on, or of as many interpreters, divided by a single one's."""
    one = results.best("cold", "import numpy, cloudpickle", way="process")
    which = {"system": "ours", "way": "pool"} if system == "ours" else {"system": cold.AT_ONCE}
    return f"{results.best('cold', **which)['median'] / one['median']:.2f}"


def _first_call(results: Results, system: str) -> str:
    if system != "ours":
        raise Missing(system)
    seconds = [results.best("cold", name, way="pool")["median"] for name in ("joblib", "ours")]
    return f"{seconds[0] / seconds[1]:.2f}"


def _floor(results: Results, system: str) -> str:
    return show(results.best("floor", system)["median"])


def _workers(results: Results, system: str) -> str:
    counts = [point["workers"] for point in results.some_points("workers")]
    few, many = (2 if 2 in counts else min(counts)), max(counts)
    times = [results.best("workers", system, workers=count)["median"] for count in (few, many)]
    return f"{times[1] / times[0]:.2f} ({many} to {few})"


TARGETS: tuple[Target, ...] = (
    ("time added to a row that costs nothing", "≤ 0.5 µs", _added("rows")),
    ("time that `block_reduce` adds to cutting a block by hand", "≤ 3 µs", _added("blocks")),
    (
        "tiny rows: `mp.Pool.map`'s time / shmpar's",
        "≥ 1.8",
        _compared_with("tiny_rows", ("pool",), way="same"),
    ),
    (
        "tiny rows: joblib's or mpire's",
        "≥ 5",
        _compared_with("tiny_rows", ("joblib", "mpire"), way="same"),
    ),
    (
        "tiny rows: dask threads'",
        "≥ 300",
        _compared_with("tiny_rows", ("dask_threads",), way="same"),
    ),
    *(
        (
            f"ceiling's time / shmpar's, chunks of {show(cost * 1e-6)}",
            f"≥ {target}",
            _compared_with("chunk_cost", ("ceiling",), cost_us=cost),
        )
        for cost, target in ((10, 0.85), (100, 0.95), (1_000, 0.98))
    ),
    (
        "row sums of 800 MB: numba's time / shmpar's",
        "≥ 0.95",
        _compared_with("row_sums", ("numba",), other_way="same"),
    ),
    (
        "the same, numba adding in any order (`fastmath`)",
        "≥ 0.95",
        _compared_with("row_sums", ("numba",), other_way="own"),
    ),
    ("tiles: ceiling's", "≥ 0.96", _compared_with("tiles", ("ceiling",))),
    (
        "tiles: fastest peer's, a task per tile",
        "> 1",
        _compared_with("tiles", PEERS, other_way="same"),
    ),
    ("tiles: fastest peer's, with loops by hand too", "> 1", _compared_with("tiles", PEERS)),
    ("pure-Python rows: ceiling's", "≥ 0.98", _compared_with("python_rows", ("ceiling",))),
    (
        "uneven rows, clustered: ceiling's",
        "≥ 0.98",
        _compared_with("uneven_rows", ("ceiling",), order="clustered"),
    ),
    ("Gaussian with halo: ceiling's", "≥ 0.98", _compared_with("gaussian", ("ceiling",))),
    ("Gaussian with halo: fastest peer's", "≥ 1", _compared_with("gaussian", PEERS)),
    ("Gaussian with halo: shmpar's memory / dask's", "≤ 0.5", _halo_memory),
    (
        "copying in: time of `view[:] = x` / shmpar's",
        "≥ 1.75",
        _compared_with("copy_in", ("pool",)),
    ),
    ("`Pool()` to first result / `import numpy, cloudpickle`", "≤ 1.5", _start),
    ("`Pool()` to first result: joblib's first call / shmpar's", "> 1", _first_call),
    ("a warm call that does nothing", "≤ 0.3 ms", _floor),
    (
        "the same: the fastest process-based peer's / shmpar's",
        "> 1",
        _compared_with("floor", PROCESSES),
    ),
    (
        "peak memory beyond input and output, per worker (the parent's included)",
        "≤ 30 MB",
        _beyond,
    ),
    ("cost per row with many rows / with 1,000", "≤ 1.3", _growth("rows")),
    ("cost per block with many blocks / with 1,000", "≤ 1.3", _growth("blocks")),
    ("chunks of 1 ms: time with more workers than cores / with as many", "≤ 1.1", _workers),
)


def _targets(results: Results) -> Iterator[str]:
    yield "## Targets"
    yield "Targets for two idle cores; ratios are medians over rounds side by side."
    yield (
        "The last column is the same figure for the ceiling, in shmpar's place: bare forked "
        "processes that run only their share of the loop. No pool of processes is faster. At the "
        "start the limit is as many interpreters as workers, all at once, that import NumPy and "
        "cloudpickle. For memory it is the input and the output alone."
    )
    lines = ["| figure | target | here | the limit |", "| --- | --- | --- | --- |"]
    for label, target, measured in TARGETS:
        cells = [_target_cell(results, measured, system) for system in ("ours", "ceiling")]
        lines.append(f"| {label} | {target} | {cells[0] or 'not measured'} | {cells[1]} |")
    yield "\n".join(lines)


def _target_cell(results: Results, measured: Measured, system: str) -> str:
    try:
        return measured(results, system)
    except Missing:
        return ""


# The tables -----------------------------------------------------------------------------------


def _section(
    results: Results, heading: str, picture: str | None, names: tuple[str, ...]
) -> Iterator[str]:
    measured = [name for name in names if results.points(name)]
    if names and not measured:
        return
    yield f"## {heading}"
    if picture is not None:
        caption = CAPTIONS[picture]
        yield f"![{caption}](images/benchmark_{picture}.svg)"
        yield caption
    for name in measured:
        about = workloads.load(name).title
        is_code = about.startswith("np.")
        yield f"### {about if is_code else about[0].upper() + about[1:]}"
        yield CAPTIONS.get(name, "") if name != picture else ""
        yield _table(results, name)


def _table(results: Results, name: str) -> str:
    """Return medians and middle halves, a column for each point, in the better way."""
    points = results.points(name)
    if name == "cold":
        return _cold(results)
    heads = [_where(point) or "time" for point in points]
    if name == "memory":
        sizes = [workloads.load(name).job(point).nbytes / 1e6 for point in points]
        heads = [f"{p['verb']}, {mb:,.0f} MB: peak" for p, mb in zip(points, sizes, strict=True)]
    listed = ["ours", *LIMITS, *ALONE, *PEERS]
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(points)]
    for system in listed:
        cells = [_cell(results, name, system, point) for point in points]
        if any(cells):
            label = f"*{title(system)}*" if system in LIMITS else title(system)
            label = f"**{label}**" if system == "ours" else label
            lines.append(f"| {label} | " + " | ".join(cell or "—" for cell in cells) + " |")
    return "\n".join(lines)


def _cell(results: Results, name: str, system: str, point: dict[str, object]) -> str:
    if results.at(name, system=system, **point):
        return _figure(results.best(name, system, **point))
    skipped = results.all_at(name, system=system, **point)
    return "too slow" if any("would take" in one.get("skipped", "") for one in skipped) else ""


def _figure(record: dict[str, object]) -> str:
    unit = "bytes" if "bytes" in record else "seconds"
    low, high = record["quartiles"]
    value = show(record["median"], unit)
    if record["workload"] in {"many_chunks", "chunk_cost"}:
        return show(record["median"] / record["chunks"], unit)
    if len(figures.values(record)) < 3:
        return value
    return f"{value} ({show(low, unit)} to {show(high, unit)})"


def _cold(results: Results) -> str:
    lines = ["| | from the start of the interpreter | from `Pool()` on |", "| --- | --- | --- |"]
    names = dict.fromkeys(record["system"] for record in results.at("cold"))
    for name in names:
        cells = []
        for way in ("process", "pool"):
            found = results.at("cold", system=name, way=way)
            cells.append(_figure(found[0]) if found else "—")
        lines.append(f"| {title(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _machine(results: Results) -> Iterator[str]:
    found = results.all
    machine = found["machine"]
    yield "## Machine and versions"
    virtual = ", a virtual machine" if machine["virtual"] else ""
    yield (
        f"{machine['cpu']}, {machine['cores']} cores{virtual}, {machine['memory_gb']:g} GB, "
        f"{machine['kernel']}, {machine['python']}; {found['workers']} workers. The run took "
        f"{found['seconds'] / 60:.0f} minutes."
    )
    versions = ", ".join(f"{name} {version}" for name, version in sorted(found["versions"].items()))
    yield versions + "."


def _systems(results: Results) -> Iterator[str]:
    yield "## Systems"
    lines = ["| | how |", "| --- | --- |"]
    lines += [f"| {title(name)} | {systems.load(name).about} |" for name in systems.NAMES]
    yield "\n".join(lines)
    yield "### Left out"
    out = [f"- {title(name)}: {reason}" for name, reason in results.all["left_out"].items()]
    out += [_others(name) for name in workloads.NAMES if workloads.load(name).others]
    failed = dict.fromkeys(
        f"- {title(one['system'])} in “{workloads.load(one['workload']).title}”: {one['skipped']}"
        for one in results.records
        if one.get("skipped", "").startswith(("failed", "needs"))
    )
    yield "\n".join([*out, *failed])
    yield "Never tried, since something above does the same:"
    yield ABSENT


def _others(name: str) -> str:
    """Name the systems that a workload leaves out, and the reason."""
    workload = workloads.load(name)
    absent = [title(one) for one in systems.NAMES if one not in (workload.systems or ())]
    return f"- {', '.join(absent)} in “{workload.title}”: {workload.others}"
