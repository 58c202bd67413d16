"""The notebooks of examples/ run in a kernel, at a small size, and their outputs are right.

Kernels import many libraries, so these are marked ``stress``: `.ci/run` has a step for them.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.interpreters import ROOT, run_python

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="worker processes")

EXAMPLES = Path(ROOT, "examples")
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))

# Why a fresh interpreter: nothing of the kernel or of its client is left in this process.
EXECUTE = """
import json, os, sys
import nbformat
from nbclient import NotebookClient

os.environ.pop("MPLBACKEND", None)  # Why: the kernel shows figures unless another is named
path, parameters = sys.argv[1:]
notebook = nbformat.read(path, as_version=4)
(cell,) = [one for one in notebook.cells if "parameters" in one.metadata.get("tags", [])]
cell.source = parameters
NotebookClient(notebook, timeout=50, resources={"metadata": {"path": "."}}).execute()
texts = []
for cell in notebook.cells:
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        texts.append([output.get("text", data.get("text/plain", "")), sorted(data)])
print(json.dumps(texts))
"""


def executed(name, parameters, folder):
    """Execute a notebook; return the text and the MIME types of each output."""
    done = run_python(EXECUTE, str(EXAMPLES / name), parameters, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_has_no_outputs(name):
    """Outputs, counts and states of the editor are not in git; parameters have a tag."""
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert [one["metadata"] for one in code if one["metadata"]] == [{"tags": ["parameters"]}]
    assert f"({name})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert Path(ROOT, "docs", "notebooks", name).with_suffix(".md").exists()


@pytest.mark.stress
def test_tile_statistics(tmp_path):
    """There are heat maps, a picture that was filled, the run and its report with a plot."""
    pytest.importorskip("skimage")
    outputs = executed("tile_statistics.ipynb", "side = 320", tmp_path)
    texts = [text for text, _ in outputs]
    assert "((10, 10), dtype('float64'))" in texts
    assert any(re.match(r"measuring: 100%.* 100/100 ", text) for text in texts)
    assert "<shmpar.Run: map_overlap(vessels), done, 16 of 16 chunks>" in texts
    assert texts[-1] == "<shmpar.Pool: processes, closed>"
    assert sum("image/png" in kinds for _, kinds in outputs) == 3
    assert sum("text/html" in kinds for _, kinds in outputs) == 6
    assert os.listdir(tmp_path) == []


@pytest.mark.stress
def test_batch_of_files(tmp_path):
    """Files are computed once, broken ones again after they were mended; then all have values."""
    pytest.importorskip("pandas")
    outputs = executed("batch_of_files.ipynb", "count = 30", tmp_path)
    text = "\n".join(text for text, _ in outputs)
    assert "30 files, 3 of them broken\n" in text
    assert "ended by SIGKILL after 10 files\n" in text
    assert re.search(r"^measuring: 100%.* 30/30 .*, 3 failed\]$", text, re.MULTILINE)
    assert re.search(r"^done +27\nfailed +3$", text, re.MULTILINE)
    assert 10 <= int(re.search(r"^(\d+) files were done before$", text, re.MULTILINE)[1]) < 27
    assert "0 files failed\n3 files were computed\n" in text
    assert re.search(r"^5 +frame_005\.npy +done +0\.\d+ +\d +53\.\d +94\.\d ", text, re.MULTILINE)
    assert sum("image/png" in kinds for _, kinds in outputs) == 1
    assert os.listdir(tmp_path) == []
