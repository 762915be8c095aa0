"""Tests ``rbvsr-train``, from clips to upscaled frames, and its errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from rbvsr_deploy import Upscaler
from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.checkpoint import load_checkpoint
from rbvsr_deploy.commands.train import train
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.export.to_bundle import export_bundle
from rbvsr_deploy.training.data.sources import find_sources
from rbvsr_deploy.training.presets import PRESETS
from tests.conftest import moving_clip

FAST = (
    *("--set", "iterations=2"),
    *("--set", "workers=1"),
    *("--set", "data.length=4"),
    *("--set", "data.crop=16"),
    *("--set", "network.flow_channels=[6,4]"),  # the network of the tests, which exports quickly
    *("--set", "network.single_shuffle=false"),
    *("--device", "cpu"),
)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(train, [str(a) for a in arguments])


@pytest.mark.slow
@pytest.mark.usefixtures("quick_export")
def test_both_stages_then_export_and_upscale(sources: tuple[Path, Path], tmp_path: Path) -> None:
    """The second tiny preset starts from the first. The bundle exported from its checkpoint gives
    the output of the averaged network.
    """
    photos, videos = sources
    one, two = tmp_path / "one", tmp_path / "two"
    data = ("--data", photos, "--data", f"videos:{videos}")
    first = (*data, "--set", "flow.iterations=2", "--validate", videos, "--output", one)
    result = call("tiny-stage1", *FAST, *first)
    assert result.exit_code == 0, result.output
    assert "restoration: 2 of 2 iterations" in result.stderr
    result = call("tiny-stage2", *FAST, *data, "--from", one / "latest.pth", "--output", two)
    assert result.exit_code == 0, result.output
    assert "rbvsr-export" in result.stdout
    assert (one / "log.jsonl").read_text().count("validation_psnr") == 1

    bundle = tmp_path / "mine.plan"
    export_bundle(two / "latest.pth", bundle, precision="float32")
    assert open_bundle(bundle).manifest.model["mid_channels"] == 8
    frames = moving_clip(3, 24, 32)
    with Upscaler(bundle, device="cpu") as upscaler:
        outputs = np.stack(list(upscaler.frames(frames)))
    model = load_checkpoint(two / "model.safetensors").model
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 255
    with torch.no_grad():
        expected = model(tensor, cleanings=1)[0].clamp(0, 1).mul(255).round().permute(0, 2, 3, 1)
    assert np.abs(outputs.astype(int) - expected.numpy().astype(int)).max() <= 1


def test_presets_are_listed_and_printed() -> None:
    """--presets lists all of them, and --print shows the unchanged file."""
    result = call("--presets")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(PRESETS)
    result = call("tiny-stage2", "--print")
    assert result.exit_code == 0
    assert result.stdout == PRESETS["tiny-stage2"].read_text()


def test_wrong_usage(tmp_path: Path) -> None:
    """A missing recipe, a missing run folder and an unknown preset exit with code 2."""
    for arguments, message in (
        ((), "no recipe given"),
        (("tiny-stage1", "--data", tmp_path), "--output"),
        (("mine.toml", "--print"), "is not a preset"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert message in result.output


def test_errors_are_one_line(sources: tuple[Path, Path], tmp_path: Path) -> None:
    """Errors exit with code 1 and one sentence, before a checkpoint is written."""
    run = ("--output", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (("tiny-stage1", *run), "nothing to train on"),
        (
            ("tiny-stage1", *run, "--data", tmp_path / "empty"),
            "contains no videos, photographs or image folders",
        ),
        (("tiny-stage1", *run, "--data", tmp_path / "none"), "does not exist"),
        (("tiny-stage1", *run, "--data", sources[0], "--set", "data.crp=1"), "did you mean crop"),
        (("tiny-stage3", *run, "--data", sources[0]), "neither a .toml file nor a preset"),
        (("published-stage1", *run, "--data", sources[0]), "stay random"),
        (("tiny-stage1", "--output", __file__, "--data", sources[0]), "cannot be written"),
    ):
        result = call(*arguments)
        assert result.exit_code == 1, result.output
        assert message in result.stderr
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "run" / "latest.pth").exists()


def test_sources_are_found_in_a_folder(sources: tuple[Path, Path], tmp_path: Path) -> None:
    """Videos, photographs and image folders are found, also in the same folder."""
    photos, videos = sources
    assert [s.kind for s in find_sources(photos)] == ["photos"]
    assert [s.kind for s in find_sources(videos)] == ["videos"]
    assert [s.kind for s in find_sources(next(videos.iterdir()))] == ["videos"]
    shutil.copytree(photos, tmp_path / "all" / "000")
    shutil.copytree(videos, tmp_path / "all", dirs_exist_ok=True)
    assert [s.kind for s in find_sources(tmp_path / "all")] == ["videos", "frames"]
    with pytest.raises(MediaError, match="contains no videos"):
        find_sources(photos / "notes.txt")
