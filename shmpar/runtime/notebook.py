"""Progress bars of a notebook: elements that are updated in place by their display id.

The bar is tqdm's widget where ipywidgets is installed, and an HTML element otherwise. At its end a
widget is replaced by the same HTML element, because a saved notebook does not hold widgets.

Displayed by the thread that makes the bar, the element belongs to the cell that runs then. Later
updates name the element by its id, so they may come from any thread and during any cell.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from html import escape
from typing import Any

from tqdm.std import tqdm

from shmpar.display import ORANGE, html_progress

_TEXT_COLUMNS = 80  # of the bar as plain text


def in_notebook() -> bool:
    """Return True in the kernel of a notebook; False in a script, a terminal or a text console."""
    if "ipykernel.zmqshell" not in sys.modules:
        return False
    # Why: these consoles use a kernel too, but show text only; tqdm knows them in the same way.
    if any(name == "QT_API" or name.startswith("SPYDER") for name in os.environ):
        return False
    return hasattr(sys.modules["IPython"].get_ipython(), "kernel")


def make_bar(**options: Any) -> HtmlBar | Any:
    """Show an empty bar below the cell that runs now; return it, a tqdm with `show_failures`.

    The options are those of tqdm.
    """
    try:
        import ipywidgets  # noqa: F401 - tqdm warns without it
        from tqdm.notebook import tqdm as widget
    except Exception:  # noqa: BLE001 - not installed, or not for this version of Python
        return HtmlBar(**options)
    return _with_widget(widget)(**options)


class QuietBar:
    """The part of a tqdm bar that keeps its faults from the run, and shows those of chunks.

    Invariant: a class of bars has a lock of its own, since tqdm's creates a semaphore of
    multiprocessing.
    """

    monitor_interval = 0  # Why: tqdm's monitor thread would outlive the bar.
    failed = 0

    def refresh(self: Any, *_: Any, **__: Any) -> bool | None:
        """Draw the bar; after an error of the system never again."""
        # Lock: tqdm's method leaves the lock locked after an exception, also after an interrupt.
        with self._lock:
            try:
                shown: bool | None = super().refresh(nolock=True)  # type: ignore[misc]
            except OSError:
                shown, self.disable = False, True
            return shown

    def show_failures(self: Any, failed: int) -> None:
        """Set the number of failed chunks; the next update shows it."""
        if failed != self.failed:
            self.failed = failed
            self.set_postfix_str(f"{failed:,} failed", refresh=False)


class HtmlBar(QuietBar, tqdm):  # type: ignore[misc]
    """A tqdm bar that is an HTML element."""

    _lock = threading.RLock()

    def __init__(self, **options: Any) -> None:
        self._element: Any = None
        # Why gui: then tqdm itself writes nothing.
        super().__init__(gui=True, **options)
        if not self.disable:
            self._show(*self._shown_first())

    def _shown_first(self) -> tuple[Any, bool]:
        """Return the object that is displayed first, and True if it is a bundle of MIME types."""
        return _bundle(self, over=False), True

    def _show(self, shown: Any, raw: bool) -> None:
        from IPython.display import DisplayHandle

        self._element = DisplayHandle()
        self._element.display(shown, raw=raw)

    def display(self, *_: Any, **__: Any) -> None:
        """Show the present state."""
        if self._element is not None:
            self._element.update(_bundle(self, over=False), raw=True)

    def close(self) -> None:
        """Show the last state, which a saved notebook keeps."""
        if self.disable:
            return
        super().close()
        element, self._element = self._element, None
        if element is not None:
            element.update(_bundle(self, over=True), raw=True)


def _with_widget(widget: type[Any]) -> type[Any]:
    """Return the class of a bar that is a widget of tqdm's up to its end."""

    class WidgetBar(HtmlBar, widget):  # type: ignore[misc]
        """A tqdm widget that becomes an HTML element at its end."""

        def __init__(self, **options: Any) -> None:
            super().__init__(display=False, **options)

        def _shown_first(self) -> tuple[Any, bool]:
            return self.container, False

        def display(self, *args: Any, **options: Any) -> None:
            widget.display(self, *args, **options)

        def show_failures(self, failed: int) -> None:
            if failed != self.failed and not self.disable:
                widget.display(self, bar_style="danger", check_delay=False)
            super().show_failures(failed)

        def close(self) -> None:
            if self.disable:
                return
            super().close()
            for part in (*self.container.children, self.container):
                for model in (getattr(part, "style", part.layout), part.layout, part):
                    model.close()

    return WidgetBar


def _bundle(bar: Any, *, over: bool) -> dict[str, str]:
    """Return the state of a bar as HTML and as text."""
    facts = bar.format_dict
    text = bar.format_meter(**{**facts, "ncols": _TEXT_COLUMNS, "ascii": False})
    parts = {**facts, "postfix": None, "bar_format": "{l_bar}<bar/>{r_bar}"}
    left, right = re.split(r"\|?<bar/>\|?", bar.format_meter(**parts), maxsplit=1)
    notes = [f"{bar.failed:,} failed"] if bar.failed else []
    if over and bar.n < bar.total:
        notes.append("stopped")
    note = f"<strong style='color:{ORANGE}'>{', '.join(notes)}</strong>" if notes else ""
    style = "flex:0 1 20em;min-width:4em"
    html = (
        "<div style='display:flex;align-items:center;gap:0.6em;white-space:nowrap;"
        f"font-variant-numeric:tabular-nums'><span>{escape(left.strip())}</span>"
        f"{html_progress(bar.n, bar.total, style, bad=bool(notes))}"
        f"<span>{escape(right.strip())}</span>{note}</div>"
    )
    return {"text/html": html, "text/plain": f"{text}, stopped" if "stopped" in notes else text}
