"""Interlaced videos: detection, and the content and times of deinterlaced frames."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video import ReadOptions, open_source
from rbvsr_deploy.video.images import write_image
from tests.support import media
from tests.support.sinks import job_sink

WIDTH, HEIGHT = 192, 96
DEINTERLACE = ReadOptions(deinterlace=True)
STAMPS = [1001 * number + 100 * (number % 3) for number in range(30)]


def bar(moment: float) -> np.ndarray:
    """Return a white bar on a ramp; it moves right by 12 pixels per frame."""
    ramp = np.arange(WIDTH, dtype=np.uint8)[:, None] // 4 + 30
    image = np.broadcast_to(ramp, (HEIGHT, WIDTH, 3)).copy()
    left = int(8 + 12 * moment) % (WIDTH - 24)
    image[:, left : left + 24] = 225
    return image


def interlaced(number: int, *, order: str) -> np.ndarray:
    """Return a frame with two moments in time; for "tff", the first is in the even lines."""
    first, second = bar(number), bar(number + 0.5)
    if order == "bff":
        first, second = second, first
    frame = second.copy()
    frame[::2] = first[::2]
    return frame


def combs(image: np.ndarray) -> float:
    """Return the mean difference of neighbouring lines, which is small in progressive frames."""
    return float(np.abs(np.diff(image.astype(int), axis=0)).mean())


def make_video(
    path: Path,
    images: list[np.ndarray],
    *,
    marks: str = "",
    pix_fmt: str = "yuv420p",
    tags: tuple[int, int, int, int] = (1, 1, 1, 1),
) -> Path:
    """Write a video with a variable frame rate; ``marks``: field order to mark, "tff" or "bff"."""
    with av.open(str(path), "w") as out:
        params = f"interlaced={int(bool(marks))}"
        options = {"preset": "ultrafast", "crf": "4", "x264-params": params}
        stream = out.add_stream("libx264", rate=Fraction(30000, 1001), options=options)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, pix_fmt
        context.time_base = stream.time_base = Fraction(1, 30000)
        context.sample_aspect_ratio = Fraction(16, 11)
        context.colorspace, context.color_range = tags[:2]
        context.color_primaries, context.color_trc = tags[2:]
        for stamp, image in zip(STAMPS, images, strict=False):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.colorspace = tags[0]
            frame = frame.reformat(format=pix_fmt, dst_color_range=tags[1])
            if marks:
                frame = marked_as(frame, marks)
            frame.pts, frame.time_base = stamp, context.time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def marked_as(frame: av.VideoFrame, order: str) -> av.VideoFrame:
    """Set the interlacing flags of a frame, which PyAV does not expose."""
    graph = av.filter.Graph()
    template: Any = frame  # has the properties of a stream that are read
    buffer = graph.add_buffer(template=template, time_base=Fraction(1, 25))
    graph.link_nodes(buffer, graph.add("setfield", mode=order), graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    marked = graph.pull()
    assert isinstance(marked, av.VideoFrame)
    return marked


def make_interlaced(path: Path, *, order: str = "tff", marked: bool = False, **others: Any) -> Path:
    images = [interlaced(number, order=order) for number in range(len(STAMPS))]
    return make_video(path, images, marks=order if marked else "", **others)


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("order", ["tff", "bff"])
def test_interlaced_video_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, order: str, marked: bool
) -> None:
    path = make_interlaced(tmp_path / "in.mp4", order=order, marked=marked)
    with open_source(path) as source:
        assert min(combs(frame.image) for frame in source) > 6
    (record,) = caplog.records
    assert ("is marked as interlaced" if marked else "looks interlaced") in record.message
    assert "deinterlace it" in record.message
    if not marked:
        assert f"{'top' if order == 'tff' else 'bottom'} field first" in record.message


def test_excerpt_is_analysed_as_far_as_it_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_interlaced(tmp_path / "in.mp4")
    with open_source(path, ReadOptions(frames=12)) as source:
        assert len(list(source)) == 12
    assert caplog.text.count("looks interlaced, top field first") == 1


def test_marks_in_mid_video_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first frames of a broadcast may not be interlaced."""
    whole = make_video(tmp_path / "a.mp4", [bar(n) for n in range(12)])
    marked = make_interlaced(tmp_path / "b.mp4", marked=True)
    with av.open(str(whole)) as a, av.open(str(marked)) as b:
        frames = [*a.decode(video=0), *b.decode(video=0)]
    from rbvsr_deploy.video.interlacing import CombWatch

    passed = list(CombWatch(Path("both")).over(frames))
    assert passed == frames
    (record,) = caplog.records
    assert "both is marked as interlaced" in record.message


