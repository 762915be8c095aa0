"""Tests that units begin and end where a single process ends its segments."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from rbvsr_deploy.cluster.units import Unit, units_of
from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.jobs.segments import segment_ends
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.runtime.scenes import write_scene_list
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.video.images import write_image
from rbvsr_deploy.video.staging.parts import read_records
from tests.support.engine_doubles import ArithmeticEngine

FRAMES = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of one-pixel images."""
    folder = tmp_path_factory.mktemp("units") / "in"
    folder.mkdir()
    for i in range(FRAMES):
        write_image(folder / f"{i:03}.png", image=np.full((1, 1, 3), i, np.uint8))
    return folder


def test_units_are_as_small_as_possible() -> None:
    """A unit ends where a scene and a segment end together, and nowhere else."""
    units = units_of(70, [6, 10, 40, 45, 46], settings=Settings())
    assert units == [Unit(0, 6), Unit(6, 40), Unit(40, 45), Unit(45, 70)]
    assert units_of(70, [], settings=Settings()) == [Unit(0, 70)]
    assert units_of(0, [], settings=Settings()) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", [Settings(), Settings(lookahead=2), Settings(max_scene=10)])
def test_segments_end_where_those_of_a_run_do(
    seed: int, settings: Settings, folder: Path, tmp_path: Path
) -> None:
    """A run's segments, and the units from any of them on, are those computed from its scenes."""
    chosen = random.Random(seed)
    cuts = sorted(chosen.sample(range(1, FRAMES), 12))
    write_scene_list(tmp_path / "cuts.txt", cuts)
    upscale_file(
        folder,
        tmp_path / "out",
        engine=ArithmeticEngine(),
        scene_list=tmp_path / "cuts.txt",
        settings=settings,
        keep_job=True,
    )
    lengths = [record.frames for record in read_records(tmp_path / ".out.job")]
    found = list(itertools.accumulate(lengths))
    computed = [end for end, _ in segment_ends([*cuts, FRAMES])]
    assert found == computed + [FRAMES] * (computed[-1] != FRAMES)
    whole = units_of(FRAMES, cuts, settings=settings)
    for done in found[:-1]:
        rest = units_of(FRAMES, cuts, settings=settings, done=done)
        assert (rest[0].first, rest[-1].stop) == (done, FRAMES)
        assert set(rest[1:]) <= set(whole)


def test_without_lookahead_there_is_one_unit() -> None:
    """Frames leave before the end of their scene is known, so no segment ends there."""
    assert units_of(70, [20, 40], settings=Settings(lookahead=0)) == [Unit(0, 70)]


def test_unfinished_work_of_other_parts_is_refused() -> None:
    with pytest.raises(RbvsrError, match="ends with frame 7, where no part of this input ends"):
        units_of(70, [20, 40], settings=Settings(), done=7)
