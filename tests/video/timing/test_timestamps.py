"""Timestamps: kept where they are plausible, repaired where they are not."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest

from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.timing.timestamps import Clock
from tests.support import media
from tests.support.sinks import copy_video

TICK = Fraction(1, 1000)


@dataclass
class Decoded:
    """Stands in for a decoded frame, of which only the times matter."""

    pts: int | None
    dts: int | None = None


def given(
    stamps: Sequence[int | None],
    *,
    dts: list[int | None] | None = None,
) -> list[int]:
    """Return the stamps that a clock assigns to these frames, in milliseconds at 25 fps."""
    clock = Clock(Path("a.mp4"), time_base=TICK, rate=Fraction(25))
    frames: list[Any] = [
        Decoded(*times) for times in zip(stamps, dts or [None] * len(stamps), strict=True)
    ]
    found = list(clock.read(frames))
    clock.report()
    assert [frame for frame, _ in found] == frames
    return [stamp for _, stamp in found]


def test_stamps_that_increase_are_not_touched(caplog: pytest.LogCaptureFixture) -> None:
    """Gaps of a minute, times before 0 and distances of one tick are all kept."""
    stamps = [-80, -79, 3, 40, 60_040, 60_041, 60_100]
    assert given(stamps) == stamps
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("stamps", "expected", "count"),
    [
        pytest.param([0, 40, 40, 120], [0, 40, 80, 120], 1, id="twice"),
        pytest.param([0, 40, 40, 41], [0, 40, 41, 42], 2, id="no room"),
        pytest.param([0, 40, 40, 40, 100], [0, 40, 60, 80, 100], 2, id="three times, close"),
        pytest.param([0, 40, 10, 120], [0, 40, 80, 120], 1, id="backwards"),
        pytest.param([0, None, None, 120], [0, 40, 80, 120], 2, id="missing"),
        pytest.param([0, None, 1000], [0, 40, 1000], 1, id="missing before a gap"),
        pytest.param([None, None, 500, 540], [420, 460, 500, 540], 2, id="missing at first"),
        pytest.param([0, 40, None, None], [0, 40, 80, 120], 2, id="missing at last"),
    ],
)
def test_repaired_stamps_lie_between_their_neighbours(
    stamps: list[int | None], expected: list[int], count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """They follow at the average rate if there is room, else evenly; and they are counted."""
    assert given(stamps) == expected
    assert f"of a.mp4 that were missing or did not increase: {count};" in caplog.text


def test_decoding_times_replace_missing_presentation_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In AVI, the last frames leave the decoder after the last packet: nothing is repaired."""
    assert given([None] * 5, dts=[80, 120, 160, None, None]) == [80, 120, 160, 200, 240]
    assert caplog.text == ""


def test_without_any_stamps_the_rate_is_used(caplog: pytest.LogCaptureFixture) -> None:
    """This is the case for raw streams; there are more frames than are held at once."""
    assert given([None] * 30) == [40 * number for number in range(30)]
    assert "a.mp4 has no timestamps; its frames are shown at 25 per second" in caplog.text
    assert len(caplog.records) == 1


def test_stamps_always_increase(caplog: pytest.LogCaptureFixture) -> None:
    """With random stamps, every frame is returned once, in order, later than the previous one."""
    caplog.set_level(logging.CRITICAL)
    chance = random.Random(5)
    for _ in range(300):
        stamps: list[int | None] = []
        now = 0
        for _ in range(chance.randrange(1, 60)):
            now += chance.choice([40, 40, 40, 1, 0, -40, -500, 20_000, -20_000, 1_000_000])
            stamps.append(chance.choice([now, now, now, None]))
        found = given(stamps)
        assert all(a < b for a, b in pairwise(found))


def test_a_clock_that_wraps_around(tmp_path: Path) -> None:
    """The clock of transport streams wraps around at 2^33, every 26.5 hours."""
    stamps = [2**33 - 5 * 3003 + 3003 * number for number in range(12)]
    path = media.make_video(
        tmp_path / "in.ts",
        stamps=stamps,
        time_base=Fraction(1, 90000),
        options={"mpegts_copyts": "1"},
    )
    with open_source(path) as source:
        found = [frame.pts for frame in source]
    assert [b - a for a, b in pairwise(found)] == [3003] * 11


