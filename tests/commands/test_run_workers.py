"""Tests ``rbvsr-run --workers`` from the outside."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rbvsr_deploy.commands.run import run
from tests.conftest import short_clip


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(run, [str(a) for a in arguments])


@pytest.fixture
def clip(sample: Path, tmp_path: Path) -> Path:
    return short_clip(sample, tmp_path / "clip.mp4")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(), ("--height", 100, "--strength", 0.5)])
def test_the_file_of_one_process(
    size: tuple[object, ...], clip: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """A real network gives the same file in one process and in two workers with fewer threads."""
    common = (clip, "--engine", tiny_bundle, "--device", "cpu", *size)
    assert invoke(*common, "-o", tmp_path / "one.mp4").exit_code == 0
    result = invoke(*common, "-o", tmp_path / "two.mp4", "--workers", 2, "--json")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    summary = json.loads(result.stdout)
    assert [worker["name"] for worker in summary["workers"]] == ["worker 1", "worker 2"]
    assert sum(worker["frames"] for worker in summary["workers"]) == summary["frames"] == 6


@pytest.mark.slow
def test_a_list_is_one_queue(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Each input's failure is its own, and the same command then only does what is missing."""
    folder, broken = tmp_path / "out", tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:500])
    copies = [Path(shutil.copy(clip, tmp_path / f"{name}.mp4")) for name in ("a", "b")]
    common = (*copies, broken, "--engine", tiny_bundle, "--device", "cpu", "-o", folder)
    first = invoke(*common, "--workers", 2, "--json")
    assert first.exit_code == 1
    results = json.loads(first.stdout)
    assert [result.get("frames") for result in results] == [6, 6, None]
    assert "broken.mp4" in results[2]["error"]
    invoke(clip, "--engine", tiny_bundle, "--device", "cpu", "-o", tmp_path / "one.mp4")
    for copy in copies:
        output = folder / f"{copy.stem}_x4.mp4"
        assert output.read_bytes() == (tmp_path / "one.mp4").read_bytes()
    second = invoke(*common, "--workers", 2, "--json")
    assert second.exit_code == 1
    skipped = [result.get("skipped") for result in json.loads(second.stdout)]
    assert skipped[0].endswith("a_x4.mp4 is finished already")
    assert skipped[2] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-", "-o", "x.mp4", "--workers", "2"], "--workers cannot be combined with -: leave one"),
        (
            ["x.mp4", "--cluster", "auto", "--preview", "3"],
            "--cluster cannot be combined with --pre",
        ),
        (["x.mp4", "--workers", "0"], "0 is out of range"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_image_is_not_shared(tiny_bundle: Path, tmp_path: Path) -> None:
    """One sentence says what can be shared and names the option."""
    import numpy as np

    from rbvsr_deploy.video.images import write_image

    write_image(tmp_path / "image.png", image=np.zeros((8, 8, 3), np.uint8))
    options = ("--engine", tiny_bundle, "--device", "cpu", "--workers", 1)
    result = invoke(tmp_path / "image.png", *options)
    assert result.exit_code == 1
    assert "several workers share the work on a video" in result.stderr
    assert "(--workers, --cluster)" in result.stderr


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_a_cluster_needs_ray(clip: Path, tiny_bundle: Path) -> None:
    result = invoke(clip, "--engine", tiny_bundle, "--device", "cpu", "--cluster", "auto")
    assert result.exit_code == 1
    assert "pip install 'rbvsr-deploy[cluster]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1
