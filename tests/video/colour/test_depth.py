"""More than 8 bits per sample, HDR and a colour chart, from file to file."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.pixels import Image
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.scenes import CutDetector
from rbvsr_deploy.runtime.stream import Settings, Stream, StreamState
from rbvsr_deploy.upscaler import Upscaler
from rbvsr_deploy.video import ReadOptions, WriteOptions, open_source
from rbvsr_deploy.video.encoding.encoder import choose_encoder
from tests.support import media
from tests.support.engine_doubles import BicubicEngine
from tests.support.sinks import job_sink, write_segments
from tests.video.colour.test_colour import fill, planes, rgb_of, yuv_of
from tests.video.staging.test_parts import contents_of

PQ = (9, 1, 9, 16)
DISPLAY = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
NUMBERS = [0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.329, 0.005, 1000]


def coded(
    path: Path,
    images: list[np.ndarray],
    *,
    codec: str = "ffv1",
    pix_fmt: str = "yuv420p10le",
    tags: tuple[int, int, int, int] = (1, 1, 1, 1),
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video with these codes of the pixel format, (H, W, planes) each."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options or {})
        assert isinstance(stream, av.VideoStream)
        height, width = images[0].shape[:2]
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, pix_fmt
        context.colorspace, context.color_range = tags[:2]
        context.color_primaries, context.color_trc = tags[2:]
        for number, image in enumerate(images):
            frame = av.VideoFrame(width, height, pix_fmt)
            fill(frame, image)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            frame.colorspace, frame.color_range = tags[:2]
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def ramps(count: int, *, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Return moving 10-bit images: luma ramps with constant chroma."""
    height, width = size
    luma = np.linspace(64, 900, width)[None] + np.linspace(0, 40, height)[:, None]
    return [
        np.stack([luma + number, np.full(size, 480), np.full(size, 540)], axis=-1)
        for number in range(count)
    ]


