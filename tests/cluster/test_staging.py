"""Tests workers that see neither the input nor the job folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from rbvsr_deploy.cluster import film, staging
from rbvsr_deploy.cluster.messages import Part
from rbvsr_deploy.cluster.staging import StagedInput, write_part
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video import Source, open_source
from tests.cluster.conftest import alone, make_clip, shared
from tests.support.media import remux


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clip of 300 frames that is large enough to be sent in parts."""
    lengths = [30, 62, 50, 28, 80, 50]
    return make_clip(tmp_path_factory.mktemp("stage") / "clip.mp4", lengths)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "WHOLE", 0)
    monkeypatch.setattr(staging, "PIECE", 5000)
    monkeypatch.setattr(staging, "MARGIN", 3000)
    monkeypatch.setattr(staging, "_FRAMES", 20)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_parts_of_the_input_are_enough(
    suffix: str, clip: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output is that of one process, no unit is tried twice, and nothing is left anywhere."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    path = clip if suffix == clip.suffix else remux(clip, tmp_path / f"clip{suffix}")
    sent: list[int] = []
    send = StagedInput.send

    def count(self: StagedInput, number: int, ranges: list[tuple[int, int]], to: Any) -> None:
        sent.append(sum(stop - start for start, stop in ranges))
        send(self, number, ranges, to)

    monkeypatch.setattr(StagedInput, "send", count)
    lines: list[str] = []
    alone(path, tmp_path / "one.mp4")
    summary = shared(path, tmp_path / "two.mp4", model=model, stage=True, report=lines.append)
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert [worker.retries for worker in summary.workers] == [0, 0], lines
    assert min(sent) < path.stat().st_size
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / ".two.mp4.job").exists()


@pytest.mark.slow
def test_a_part_that_is_not_enough(
    clip: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole input is sent after a failure."""
    ranges = StagedInput.ranges
    monkeypatch.setattr(
        StagedInput,
        "ranges",
        lambda self, first, last, *, whole: (
            ranges(self, first, last, whole=True) if whole else [(0, 100)]
        ),
    )
    lines: list[str] = []
    alone(clip, tmp_path / "one.mp4")
    summary = shared(clip, tmp_path / "two.mp4", model=model, stage=True, report=lines.append)
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert sum(worker.retries for worker in summary.workers) >= 1
    assert any("trying again" in line for line in lines)


def test_ranges_are_within_the_file(clip: Path) -> None:
    """They increase, do not touch, and are smaller in the middle of a file than all of it."""
    staged = StagedInput(clip, allow_playlists=False)
    assert staged.ranges(0, 1, whole=True) == [(0, staged.size)]
    with open_source(clip) as source:
        assert isinstance(source, Source)
        stamps = [frame.pts for frame in source]
    for first in (0, 100, 299):
        assert stamps[first] is not None
        ranges = staged.ranges(stamps[first] or 0, stamps[first] or 0, whole=False)
        flat = [offset for pair in ranges for offset in pair]
        assert flat == sorted(set(flat))
        assert (flat[0], flat[-1]) == (0, staged.size)


@pytest.mark.parametrize(
    ("folder", "file"),
    [("../other", "part-000001.json"), ("1-1", "../part-000001.json"), ("1-1", "job.json")],
)
def test_a_worker_names_no_other_file(folder: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="which no unit has"):
        write_part(tmp_path, Part(1, folder, file, b"data"))
    assert list(tmp_path.iterdir()) == []
