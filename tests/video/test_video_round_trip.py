"""Tests what a video must keep when it is enlarged by pixel repetition and written back."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rbvsr_deploy.video import default_output, open_source
from tests.support import media
from tests.support.sinks import job_sink


def enlarge(path: Path, out: Path, **options: Any) -> Path:
    """Copy a video through source and sink, four times as large."""
    with open_source(path) as source:
        size: dict[str, Any] = {"width": 4 * source.width, "height": 4 * source.height}
        with job_sink(out, source=source, **size, **options) as sink:
            for frame in source:
                image = frame.image.repeat(4, axis=0).repeat(4, axis=1)
                sink.write(dataclasses.replace(frame, image=image))
            sink.finish()
    return out


NTSC = [1001 * number for number in range(12)]
VARIABLE = [0, 1001, 2500, 2600, 9000, 9001, 15000, 30011, 30999, 31000, 40000, 41001]
FINE = Fraction(1, 90000)


@pytest.mark.parametrize(
    ("suffix", "stamps", "time_base", "b_frames"),
    [
        pytest.param(".mp4", NTSC, Fraction(1, 30000), 0, id="constant"),
        pytest.param(".mp4", VARIABLE, Fraction(1, 30000), 0, id="variable"),
        pytest.param(".mp4", VARIABLE, FINE, 2, id="variable, B-frames"),
        pytest.param(".mp4", [s + 12345 for s in NTSC], FINE, 2, id="late start, B-frames"),
        pytest.param(".mov", [s + 12345 for s in VARIABLE], FINE, 0, id="mov, late start"),
        pytest.param(".mkv", [33 * n for n in range(12)], Fraction(1, 1000), 2, id="mkv"),
        pytest.param(".mkv", [517 + n * n for n in range(12)], Fraction(1, 1000), 0, id="mkv late"),
        pytest.param(".webm", [41 * n + 7 for n in range(6)], Fraction(1, 1000), 0, id="webm"),
    ],
)
def test_time_stamps_are_equal(
    tmp_path: Path, suffix: str, stamps: list[int], time_base: Fraction, b_frames: int
) -> None:
    codec = "libvpx" if suffix == ".webm" else "libx264"
    path = media.make_video(
        tmp_path / f"in{suffix}",
        stamps=stamps,
        time_base=time_base,
        b_frames=b_frames,
        codec=codec,
        size=(32, 16) if suffix == ".webm" else (64, 48),
    )
    expected = [stamp * time_base for stamp in stamps]
    assert media.stamps_of(path) == expected
    assert media.stamps_of(enlarge(path, default_output(path))) == expected


def test_output_has_b_frames(tmp_path: Path) -> None:
    path = media.make_video(tmp_path / "in.mp4", stamps=[1001 * n for n in range(40)])
    out = enlarge(path, tmp_path / "out.mp4")
    with av.open(str(out)) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.dts is not None]
    assert any(packet.pts != packet.dts for packet in packets)


@pytest.mark.parametrize("container", [".ts", ".mkv", ".mp4"])
def test_transport_stream_keeps_its_clock(tmp_path: Path, container: str) -> None:
    """In another transport stream; elsewhere 0 is the beginning."""
    stamps = [126000 + 3003 * number for number in range(12)]
    path = media.make_video(
        tmp_path / "in.ts", stamps=stamps, time_base=FINE, options={"mpegts_copyts": "1"}
    )
    found = media.stamps_of(enlarge(path, tmp_path / f"out{container}"))
    tolerance = Fraction(1, 2000) if container == ".mkv" else 0  # Matroska counts milliseconds
    begin = 0 if container == ".ts" else media.stamps_of(path)[0]
    expected = [stamp - begin for stamp in media.stamps_of(path)]
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= tolerance


def test_shift_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """FLV has no negative timestamps: with B-frames, everything shifts together with a warning."""
    path = media.make_video(tmp_path / "in.mp4", audio="aac")
    out = enlarge(path, tmp_path / "out.flv")
    shifts = [b - a for a, b in zip(media.stamps_of(path), media.stamps_of(out), strict=True)]
    assert max(shifts) - min(shifts) <= Fraction(1, 1000)
    assert f"are {float(shifts[0]):.3f} s later" in caplog.text


def test_frame_rate_is_kept(tmp_path: Path) -> None:
    path = media.make_video(
        tmp_path / "in.mkv",
        rate=Fraction(50),
        stamps=list(range(0, 240, 20)),
        time_base=Fraction(1, 1000),
    )
    with av.open(str(enlarge(path, tmp_path / "out.mkv"))) as container:
        assert container.streams.video[0].average_rate == 50


def test_avi_keeps_constant_rate(tmp_path: Path) -> None:
    path = media.make_video(
        tmp_path / "in.avi", stamps=list(range(8)), time_base=Fraction(1, 25), rate=Fraction(25)
    )
    out = enlarge(path, tmp_path / "out.avi")
    with open_source(path) as source, open_source(out) as back:
        assert [f.pts * source.time_base for f in source] == [f.pts * back.time_base for f in back]


def test_durations_survive(tmp_path: Path) -> None:
    """The last frame has no successor to end it, so its duration must be stored."""
    path = media.make_video(tmp_path / "in.mkv", stamps=[0, 40], time_base=Fraction(1, 1000))
    with (
        open_source(path) as source,
        job_sink(tmp_path / "out.mp4", source=source, width=64, height=48) as sink,
    ):
        for number, frame in enumerate(source):
            sink.write(dataclasses.replace(frame, duration=500 if number else 40))
        sink.finish()
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == Fraction(540, 1000)


def test_first_and_last_frames_are_kept(tmp_path: Path) -> None:
    path = media.make_video(tmp_path / "in.mp4", b_frames=2)
    before = media.frames_of(path)
    after = media.frames_of(enlarge(path, tmp_path / "out.mp4", crf=1))
    assert len(after) == len(before) == 12
    for small, large in zip(before, after, strict=True):
        shrunk = large.reshape(48, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.abs(shrunk - small).mean() < 2.5


@pytest.mark.parametrize(
    ("suffix", "audio"),
    [
        (".mp4", "aac"),
        (".mov", "pcm_s16le"),
        (".mkv", "aac"),
        (".mkv", "flac"),
        (".webm", "libopus"),
    ],
)
def test_audio_is_copied_bit_for_bit(tmp_path: Path, suffix: str, audio: str) -> None:
    path = media.make_video(
        tmp_path / f"in{suffix}",
        audio=audio,
        codec="libvpx" if suffix == ".webm" else "libx264",
        size=(32, 16),
        stamps=[40 * number for number in range(6)],
        time_base=Fraction(1, 1000),
        metadata={"title": "Été"},
    )
    out = enlarge(path, default_output(path))
    (sound,) = media.companions_of(path)
    assert sound.kind == "audio"
    assert len(sound.packets) > 5
    assert media.companions_of(out) == [sound]
    with av.open(str(out)) as container:
        assert container.metadata["title"] == "Été"


def test_audio_stays_in_sync_with_a_late_video(tmp_path: Path) -> None:
    """The audio starts before the video, as in recordings that were cut."""
    path = media.make_video(
        tmp_path / "in.mp4", audio="aac", stamps=[s + 20007 for s in VARIABLE], time_base=FINE
    )
    out = enlarge(path, tmp_path / "out.mp4")
    assert media.companions_of(out) == media.companions_of(path)
    assert media.stamps_of(out) == media.stamps_of(path)


def test_subtitles_and_chapters_are_copied(tmp_path: Path) -> None:
    path = media.make_video(
        tmp_path / "in.mkv", audio="aac", subtitles="subrip", chapters=True, time_base=FINE
    )
    out = enlarge(path, tmp_path / "out.mkv")
    kinds = [(c.kind, c.language, len(c.packets)) for c in media.companions_of(out)]
    assert ("subtitle", "deu", 2) in kinds
    assert media.companions_of(out) == media.companions_of(path)
    with av.open(str(path)) as before, av.open(str(out)) as after:
        titles = [chapter["metadata"]["title"] for chapter in after.chapters()]
        assert titles == ["one", "two"]
        spans = [[(c["start"], c["end"]) for c in f.chapters()] for f in (before, after)]
        assert spans[0] == spans[1]


def test_attachments_are_copied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "in.mkv"
    plain = media.make_video(tmp_path / "plain.mkv")
    font = bytes(range(256))
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        target.add_attachment("font.ttf", "application/x-truetype-font", font)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    with av.open(str(enlarge(path, tmp_path / "out.mkv"))) as container:
        (attachment,) = container.streams.attachments
        assert (attachment.name, attachment.data) == ("font.ttf", font)
    enlarge(path, tmp_path / "out.mp4")
    assert "Dropped: attachment stream 1 (font.ttf)" in caplog.text


def test_aspect_ratio_is_kept(tmp_path: Path) -> None:
    path = media.make_video(tmp_path / "in.mp4", aspect=Fraction(16, 15))
    with av.open(str(enlarge(path, tmp_path / "out.mp4"))) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 15)


@pytest.mark.slow
def test_streams_are_interleaved(tmp_path: Path) -> None:
    """Audio and video are close together in the file, or players stall and memory fills up."""
    path = media.make_video(
        tmp_path / "in.mkv",
        audio="aac",
        audio_blocks=1400,
        stamps=list(range(0, 30_000, 250)),
        time_base=Fraction(1, 1000),
        size=(16, 16),
    )
    out = enlarge(path, tmp_path / "out.mkv")
    latest = {"video": 0.0, "audio": 0.0}
    with av.open(str(out)) as container:
        for packet in container.demux():
            if packet.dts is not None:
                latest[packet.stream.type] = float(packet.pts * packet.time_base)
                # B-frames are shown up to two frames before the frame they follow in the file.
                assert abs(latest["video"] - latest["audio"]) < 1.5
    assert min(latest.values()) > 28


def test_audio_before_zero_shifts_nothing(tmp_path: Path) -> None:
    """AAC starts with a block before time 0, which must not delay the video."""
    path = media.make_video(
        tmp_path / "in.mp4", audio="aac", stamps=[0, 40, 80], time_base=Fraction(1, 1000)
    )
    assert media.companions_of(path)[0].packets[0][1] < 0
    out = enlarge(path, tmp_path / "out.mkv")
    assert media.stamps_of(out) == media.stamps_of(path)
    for (data, time), (copy, moved) in zip(
        media.companions_of(path)[0].packets, media.companions_of(out)[0].packets, strict=True
    ):
        assert data == copy
        assert abs(time - moved) <= Fraction(1, 2000)
