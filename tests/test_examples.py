"""Each example runs with ``--smoke``, gives right results, and leaves no process.

Programs that draw, or start a cluster, are marked ``stress``: `.ci/run` has a step for them.
"""

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
# Why: imports in each process take most of the time.
ONE = ("--workers", "1")
SHARED = {"images.py"}  # a module that several examples import
PICTURES = all(map(importlib.util.find_spec, ["matplotlib", "scipy", "skimage", "PIL"]))
draws = pytest.mark.skipif(not PICTURES, reason='needs pip install -e ".[examples]"')
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="worker processes")


@pytest.fixture
def example(tmp_path):
    """A function that runs an example in an empty directory and returns its output."""

    def run(name, *args, returncode=0, **options):
        done = run_python(EXAMPLES / name, *args, cwd=tmp_path, **options)
        assert done.returncode == returncode, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if returncode == 0 else done.stderr

    return run


# Why: a single interpreter runs several command lines, since imports take most of the time.
REFUSED = """
import contextlib, io, json, runpy, sys
script, *lines = json.loads(sys.argv[1])
results = []
for line in lines:
    sys.argv, text = [script, *line], io.StringIO()
    try:
        with contextlib.redirect_stderr(text):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        by_text = isinstance(error.code, str)
        print(error.code if by_text else "", end="\\n" * by_text, file=text)
        results.append([1 if by_text else error.code, text.getvalue()])
json.dump(results, sys.stdout)
"""


@pytest.fixture
def refusals(tmp_path):
    """A function that runs an example with each command line; returns statuses and errors."""

    def run(name, *lines):
        work = json.dumps([str(EXAMPLES / name), *lines])
        done = run_python(REFUSED, work, cwd=tmp_path, env={"PYTHONPATH": str(EXAMPLES)})
        assert (done.returncode, done.stderr) == (0, "")
        results = json.loads(done.stdout[done.stdout.rindex("[[") :])
        assert len(results) == len(lines)
        return results

    return run


def scripts():
    return sorted({path.name for path in EXAMPLES.glob("*.py")} - SHARED)


def test_every_example_has_a_paragraph():
    """examples/README.md names exactly the examples of its folder."""
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\*\*\[(\w+\.py)\]", text, re.MULTILINE)) == scripts()


