"""``progress=``: a bar, a callable, or nothing."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from tqdm.auto import tqdm

import shmpar
from shmpar.runtime.progress import observe


def test_false_and_none_have_no_observer() -> None:
    """Nothing is shown."""
    nothing: Any = None
    assert observe(False, "map_blocks") is None
    assert observe(nothing, "map_blocks") is None


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