def texture(*, height: int) -> np.ndarray:
    """Return soft random texture that resembles natural images."""
    small = np.random.default_rng(0).integers(0, 255, (height // 4, WIDTH // 4, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(small, format="rgb24")
    return frame.reformat(width=WIDTH, height=height, interpolation="BICUBIC").to_ndarray()


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)


OTHERS = {
    "moving to the right": lambda: [bar(number) for number in range(30)],
    "moving down": lambda: [texture(height=192)[2 * n : 2 * n + HEIGHT] for n in range(30)],
    "moving down fast": lambda: [texture(height=192)[3 * n : 3 * n + HEIGHT] for n in range(30)],
    "noise": lambda: [noise(number) for number in range(30)],
    "still": lambda: [bar(0)] * 30,
    "too short to detect": lambda: [interlaced(number, order="tff") for number in range(5)],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_videos_are_not_reported_as_interlaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    images = [np.ascontiguousarray(image) for image in OTHERS[name]()]
    path = make_video(tmp_path / "in.mp4", images)
    with open_source(path) as source:
        assert len(list(source)) == len(images)
    assert "interlaced" not in caplog.text


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("order", ["tff", "bff"])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le"])
def test_deinterlaced_frames_show_the_first_field(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, order: str, marked: bool, pix_fmt: str
) -> None:
    """The number of frames and their times are unchanged, including the last one."""
    path = make_interlaced(
        tmp_path / "in.mkv", order=order, marked=marked, pix_fmt=pix_fmt, tags=(9, 2, 9, 14)
    )
    with open_source(path) as plain:
        colour, aspect, depth = plain.colour, plain.sample_aspect, plain.depth
        before = [(frame.pts, frame.duration) for frame in plain]
    caplog.clear()
    with open_source(path, DEINTERLACE) as source:
        assert (source.colour, source.sample_aspect, source.depth) == (colour, aspect, depth)
        frames = list(source)
    assert not caplog.records
    assert [(frame.pts, frame.duration) for frame in frames] == before
    assert [pts * source.time_base for pts, _ in before] == media.stamps_of(path)
    for number, frame in enumerate(frames):
        image = frame.image / (257 if frame.image.dtype == np.uint16 else 1)
        assert combs(image) < 2.5
        assert np.abs(image - bar(number)).mean() < 3


def test_only_marked_frames_are_deinterlaced_if_there_are_any(tmp_path: Path) -> None:
    from rbvsr_deploy.video.interlacing import Deinterlacer

    whole = make_video(tmp_path / "a.mp4", [interlaced(n, order="tff") for n in range(8)])
    marked = make_interlaced(tmp_path / "b.mp4", marked=True)
    with av.open(str(marked)) as a, av.open(str(whole)) as b:
        frames = [*a.decode(video=0), *b.decode(video=0)]
    out = list(Deinterlacer(Path("both")).over(frames))
    grey = [combs(frame.to_ndarray(format="gray")) for frame in out]
    assert max(grey[:29]) < 2.5
    assert min(grey[31:]) > 6


def test_progressive_video_is_deinterlaced_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_video(tmp_path / "in.mp4", [bar(number) for number in range(30)])
    with open_source(path, DEINTERLACE) as source:
        frames = list(source)
    assert caplog.text.count("does not look interlaced; it is deinterlaced anyway") == 1
    for number, frame in enumerate(frames):
        assert np.abs(frame.image.astype(int) - bar(number)).mean() < 3


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_short_video_keeps_its_frames(tmp_path: Path, frames: int) -> None:
    path = make_video(tmp_path / "in.mp4", [bar(number) for number in range(frames)])
    with open_source(path, DEINTERLACE) as source:
        found = [frame.pts * source.time_base for frame in source]
    assert found == media.stamps_of(path)
    assert len(found) == frames


def test_frames_of_changing_size_pass_through(tmp_path: Path) -> None:
    """The filter only supports one size, so that each size needs its own."""
    from rbvsr_deploy.video.interlacing import CombWatch, Deinterlacer

    small = media.make_video(tmp_path / "small.mp4", stamps=[0, 1001])
    large = make_interlaced(tmp_path / "large.mp4")
    with av.open(str(large)) as a, av.open(str(small)) as b:
        frames = [*a.decode(video=0), *b.decode(video=0)]
    for fields in (CombWatch(Path("both")), Deinterlacer(Path("both"))):
        out = list(fields.over(frames))
        assert [(f.width, f.pts) for f in out] == [(f.width, f.pts) for f in frames]


def test_output_is_not_marked_as_interlaced(tmp_path: Path) -> None:
    path = make_interlaced(tmp_path / "in.mp4", marked=True)
    out = tmp_path / "out.mp4"
    with open_source(path, DEINTERLACE) as source:
        size: dict[str, Any] = {"width": source.width, "height": source.height}
        with job_sink(out, source=source, **size) as sink:
            for frame in source:
                sink.write(frame)
            sink.finish()
    assert media.stamps_of(out) == media.stamps_of(path)
    with av.open(str(out)) as container:
        assert not any(frame.interlaced_frame for frame in container.decode(video=0))


def test_frames_without_fields_are_refused(tmp_path: Path) -> None:
    path = media.make_video(
        tmp_path / "in.mkv", stamps=[0, 33], size=(2, 2), codec="ffv1", time_base=Fraction(1, 1000)
    )
    with (
        pytest.raises(MediaError, match=r"cannot deinterlace .*in\.mkv"),
        open_source(path, DEINTERLACE) as source,
    ):
        list(source)


def test_images_are_not_deinterlaced(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", image=media.gradient(0))
    for path in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(MediaError, match="deinterlace is for videos"):
            open_source(path, DEINTERLACE)
