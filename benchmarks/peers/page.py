"""The page: ``python -m benchmarks page FILE`` writes docs/benchmarks.md and its pictures."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from benchmarks.peers import aims, figures, systems, workloads
from benchmarks.peers.kept import ALONE, LIMITS, PEERS, Kept, title
from benchmarks.peers.player import ROOT
from benchmarks.peers.words import ABOUT, ABSENT, CAPTIONS, INSTEAD, SALT

DOCS = os.path.join(ROOT, "docs")
ORDER = (  # which pictures and tables belong together
    ("At a glance", "at_a_glance", ()),
    ("What a chunk costs", "overhead", ("chunk_cost",)),
    ("Many chunks", "many_chunks", ("many_chunks",)),
    ("Rows, tiles and neighbours", None, ("tiny_rows", "row_sums", "tiles")),
    ("Functions in Python", None, ("python_rows", "uneven_rows")),
    ("Arrays in, arrays out", None, ("gaussian", "ufunc", "chain", "copy_in")),
    ("Workers", "workers", ("workers",)),
    ("Bytes", "bytes", ("bytes",)),
    ("Start and floor", "start", ("cold", "floor")),
    ("Memory", "memory", ("memory",)),
)


def main(arguments: list[str]) -> None:
    """Write the page and draw its pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks page", description=__doc__)
    parser.add_argument("file", help="figures that `python -m benchmarks peers --json` kept")
    parser.add_argument("--docs", default=DOCS, help="where the page goes, and images/ beside it")
    options = parser.parse_args(arguments)
    from benchmarks.peers import pictures

    kept = Kept(options.file)
    os.makedirs(os.path.join(options.docs, "images"), exist_ok=True)
    pictures.draw(kept, os.path.join(options.docs, "images"))
    with open(os.path.join(options.docs, "benchmarks.md"), "w", encoding="utf-8") as file:
        file.write(text(kept, os.path.relpath(os.path.abspath(options.file), ROOT)))


def text(kept: Kept, source: str) -> str:
    """The page; all numbers are from the figures."""
    parts = ["# Benchmarks", *_salt(kept, source), *_losses(kept), *_aims(kept)]
    for heading, picture, names in ORDER:
        parts += _section(kept, heading, picture, names)
    parts += [*_machine(kept), *_systems(kept), ABOUT.format(source=source)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _salt(kept: Kept, source: str) -> Iterator[str]:
    yield "## A grain of salt"
    yield SALT
    found, doubts = kept.all, []
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
    measured = f"Measured on {found['date']}, with commit {found['commit'][:12]}"
    yield " ".join([f"{measured}; all figures are in `{source}`.", *doubts])


def _faster(kept: Kept) -> Iterator[tuple[str, str, str, float]]:
    """Where something that gives the same result took clearly less than ours did."""
    for workload, where, ours, theirs in _pairs(kept):
        low = ours["quartiles"][0] / ours.get("chunks", 1)
        high = theirs["quartiles"][1] / theirs.get("chunks", 1)
        ratio = figures.ratio(theirs, ours)
        if ratio < 0.95 and high < low:
            yield workload, theirs["system"], where, ratio


def _pairs(kept: Kept) -> Iterator[tuple[str, str, figures.Record, figures.Record]]:
    """Ours and another that gives the same result, each in its better way, wherever both are."""
    places = [
        (name, _where(point), point)
        for name in workloads.NAMES
        if name != "cold"
        for point in kept.points(name)
    ]
    places.append(("cold", "from the start", {"way": "process"}))
    places.append(("cold", "from `Pool()` on", {"way": "pool"}))
    for workload, where, point in places:
        for rival in (*ALONE, "numba", *PEERS):
            if all(kept.at(workload, system=one, **point) for one in ("ours", rival)):
                ours, theirs = (kept.best(workload, one, **point) for one in ("ours", rival))
                yield workload, where, ours, theirs


def _where(point: dict[str, object]) -> str:
    workers = "{} worker" if point.get("workers") == 1 else "{} workers"
    said = {"verb": "{}", "order": "{}", "workers": workers}
    parts = [form.format(point[key]) for key, form in said.items() if key in point]
    if "verb" in point and "side" in point:
        parts.append("{0:,} x {0:,}".format(point["side"]))
    if "cost_us" in point and "workers" not in point:
        parts.append(f"chunks of {figures.show(point['cost_us'] * 1e-6, 'seconds')}")
    if "verb" in point and "rows" not in point and "side" not in point:
        parts.append(f"{point['chunks']:,} chunks")
    if set(point) == {"chunks", "gigabytes"}:
        parts.append(f"{point['gigabytes']:g} GB")
    return ", ".join(parts)


def _losses(kept: Kept) -> Iterator[str]:
    yield "## Where shmpar loses, and what to use then"
    yield INSTEAD
    lines = ["| work | what took less |", "| --- | --- |"]
    found: dict[tuple[str, str], list[str]] = {}
    for workload, name, where, ratio in _faster(kept):
        times = f"{1 / ratio:.0f}x" if ratio < 0.1 else f"{1 / ratio:.2g}x"
        found.setdefault((workload, where), []).append(f"{title(name)} {times}")
    for (workload, where), names in found.items():
        work = workloads.load(workload).title + (f", {where}" if where else "")
        lines.append(f"| {work} | {', '.join(names)} |")
    yield (
        "Measured in this run: wherever another took less than 0.95 of shmpar's time, or memory, "
        "each in its better way, and the middle halves of both do not overlap."
    )
    yield "\n".join(lines)


def _aims(kept: Kept) -> Iterator[str]:
    yield "## Aims"
    yield "What shmpar is to reach on two idle cores; ratios are medians over rounds side by side."
    yield (
        "The last column is the same figure for the ceiling, bare forked processes that do nothing "
        "but their share of the loop, in shmpar's place: no pool of processes gets beyond that. At "
        "the start it is for as many interpreters as workers, all at once, that import NumPy and "
        "cloudpickle; for memory, for the input and the output alone."
    )
    head = ("| what | aim | here | the limit |", "| --- | --- | --- | --- |")
    yield "\n".join((*head, *aims.lines(kept)))


def _section(
    kept: Kept, heading: str, picture: str | None, names: tuple[str, ...]
) -> Iterator[str]:
    measured = [name for name in names if kept.points(name)]
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
        yield CAPTIONS.get(name, "")
        yield _table(kept, name)


def _table(kept: Kept, name: str) -> str:
    """Medians, a column a point; the better of both ways, and the middle half of its rounds."""
    points = kept.points(name)
    if name == "cold":
        return _cold(kept)
    heads = [_where(point) or "time" for point in points]
    if name == "memory":
        due = [workloads.load(name).job(point).nbytes / 1e6 for point in points]
        heads = [f"{p['verb']}, {mb:,.0f} MB: peak" for p, mb in zip(points, due, strict=True)]
    listed = ["ours", *LIMITS, *ALONE, *PEERS]
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(points)]
    for system in listed:
        cells = [_cell(kept, name, system, point) for point in points]
        if any(cells):
            who = f"*{title(system)}*" if system in LIMITS else title(system)
            who = f"**{who}**" if system == "ours" else who
            lines.append(f"| {who} | " + " | ".join(cell or "—" for cell in cells) + " |")
    return "\n".join(lines)


