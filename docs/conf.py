"""Configure the site: ``python -m sphinx -W --keep-going -b html docs OUT`` builds it.

Sphinx reads nothing from the network.  A broken link is a warning, and ``-W`` makes it an error.
"""  # noqa: INP001 - Sphinx reads this file by its path

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

from shmpar import __version__

project = "shmpar"
author = "The shmpar developers"
copyright = author  # noqa: A001 - Sphinx's name
version = release = __version__

extensions = ["sphinx.ext.autodoc", "numpydoc", "myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

nitpicky = True
nitpick_ignore_regex = [  # Why: Sphinx does not read the pages of other projects.
    (r"py:.*", r"(numpy|pandas|h5py|logging)(\..*)?"),
    (r"py:.*", r"(concurrent|subprocess|threading|multiprocessing)\..*"),
]

autodoc_typehints = "none"  # Why: docstrings are precise; most annotations are Any.
# Why: the extra `docs` alone builds the site.
autodoc_mock_imports = [] if importlib.util.find_spec("joblib") else ["joblib"]
autosummary_generate = False
numpydoc_show_class_members = False  # Why: each page lists its members.
myst_heading_anchors = 2

html_theme = "pydata_sphinx_theme"
html_title = "shmpar"
html_copy_source = False
html_theme_options = {"navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"]}

html_sidebars: dict[str, list[str]] = {  # pages without others beside them
    page: []
    for page in ("install", "tutorial", "coming-from", "benchmarks", "security", "reliability")
}

html_static_path = ["static"]
html_css_files = ["notebooks.css", "site.css"]

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, HERE)  # for notebooks.py
# Pages that include a file from outside this directory
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
    "examples/batch_of_files.ipynb": "notebooks/batch_of_files.md",
    "examples/tile_statistics.ipynb": "notebooks/tile_statistics.md",
}


def rebase_links(_app: object, path: os.PathLike[str], _page: str, content: list[str]) -> None:
    """Make the relative links of an included file relative to this directory."""
    home = os.path.dirname(os.path.join(HERE, path))

    def link(match: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(home, match[1]))
        page = PAGES.get(os.path.relpath(target, ROOT))
        return f"]({page or os.path.relpath(target, HERE)})"

    content[0] = re.sub(r"\]\((?!\w+:|#)([^)]+)\)", link, content[0])


def insert_notebook(app: Any, page: str, content: list[str]) -> None:
    """Replace the content of a page of `notebooks/` by the notebook of the same name."""
    folder, _, name = page.rpartition("/")
    if folder == "notebooks":
        from notebooks import as_markdown

        path = Path(ROOT, "examples", f"{name}.ipynb")
        app.env.note_dependency(str(path))
        content[0] = as_markdown(path)


def setup(app: Any) -> None:
    """Register the hooks for included files and for notebooks; Sphinx calls this."""
    app.connect("include-read", rebase_links)
    app.connect("source-read", insert_notebook)