@pytest.mark.parametrize(("suffix", "codec"), [(".h264", "libx264"), (".m2v", "mpeg2video")])
def test_raw_streams_only_have_a_rate(
    tmp_path: Path, suffix: str, codec: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = media.make_video(
        tmp_path / f"in{suffix}",
        codec=codec,
        stamps=list(range(24)),
        time_base=Fraction(1, 25),
        rate=Fraction(25),
        b_frames=2,
    )
    with open_source(path) as source:
        times = [frame.pts * source.time_base for frame in source]
    assert [time - times[0] for time in times] == [Fraction(n, 25) for n in range(24)]


def test_delays_of_a_gif_are_kept(tmp_path: Path) -> None:
    """Every frame has its own delay, in hundredths of a second."""
    stamps = [0, 10, 12, 50, 57, 200]
    path = tmp_path / "in.gif"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("gif", rate=Fraction(100))
        stream.width, stream.height, stream.pix_fmt = 32, 16, "rgb8"
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(
                media.gradient(number, width=32, height=16), format="rgb24"
            ).reformat(format="rgb8")
            frame.pts, frame.time_base = stamp, Fraction(1, 100)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with open_source(path) as source:
        times = [frame.pts * source.time_base for frame in source]
    assert times == [Fraction(stamp, 100) for stamp in stamps]


def times(path: Path, kind: str) -> list[tuple[bytes, Fraction]]:
    """Return the payload and decoding time in seconds of all packets of a stream."""
    with av.open(str(path)) as container:
        (stream,) = (stream for stream in container.streams if stream.type == kind)
        packets = [packet for packet in container.demux(stream) if packet.size]
        return [(bytes(packet), packet.dts * packet.time_base) for packet in packets]


@pytest.mark.parametrize(
    "starts", [pytest.param((50, 9000), id="later"), pytest.param((9000, 50), id="earlier")]
)
@pytest.mark.parametrize("blocks", [19, 60], ids=["shorter audio", "longer audio"])
def test_audio_stays_in_sync_across_a_clock_reset(
    tmp_path: Path, starts: tuple[int, int], blocks: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Two transport streams with separate clocks are concatenated: each half stays in sync."""
    halves = []
    for number, start in enumerate(starts):
        half = media.make_video(
            tmp_path / f"{number}.ts",
            stamps=[start * 90000 + 3600 * n for n in range(25)],
            time_base=Fraction(1, 90000),
            rate=Fraction(25),
            audio="mp2",
            audio_blocks=blocks,
            options={"mpegts_copyts": "1"},
        )
        halves.append(half)
    path, out = tmp_path / "in.ts", tmp_path / "out.mkv"
    path.write_bytes(b"".join(half.read_bytes() for half in halves))
    copy_video(path, out)
    assert "jumps 1 times" in caplog.text
    shown = media.stamps_of(out)
    assert len(shown) == 50
    assert all(b - a == Fraction(40, 1000) for a, b in pairwise(shown))
    sound = times(out, "audio")
    assert all(a[1] < b[1] for a, b in pairwise(sound))
    seen = 0
    for number, half in enumerate(halves):
        shift = shown[25 * number] - media.stamps_of(half)[0]
        written = times(half, "audio")
        part = sound[: len(written)] if number == 0 else sound[len(times(halves[0], "audio")) :]
        # Audio that extends past the discontinuity replaces the audio that it overlaps.
        dropped = len(written) - len(part)
        assert 0 <= dropped <= (blocks - 19 if number else 0)
        for (data, time), (old, at) in zip(part, written[dropped:], strict=True):
            assert data == old
            assert abs(time - at - shift) <= Fraction(1, 1000)
        seen += len(part)
    assert seen == len(sound)


NTSC = [1001 * number for number in range(24)]


@pytest.mark.parametrize(
    ("suffix", "stamps", "time_base", "b_frames"),
    [
        pytest.param(".mp4", NTSC, Fraction(1, 30000), 2, id="mp4, B-frames, decoded before 0"),
        pytest.param(".mp4", [s + 20020 for s in NTSC], Fraction(1, 30000), 2, id="mp4, edit list"),
        pytest.param(".mov", [s + s % 999 for s in NTSC], Fraction(1, 90000), 2, id="mov, varying"),
        pytest.param(".mkv", [40 * n + n * n for n in range(24)], TICK, 2, id="mkv, varying"),
        pytest.param(".ts", [3003 * n + 90 for n in range(24)], Fraction(1, 90000), 2, id="ts"),
        pytest.param(".flv", [200 + 40 * n for n in range(24)], TICK, 2, id="flv"),
    ],
)
@pytest.mark.parametrize("late", [0, Fraction(1, 4)], ids=["", "late audio"])
def test_video_and_audio_keep_their_times(
    tmp_path: Path,
    suffix: str,
    stamps: list[int],
    time_base: Fraction,
    b_frames: int,
    late: int | Fraction,
) -> None:
    """Times are exact in MP4, where each track has its own time base, and within half a
    millisecond in Matroska, whose time base is a millisecond.
    """
    path = media.make_video(
        tmp_path / f"in{suffix}",
        stamps=stamps,
        time_base=time_base,
        rate=Fraction(25) if time_base == Fraction(1, 25) else Fraction(30000, 1001),
        b_frames=b_frames,
        audio="libmp3lame",
        audio_start=stamps[0] * time_base + late,
    )
    shown, sound = media.stamps_of(path), times(path, "audio")
    if suffix == ".ts":  # whose clock starts anywhere
        begin = min(shown[0], sound[0][1])
        shown = [stamp - begin for stamp in shown]
        sound = [(data, time - begin) for data, time in sound]
    with av.open(str(path)) as container:
        packets = [p.pts for p in container.demux(video=0) if p.size and p.pts is not None]
    assert (packets != sorted(packets)) is bool(b_frames)
    for out, tolerance in ((tmp_path / "out.mp4", 0), (tmp_path / "out.mkv", Fraction(1, 2000))):
        copy_video(path, out)
        found = media.stamps_of(out)
        assert len(found) == len(shown)
        assert max(abs(a - b) for a, b in zip(found, shown, strict=True)) <= tolerance
        copied = times(out, "audio")
        assert [data for data, _ in copied] == [data for data, _ in sound]
        slack = tolerance or Fraction(1, 96000)  # audio time bases differ between containers
        assert max(abs(a[1] - b[1]) for a, b in zip(copied, sound, strict=True)) <= slack


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frames_of_an_avi_have_the_times_of_its_packets(
    tmp_path: Path, codec: str, b_frames: int
) -> None:
    """AVI only has packet times: the first frame is due with the first packet, however many frames
    the decoder holds back, and audio starts with it.
    """
    path = media.make_video(
        tmp_path / "in.avi",
        codec=codec,
        stamps=list(range(24)),
        time_base=Fraction(1, 25),
        rate=Fraction(25),
        b_frames=b_frames,
        audio="libmp3lame",
    )
    out = tmp_path / "out.mp4"
    copy_video(path, out)
    assert media.stamps_of(out) == [Fraction(number, 25) for number in range(24)]
    assert times(out, "audio")[0][1] == 0
