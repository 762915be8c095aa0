"""A written file is compared with what was meant: muxers move and drop packets without an error."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.changes import Changes
from rbvsr_deploy.video.staging.read_back import Ledger
from tests.support import media
from tests.support.sinks import job_sink
from tests.support.streams import Sound, Text, write


def ledger_of(path: Path, container: str, *, change: Any = lambda packet: [packet]) -> Ledger:
    """Return the record of a file's packets, each replaced by what ``change`` makes of it."""
    ledger = Ledger(container)
    with av.open(str(path)) as file:
        for packet in file.demux():
            if packet.size:
                for changed in change(packet):
                    ledger.note(changed)
    return ledger


def check(ledger: Ledger, path: Path) -> list[str]:
    """Return the differences that are reported."""
    changes = Changes()
    ledger.check(path, name=Path("out"), changes=changes)
    return [f"{change.what}: {change.reason}" for change in changes.converted]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    lines = [(200, 300, "one"), (700, 300, "two")]
    return write(tmp_path / "in.mkv", Sound("aac"), Text("subrip", lines), codec="libx264")


def moved(kind: str, seconds: Fraction) -> Any:
    def change(packet: Any) -> list[Any]:
        if packet.stream.type == kind:
            packet.pts += round(seconds / packet.time_base)
        return [packet]

    return change


def test_a_file_as_it_was_meant(clip: Path) -> None:
    assert check(ledger_of(clip, "matroska"), clip) == []


@pytest.mark.parametrize("kind", ["audio", "subtitle"])
def test_a_stream_at_another_time_is_reported(clip: Path, kind: str) -> None:
    (line,) = check(ledger_of(clip, "matroska", change=moved(kind, Fraction(1, 2))), clip)
    assert line == f"{kind} track 1 of the output: its times are up to 0.500 s off"


def test_video_at_another_time_is_an_error(clip: Path) -> None:
    """All frames change, as where the clock of a broadcast is taken over, or a single one."""
    with pytest.raises(MediaError, match=r"its times are up to 40002\.000 s off; choose another"):
        check(ledger_of(clip, "matroska", change=moved("video", Fraction(40_002))), clip)


def test_missing_frames_are_an_error(clip: Path) -> None:
    """The file has fewer than were written."""
    extra: list[Any] = []

    def change(packet: Any) -> list[Any]:
        twice = packet.stream.type == "video" and not extra
        extra.extend([packet] if twice else [])
        return [packet, packet] if twice else [packet]

    ledger = ledger_of(clip, "matroska", change=change)
    with pytest.raises(MediaError, match=r"40 of its 41 packets can be read back"):
        check(ledger, clip)


def test_a_stream_that_is_not_there_is_reported(clip: Path, tmp_path: Path) -> None:
    silent = write(tmp_path / "silent.mkv", codec="libx264")
    found = check(ledger_of(clip, "matroska"), silent)
    assert [line.partition(" packets")[0] for line in found] == [
        "audio track 1 of the output: none of its 76",
        "subtitle track 1 of the output: none of its 2",
    ]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".flv", ".ts"])
@pytest.mark.parametrize("codec", ["aac", "pcm_s16le", "libmp3lame"])
def test_outputs_are_as_they_were_meant(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, codec: Any
) -> None:
    """No format gives a false alarm, whether the sound is copied or converted."""
    path = write(tmp_path / "in.mkv", Sound(codec), codec="libx264")
    with (
        open_source(path) as source,
        job_sink(
            tmp_path / f"out{suffix}", source=source, width=source.width, height=source.height
        ) as sink,
    ):
        for frame in source:
            sink.write(frame)
        sink.finish()
        assert [c for c in source.changes.converted if "of the output" in c.what] == []


def test_an_output_that_lost_a_frame_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the muxer had dropped one of four packets without an error."""
    path = media.make_video(tmp_path / "in.mkv", time_base=Fraction(1, 1000), stamps=[0, 40, 80])
    note = Ledger.note

    def one_more(ledger: Ledger, packet: Any) -> None:
        note(ledger, packet)
        if not packet.pts:
            note(ledger, packet)

    monkeypatch.setattr(Ledger, "note", one_more)
    with (
        open_source(path) as source,
        job_sink(tmp_path / "out.mkv", source=source, width=64, height=48) as sink,
    ):
        for frame in source:
            sink.write(frame)
        with pytest.raises(MediaError, match=r"out\.mkv is not written correctly: 3 of its 4"):
            sink.finish()
    assert not (tmp_path / "out.mkv").exists()
