"""Tests that the benchmarks run and write their results; no test measures speed."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
import pytest

from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.video import open_source
from tests.conftest import short_clip
from tests.support.teachers import make_layers, write_ncnn

ROOT = Path(__file__).parents[2]


def run_benchmark(name: str, *arguments: object, result: Path) -> dict[str, Any]:
    """Run a program, or one of its commands ("program.py command"), and return its JSON.

    It runs as ``__main__`` in this process, which has the libraries loaded.
    """
    program, *command = name.split()
    path = ROOT / "benchmarks" / program
    words = [str(path), *command, "--json", str(result), *map(str, arguments)]
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        mock.patch.dict(os.environ),  # programs set variables for their children
        warnings.catch_warnings(),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        patch.syspath_prepend(str(path.parent))
        patch.setattr(sys, "argv", words)
        warnings.simplefilter("ignore")  # as in a process of its own
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0, printed.getvalue()
    loaded: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return loaded


@pytest.mark.slow
def test_checks_benchmark(tiny_bundle: Path, sample: Path, tmp_path: Path) -> None:
    """The checks of all graphs are counted, and take a part of the run."""
    result = run_benchmark(
        *("checks.py", sample, "--engine", tiny_bundle, "--size", "32x24", "--frames", 8),
        result=tmp_path / "checks.json",
    )
    assert result["opening, ms"] > 0
    assert result["checks"] > 8
    assert 0 < result["share"] < 1


@pytest.mark.slow
def test_lookahead_benchmark(tiny_bundle: Path, sample: Path, tmp_path: Path) -> None:
    """The error falls with N, to zero if no future frame is cut off, and also with the warm-up; the
    last image of a chunk equals that with a lookahead of the chunk's warm-up.
    """
    result = run_benchmark(
        *("lookahead.py", sample, "--engine", tiny_bundle, "--size", "32x24", "--frames", 24),
        *("--measured", 12, "--every", 6, "--lookaheads", "0,2,24"),
        *("--max-scene", 6, "--warm-ups", "0,2,24", "--plot", tmp_path / "lookahead.png"),
        result=tmp_path / "lookahead.json",
    )
    clip = result["clips"]["sample"]
    ahead = clip["lookahead"]
    assert ahead["0"]["rmse"] > ahead["2"]["rmse"] > ahead["24"]["rmse"] == 0
    assert ahead["24"]["psnr"] is None
    assert clip["rmse_falls"] is clip["mean_difference_falls"] is True
    # Frames 5 and 11 are measured, the last ones of their chunks.
    for warm_up, figures in clip["continuation"].items():
        assert figures["joins"] == ahead[warm_up]
        assert figures["rest"]["rmse"] <= figures["joins"]["rmse"]
    assert (tmp_path / "lookahead.png").stat().st_size > 10_000


def test_lookahead_benchmark_makes_the_images_users_get(
    tiny_bundle: Path, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shortcut gives, bit for bit, the images of a stream with that lookahead."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    common = importlib.import_module("common")
    lookahead = importlib.import_module("lookahead")
    images = common.read_clip(sample, frames=12, size=(32, 24))
    with open_engine(tiny_bundle, device="cpu") as engine:
        found = lookahead.by_lookahead(lookahead.Clip(engine, images), [0, 3], measured=8, every=2)
        for ahead, outputs in found.items():
            stream = common.upscale(engine, images, Settings(lookahead=ahead, cleanings=1))
            assert list(outputs) == [1, 3, 5, 7]
            for number, output in outputs.items():
                np.testing.assert_array_equal(output, stream[number])


@pytest.mark.slow
def test_seams_benchmark(tiny_bundle: Path, sample: Path, tmp_path: Path) -> None:
    """Windows change nothing; independent chunks do, most of all at their borders."""
    result = run_benchmark(
        *("seams.py", sample, "--engine", tiny_bundle, "--size", "32x24"),
        *("--frames", 20, "--chunk", 6, "--plot", tmp_path / "seams.png"),
        result=tmp_path / "seams.json",
    )
    ways = result["ways"]
    assert result["window_plan"]["window"] == 6
    assert ways["window"]["largest"] == 0
    assert ways["window"]["step_ratio"] == result["whole_step_ratio"]
    assert ways["independent"]["at_borders"] > ways["independent"]["elsewhere"] > 0
    assert ways["continued"]["at_borders"] < ways["independent"]["at_borders"]
    assert (tmp_path / "seams.png").stat().st_size > 10_000


@pytest.mark.slow
def test_soak_benchmark(tiny_bundle: Path, sample: Path, tmp_path: Path) -> None:
    """Killed and resumed on a generated clip, the output is the same, and no other file is left."""
    result = run_benchmark(
        *("soak.py", sample, "--engine", tiny_bundle, "--scenes", 2, "--length", 48),
        *("--size", "16x16", "--kills", 1, "--", "--memory", "1GiB"),
        result=tmp_path / "soak.json",
    )
    assert result["passed"]
    assert result["kills"] == 1
    assert all(output["differing_streams"] == [] for output in result["outputs"])


@pytest.mark.slow
def test_overlap_benchmark(tiny_bundle: Path, sample: Path, tmp_path: Path) -> None:
    """Every stage has a time, and the total is at least the network's."""
    clip = short_clip(sample, tmp_path / "clip.mp4")
    result = run_benchmark(
        "overlap.py", clip, "--engine", tiny_bundle, result=tmp_path / "overlap.json"
    )
    (run,) = result["runs"]
    assert run["frames"] == 6
    assert run["ratio"] >= 1
    assert run["total"] >= run["network"] > 0


