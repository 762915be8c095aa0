"""Tests ``rbvsr-run`` with ``--start``, ``--end`` and ``--frames``."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from rbvsr_deploy.commands.run import run
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.video import ReadOptions
from rbvsr_deploy.video.images import write_image
from tests.conftest import short_clip
from tests.support import media
from tests.support.engine_doubles import ArithmeticEngine


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(run, [str(a) for a in arguments])


@pytest.fixture
def clip(sample: Path, tmp_path: Path) -> Path:
    return short_clip(sample, tmp_path / "clip.mp4", frames=30)


def test_audio_stays_in_sync(clip: Path, tiny_bundle: Path) -> None:
    """An excerpt begins at 0 with the first frame at --start or later; every audio packet keeps its
    offset to the video.
    """
    out = clip.with_name("out.mp4")
    options = ("--start", "0:00.4", "--end", 0.7, "--engine", tiny_bundle, "--device", "cpu")
    result = invoke(clip, "-o", out, *options, "--json")
    assert result.exit_code == 0, result.output
    times = media.stamps_of(clip)
    expected = [time for time in times if Fraction(4, 10) <= time - times[0] < Fraction(7, 10)]
    assert len(expected) >= 8
    shift = expected[0]
    assert media.stamps_of(out) == [time - shift for time in expected]
    summary = json.loads(result.stdout)
    assert summary["frames"] == len(expected)
    assert summary["excerpt"] == {"start": 0.4, "end": 0.7}
    (before,), (after,) = media.companions_of(clip), media.companions_of(out)
    placed = dict(before.packets)
    assert len(after.packets) >= 10
    for data, time in after.packets:
        assert abs(time - (placed[data] - shift)) <= Fraction(1, 48000)
    covered = [time for _, time in after.packets]
    assert covered[0] <= Fraction(1024, 44100)
    assert covered[-1] >= expected[-1] - shift - Fraction(1024, 44100)


def test_the_summary_names_the_range(clip: Path, tiny_bundle: Path) -> None:
    out = clip.with_name("still.png")
    options = ("--start", 0.5, "--frames", 1, "--engine", tiny_bundle, "--device", "cpu")
    result = invoke(clip, "-o", out, *options)
    assert result.exit_code == 0, result.output
    assert "from 0.5 s, at most 1 frame, 1 dropped;" in result.stdout  # its audio
    assert out.exists()


@pytest.mark.slow
def test_an_interrupted_excerpt_resumes(tmp_path: Path) -> None:
    """From the last finished segment, with the frames of the same range."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(400):
        write_image(folder / f"{number:03}.png", image=np.full((1, 1, 3), number % 251, np.uint8))
    reading = ReadOptions(start=Fraction(4), end=Fraction(12))
    whole = upscale_file(folder, tmp_path / "whole", engine=ArithmeticEngine(), reading=reading)
    assert whole.frames == 200

    class Stops(ArithmeticEngine):
        def run(self, graph: str, **arguments: object) -> tuple[object, ...]:
            if graph == "forward" and self.items["forward"] == 150:
                raise KeyboardInterrupt
            return super().run(graph, **arguments)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        upscale_file(folder, out, engine=Stops(), reading=reading)
    summary = upscale_file(folder, out, engine=ArithmeticEngine(), reading=reading)
    assert (summary.resumed_frames, summary.frames) == (120, 200)
    names = [path.name for path in sorted(out.iterdir())]
    assert names == [f"{number}.png" for number in range(100, 300)]
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--start", 100), 1, "s long, but the excerpt starts at 100 s: start earlier"),
        (("--start", 2, "--end", 1), 1, "from 2 s to 1 s is empty"),
        (("--start", "1:99"), 2, "is not a valid time: use seconds such as 12.5"),
        (("--end", "-1"), 2, "is not a valid time"),
        (("--start", "9" * 30), 2, "is not a valid time"),
        (("--frames", 0), 2, "--frames"),
    ],
)
def test_invalid_ranges(options: tuple[object, ...], code: int, words: str, clip: Path) -> None:
    """One sentence before any work, and nothing is written."""
    result = invoke(clip, *options, "--device", "cpu")
    assert result.exit_code == code
    assert words in result.stderr
    assert "Memory:" not in result.stderr
    assert sorted(clip.parent.iterdir()) == [clip]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12.5", Fraction(25, 2)),
        (".5", Fraction(1, 2)),
        ("90", Fraction(90)),
        ("1:30", Fraction(90)),
        ("61:00.001", 3660 + Fraction(1, 1000)),
        ("1:02:03.25", 3723 + Fraction(1, 4)),
        ("01:02:03", Fraction(3723)),
    ],
)
def test_times(text: str, seconds: Fraction) -> None:
    """Parsed exactly, in all forms."""
    (option,) = (option for option in run.params if option.name == "start")
    assert option.process_value(click.Context(run), text) == seconds
