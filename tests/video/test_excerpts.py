"""Excerpts: exactly the frames between two times, as if the whole input had been decoded."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video import ReadOptions, VideoSource, open_source, video_pass
from rbvsr_deploy.video.images import write_image
from rbvsr_deploy.video.timing.seeking import packets_around

FRAMES = 60
MS, FINE, RATE = Fraction(1, 1000), Fraction(1, 90000), Fraction(1, 25)
EVEN = [40 * number for number in range(FRAMES)]
VARIABLE = [40 * number + number * number * 7 % 31 for number in range(FRAMES)]
X264 = "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0:b-pyramid=normal"
X265 = "keyint=12:min-keyint=12:open-gop=1:bframes=3:log-level=none"


class Form(NamedTuple):
    name: str
    codec: str
    options: dict[str, str]
    stamps: list[int] = EVEN
    time_base: Fraction = MS
    seeks: bool = True
    """True if decoding can start at a key frame in the middle."""


FORMS = [
    Form("closed.mp4", "libx264", {"x264-params": X264}, VARIABLE),
    Form("open.mp4", "libx264", {"x264-params": f"{X264}:open-gop=1"}, VARIABLE),
    Form("open.mkv", "libx264", {"x264-params": f"{X264}:open-gop=1"}, VARIABLE),
    Form("open.ts", "libx264", {"x264-params": f"{X264}:open-gop=1"}, [90 * s for s in EVEN], FINE),
    Form("h264.avi", "libx264", {"x264-params": X264}, list(range(FRAMES)), RATE),
    Form("hevc.mp4", "libx265", {"x265-params": X265}),
    Form("mpeg4.avi", "mpeg4", {"g": "12", "bf": "2"}, list(range(FRAMES)), RATE),
    Form("mpeg2.mpg", "mpeg2video", {"g": "12", "bf": "2"}, list(range(FRAMES)), RATE),
    Form("vp9.webm", "libvpx-vp9", {"g": "12", "lag-in-frames": "12", "cpu-used": "8"}, VARIABLE),
    Form("refresh.mkv", "libx264", {"x264-params": "keyint=12:intra-refresh=1:bframes=0"}),
    Form("raw.h264", "libx264", {"x264-params": X264}, list(range(FRAMES)), RATE, seeks=False),
]


def make(form: Form, folder: Path) -> Path:
    """Write a video of moving noise, in which every frame depends on those around it."""
    noise = np.random.default_rng(1).integers(0, 255, (128, 192, 3)).astype(np.uint8)
    path = folder / form.name
    with av.open(str(path), "w") as out:
        stream = out.add_stream(form.codec, rate=25, width=64, height=48, options=form.options)
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.time_base = stream.time_base = form.time_base
        for number, stamp in enumerate(form.stamps):
            image = np.roll(noise, (2 * number, number), (0, 1))[:48, :64].copy()
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = stamp, form.time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


Shown = list[tuple[Fraction, int, NDArray[Any]]]


def shown(path: Path, **options: Any) -> tuple[Shown, VideoSource]:
    """Return the time in seconds, duration in ticks and image of every frame, and the source."""
    with open_source(path, ReadOptions(**options)) as source:
        assert isinstance(source, VideoSource)
        return [(f.pts * source.time_base, f.duration, f.image) for f in source], source


@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
def test_excerpts_match_those_of_full_decoding(
    form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames are bit-identical and have their times, without decoding everything before them."""
    decoded: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        decoded.append(0)
        for packet in packets_around(*arguments, **options):
            decoded[-1] += 1
            yield packet

    monkeypatch.setattr(video_pass, "packets_around", counted)
    path = make(form, tmp_path)
    everything, whole = shown(path)
    assert len(everything) == FRAMES
    assert not decoded
    zero = everything[0][0]
    if form.codec != "libvpx-vp9" and form.stamps is not VARIABLE:
        assert [time - zero for time, *_ in everything] == [
            Fraction(number, 25) for number in range(FRAMES)
        ]
    chance = random.Random(form.name)
    for number in range(8):
        start = chance.choice([chance.choice(everything)[0] - zero, chance.randrange(2300) * MS])
        end = start + chance.randrange(50, 800) * MS if number % 2 else None
        most = chance.choice([None, 1, 5])
        expected = [
            frame
            for frame in everything
            if start <= frame[0] - zero and (end is None or frame[0] - zero < end)
        ][:most]
        found, source = shown(path, start=start, end=end, frames=most)
        assert source.excerpt is not None
        assert source.origin == whole.origin + expected[0][0]
        assert len(found) == len(expected)
        for (time, duration, image), (old_time, old_duration, old_image) in zip(
            found, expected, strict=True
        ):
            assert time == old_time - expected[0][0]
            assert duration == old_duration
            assert np.array_equal(image, old_image)
    shown(path, start=Fraction(2))
    assert (decoded[-1] < 45) is form.seeks


def test_open_groups_are_open(tmp_path: Path) -> None:
    """The test above relies on frames that are decoded after a key frame but shown before it, and
    that need frames before the key frame."""
    with av.open(str(make(FORMS[1], tmp_path))) as container:
        packets = list(container.demux(video=0))
    key = next(i for i, packet in enumerate(packets) if i and packet.is_keyframe)
    assert packets[key + 1].pts < packets[key].pts


def test_frames_of_an_excerpt_are_counted(tmp_path: Path) -> None:
    """Progress needs the number of frames before they are read."""
    path = make(Form("a.mp4", "libx264", {}), tmp_path)
    for options, count in (
        ({"start": Fraction(1)}, 35),
        ({"end": Fraction(1)}, 25),
        ({"start": Fraction(1), "frames": 7}, 7),
        ({"start": Fraction(41, 1000), "end": Fraction(121, 1000)}, 2),
    ):
        found, source = shown(path, **options)
        assert len(found) == source.frame_count == count


def test_a_folder_has_the_times_of_its_rate(tmp_path: Path) -> None:
    for number in range(10):
        write_image(tmp_path / f"{number}.png", image=np.full((4, 4, 3), number, np.uint8))
    options = ReadOptions(fps=Fraction(10), start=Fraction(25, 100), end=Fraction(7, 10), frames=3)
    with open_source(tmp_path, options) as source:
        frames = list(source)
    assert [frame.name for frame in frames] == ["3.png", "4.png", "5.png"]
    assert [frame.pts for frame in frames] == [0, 1, 2]
    assert source.frame_count == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": Fraction(100)}, "is 2.4 s long, but the excerpt starts at 100 s"),
        ({"start": Fraction(24, 10)}, "is 2.4 s long"),
        ({"start": Fraction(1001, 1000), "end": Fraction(1002, 1000)}, "has no frame between"),
        ({"start": Fraction(3), "end": Fraction(2)}, "is empty"),
        ({"start": Fraction(2), "end": Fraction(2)}, "is empty"),
        ({"end": Fraction(0)}, "is empty"),
        ({"start": Fraction(-1)}, "must start at 0 s or later"),
        ({"frames": 0}, "at least 1 frame"),
    ],
)
@pytest.mark.parametrize("kind", ["video", "folder"])
def test_empty_excerpts_are_refused(
    kind: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """They are refused when the input is opened, in one sentence."""
    path = tmp_path / "in"
    path.mkdir()
    if kind == "video":
        path = make(Form("a.mp4", "libx264", {}), path)
    else:
        for number in range(60):
            write_image(path / f"{number}.png", image=np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(MediaError, match=words) as caught:
        open_source(path, ReadOptions(**options))
    assert "\n" not in str(caught.value)