def test_resizing_benchmark(tiny_bundle: Path, tmp_path: Path) -> None:
    """All graphs of strengths and sizes are timed; the share is of the network's graphs, and
    ``emit``, which resizing replaces, is deducted.
    """
    result = run_benchmark(
        *("resizing.py", "--engine", tiny_bundle, "--sizes", "32x24,24x32", "--rounds", 2),
        result=tmp_path / "resizing.json",
    )
    assert list(result["sizes"]) == ["32x24", "24x32"]
    for found in result["sizes"].values():
        assert {"mix", "blend", "resize to scale 2"} < found["graphs"].keys()
        for label, cost in found["graphs"].items():
            replaced = found["emit_ms"] if label.startswith("resize") else 0
            assert cost["added_share"] * found["network_ms"] == pytest.approx(cost["ms"] - replaced)


@pytest.mark.slow
def test_scaling_benchmark(tiny_bundle: Path, tmp_path: Path) -> None:
    """Every axis varies alone, in the order of the command; memory and time have a figure each."""
    result = run_benchmark(
        *("scaling.py", "--engine", tiny_bundle, "--device", "cpu", "--size", "32x24"),
        *("--length", 4, "--frames", "2,4", "--sizes", "24x16,32x24", "--windows", "1,4"),
        *("--batches", "1,2", "--threads", 1, "--repeats", 1, "--plot", tmp_path / "plot.png"),
        result=tmp_path / "scaling.json",
    )
    base = {"frames": 4, "width": 32, "height": 24, "window": 4, "batch": 1}
    points = result["points"]
    for point in points:
        changed = {key for key in base.keys() - {point["axis"]} if point[key] != base[key]}
        assert changed <= ({"width", "height"} if point["axis"] == "size" else {"window"})
        assert point["ms_per_frame"] >= point["network_ms_per_frame"] > 0
    axes = dict.fromkeys(p["axis"] for p in points)
    assert list(axes) == ["frames", "size", "window", "batch", "threads"]
    assert set(result["calm"]) >= {"calm", "reasons", "spread"}
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_tables_are_those_of_the_results() -> None:
    """Every generated table of the pages, and the schema of results, are what ``make figures``
    writes from ``benchmarks/results/``.
    """
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        tables = importlib.import_module("tables")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    written = dict(tables.files())
    used = {name for page in tables.PAGES for name, *_ in tables._TABLE.findall(page.read_text())}
    assert used == tables.TABLES.keys()
    stale = [p.name for p, text in written.items() if p.read_text(encoding="utf-8") != text]
    assert stale == [], f"run `make figures`: {', '.join(stale)} differ from the results"


def test_pages_have_no_figures_outside_generated_tables() -> None:
    """Tables of the benchmarks' page that contain decimal figures are generated ones."""
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rest = re.sub(
        r"^<!-- table: .*?^<!-- end of table -->$", "", page, flags=re.MULTILINE | re.DOTALL
    )
    rows = [line for line in rest.splitlines() if line.startswith("|")]
    assert rows
    assert [row for row in rows if re.search(r"\d\.\d", row)] == []


