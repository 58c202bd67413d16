"""``progress=``: a bar, a callable, or nothing."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tqdm.auto import tqdm

import shmpar
from shmpar.runtime.progress import observe


def test_false_and_none_have_no_observer() -> None:
    """Nothing is shown."""
    nothing: Any = None
    assert observe(False, "map_blocks") is None
    assert observe(nothing, "map_blocks") is None
    comparison: Any = np.int64(3) > np.int64(4)  # a bool of NumPy
    assert observe(comparison, "map_blocks") is None


def test_a_callable_gets_done_and_total() -> None:
    """An observer of a callable has nothing to close."""
    seen: list[Any] = []
    observer = observe(lambda *counts: seen.append(counts), "map_blocks")
    assert observer is not None
    observer.update(2, 3)
    observer.close()
    assert seen == [(2, 3)]


def test_other_values_are_refused() -> None:
    """The error names the value."""
    number: Any = 3
    with pytest.raises(TypeError, match=r"not 3$"):
        observe(number, "map_blocks")


@pytest.mark.parametrize("function", [lambda done: done, tqdm, [].append])
def test_a_function_that_cannot_be_called_is_refused(any_pool: shmpar.Pool, function: Any) -> None:
    """The error comes before the run, and names the arguments."""
    before = any_pool.last_run
    with pytest.raises(TypeError, match=r"\(done, total\)"):
        any_pool.parallel_map(abs, [1], progress=function)
    assert any_pool.last_run is before


def test_functions_of_any_kind_show_progress(any_pool: shmpar.Pool) -> None:
    """A method in C has no module, and a decorator may supply further arguments."""
    totals: dict[int, int] = {}
    any_pool.parallel_map(abs, [1, 2], progress=totals.setdefault)
    assert totals[2] == 2
    seen: list[tuple[int, int, str]] = []

    def show(done: int, total: int, label: str) -> None:
        seen.append((done, total, label))

    @functools.wraps(show)
    def labelled(*counts: int) -> None:
        show(*counts, "label")

    any_pool.parallel_map(abs, [1, 2], progress=labelled)
    assert seen[-1] == (2, 2, "label")


def test_a_bar_counts_the_time_before_it_was_shown(capsys: Any) -> None:
    """One worker does at most 1,000 items of 1 ms in a second, and no rate shows more."""
    with shmpar.Pool(1) as pool:
        pool.parallel_map(time.sleep, [0.001] * 300, progress=True)
    rates = [float(rate) for rate in re.findall(r"([\d.]+)item/s", capsys.readouterr().err)]
    assert rates
    assert max(rates) <= 1000


@pytest.mark.parametrize(("progress", "label"), [(True, "map_blocks"), ("negating", "negating")])
def test_a_bar_has_a_label(progress: Any, label: str, capsys: Any) -> None:
    """The verb is the default."""
    observer = observe(progress, "map_blocks")
    assert observer is not None
    observer.update(1, 3)
    observer.update(3, 3)
    observer.close()
    assert f"{label}: 100%" in capsys.readouterr().err


def test_a_bar_counts_failures(capsys: Any) -> None:
    """The number of failed chunks stands at the end of the line; the unit is the word for them."""
    observer = observe(True, "parallel_map", "item")
    assert observer is not None
    observer.update(1, 3)
    observer.update(2, 3, 1)
    observer.update(3, 3, 1)
    observer.close()
    *_, last = capsys.readouterr().err.strip().split("\r")
    assert last.startswith("parallel_map: 100%")
    assert last.endswith("item/s, 1 failed]")


def test_a_slow_part_after_a_quick_one_is_shown(capsys: Any) -> None:
    """Each update is drawn, however many chunks the one before had."""
    observer = observe(True, "map_blocks")
    assert observer is not None
    for done in (1000, 1001, 1002):
        observer.update(done, 2000)
        assert f" {done}/2000 " in capsys.readouterr().err
    observer.close()


def test_a_bar_that_cannot_be_closed_does_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is complete, and its result must reach the user."""
    observer: Any = observe(True, "map_blocks")
    observer.update(1, 3)
    bar = observer._bar  # Why: the finalizer of the bar would call close() too

    def close(_bar: Any) -> None:
        raise OSError("the terminal is gone")

    with monkeypatch.context() as patch:
        patch.setattr(tqdm, "close", close)
        observer.close()
    bar.close()


