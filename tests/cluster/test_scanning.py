"""Tests that pieces of an input, read by several workers, give the index of a single pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from rbvsr_deploy.cluster import scanning
from rbvsr_deploy.cluster.index import FrameIndex, scan
from rbvsr_deploy.cluster.messages import Done, FromWorker, Scanned, ScanTask, Setup
from rbvsr_deploy.cluster.scanning import joined, scan_together
from rbvsr_deploy.cluster.scheduler import Scheduler
from rbvsr_deploy.cluster.worker import Worker
from rbvsr_deploy.runtime.scenes import SceneCuts
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.video import ReadOptions, open_source
from tests.cluster.conftest import make_clip
from tests.support.cluster_worker import open_double
from tests.support.media import remux


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clip of 300 frames whose last frames before some key frames refer to later ones."""
    lengths = [7, 30, 1, 62, 50, 20, 80, 50]
    return make_clip(tmp_path_factory.mktemp("scan") / "clip.mp4", lengths)


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "PIECE", 60)


class _Here(Scheduler):
    """Does tasks one after the other in this process."""

    def __init__(self, model: Path) -> None:
        self.numbers = iter(range(1, 100))  # type: ignore[assignment]
        self.answers: list[FromWorker] = []
        setup = Setup(model, "cpu", trust_engines=False, settings=Settings())
        self._worker = Worker(setup, self.answers.append, open_engine=open_double)

    def run(self, items: Any, *, done: Any, failed: Any, what: str = "frames") -> None:
        for item in items:
            self._worker.run(item.task)
            answer = self.answers[-1]
            assert isinstance(answer, Done), answer
            done(item, answer)


def together(path: Path, model: Path, cuts: SceneCuts, **options: Any) -> FrameIndex | None:
    reading = ReadOptions(**options)
    with open_source(path, reading) as source:
        return scan_together(source, cuts, path=path, reading=reading, scheduler=_Here(model))


def single(path: Path, cuts: SceneCuts) -> FrameIndex:
    with open_source(path) as source:
        return scan(source, cuts, progress=lambda frames: None)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_index_of_a_single_pass(suffix: str, clip: Path, model: Path, tmp_path: Path) -> None:
    path = clip if suffix == clip.suffix else remux(clip, tmp_path / f"clip{suffix}")
    found = together(path, model, SceneCuts(None, detect=True))
    assert found == single(path, SceneCuts(None, detect=True))
    assert found is not None
    assert len(found.cuts) >= 5


@pytest.mark.slow
def test_given_cuts_are_kept(clip: Path, model: Path, tmp_path: Path) -> None:
    """Those after the end do not count, as in a single pass."""
    (tmp_path / "cuts.txt").write_text("0\n50\n299\n300\n4000\n")
    cuts = SceneCuts(tmp_path / "cuts.txt", detect=True)
    found = together(clip, model, cuts)
    assert found == single(clip, SceneCuts(tmp_path / "cuts.txt", detect=True))
    assert found is not None
    assert found.cuts == [50, 299]


@pytest.mark.parametrize("options", [{"deinterlace": True}, {"frames": 250}])
def test_what_depends_on_a_whole_pass_is_left_to_one(
    options: dict[str, Any], clip: Path, model: Path
) -> None:
    assert together(clip, model, SceneCuts(None, detect=True), **options) is None


def test_pieces_that_do_not_fit_are_refused(clip: Path, model: Path) -> None:
    """Other frames, other times, a gap or damage: a single pass has to decide."""
    here = _Here(model)
    pieces = []
    for begin, stop in ((None, 60_000), (30_000, 120_000)):
        task = ScanTask(1, clip, ReadOptions(), begin, stop, detect=True, keeps_captions=False)
        here._worker.run(task)
        answer = here.answers[-1]
        assert isinstance(answer, Done)
        assert answer.scanned is not None
        pieces.append(answer.scanned)
    first, second = pieces
    assert joined(pieces, given=None) is not None
    for change in (
        {"sums": bytes(4) + second.sums[4:]},
        {"stamps": second.stamps[8:], "sums": second.sums[8:]},
        {"stamps": second.stamps[:8] * 40 + second.stamps[320:]},
        {"is_regular": False},
        {"stamps": second.stamps[8 * 35 :], "sums": second.sums[4 * 35 :]},
    ):
        assert joined([first, msgspec.structs.replace(second, **change)], given=None) is None
    assert isinstance(first, Scanned)
