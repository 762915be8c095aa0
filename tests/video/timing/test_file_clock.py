"""Packets are put on one clock; jumps, pauses and wrong times are distinguished by all streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest

from rbvsr_deploy.video.timing.file_clock import FileClock
from tests.support import media
from tests.support.sinks import copy_video

MS = Fraction(1, 1000)
FRAME = 40


@dataclass(eq=False)
class Stream:
    """Stands in for a stream, of which only kind and start matter."""

    index: int
    type: str
    start_time: int | None = None
    time_base: Fraction = MS
    disposition: int = 0


@dataclass(eq=False)
class Packet:
    """Stands in for a packet; times are in milliseconds."""

    stream: Any
    dts: int | None
    duration: int = FRAME
    size: int = 1
    time_base: Fraction = MS
    pts: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.pts = self.dts


VIDEO, AUDIO, TEXT = Stream(0, "video"), Stream(1, "audio"), Stream(2, "subtitle")


def placed(
    *packets: tuple[Stream, Sequence[int]], name: str = "mpegts", flags: int = 0x200
) -> tuple[dict[str, list[int | None]], FileClock]:
    """Return the times that packets get, by kind of stream; they follow each other as given."""
    rows = [Packet(stream, stamp) for stream, stamps in packets for stamp in stamps]

    def demux(streams: list[Stream]) -> Iterator[Packet]:
        yield from (row for row in rows if row.stream in streams)

    container: Any = SimpleNamespace(
        streams=[VIDEO, AUDIO, TEXT], demux=demux, format=SimpleNamespace(name=name, flags=flags)
    )
    clock = FileClock(container)
    found: dict[str, list[int | None]] = {"video": [], "audio": [], "subtitle": []}
    wanted: Any = container.streams
    for packet in clock.packets(wanted):
        found[packet.stream.type].append(packet.pts)
    return found, clock


def steps(start: int, count: int) -> list[int]:
    return [start + FRAME * number for number in range(count)]


@pytest.mark.parametrize("second", [5_000_000, 0, 1_000_000])
def test_recordings_joined_without_a_gap(second: int) -> None:
    """The second one's clock is later, earlier, or the same again."""
    found, clock = placed((VIDEO, steps(1_000_000, 20)), (VIDEO, steps(second, 20)))
    assert found["video"] == steps(1_000_000, 40)
    assert clock.jumps == 1


def test_streams_follow_the_jump_together() -> None:
    """The last audio of the first recording comes after the first frame of the second."""
    found, clock = placed(
        (VIDEO, steps(0, 20)),
        (AUDIO, steps(0, 19)),
        (VIDEO, steps(900_000, 2)),
        (AUDIO, [19 * FRAME, 900_000]),
        (VIDEO, steps(900_000 + 2 * FRAME, 18)),
        (AUDIO, steps(900_000 + FRAME, 19)),
    )
    assert clock.jumps == 1
    assert found == {"video": steps(0, 40), "audio": steps(0, 40), "subtitle": []}


@pytest.mark.parametrize("pausing", [VIDEO, AUDIO])
@pytest.mark.parametrize("early", [False, True], ids=["in order", "far ahead in the file"])
def test_a_pause_of_one_stream_is_not_a_jump(pausing: Stream, early: bool) -> None:
    """A slide show pauses for 15 s while its audio continues: both keep their times."""
    other = AUDIO if pausing is VIDEO else VIDEO
    long = steps(0, 400)
    after = (pausing, steps(15_400, 10))
    before, rest = (other, long[:12]), (other, long[12:])
    middle = (after, rest) if early else (rest, after)
    found, clock = placed((pausing, steps(0, 10)), before, *middle)
    assert clock.jumps == 0
    assert found[pausing.type] == [*steps(0, 10), *steps(15_400, 10)]
    assert found[other.type] == long


def test_a_pause_of_everything_is_a_jump() -> None:
    """As in FFmpeg's tools, a gap of more than ten seconds in all streams of a broadcast."""
    found, clock = placed(
        (VIDEO, steps(0, 10)), (AUDIO, steps(0, 10)), (VIDEO, steps(60_000, 10)),
        (AUDIO, steps(60_000, 10)),
    )  # fmt: skip
    assert clock.jumps == 1
    assert found["video"] == found["audio"] == steps(0, 20)


@pytest.mark.parametrize("outlier", [90_000_000, -90_000_000])
def test_a_single_wrong_time_is_left_to_be_repaired(outlier: int) -> None:
    found, clock = placed((VIDEO, [0, 40, outlier, 120, 160]))
    assert clock.jumps == 0
    assert found["video"] == [0, 40, None, 120, 160]