def test_the_rate_counts_the_items_of_this_call(
    process_pool: shmpar.Pool, tmp_path: Any, capsys: Any
) -> None:
    """Items that a ledger has take no time, so they would promise an end that is near."""
    call = {"ledger": tmp_path / "ledger"}
    process_pool.parallel_map(time.sleep, [0] * 40, **call)
    process_pool.parallel_map(time.sleep, [0] * 40 + [0.1], progress=True, **call)
    lines = capsys.readouterr().err.strip().split("\r")
    assert "100%" in lines[-1]
    assert "41/41" in lines[-1]
    rates = [float(rate) for rate in re.findall(r"([\d.]+)item/s", " ".join(lines))]
    assert rates
    assert max(rates) <= 10


@pytest.mark.parametrize("place", ["nowhere", "a full disk", "a broken pipe"])
def test_a_bar_that_cannot_be_drawn_ends_no_run(
    process_pool: shmpar.Pool, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long run outlives the terminal, or the disk of its log."""
    if place == "nowhere":
        monkeypatch.setattr(sys, "stderr", None)
        assert process_pool.parallel_map(len, ["a", "bc"], progress=True) == [1, 2]
        return
    if place == "a full disk":
        file = io.FileIO("/dev/full", "w")
    else:
        reader, writer = os.pipe()
        os.close(reader)
        file = io.FileIO(writer, "w")
    stream = io.TextIOWrapper(file, "utf-8", write_through=True)
    monkeypatch.setattr(sys, "stderr", stream)
    try:
        assert process_pool.parallel_map(len, ["a", "bc"], progress=True) == [1, 2]
        run = process_pool.parallel_map(len, ["a", "bc"], progress=True, wait=False)
        assert run.result() == [1, 2]
    finally:
        with contextlib.suppress(OSError):
            stream.close()


class Terminal(io.StringIO):
    """A terminal in which each write lets other threads run; it notes the thread of each."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: list[int] = []
        self.raising: list[BaseException] = []

    def write(self, text: str) -> int:
        if text and self.raising:
            raise self.raising.pop()
        if text:
            self.writers.append(threading.get_ident())
            os.sched_yield()
        return super().write(text)


def draw_in_thread(observer: Any, counts: range) -> threading.Thread:
    """Start a thread that draws a bar."""

    def draw() -> None:
        for done in counts:
            observer.update(done, 1000)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def two_bars(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Terminal, Any, Any]]:
    """Return a terminal and the bars of two runs in it."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    first, second = (observe(label, "map_blocks") for label in ("first", "second"))
    assert first is not None
    assert second is not None
    yield terminal, first, second
    second.close()
    first.close()


def test_bars_of_two_runs_do_not_mix(two_bars: tuple[Terminal, Any, Any]) -> None:
    """Moving to the line of the second bar, its text and moving back are a single step."""
    terminal, first, second = two_bars
    first.update(0, 1000)
    second.update(0, 1000)
    terminal.writers.clear()
    threads = [draw_in_thread(one, range(1, 100)) for one in (first, second)]
    for thread in threads:
        thread.join()
    written = "".join("s" if one == threads[1].ident else "f" for one in terminal.writers)
    assert set(map(len, re.findall("s+", written))) <= {3 * n for n in range(100)}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError()])
def test_an_interrupted_bar_blocks_no_other(
    error: BaseException, two_bars: tuple[Terminal, Any, Any]
) -> None:
    """Another thread can draw its bar after an interrupt, or an error, in the middle of a line."""
    terminal, first, second = two_bars
    first.update(1, 1000)
    terminal.raising.append(error)
    with contextlib.suppress(KeyboardInterrupt):
        first.update(2, 1000)
    thread = draw_in_thread(second, range(1, 3))
    thread.join(10)
    assert not thread.is_alive()