@draws
@pytest.mark.stress
def test_tiled_statistics_prints_a_table_and_draws(example, tmp_path):
    """Without a file, the example uses a picture that it makes."""
    output = example("tiled_statistics.py", "--smoke")
    for start in ("mean ", "std deviation ", "99th percentile ", "smoothed median "):
        assert re.search(rf"^{start}.* row [\d,]+, column [\d,]+$", output, re.MULTILINE)
    assert re.search(r"^256 tiles of 128 x 128 pixels in .* megapixels/s$", output, re.MULTILINE)
    assert (tmp_path / "tiled_statistics.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["tiled_statistics.png"]


@draws
@pytest.mark.stress
def test_live_view_draws_a_picture(example, tmp_path):
    """The example prints the number of tiles and writes a picture."""
    output = example("live_view.py", "--smoke")
    assert re.search(r"^9 tiles of 64 x 64 pixels in [\d.]+ s$", output, re.MULTILINE)
    assert (tmp_path / "live_view.png").read_bytes().startswith(b"\x89PNG")


@draws
@pytest.mark.stress
def test_tiled_statistics_of_a_file_equal_numpy(example, tmp_path):
    """The file is mapped, its channels are averaged, and edge tiles are smaller."""
    image = np.random.default_rng(0).integers(0, 50_000, (90, 130, 3), dtype=np.uint16)
    np.save(tmp_path / "image.npy", image)
    output = example(
        "tiled_statistics.py", "image.npy", "--tile", "32", "--output", "maps.png", *ONE
    )
    gray = image.mean(axis=-1)
    assert output.startswith("image.npy: 90 x 130 pixels, uint16, 0.1 MB\n")
    assert "the image is in: file" in output
    for name, whole in (("mean", gray.mean()), ("std deviation", gray.std())):
        assert re.search(rf"^{name} +{whole:,.1f} ", output, re.MULTILINE)
    assert (tmp_path / "maps.png").exists()


@pytest.mark.parametrize("name", ["tiled_statistics.py", "live_view.py"])
def test_a_missing_package_is_named(name, tmp_path):
    """The error has the command that installs the package, before anything is computed."""
    path = str(EXAMPLES / name)
    source = f"import runpy, sys; sys.modules['matplotlib'] = None; runpy.run_path({path!r})"
    done = run_python(source, cwd=tmp_path, env={"PYTHONPATH": str(EXAMPLES)})
    assert done.returncode == 1
    assert done.stderr.startswith("matplotlib is missing; ")
    assert done.stderr.endswith('pip install -e ".[examples]"\n')


@draws
def test_tiled_statistics_refuses_other_files(refusals, tmp_path):
    """The error has the file and the reason, without a traceback."""
    np.save(tmp_path / "cube.npy", np.zeros((4, 4, 9)))
    (tmp_path / "text.npy").write_text("no array")
    cube, text, nope = refusals("tiled_statistics.py", ["cube.npy"], ["text.npy"], ["nope.npy"])
    assert (cube[0], text[0], nope[0]) == (1, 1, 2)
    assert "not (4, 4, 9)" in cube[1]
    assert text[1].startswith("text.npy: ")
    assert "no file 'nope.npy'" in nope[1]


@draws
@pytest.mark.stress
def test_denoise_equals_the_plain_call_and_draws(example, tmp_path):
    """The noise of the test picture has a standard deviation of 0.1, which is 20 dB."""
    output = example("denoise.py", "--smoke")
    assert output.startswith("Cameraman: 707 x 707 pixels, uint8\n")
    before, after = re.search(r": ([\d.]+) dB before, ([\d.]+) dB after\n", output).groups()
    assert float(before) == pytest.approx(20, abs=0.1)
    assert float(after) > 27
    assert "\nthe same as the plain call, on a crop" in output
    assert re.search(r"^map_overlap, \d+ workers +0\.5 ", output, re.MULTILINE)
    assert (tmp_path / "denoise.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["denoise.png"]


@draws
@pytest.mark.stress
def test_denoise_of_a_file(example, tmp_path):
    """A small file with channels is denoised; the noise of a constant file cannot be estimated."""
    image = np.random.default_rng(0).integers(0, 50_000, (90, 130, 3), dtype=np.uint16)
    np.save(tmp_path / "image.npy", image)
    output = example("denoise.py", "image.npy", "--noise", "0.2", "--output", "both.png", *ONE)
    assert output.startswith("image.npy: 90 x 130 pixels, uint16\n")
    assert (tmp_path / "both.png").exists()
    np.save(tmp_path / "flat.npy", np.ones((64, 64)))
    assert example("denoise.py", "flat.npy", *ONE, returncode=1).endswith("none of them NaN\n")


@draws
@pytest.mark.stress
def test_histogram_equalise_equals_numpy_and_draws(example, tmp_path):
    """The grey levels of the test picture are evenly distributed afterwards."""
    output = example("histogram_equalise.py", "--smoke")
    assert output.startswith("Moon: 1,000 x 1,000 pixels, uint8\n")
    assert "\nevery pixel is equal\n" in output
    before, after = re.search(r"^std deviation +([\d.]+) +([\d.]+)$", output, re.MULTILINE).groups()
    assert float(before) < 20
    assert float(after) == pytest.approx(256 / 12**0.5, abs=1)  # equally frequent grey levels
    assert re.search(r"^\d+ workers( +\d+\.\d\d){3}$", output, re.MULTILINE)
    assert os.listdir(tmp_path) == ["histogram_equalise.png"]
    assert (tmp_path / "histogram_equalise.png").read_bytes().startswith(b"\x89PNG")


@draws
@pytest.mark.stress
def test_histogram_equalise_saves_a_file(example, tmp_path):
    """The darkest pixel becomes black and the lightest white, and the order stays."""
    image = np.random.default_rng(0).poisson(300, (90, 130)).astype(np.uint16)
    np.save(tmp_path / "dark.npy", image)
    output = example("histogram_equalise.py", "dark.npy", "--save", "light.npy", *ONE)
    assert output.endswith("wrote light.npy\nwrote histogram_equalise.png\n")
    light = np.load(tmp_path / "light.npy")
    assert (light.dtype, light.shape) == (image.dtype, image.shape)
    assert (light.min(), light.max()) == (0, 65535)
    order = image.ravel().argsort()
    assert (np.diff(light.ravel()[order].astype(int)) >= 0).all()


@draws
def test_histogram_equalise_refuses_floats_and_missing_folders(refusals, tmp_path):
    """The error names the dtype or the path, without a traceback."""
    np.save(tmp_path / "floats.npy", np.zeros((4, 4)))
    floats, *others = refusals(
        "histogram_equalise.py",
        *(["floats.npy"], ["--save", "no/a.npy"], ["--output", "no/a.png"], ["--save", "a.png"]),
    )
    assert [floats[0], *(code for code, _ in others)] == [1, 2, 2, 2]
    assert "not float64" in floats[1]
    for (_, text), part in zip(
        others, ["no folder 'no'", "no folder 'no'", "not 'a.png'"], strict=True
    ):
        assert part in text


@pytest.mark.stress
@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="needs distributed")
def test_cluster_survives_the_loss_of_a_host(example):
    """The result is that of a local pool, although a host was killed."""
    output = example("cluster.py", "--smoke")
    assert "equal, byte for byte: True" in output
    assert "transport" in output


def test_rows_equal_the_loop(example):
    """The fits equal those of a plain loop, and are close to the simulated lifetimes."""
    output = example("rows.py", "--smoke")
    assert output.startswith("20,000 traces of 64 samples, 3 MB\n20,000 fitted")
    assert 2.5 < float(re.search(r"median lifetime ([\d.]+) ns", output)[1]) < 3
    assert "the same to the last bit" in output


@pytest.mark.stress
def test_pipeline_gives_the_same_both_ways(example):
    """One call and three calls agree, and the table has both."""
    pytest.importorskip("scipy")
    output = example("pipeline.py", "--smoke", *ONE)
    assert output.startswith("2,000 x 2,000 pixels, 4 tiles, 1 workers\n")
    assert "the same both ways" in output
    assert re.search(r"^one call .* 0\nthree calls .* 32$", output, re.MULTILINE)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="named memory")
