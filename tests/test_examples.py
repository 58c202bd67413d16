"""The examples: each runs with ``--smoke``, does what its first line says, and leaves nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.interpreters import ROOT, run_python

EXAMPLES = Path(ROOT, "examples")
ONE = ("--workers", "1")  # most of what an example takes is what each process imports
SHARED = {"images.py"}  # no example, but what several import
PICTURES = all(map(importlib.util.find_spec, ["matplotlib", "scipy", "skimage", "PIL"]))
draws = pytest.mark.skipif(not PICTURES, reason='needs pip install "shmpar[examples]"')
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="worker processes")


@pytest.fixture
def example(tmp_path):
    """Run one in an empty directory; give what it printed."""

    def run(name, *args, returncode=0, **options):
        done = run_python(EXAMPLES / name, *args, cwd=tmp_path, **options)
        assert done.returncode == returncode, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if returncode == 0 else done.stderr

    return run


# One interpreter for several command lines: most of what a refusal costs is what it imports.
REFUSED = """
import contextlib, io, json, runpy, sys
script, *lines = json.loads(sys.argv[1])
said = []
for line in lines:
    sys.argv, text = [script, *line], io.StringIO()
    try:
        with contextlib.redirect_stderr(text):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        by_text = isinstance(end.code, str)
        print(end.code if by_text else "", end="\\n" * by_text, file=text)
        said.append([1 if by_text else end.code, text.getvalue()])
