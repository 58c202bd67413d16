"""Execute the notebooks of ``examples/`` and write them as pages; ``conf.py`` calls this.

Their outputs are not in git.  Without nbclient and ipykernel a page has no outputs.
"""  # noqa: INP001 - conf.py imports this file by its name

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_SECONDS = 300  # for a cell


def as_markdown(path: Path) -> str:
    """Execute a notebook in an empty folder; return it as a page of MyST's Markdown."""
    try:
        import nbformat
        from nbclient import NotebookClient
    except ImportError:
        text, executed = path.read_text(encoding="utf-8"), "without its outputs"
        notebook = json.loads(text, object_hook=_joined)
    else:
        os.environ.pop("MPLBACKEND", None)  # Why: a kernel shows figures unless another is named.
        notebook, executed = nbformat.read(path, as_version=4), "executed"
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=_SECONDS, resources=resources).execute()
    link = f"This page is the notebook [{path.name}](../../examples/{path.name}), {executed}."
    first = notebook.cells[0]
    first.source = first.source.replace("\n", f"\n\n{link}\n", 1)  # below the title
    return "\n\n".join(part for cell in notebook.cells for part in _cell(cell)) + "\n"


def _joined(entries: dict[str, Any]) -> SimpleNamespace:
    """Return an object of a notebook's JSON; a source is a list of lines there."""
    lines = {"source": "".join(entries["source"])} if "source" in entries else {}
    return SimpleNamespace(**{**entries, **lines})


def _cell(cell: Any) -> Iterator[str]:
    """Yield the Markdown of a cell and of its outputs."""
    if cell.cell_type == "markdown":
        yield cell.source
    elif cell.source:
        yield f"```python\n{cell.source}\n```"
        text = ""
        for output in cell.outputs:
            if output.output_type == "stream":
                text += output.text
                continue
            if text:
                yield _text(text)
            text = ""
            yield _output(output)
        if text:
            yield _text(text)


def _output(output: Any) -> str:
    """Return an output in its richest form that a page can hold."""
    if output.output_type == "error":
        return _text("\n".join(output.traceback))
    data = output.data
    if "image/png" in data:
        size = output.metadata.get("image/png", {})
        width = f" width='{size['width']}'" if "width" in size else ""
        text = escape(str(data.get("text/plain", "a picture")), quote=True)
        source = f"data:image/png;base64,{data['image/png'].strip()}"
        return _html(f"<img src='{source}' alt='{text}'{width}>")
    if "text/html" in data:
        return _html(data["text/html"])
    return _text(data["text/plain"])


def _text(text: str) -> str:
    return _html(f"<pre>{escape(_ANSI.sub('', text).strip())}</pre>")


def _html(html: str) -> str:
    return f"``````{{raw}} html\n<div class='notebook-output'>{html}</div>\n``````"