def test_other_formats_have_pauses_but_can_go_back() -> None:
    """A minute without a frame is a minute; a clock that starts again continues."""
    found, clock = placed(
        (VIDEO, [*steps(0, 3), *steps(60_000, 3), *steps(0, 3)]), name="matroska,webm", flags=0
    )
    assert clock.jumps == 1
    assert found["video"] == [*steps(0, 3), *steps(60_000, 6)]


def test_a_clock_of_milliseconds_that_wraps() -> None:
    """FLV holds times before 0 as 2^31 milliseconds: nothing pauses for 25 days."""
    late = 2**31 + FRAME
    found, clock = placed(
        (AUDIO, [0]), (AUDIO, steps(late, 10)), (VIDEO, steps(late, 10)), name="flv", flags=0
    )
    assert clock.jumps == 1
    assert found["audio"] == steps(0, 11)
    assert found["video"] == steps(FRAME, 10)


def test_subtitles_follow_the_nearest_clock() -> None:
    found, _ = placed(
        (VIDEO, steps(0, 20)), (TEXT, [400]), (VIDEO, steps(900_000, 20)), (TEXT, [900_200])
    )
    assert found["subtitle"] == [400, 1_000]


@pytest.mark.parametrize(
    ("starts", "flags", "origin"),
    [
        ((40_000_400, 40_000_377), 0x200, Fraction(40_000_377, 1000)),
        ((-20_700, -20_741), 0x200, Fraction(-20_741, 1000)),  # wrapped 20 s after the start
        ((400, 377), 0, 0),  # a late start stays late
        ((40_000_400, 40_000_377), 0, Fraction(40_000_377, 1000)),
        ((0, -23), 0, 0),  # the priming of an audio encoder
        ((0, -500), 0, Fraction(-1, 2)),  # sound that is heard before the first frame
    ],
)
def test_beginning_of_a_file(
    starts: tuple[int, int], flags: int, origin: Fraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VIDEO, "start_time", starts[0])
    monkeypatch.setattr(AUDIO, "start_time", starts[1])
    _, clock = placed((VIDEO, steps(starts[0], 3)), (AUDIO, steps(starts[1], 3)), flags=flags)
    assert clock.origin == origin


def test_what_an_edit_list_hides_is_before_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VIDEO, "start_time", 0)
    monkeypatch.setattr(AUDIO, "start_time", -500)
    _, clock = placed((VIDEO, steps(0, 3)), (AUDIO, steps(-500, 3)), name="mov,mp4", flags=0)
    assert clock.origin == 0


@pytest.mark.parametrize("suffix", [".ts", ".vob", ".mpg"])
@pytest.mark.parametrize("out", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".flv"])
def test_outputs_begin_at_zero(tmp_path: Path, suffix: str, out: str) -> None:
    """The clock of a broadcast starts anywhere: a clip of a second is a second long elsewhere."""
    start = 40_000 if suffix == ".ts" else 20_000
    path = media.make_video(
        tmp_path / f"in{suffix}",
        codec="mpeg2video",
        stamps=[start * 25 + n for n in range(25)],
        time_base=Fraction(1, 25),
        rate=Fraction(25),
        audio="mp2",
        audio_blocks=42,
        options={"mpegts_copyts": "1"} if suffix == ".ts" else {},
    )
    before = media.stamps_of(path)
    assert before[0] > 10_000
    result = tmp_path / f"out{out}"
    copy_video(path, result)
    shown = media.stamps_of(result)
    assert len(shown) == 25
    assert 0 <= shown[0] < Fraction(1, 10)
    with av.open(str(result)) as container:
        assert container.duration < 1_200_000
        sound = [p.pts * p.time_base for p in container.demux(audio=0) if p.size]
    off = (sound[0] - shown[0]) - (_first_sound(path) - before[0])
    # FFmpeg shows the frames of such an AVI one too late, and it has no finer times than frames.
    assert abs(off) < (Fraction(2, 25) if out == ".avi" else Fraction(1, 25))


def _first_sound(path: Path) -> Fraction:
    with av.open(str(path)) as container:
        return next(Fraction(p.pts * p.time_base) for p in container.demux(audio=0))


@pytest.mark.parametrize("out", [".mp4", ".mkv"])
def test_a_clock_that_wraps_in_the_middle(tmp_path: Path, out: str) -> None:
    """Half of the frames are before 2^33 ticks, half after: all are shown, from 0 on."""
    path = media.make_video(
        tmp_path / "in.ts",
        stamps=[2**33 - 12 * 3600 + 3600 * n for n in range(24)],
        time_base=Fraction(1, 90_000),
        rate=Fraction(25),
        audio="mp2",
        audio_blocks=40,
        options={"mpegts_copyts": "1"},
    )
    copy_video(path, tmp_path / f"out{out}")
    shown = media.stamps_of(tmp_path / f"out{out}")
    assert len(shown) == 24
    assert 0 <= shown[0] < Fraction(1, 10)
    assert shown[-1] - shown[0] == Fraction(23, 25)