json.dump(said, sys.stdout)
"""


@pytest.fixture
def refusals(tmp_path):
    """Run one with several command lines in an empty directory; status and complaint of each."""

    def run(name, *lines):
        work = json.dumps([str(EXAMPLES / name), *lines])
        done = run_python(REFUSED, work, cwd=tmp_path, env={"PYTHONPATH": str(EXAMPLES)})
        assert (done.returncode, done.stderr) == (0, "")
        said = json.loads(done.stdout[done.stdout.rindex("[[") :])
        assert len(said) == len(lines)
        return said

    return run


def scripts():
    return sorted({path.name for path in EXAMPLES.glob("*.py")} - SHARED)


def test_every_example_has_its_paragraph():
    """README.md beside them names each, and no other."""
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\*\*\[(\w+\.py)\]", text, re.MULTILINE)) == scripts()


@draws
def test_tiled_statistics_prints_a_table_and_draws(example, tmp_path):
    """Without a file, on the picture that it makes."""
    said = example("tiled_statistics.py", "--smoke")
    for start in ("mean ", "std deviation ", "99th percentile ", "smoothed median "):
        assert re.search(rf"^{start}.* row [\d,]+, column [\d,]+$", said, re.MULTILINE)
    assert re.search(r"^256 tiles of 128 x 128 pixels in .* megapixels/s$", said, re.MULTILINE)
    assert (tmp_path / "tiled_statistics.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["tiled_statistics.png"]


@draws
def test_live_view_draws_its_moments(example, tmp_path):
    """The last of them is the whole picture."""
    said = example("live_view.py", "--smoke")
    assert re.search(r"^9 tiles of 64 x 64 pixels in [\d.]+ s$", said, re.MULTILINE)
    assert (tmp_path / "live_view.png").read_bytes().startswith(b"\x89PNG")


@draws
def test_tiled_statistics_of_a_file_are_those_of_numpy(example, tmp_path):
    """A .npy with channels is mapped, its channels are averaged, edge tiles are smaller."""
    image = np.random.default_rng(0).integers(0, 50_000, (90, 130, 3), dtype=np.uint16)
    np.save(tmp_path / "image.npy", image)
    said = example("tiled_statistics.py", "image.npy", "--tile", "32", "--output", "maps.png", *ONE)
    gray = image.mean(axis=-1)
    assert said.startswith("image.npy: 90 x 130 pixels, uint16, 0.1 MB\n")
    assert "the image is in: file" in said
    for name, whole in (("mean", gray.mean()), ("std deviation", gray.std())):
        assert re.search(rf"^{name} +{whole:,.1f} ", said, re.MULTILINE)
    assert (tmp_path / "maps.png").exists()


def test_tiled_statistics_names_a_missing_package(tmp_path):
    """And the command that installs it."""
    path = str(EXAMPLES / "tiled_statistics.py")
    source = f"import runpy, sys; sys.modules['matplotlib'] = None; runpy.run_path({path!r})"
    done = run_python(source, cwd=tmp_path, env={"PYTHONPATH": str(EXAMPLES)})
    assert done.returncode == 1
    assert done.stderr.startswith("matplotlib is missing; ")
    assert done.stderr.endswith('pip install "shmpar[examples]"\n')


@draws
def test_tiled_statistics_refuses_other_files(refusals, tmp_path):
    """With the file and the reason, no traceback."""
    np.save(tmp_path / "cube.npy", np.zeros((4, 4, 9)))
    (tmp_path / "text.npy").write_text("no array")
    cube, text, nope = refusals("tiled_statistics.py", ["cube.npy"], ["text.npy"], ["nope.npy"])
    assert (cube[0], text[0], nope[0]) == (1, 1, 2)
    assert "not (4, 4, 9)" in cube[1]
    assert text[1].startswith("text.npy: ")
    assert "no file 'nope.npy'" in nope[1]


@draws
def test_denoise_agrees_with_the_plain_call_and_draws(example, tmp_path):
    """On the picture that it lays out; its noise is of 0.1, which is 20 dB."""
    said = example("denoise.py", "--smoke")
    assert said.startswith("Cameraman: 707 x 707 pixels, uint8\n")
    before, after = re.search(r": ([\d.]+) dB before, ([\d.]+) dB after\n", said).groups()
    assert float(before) == pytest.approx(20, abs=0.1)
    assert float(after) > 27
    assert "\nthe same as the plain call, on a crop" in said
    assert re.search(r"^map_overlap, \d+ workers +0\.5 ", said, re.MULTILINE)
    assert (tmp_path / "denoise.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["denoise.png"]


@draws
def test_denoise_of_a_file(example, tmp_path):
    """With channels, smaller than the detail; one that is all the same has no noise to tell."""
    image = np.random.default_rng(0).integers(0, 50_000, (90, 130, 3), dtype=np.uint16)
    np.save(tmp_path / "image.npy", image)
    said = example("denoise.py", "image.npy", "--noise", "0.2", "--output", "both.png", *ONE)
    assert said.startswith("image.npy: 90 x 130 pixels, uint16\n")
    assert (tmp_path / "both.png").exists()
    np.save(tmp_path / "flat.npy", np.ones((64, 64)))
    assert example("denoise.py", "flat.npy", *ONE, returncode=1).endswith("none of them NaN\n")


@draws
def test_histogram_equalise_agrees_with_numpy_and_draws(example, tmp_path):
    """On the picture that it lays out; the greys are spread afterwards."""
    said = example("histogram_equalise.py", "--smoke")
    assert said.startswith("Moon: 1,000 x 1,000 pixels, uint8\n")
    assert "\nevery pixel is equal\n" in said
    before, after = re.search(r"^std deviation +([\d.]+) +([\d.]+)$", said, re.MULTILINE).groups()
    assert float(before) < 20
    assert float(after) == pytest.approx(256 / 12**0.5, abs=1)  # that of equally frequent greys
    assert re.search(r"^\d+ workers( +\d+\.\d\d){3}$", said, re.MULTILINE)
    assert os.listdir(tmp_path) == ["histogram_equalise.png"]
    assert (tmp_path / "histogram_equalise.png").read_bytes().startswith(b"\x89PNG")


@draws
def test_histogram_equalise_saves(example, tmp_path):
    """A file of 16 bits to another one: the darkest is black, the lightest white, order stays."""
    image = np.random.default_rng(0).poisson(300, (90, 130)).astype(np.uint16)
    np.save(tmp_path / "dark.npy", image)
    said = example("histogram_equalise.py", "dark.npy", "--save", "light.npy", *ONE)
    assert said.endswith("wrote light.npy\nwrote histogram_equalise.png\n")
    light = np.load(tmp_path / "light.npy")
    assert (light.dtype, light.shape) == (image.dtype, image.shape)
    assert (light.min(), light.max()) == (0, 65535)
    order = image.ravel().argsort()
    assert (np.diff(light.ravel()[order].astype(int)) >= 0).all()


@draws
def test_histogram_equalise_refuses_what_has_no_grey_levels(refusals, tmp_path):
    """And a place where nothing can be saved; no traceback."""
    np.save(tmp_path / "floats.npy", np.zeros((4, 4)))
    floats, place = refusals("histogram_equalise.py", ["floats.npy"], ["--save", "no/a.npy"])
    assert (floats[0], place[0]) == (1, 2)
    assert "not float64" in floats[1]
    assert "not 'no/a.npy'" in place[1]


def test_rows_agree_with_the_loop(example):
    """The fits are those of the plain loop, and near the lifetimes that were simulated."""
    said = example("rows.py", "--smoke")
    assert said.startswith("20,000 traces of 64 samples, 3 MB\n20,000 fitted")
    assert 2.5 < float(re.search(r"median lifetime ([\d.]+) ns", said)[1]) < 3
    assert "the same to the last bit" in said


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="named memory")
def test_two_terminals_talk(example):
    """It plays both sides itself, and says what held."""
    said = example("two_terminals.py", "--smoke")
    assert len(re.findall(r"^ok ", said, re.MULTILINE)) == 5
    assert "NOT OK" not in said


def test_batch_files_names_the_broken_one(example, tmp_path):
    """The others are in the stack."""
    said = example("batch_files.py", "--smoke", "--output", "stack.npy")
    stack = np.load(tmp_path / "stack.npy")
    assert stack.shape == (12, 120, 160)
    assert np.isnan(stack).all(axis=(1, 2)).nonzero()[0].tolist() == [6]
    assert "\nframe_006.npy is NaN: Failed to read all data" in said


def test_batch_files_refuses_a_folder_without_images(refusals, tmp_path):
    """Empty, or with nothing that can be read."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.npy").write_text("no array")
    empty, bad = refusals("batch_files.py", ["empty"], ["bad"])
    assert (empty[0], bad[0]) == (1, 1)
    assert "files in empty" in empty[1]
    assert "\nno file can be read; the first error: " in bad[1]