def _cell(kept: Kept, name: str, system: str, point: dict[str, object]) -> str:
    if kept.at(name, system=system, **point):
        return _figure(kept.best(name, system, **point))
    skipped = kept.all_at(name, system=system, **point)
    return "too slow" if any("would take" in one.get("skipped", "") for one in skipped) else ""


def _figure(record: dict[str, object]) -> str:
    unit = "bytes" if "bytes" in record else "seconds"
    low, high = record["quartiles"]
    value = figures.show(record["median"], unit)
    if record["workload"] in {"many_chunks", "chunk_cost"}:
        return figures.show(record["median"] / record["chunks"], unit)
    if len(figures.values(record)) < 3:
        return value
    return f"{value} ({figures.show(low, unit)} to {figures.show(high, unit)})"


def _cold(kept: Kept) -> str:
    lines = ["| | from the start of the interpreter | from `Pool()` on |", "| --- | --- | --- |"]
    names = dict.fromkeys(record["system"] for record in kept.at("cold"))
    for name in names:
        cells = []
        for way in ("process", "pool"):
            found = kept.at("cold", system=name, way=way)
            cells.append(_figure(found[0]) if found else "—")
        lines.append(f"| {title(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _machine(kept: Kept) -> Iterator[str]:
    found = kept.all
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


def _systems(kept: Kept) -> Iterator[str]:
    yield "## Systems"
    lines = ["| | how |", "| --- | --- |"]
    lines += [f"| {title(name)} | {systems.load(name).about} |" for name in systems.NAMES]
    yield "\n".join(lines)
    yield "### Left out"
    out = [f"- {title(name)}: {reason}" for name, reason in kept.all["left_out"].items()]
    out += [_others(name) for name in workloads.NAMES if workloads.load(name).others]
    failed = dict.fromkeys(
        f"- {title(one['system'])} in “{workloads.load(one['workload']).title}”: {one['skipped']}"
        for one in kept.records
        if one.get("skipped", "").startswith(("failed", "needs"))
    )
    yield "\n".join([*out, *failed])
    yield "Never tried, since something above does the same:"
    yield ABSENT


def _others(name: str) -> str:
    """Who does not take part in a workload, and why."""
    workload = workloads.load(name)
    absent = [title(one) for one in systems.NAMES if one not in (workload.systems or ())]
    return f"- {', '.join(absent)} in “{workload.title}”: {workload.others}"