def first_frame(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def codec_of(path: Path) -> tuple[str, str | None]:
    """Return the codec and the pixel format."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.codec_context.codec.canonical_name, stream.codec_context.pix_fmt


class TestStream:
    @pytest.mark.parametrize(
        "plan", [MemoryPlan(8, 4, 12, 8), MemoryPlan(3, 2, 5, 2)], ids=["whole", "cut up"]
    )
    def test_sixteen_bits_match_eight(
        self, plan: MemoryPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """16-bit results match 8-bit ones to within 8-bit rounding, whatever the plan."""
        images = [media.gradient(number, width=16, height=12) for number in range(7)]
        made: dict[bool, list[Image]] = {}
        monkeypatch.setattr("rbvsr_deploy.runtime.stream.choose_plan", lambda *_, **__: plan)
        for deep in (False, True):
            with Stream(BicubicEngine(), Settings(), size=(12, 16), deep=deep) as stream:
                assert stream.plan == plan
                outputs: list[Image] = []
                for image in images:
                    image = image * np.uint16(257) if deep else image
                    outputs += [frame.image for frame in stream.push(image)]
                made[deep] = outputs + [frame.image for frame in stream.flush()]
        assert len(made[True]) == 7
        for eight, sixteen in zip(made[False], made[True], strict=True):
            assert (eight.dtype, sixteen.dtype) == (np.dtype(np.uint8), np.dtype(np.uint16))
            assert np.abs(sixteen / 257 - eight).max() <= 0.51

    def test_resumes_from_a_state(self) -> None:
        images = [media.gradient(n, width=16, height=12) * np.uint16(200) for n in range(6)]
        settings = Settings(lookahead=1)

        def stream(state: StreamState | None = None) -> Stream:
            return Stream(BicubicEngine(), settings, size=(12, 16), deep=True, state=state)

        whole, states = [], []
        with stream() as first:
            made = itertools.chain(*(first.push(image) for image in images), first.flush())
            for frame in made:
                whole.append(frame.image)
                states.append(frame.state().to_bytes())
        with stream(StreamState.from_bytes(states[2])) as second:
            made = itertools.chain(*(second.push(image) for image in images[3:]), second.flush())
            rest = [frame.image for frame in made]
        assert len(rest) == 3
        np.testing.assert_array_equal(np.stack(rest), np.stack(whole[3:]))

    def test_upscaler_keeps_the_dtype(self) -> None:
        image = np.full((12, 16, 3), 30000, np.uint16)
        with Upscaler(BicubicEngine()) as upscaler:
            (upscaled,) = upscaler.frames([image])
            assert upscaled.dtype == np.uint16
            assert np.abs(upscaled.astype(int) - 30000).max() <= 1
            upscaler.push(image)
            with pytest.raises(ValueError, match="one dtype, uint16 here, got uint8"):
                upscaler.push(image.astype(np.uint8))

    def test_cuts_match_those_of_eight_bits(self) -> None:
        dark, light = (np.full((36, 64, 3), value, np.uint8) for value in (20, 220))
        clip = [dark, dark, light, light, dark]
        eight, sixteen = CutDetector(), CutDetector()
        found = [eight.is_cut(image) for image in clip]
        assert any(found)
        assert [sixteen.is_cut(image * np.uint16(257)) for image in clip] == found


class TestDefaults:
    @pytest.mark.parametrize(
        ("codec", "pix_fmt", "name", "out", "expected"),
        [
            ("ffv1", "yuv420p", "a.mkv", "o.mp4", ("h264", "yuv420p")),
            ("libx265", "yuv420p10le", "a.mp4", "o.mp4", ("hevc", "yuv420p10le")),
            ("libx265", "yuv420p10le", "a.mp4", "o.mkv", ("hevc", "yuv420p10le")),
            ("libx265", "yuv420p10le", "a.mp4", "o.webm", ("av1", "yuv420p10le")),
            ("libx265", "yuv420p10le", "a.mp4", "o.avi", ("h264", "yuv420p")),
            ("ffv1", "yuv422p12le", "a.mkv", "o.mkv", ("ffv1", "yuv422p12le")),
            ("ffv1", "gbrp10le", "a.mkv", "o.mkv", ("ffv1", "gbrp10le")),
            ("ffv1", "yuv422p12le", "a.mkv", "o.mov", ("hevc", "yuv420p10le")),
            ("prores_ks", "yuv422p10le", "a.mov", "o.mov", ("prores", "yuv422p10le")),
        ],
    )
    def test_depth_is_kept_if_the_container_allows(
        self,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        codec: str,
        pix_fmt: str,
        name: str,
        out: str,
        expected: tuple[str, str],
    ) -> None:
        options = quiet() if codec == "libx265" else {}
        numbers = np.full((48, 64, 3), 128)
        path = coded(tmp_path / name, [numbers], codec=codec, pix_fmt=pix_fmt, options=options)
        with (
            open_source(path) as source,
            job_sink(tmp_path / out, source=source, width=64, height=48) as sink,
        ):
            for frame in source:
                sink.write(frame)
            sink.finish()
        assert codec_of(tmp_path / out) == expected
        rounded = "10" in pix_fmt and "10" not in expected[1]
        assert ("rounded to 8 bits" in caplog.text) == rounded

    @pytest.mark.parametrize(
        ("chosen", "expected"),
        [
            ({"codec": "libx264"}, "yuv420p10le"),
            ({"codec": "libx265"}, "yuv420p10le"),
            ({"codec": "libsvtav1"}, "yuv420p10le"),
            ({"codec": "prores_ks"}, "yuv422p10le"),
            ({"codec": "ffv1"}, "yuv422p12le"),
            ({"codec": "dnxhd"}, "yuv422p10le"),
            ({"codec": "libx265", "pix_fmt": "yuv444p12le"}, "yuv444p12le"),
            ({"pix_fmt": "yuv420p"}, "yuv420p"),
        ],
    )
    def test_a_codec_gets_its_best_pixel_format(
        self, tmp_path: Path, chosen: dict[str, Any], expected: str
    ) -> None:
        numbers = np.full((48, 64, 3), 2048)
        path = coded(tmp_path / "a.mkv", [numbers], codec="ffv1", pix_fmt="yuv422p12le")
        with open_source(path) as source:
            options = WriteOptions(**chosen)
            container = "mov" if options.codec == "dnxhd" else "matroska"
            encoder = choose_encoder(container, options, size=(256, 192), source=source)
        assert encoder.pix_fmt == expected

    @pytest.mark.parametrize("out", ["o.mp4", "o.mov"])
    def test_hevc_has_the_tag_that_apple_players_require(self, tmp_path: Path, out: str) -> None:
        path = coded(tmp_path / "a.mkv", ramps(5))
        write_segments(path, tmp_path / out, lengths=[2, 3], codec="libx265")
        with av.open(str(tmp_path / out)) as container:
            assert container.streams.video[0].codec_context.codec_tag == "hvc1"
            assert len(list(container.decode(video=0))) == 5

    @pytest.mark.parametrize("out", ["o.mp4", "o.webm"])
    def test_a_resumed_run_gives_the_same_bytes(self, tmp_path: Path, out: str) -> None:
        path = coded(tmp_path / "a.mp4", ramps(8), codec="libx265", options=quiet())
        write_segments(path, tmp_path / f"plain-{out}", lengths=[3, 3, 2])
        write_segments(path, tmp_path / out, lengths=[3, 3, 2], stop_after=4)
        job = write_segments(path, tmp_path / out, lengths=[3, 3, 2])
        assert (job.resumed_segments, job.started_over) == (1, None)
        assert contents_of(tmp_path / out) == contents_of(tmp_path / f"plain-{out}")


def quiet(*parameters: str) -> dict[str, str]:
    """Return x265 options without B-frames, with which it invents some decoding times."""
    return {"x265-params": ":".join(["log-level=error", "bframes=0", *parameters])}


class TestUpscaled:
    @pytest.mark.parametrize("depth", [8, 10])
    @pytest.mark.parametrize("full", [False, True])
    @pytest.mark.parametrize("matrix", [1, 6, 9])
    def test_flat_colours_are_kept(
        self, tmp_path: Path, matrix: int, full: bool, depth: int
    ) -> None:
        """The error is at most 2 of 255 levels, decoded with the equations of the standard."""
        kind: dict[str, Any] = {"matrix": matrix, "full": full, "depth": depth}
        levels = np.array(list(itertools.product((0, 128, 255), repeat=3)), float)
        chart = levels.reshape(3, 9, 3).repeat(16, axis=0).repeat(16, axis=1)
        numbers = np.minimum(yuv_of(chart, **kind), 2**depth - 1)
        pix_fmt = "yuv420p" if depth == 8 else "yuv420p10le"
        tags = (matrix, 2 if full else 1, matrix, 1)
        path = coded(tmp_path / "in.mkv", [numbers, numbers], pix_fmt=pix_fmt, tags=tags)
        out = tmp_path / "out.mkv"
        upscale_file(path, out, engine=BicubicEngine(), writing=WriteOptions(codec="ffv1"))
        frame = first_frame(out)
        assert (frame.format.name, frame.width, frame.height) == (pix_fmt, 4 * 144, 4 * 48)
        assert (frame.colorspace, frame.color_range) == tags[:2]
        y, u, v = (plane.astype(float) for plane in planes(frame))
        u, v = (plane.repeat(2, axis=0).repeat(2, axis=1) for plane in (u, v))
        found = 255 * rgb_of(np.stack([y, u, v], axis=-1), **kind)[32::64, 32::64]
        assert np.abs(found - chart[8::16, 8::16]).max() <= 2

    def test_output_has_more_levels_than_eight_bits(self, tmp_path: Path) -> None:
        path = coded(tmp_path / "in.mkv", ramps(2, size=(16, 320)))
        out = tmp_path / "out.mkv"
        upscale_file(path, out, engine=BicubicEngine())
        frame = first_frame(out)
        assert frame.format.name == "yuv420p10le"
        assert len(np.unique(planes(frame)[0])) > 800

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_sixteen_bit_images_keep_their_depth(self, tmp_path: Path, suffix: str) -> None:
        folder, out = tmp_path / "in", tmp_path / "out"
        folder.mkdir()
        image = np.random.default_rng(0).integers(0, 65536, (1, 1, 3)).astype(np.uint16)
        media.write_still(folder / f"a{suffix}", np.tile(image, (16, 16, 1)))
        upscale_file(folder, out, engine=BicubicEngine())
        found = media.read_still(out / f"a{suffix}")
        assert found.shape == (64, 64, 3)
        assert np.abs(found.astype(int) - image).max() <= 1


class TestHdr:
    @pytest.mark.parametrize(
        ("out", "codec"), [("o.mp4", None), ("o.mkv", None), ("o.mkv", "libsvtav1")]
    )
    def test_side_data_and_tags_are_kept(self, tmp_path: Path, out: str, codec: str | None) -> None:
        parameters = quiet(f"master-display={DISPLAY}", "max-cll=1000,400")
        path = coded(tmp_path / "in.mp4", ramps(2), codec="libx265", tags=PQ, options=parameters)
        messages: list[str] = []
        upscale_file(
            path,
            tmp_path / out,
            engine=BicubicEngine(),
            writing=WriteOptions(codec=codec),
            report=messages.append,
        )
        frame = first_frame(tmp_path / out)
        tags = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
        assert tags == PQ
        side_data: Any = frame.side_data  # also takes names
        numbers = np.frombuffer(side_data["MASTERING_DISPLAY_METADATA"], np.int32)
        np.testing.assert_allclose(numbers[0:20:2] / numbers[1:20:2], NUMBERS, atol=1e-4)
        light = np.frombuffer(side_data["CONTENT_LIGHT_LEVEL"], np.uint32)
        assert list(light) == [1000, 400]
        assert sum("is HDR (PQ)" in line for line in messages) == 1

    def test_metadata_that_changes_is_reported(self, tmp_path: Path) -> None:
        """The output has that of the first frame; two bitstreams in a row are one video."""
        halves = [
            coded(
                tmp_path / f"{light}.hevc",
                ramps(2),
                codec="libx265",
                tags=PQ,
                options=quiet("repeat-headers=1", f"max-cll={light},400"),
            )
            for light in (1000, 600)
        ]
        for files, said in ((halves, True), (halves[:1] * 2, False)):
            path = tmp_path / "both.hevc"
            path.write_bytes(b"".join(file.read_bytes() for file in files))
            with open_source(path) as source:
                assert len(list(source)) == 4
                dropped = {change.what for change in source.changes.dropped}
            assert ("later HDR display metadata" in dropped) == said

    def test_hdr_metadata_that_an_encoder_cannot_write_is_reported(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        parameters = quiet(f"master-display={DISPLAY}")
        path = coded(tmp_path / "in.mp4", ramps(1), codec="libx265", tags=PQ, options=parameters)
        with open_source(path) as source:
            choose_encoder("mov", WriteOptions(codec="prores_ks"), size=(256, 192), source=source)
        assert "Dropped: HDR display metadata" in caplog.text


@pytest.mark.parametrize(
    ("height", "tags", "words"),
    [
        (48, (2, 0), "no colour matrix or range tag: assuming BT.601 (for 64x48) and "),
        (720, (2, 1), "no colour matrix tag: assuming BT.709 (for 64x720)"),
        (48, (1, 0), "no range tag: assuming limited range"),
        (48, (1, 2), None),
    ],
)
def test_assumed_colour_tags_are_reported(
    tmp_path: Path, height: int, tags: tuple[int, int], words: str | None
) -> None:
    numbers = np.full((height, 64, 3), 128)
    path = coded(tmp_path / "a.mkv", [numbers], pix_fmt="yuv420p", tags=(*tags, 2, 2))
    with open_source(path, ReadOptions()) as source:
        notes = source.notes
    if words is None:
        assert notes == ()
    else:
        (note,) = notes
        assert words in note