def test_two_terminals_share_an_array(example):
    """The example runs both sides itself and reports each check."""
    output = example("two_terminals.py", "--smoke")
    assert len(re.findall(r"^ok ", output, re.MULTILINE)) == 5
    assert "NOT OK" not in output


def test_batch_files_names_a_broken_file(example, tmp_path):
    """The stack has NaN for the broken file, and the other images."""
    output = example("batch_files.py", "--smoke", "--output", "stack.npy")
    stack = np.load(tmp_path / "stack.npy")
    assert stack.shape == (12, 120, 160)
    assert np.isnan(stack).all(axis=(1, 2)).nonzero()[0].tolist() == [6]
    assert "\nframe_006.npy is NaN: Failed to read all data" in output


def test_batch_files_refuses_a_folder_without_images(refusals, tmp_path):
    """The error has the reason: the folder is empty, or no file can be read."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.npy").write_text("no array")
    empty, bad = refusals("batch_files.py", ["empty"], ["bad"])
    assert (empty[0], bad[0]) == (1, 1)
    assert "files in empty" in empty[1]
    assert "\nno file can be read; the first error: " in bad[1]


@draws
@pytest.mark.stress
def test_zarr_pyramid_writes_an_ome_zarr(example, tmp_path):
    """Readers of OME-Zarr find both levels; the smaller is the mean of the larger."""
    pytest.importorskip("zarr")
    output = example("zarr_pyramid.py", "--smoke", "--folder", "slide.ome.zarr")
    assert output.startswith("image: 2,048 x 2,048 pixels, 8 MB\nlimit of each process")
    before, after = re.search(r"detail: ([\d.]+) photons before, ([\d.]+) after", output).groups()
    assert float(after) < 0.8 * float(before)
    assert (tmp_path / "zarr_pyramid.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path)) == ["raw.zarr", "slide.ome.zarr", "zarr_pyramid.png"]
    # Why in another interpreter: the threads of zarr outlive a test.
    read = f"""
import numpy as np, zarr
group = zarr.open_group({str(tmp_path / "slide.ome.zarr")!r}, mode="r")
(scales,) = group.attrs["ome"]["multiscales"]
large, small = [group[one["path"]] for one in scales["datasets"]]
means = large[...].reshape(1024, 2, 1024, 2).mean(axis=(1, 3))
assert abs(small[...] - means).max() <= 0.5
try:
    import ome_zarr_models
    image = ome_zarr_models.open_ome_zarr(group)
    print(type(image).__name__, large.shape, small.shape)
except ImportError:
    print("Image", large.shape, small.shape)
"""
    done = run_python(read, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("Image (2048, 2048) (1024, 1024)\n", "")