def make_clips(folder: Path, *, size: tuple[int, int], frames: int = 8) -> Path:
    """Make a folder with one video of a texture that moves by two pixels per frame."""
    folder.mkdir()
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4 + frames, 3))
    texture = np.kron(noise, np.ones((4, 4, 1))).astype(np.uint8)
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            image = np.ascontiguousarray(texture[:, 2 * number : 2 * number + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return folder


def make_niqe_parameters(path: Path) -> Path:
    """Write parameters of the right shape, but not of real images."""
    np.savez(path, mu_pris_param=np.zeros((1, 36)), cov_pris_param=np.eye(36))
    return path


SHORT: tuple[object, ...] = (
    "--iterations",
    2,
    "--set",
    "workers=0",
    "--set",
    "flow.iterations=0",
    "--clips",
    2,
)
SHORT += ("--set", "data.crop=8", "--set", "batch=1", "--clip-length", 3, "--device", "cpu")


@pytest.mark.slow
def test_training_claims_cleaning(tmp_path: Path) -> None:
    """Two runs that differ only in the cleaning loss are scored next to a bicubic baseline."""
    clips = make_clips(tmp_path / "clips", size=(216, 208))
    result = run_benchmark(
        *("training_claims.py cleaning", clips, "--held-out", clips, "--runs", tmp_path / "runs"),
        *("--clip-crop", 50, "--seeds", "0,3", *SHORT, "--plot", tmp_path / "cleaning.png"),
        *("--niqe-parameters", make_niqe_parameters(tmp_path / "niqe.npz")),
        result=tmp_path / "cleaning.json",
    )
    assert "2 iterations: a small model and a short run" in result["label"]
    names = ("cleaning_loss", "no_cleaning_loss")
    configs = [
        json.loads((tmp_path / "runs" / f"{name}-seed3" / "config.json").read_text("utf-8"))
        for name in names
    ]
    assert [config["losses"].pop("cleaning_weight") for config in configs] == [1, 0]
    assert configs[0] == configs[1]
    assert configs[0]["seed"] == 3
    assert list(result["means"]) == ["bicubic", *names]
    for name in names:
        assert set(result["means"][name]) == {"psnr_y", "niqe", "cleaned_psnr_y", "residue"}
        assert all(value > 0 for value in result["means"][name].values())
    rows = result["rows"]
    assert rows["cleaning_loss"] != rows["no_cleaning_loss"]
    assert rows["cleaning_loss"]["seed 0, clip 0"] != rows["cleaning_loss"]["seed 3, clip 0"]
    assert result["means"]["bicubic"]["residue"] is None
    assert (tmp_path / "cleaning.png").stat().st_size > 10_000


@pytest.mark.slow
def test_training_claims_length(tmp_path: Path) -> None:
    """There is one run per shape, with as many frames each."""
    clips = make_clips(tmp_path / "clips", size=(160, 128))
    result = run_benchmark(
        *("training_claims.py length", clips, "--held-out", clips, "--runs", tmp_path / "runs"),
        *("--shapes", "4x1,2x2", "--clip-crop", 24, *SHORT, "--plot", tmp_path / "length.png"),
        result=tmp_path / "length.json",
    )
    assert list(result["rows"]) == ["bicubic", "4x1", "2x2"]
    for name, batch, frames in (("4x1", 4, 1), ("2x2", 2, 2)):
        folder = tmp_path / "runs" / f"{name}-seed0"
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert (config["batch"], config["data"]["length"]) == (batch, frames)
        assert config["data"]["stochastic"] is False
        assert result["means"][name]["psnr_y"] > 0
    assert result["rows"]["4x1"] != result["rows"]["2x2"]
    assert (tmp_path / "length.png").stat().st_size > 10_000


@pytest.mark.slow
def test_training_claims_refinement(tiny_bundle: Path, tmp_path: Path) -> None:
    """Fixed numbers are kept; a threshold below every change cleans three times, one above once;
    the images are those of that number.
    """
    clips = make_clips(tmp_path / "clips", size=(56, 32), frames=4)
    result = run_benchmark(
        *("training_claims.py refinement", tiny_bundle, clips, "--thresholds", "0,255"),
        *("--frames", 3, "--every", 2, "--plot", tmp_path / "refinement.png"),
        *("--niqe-parameters", make_niqe_parameters(tmp_path / "niqe.npz"), "--device", "cpu"),
        result=tmp_path / "refinement.json",
    )
    cleanings = {way: means["cleanings"] for way, means in result["means"].items()}
    dynamic = {"threshold 0": 3, "threshold 255": 1}
    assert cleanings == {"0 fixed": 0, "1 fixed": 1, "3 fixed": 3, **dynamic}
    rows = result["rows"]
    assert rows["threshold 0"] == rows["3 fixed"] != rows["1 fixed"] == rows["threshold 255"]
    assert rows["0 fixed"] != rows["1 fixed"]
    assert rows["0 fixed"]["clip"]["niqe"] > 0
    assert (tmp_path / "refinement.png").stat().st_size > 10_000


@pytest.mark.slow
def test_default_model_benchmark(tiny_bundle: Path, tmp_path: Path) -> None:
    """Bars are ratios and differences of the figures beside them; clips are made once, and results
    are as many images as there are frames, four times as large as the inputs.
    """
    clips = make_clips(tmp_path / "clips", size=(64, 52), frames=4)
    write_ncnn(tmp_path / "teacher.bin", make_layers(seed=0))
    folder = tmp_path / "bars"
    options: tuple[object, ...] = (
        "--truth",
        clips,
        "--real",
        clips,
        "--teacher",
        tmp_path / "teacher.bin",
    )
    options += ("--frames", 3, "--size", "64x48", "--repeats", 1, "--no-long", "-o", folder)
    program, result = "default_model.py", tmp_path / "bars.json"
    first = run_benchmark(program, tiny_bundle, *options, result=result)
    ((name, model),) = first["models"].items()
    scores, bars = model["scores"], {(b["against"], b["what"]): b for b in model["bars"]}
    for other, metric in (("bicubic", "tof"), ("teacher", "warping_error")):
        ours, theirs = (s["moderate"][metric]["mean"] for s in (scores, first[other]))
        (bar,) = (b for (against, what), b in bars.items() if other in against and what == metric)
        assert bar["figure"] == pytest.approx(ours / theirs)
        assert bar["met"] == (bar["figure"] <= float(bar["limit"].removeprefix("<= ")))
    gain = scores["clean"]["psnr_y"]["mean"] - first["bicubic"]["clean"]["psnr_y"]["mean"]
    assert bars["bicubic, clean", "psnr_y"]["figure"] == pytest.approx(gain)
    assert bars["teacher", "frames per second"]["figure"] > 0
    assert bars["input, real", "mean colour, levels"]["figure"] > 0
    for part, size in (("clips/moderate", 16), ("clips/real", 16), (f"{name}/moderate", 64)):
        images = sorted((folder / part / "clip").iterdir())
        assert [i.name for i in images] == [f"{n:08}.png" for n in range(3)]
        with open_source(images[0]) as source:
            assert (source.width, source.height) == (size, size * 3 // 4)
    again = run_benchmark(program, tiny_bundle, *options, "--single-frames", result=result)
    assert again["bicubic"] == first["bicubic"]
    assert again["models"][name]["scores"]["clean"] != scores["clean"]


@pytest.mark.slow
def test_end_to_end_benchmark(tiny_bundle: Path, sample: Path, tmp_path: Path) -> None:
    """The command of this environment is compared with itself in this source tree."""
    options = ["--engine", str(tiny_bundle), "--device", "cpu", "--frames", "2"]
    result = run_benchmark(
        "end_to_end.py command",
        f"tree={','.join([sys.executable, str(ROOT), *options])}",
        "--clip",
        sample,
        "--repeats",
        1,
        result=tmp_path / "end_to_end.json",
    )
    (run,) = result["runs"]["tree"]
    assert run["frames"] == 2
    assert run["seconds"] > run["stages"]["network"] > 0
    assert run["cpu_seconds"] > 0
    assert run["peak_mib"] > 50


@pytest.mark.slow
def test_cluster_benchmarks(tmp_path: Path) -> None:
    """One and two workers are measured, and the model is compared with them; it says what limits
    many.
    """
    measured = tmp_path / "measured.json"
    result = run_benchmark(
        *("cluster.py", "--workers", "1,2", "--frames", 60, "--longest", 50, "--seconds", 0.01),
        *("--memory", 120),
        result=measured,
    )
    assert [run["frames"] for run in result["runs"]] == [60, 120]
    assert result["memory"]["memory_growth"].keys() == {"coordinator", "worker 1"}
    assert all(run["frames_per_second"] > 0 for run in result["runs"])
    (tmp_path / "cuts.txt").write_text("0\n100\n400\n500\n1500\n1560\n")
    model = run_benchmark(
        *("cluster_model.py", tmp_path / "cuts.txt", "--frames", 2000, "--check", measured),
        result=tmp_path / "model.json",
    )
    assert [row["workers"] for row in model["check"]] == [1, 2]
    film = model["films"]["cuts"]
    seconds = [row["seconds"] for row in film["predictions"]]
    assert seconds == sorted(seconds, reverse=True)
    assert film["predictions"][0]["limit"] == "the number of workers"
    assert film["predictions"][-1]["limit"] == "the longest unit"
    assert film["longest_unit"] >= 1000
