"""Tests that all of a file besides its frames is kept, or named in the job's summary.

Runs are whole jobs with bicubic upscaling in place of the network. Inputs are written, and outputs
read back, with plain PyAV.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.jobs.summary import Summary
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.video import WriteOptions, open_source
from rbvsr_deploy.video.encoding.captions import with_captions
from tests.support import media
from tests.support.engine_doubles import BicubicEngine
from tests.support.streams import Sound, Text, heard, jpeg, texts, write

RATE = Fraction(25)


def upscaled(path: Path, out: Path) -> Summary:
    return upscale_file(path, out, engine=BicubicEngine())


def whats(changes: list[Any]) -> list[str]:
    return [change.what for change in changes]


def plain(path: Path, *, count: int = 10, start: int = 0, **options: Any) -> Path:
    """Write ``count`` frames at 25 per second from frame ``start`` on."""
    return media.make_video(
        path,
        stamps=[start + n for n in range(count)],
        time_base=1 / RATE,
        rate=RATE,
        **{"size": (96, 64), **options},
    )


class TestSilence:
    def test_a_run_that_loses_nothing_says_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Sound, subtitles, chapters and a cover are kept, and listed as such."""
        path = write(
            tmp_path / "in.mkv",
            Sound("aac"),
            Text("subrip", [(200, 400, "a line")]),
            chapters=[(0, 800, "one")],
            cover=jpeg(),
            codec="libx264",
        )
        lines: list[str] = []
        summary = upscale_file(
            path, tmp_path / "out.mkv", engine=BicubicEngine(), report=lines.append
        )
        assert (summary.converted, summary.dropped) == ([], [])
        assert len(summary.kept) == 3
        assert not caplog.records
        assert [line for line in lines if "no colour" not in line] == []

    def test_each_loss_is_said_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """In the log, and with its reason in the summary that ``--json`` prints."""
        path = write(tmp_path / "in.mkv", Sound("flac"), cover=jpeg(), codec="libx264")
        summary = upscaled(path, tmp_path / "out.mov")
        assert whats(summary.converted) == ["audio stream 1 (flac, fra)"]
        assert whats(summary.dropped) == ["video stream 2 (mjpeg)"]
        assert len(caplog.records) == 2
        printed = json.loads(json.dumps(dataclasses.asdict(summary)))
        assert printed["dropped"][0]["reason"].startswith("mov cannot hold it")


class TestFrames:
    def joined(self, tmp_path: Path, *parts: Path) -> Path:
        path = tmp_path / f"joined{parts[0].suffix}"
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        return path

    def test_range_changes_within_a_video(self, tmp_path: Path) -> None:
        """White is white throughout, whatever range each half is coded in."""
        white = [np.full((64, 96, 3), 255, np.uint8)] * 10
        halves = []
        for number, extent in enumerate((2, 1)):
            half = tmp_path / f"{number}.ts"
            with av.open(str(half), "w", container_options={"mpegts_copyts": "1"}) as out:
                video: Any = out.add_stream("libx264", rate=RATE, width=96, height=64)
                context = video.codec_context
                context.max_b_frames = 0
                context.colorspace, context.color_range = 1, extent
                for i, image in enumerate(white):
                    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                    frame.colorspace = 1
                    frame = frame.reformat(format="yuv420p", dst_color_range=extent)
                    frame.colorspace, frame.color_range = 1, extent
                    frame.pts, frame.time_base = 50 + 10 * number + i, 1 / RATE
                    out.mux(video.encode(frame))
                out.mux(video.encode(None))
            halves.append(half)
        path = self.joined(tmp_path, *halves)
        with open_source(path) as source:
            levels = [int(frame.image.mean()) for frame in source]
        assert len(levels) == 20
        assert min(levels) >= 253
        summary = upscaled(path, tmp_path / "out.mkv")
        assert "colour matrix and range" in whats(summary.converted)

    def test_shape_of_pixels_changes_within_a_video(self, tmp_path: Path) -> None:
        halves = [
            plain(
                tmp_path / f"{number}.ts",
                start=50 + 10 * number,
                codec="mpeg2video",
                aspect=aspect,
                options={"mpegts_copyts": "1"},
            )
            for number, aspect in enumerate((Fraction(8, 9), Fraction(32, 27)))
        ]
        summary = upscaled(self.joined(tmp_path, *halves), tmp_path / "out.mp4")
        (change,) = (c for c in summary.dropped if c.what == "later pixel aspect ratios")
        assert "8/9 to 32/27" in change.reason

    def test_size_changes_within_a_video(self, tmp_path: Path) -> None:
        """As players do, all frames are shown in the size of the first."""
        halves = [
            plain(
                tmp_path / f"{number}.ts",
                start=50 + 10 * number,
                codec="mpeg2video",
                size=size,
                options={"mpegts_copyts": "1"},
                images=[np.full((size[1], size[0], 3), 100, np.uint8)] * 10,
            )
            for number, size in enumerate(((96, 64), (64, 48)))
        ]
        path = self.joined(tmp_path, *halves)
        with av.open(str(path)) as container:
            sizes = [(frame.width, frame.height) for frame in container.decode(video=0)]
        assert set(sizes) == {(96, 64), (64, 48)}
        summary = upscaled(path, tmp_path / "out.mkv")
        assert (summary.frames, summary.width, summary.height) == (len(sizes), 384, 256)
        assert whats(summary.converted) == ["frame size"]
        for image in media.frames_of(tmp_path / "out.mkv"):
            assert abs(image.mean() - 100) < 3

    @pytest.mark.parametrize("out", [".mp4", ".mov", ".mkv"])
    @pytest.mark.parametrize("b_frames", [0, 2])
    def test_the_last_frame_stays_as_long_as_it_should(
        self, tmp_path: Path, out: str, b_frames: int
    ) -> None:
        """Also if another frame is decoded last."""
        path = tmp_path / "in.mkv"
        with av.open(str(path), "w") as target:
            video: Any = target.add_stream("libx264", rate=RATE, width=64, height=48)
            context = video.codec_context
            context.time_base = video.time_base = Fraction(1, 1000)
            context.max_b_frames = b_frames
            context.flags |= av.codec.context.Flags.frame_duration
            for number, (stamp, length) in enumerate(
                [(0, 100), (100, 200), (300, 50), (350, 3000)]
            ):
                frame = av.VideoFrame.from_ndarray(media.gradient(number), format="rgb24")
                frame.pts, frame.time_base, frame.duration = stamp, Fraction(1, 1000), length
                target.mux(video.encode(frame))
            target.mux(video.encode(None))
        upscaled(path, tmp_path / f"out{out}")
        with av.open(str(tmp_path / f"out{out}")) as container:
            assert container.duration == pytest.approx(3_350_000, abs=2_000)
        stamps = [Fraction(0), Fraction(1, 10), Fraction(3, 10), Fraction(35, 100)]
        assert media.stamps_of(tmp_path / f"out{out}") == stamps

    @pytest.mark.parametrize("out", [".mp4", ".mov", ".mkv"])
    def test_a_long_wait_for_the_last_frame(self, tmp_path: Path, out: str) -> None:
        """Other frames are stored before they are shown: the length is right nevertheless."""
        path = media.make_video(
            tmp_path / "in.mp4",
            stamps=[*range(9), 60],
            time_base=1 / RATE,
            rate=RATE,
            b_frames=2,
        )
        summary = upscaled(path, tmp_path / f"out{out}")
        assert summary.converted == []
        with av.open(str(tmp_path / f"out{out}")) as container:
            assert container.duration == pytest.approx(2_440_000, abs=2_000)

    @pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4", ".y4m"])
    def test_a_thousand_frames_per_second(self, tmp_path: Path, suffix: str) -> None:
        path = media.make_video(
            tmp_path / f"in{suffix}",
            codec="rawvideo" if suffix == ".y4m" else "mpeg4",
            pix_fmt="yuv420p",
            stamps=list(range(20)),
            time_base=Fraction(1, 1000),
            rate=Fraction(1000),
        )
        with open_source(path) as source:
            assert source.rate == 1000
        upscaled(path, tmp_path / "out.avi")
        with av.open(str(tmp_path / "out.avi")) as container:
            assert container.streams.video[0].average_rate == 1000


class TestSideData:
    @pytest.mark.parametrize(
        ("name", "codec"), [("o.mp4", "libx264"), ("o.mkv", "libx265"), ("o.webm", None)]
    )
    def test_closed_captions(self, tmp_path: Path, name: str, codec: Any) -> None:
        """Each stays with its frame where the encoder can take it, and is named elsewhere."""
        path = plain(tmp_path / "in.mkv", options={})
        given = tmp_path / "captions.mkv"
        captions = [bytes([0xFC, 0x80 + n, 0, 0xF9, 0, 0]) for n in range(10)]
        with av.open(str(path)) as source, av.open(str(given), "w") as out:
            stream = out.add_stream("libx264", rate=RATE, width=96, height=64)
            context = stream.codec_context
            context.time_base, context.max_b_frames = 1 / RATE, 0
            encoded = []
            for number, frame in enumerate(source.decode(video=0)):
                frame.pts, frame.time_base, frame.pict_type = number, 1 / RATE, 0
                encoded += stream.encode(frame)
            encoded += stream.encode(None)
            for packet, message in zip(encoded, captions, strict=True):
                copy = av.Packet(with_captions(bytes(packet), message, hevc=False))
                copy.stream, copy.time_base = stream, packet.time_base
                copy.pts, copy.dts, copy.is_keyframe = packet.pts, packet.dts, packet.is_keyframe
                out.mux(copy)
        assert captions_in(given) == captions
        summary = upscale_file(
            given, tmp_path / name, engine=BicubicEngine(), writing=WriteOptions(codec=codec)
        )
        if codec is None:
            assert whats(summary.dropped) == ["closed captions"]
        else:
            assert whats(summary.kept) == ["closed captions"]
            assert captions_in(tmp_path / name) == captions

    def test_stereoscopic_layout(self, tmp_path: Path) -> None:
        """Matroska keeps it, and with it the shape of pixels; MP4 does not, and it is named."""
        path = tmp_path / "in.mkv"
        base = plain(tmp_path / "base.mkv")
        with av.open(str(base)) as given, av.open(str(path), "w") as out:
            stream = out.add_stream_from_template(given.streams.video[0])
            stream.metadata["stereo_mode"] = "left_right"
            for packet in given.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
        with av.open(str(path)) as container:
            aspect = container.streams.video[0].sample_aspect_ratio
            assert container.streams.video[0].metadata["stereo_mode"] == "left_right"
        upscaled(path, tmp_path / "out.mkv")
        with av.open(str(tmp_path / "out.mkv")) as container:
            video = container.streams.video[0]
            assert video.metadata["stereo_mode"] == "left_right"
            assert video.sample_aspect_ratio == aspect
        summary = upscaled(path, tmp_path / "out.mp4")
        assert "stereoscopic layout" in whats(summary.dropped)

    def test_spherical_video_is_named(self, tmp_path: Path) -> None:
        """A Matroska projection element, as 360 degree cameras write it."""
        projection = b"\x76\x70\x84\x76\x71\x81\x01"
        path = with_video_element(plain(tmp_path / "in.mkv"), projection)
        summary = upscaled(path, tmp_path / "out.mkv")
        assert whats(summary.dropped) == ["spherical projection"]

    @pytest.mark.parametrize(
        ("number", "shown"),
        [
            (0xCC, np.s_[:, 8:]),
            (0xDD, np.s_[:, :-8]),
            (0xBB, np.s_[8:]),
            (0xAA, np.s_[:-8]),
        ],
        ids=["left", "right", "top", "bottom"],
    )
    def test_matroska_cropping_is_applied(self, tmp_path: Path, number: int, shown: Any) -> None:
        """Eight rows or columns are not shown."""
        whole = media.frames_of(plain(tmp_path / "whole.mkv"))[0]
        path = with_video_element(plain(tmp_path / "in.mkv"), bytes([0x54, number, 0x81, 8]))
        with open_source(path) as source:
            image = next(iter(source)).image
            assert (source.height, source.width) == image.shape[:2]
        assert image.shape == whole[shown].shape
        assert np.abs(whole[shown].astype(int) - image).mean() < 3
        assert whats(upscaled(path, tmp_path / "out.mp4").dropped) == []


def with_video_element(path: Path, element: bytes) -> Path:
    """Add an element to the video settings of a Matroska file's track.

    It takes the place of a Void element of 11 bytes that FFmpeg writes after them.
    """
    data = path.read_bytes()
    void = b"\xec\x01" + bytes(6) + b"\x02" + bytes(2)
    end = data.index(void)
    at = data.rindex(b"\xe0", 0, end)
    size = data[at + 1] & 0x7F
    own, between = data[at + 2 : at + 2 + size], data[at + 2 + size : end]
    rest = len(void) - len(element) - 2
    content = bytes([0xE0, 0x80 | (size + len(element))]) + own + element + between
    content += bytes([0xEC, 0x80 | rest]) + bytes(rest)
    path.write_bytes(data[:at] + content + data[end + len(void) :])
    assert path.stat().st_size == len(data)
    return path


class TestStreams:
    @pytest.mark.parametrize("default", [0, 1, None])
    def test_the_main_video_is_upscaled_and_the_other_named(
        self, tmp_path: Path, default: int | None
    ) -> None:
        """The default one; without, the largest."""
        path = tmp_path / "in.mkv"
        sizes = [(32, 32), (128, 96)]
        with av.open(str(path), "w") as out:
            videos: list[Any] = [
                out.add_stream("mpeg4", rate=RATE, width=w, height=h) for w, h in sizes
            ]
            for number, video in enumerate(videos):
                video.disposition = Disposition.default.value if number == default else 0
            for n in range(4):
                for video, (w, h) in zip(videos, sizes, strict=True):
                    image = media.gradient(n, width=w, height=h)
                    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                    frame.pts = n
                    out.mux(video.encode(frame))
            for video in videos:
                out.mux(video.encode(None))
        summary = upscaled(path, tmp_path / "out.mkv")
        chosen = 1 if default is None else default
        assert (summary.width, summary.height) == tuple(4 * side for side in sizes[chosen])
        assert whats(summary.dropped) == [f"video stream {1 - chosen} (mpeg4)"]

    def test_a_song_with_a_cover_is_not_a_video(self, tmp_path: Path) -> None:
        path = tmp_path / "song.mp4"
        with av.open(str(path), "w") as out:
            sound: Any = out.add_stream("aac", rate=48000)
            cover: Any = out.add_mux_stream("mjpeg", width=32, height=32)
            cover.time_base = Fraction(1, 90000)
            cover.disposition = Disposition.attached_pic.value
            frame = av.AudioFrame.from_ndarray(
                np.zeros((2, 1024), np.float32), format="fltp", layout="stereo"
            )
            frame.sample_rate, frame.pts = 48000, 0
            packets = [*sound.encode(frame), *sound.encode(None)]
            image = av.Packet(jpeg())
            image.stream, image.time_base, image.pts, image.dts = cover, Fraction(1, 90000), 0, 0
            for packet in (image, *packets):
                out.mux(packet)
        with pytest.raises(MediaError, match="only one audio stream and one cover image: give"):
            open_source(path)

    @pytest.mark.slow
    @pytest.mark.parametrize("out", [".mp4", ".mov"])
    def test_lines_of_text_that_overlap(self, tmp_path: Path, out: str) -> None:
        """MP4 shows one text at a time: each has all lines that are visible then."""
        lines = [(500 * n, 1200, f"line {n}") for n in range(8)]
        path = write(tmp_path / "in.mkv", Text("subrip", lines), seconds=5)
        summary = upscaled(path, tmp_path / f"out{out}")
        found = texts(tmp_path / f"out{out}")
        for start, length, line in lines:
            times = [(a, a + d) for a, d, text in found if line in text.split(r"\N")]
            assert min(times)[0] == pytest.approx(start / 1000, abs=0.002)
            assert max(times)[1] == pytest.approx((start + length) / 1000, abs=0.002)
        assert whats(summary.converted) == ["subtitle stream 1 (subrip, deu)"]

    def test_a_layout_that_the_container_cannot_hold_is_found_before_the_work(
        self, tmp_path: Path
    ) -> None:
        """MP4 takes the header of twelve channels of PCM, but not their packets."""
        path = tmp_path / "in.mkv"
        with av.open(str(path), "w") as target:
            video: Any = target.add_stream("mpeg4", rate=RATE, width=64, height=48)
            sound: Any = target.add_stream("pcm_s16le", rate=48000)
            sound.codec_context.layout = "7.1.4"
            for n in range(5):
                frame = av.VideoFrame.from_ndarray(media.gradient(n), format="rgb24")
                frame.pts = n
                target.mux(video.encode(frame))
                block = av.AudioFrame.from_ndarray(
                    np.zeros((1, 12 * 1920), np.int16), format="s16", layout="7.1.4"
                )
                block.sample_rate, block.pts = 48000, 1920 * n
                target.mux(sound.encode(block))
            target.mux(video.encode(None))
        summary = upscaled(path, tmp_path / "out.mp4")
        (change,) = summary.converted
        assert change.what == "audio stream 1 (pcm_s16le)"
        assert "aac, 7.1" in change.reason
        assert whats(upscaled(path, tmp_path / "out.mkv").kept) == [change.what]

    @pytest.mark.parametrize("codec", ["wmav2", "adpcm_ms"])
    @pytest.mark.parametrize("name", ["out.mkv", "it's [a] | b\\c.mkv"])
    def test_sound_that_matroska_can_hold_is_not_encoded_again(
        self, tmp_path: Path, codec: Any, name: str
    ) -> None:
        """Also where FFmpeg's muxer does not list its codec; whatever the output is called."""
        suffix = ".wmv" if codec == "wmav2" else ".avi"
        path = tmp_path / f"in{suffix}"
        with av.open(str(path), "w") as target:
            video: Any = target.add_stream("mpeg4", rate=RATE, width=64, height=48)
            sound: Any = target.add_stream(codec, rate=44100)
            sound.codec_context.layout = "mono"
            if codec == "wmav2":
                sound.codec_context.bit_rate = 64000
            target.start_encoding()
            for n in range(10):
                frame = av.VideoFrame.from_ndarray(media.gradient(n), format="rgb24")
                frame.pts = n
                target.mux(video.encode(frame))
            target.mux(video.encode(None))
            size = sound.codec_context.frame_size
            kind = sound.codec_context.format.name
            for n in range(8):
                noise = np.random.default_rng(n).normal(0, 0.1, (1, size))
                samples: Any = noise if "flt" in kind else noise * 32767
                block = av.AudioFrame.from_ndarray(
                    samples.astype(np.float32 if "flt" in kind else np.int16),
                    format=kind,
                    layout="mono",
                )
                block.sample_rate, block.pts = 44100, n * size
                target.mux(sound.encode(block))
            target.mux(sound.encode(None))
        summary = upscaled(path, tmp_path / name)
        assert whats(summary.kept) == [f"audio stream 1 ({codec})"]
        assert (summary.converted, summary.dropped) == ([], [])
        assert sound_of(tmp_path / name) == sound_of(path)
        with av.open(f"file:{tmp_path / name}") as container:
            assert container.streams.audio[0].codec_context.codec.canonical_name == codec

    @pytest.mark.parametrize("out", [".avi", ".mkv", ".mp4"])
    def test_sound_before_an_edit_is_left_out(self, tmp_path: Path, out: str) -> None:
        """A trimmed MP4 still holds what was cut off: sound and frames stay in sync."""
        path = write(
            tmp_path / "in.mp4", Sound("aac", layout="mono", clicks=(0.2, 0.8, 1.2)), codec="mpeg4"
        )
        cut = trimmed(path, seconds=Fraction(4, 10))
        expected = [click - 0.4 for click in (0.8, 1.2)]
        assert heard(cut).clicks[-2:] == pytest.approx(expected, abs=0.002)
        shown = media.stamps_of(cut)
        assert shown[0] == 0
        upscaled(cut, tmp_path / f"out{out}")
        found = heard(tmp_path / f"out{out}")
        assert found.clicks[-2:] == pytest.approx(expected, abs=0.002)
        assert found.begin >= -0.1

    @pytest.mark.parametrize(("source", "begin"), [(".mkv", 2000), (".ts", 2000)])
    def test_nothing_before_the_first_key_frame_is_lost(
        self, tmp_path: Path, source: str, begin: int
    ) -> None:
        """Sound that starts first is copied from its first packet, wherever the clock starts."""
        path = media.make_video(
            tmp_path / f"in{source}",
            stamps=[25 * begin + 12 + n for n in range(10)],
            time_base=1 / RATE,
            rate=RATE,
            audio="mp2",
            audio_start=Fraction(begin),
            options={"mpegts_copyts": "1"} if source == ".ts" else {},
        )
        summary = upscaled(path, tmp_path / "out.mkv")
        assert sound_of(tmp_path / "out.mkv") == sound_of(path)
        assert (summary.converted, summary.dropped) == ([], [])
        shown, found = media.stamps_of(tmp_path / "out.mkv")[0], heard(tmp_path / "out.mkv").begin
        assert (shown, found) == pytest.approx((0.48, 0), abs=0.03)

    @pytest.mark.slow
    def test_an_image_folder_has_no_place_for_streams(self, tmp_path: Path) -> None:
        path = write(tmp_path / "in.mkv", Sound("aac"), chapters=[(0, 800, "one")], cover=jpeg())
        summary = upscaled(path, tmp_path / "out")
        assert whats(summary.dropped) == [
            "audio stream 1 (aac, fra)",
            "video stream 2 (mjpeg)",
            "chapters",
        ]

    @pytest.mark.slow
    def test_attachments_tags_and_chapters_without_a_place(self, tmp_path: Path) -> None:
        """The file that was written is read back: what it does not have is named."""
        path = plain(
            tmp_path / "in.mkv", metadata={"title": "Title", "odd": "Value"}, chapters=True
        )
        with av.open(str(path)) as given, av.open(str(tmp_path / "font.mkv"), "w") as out:
            out.metadata.update(given.metadata)
            out.set_chapters(given.chapters())
            stream = out.add_stream_from_template(given.streams.video[0])
            out.add_attachment("a.ttf", "application/x-truetype-font", bytes(99))
            for packet in given.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
        path = tmp_path / "font.mkv"
        font = "attachment stream 1 (a.ttf)"
        summary = upscaled(path, tmp_path / "out.mkv")
        assert (whats(summary.kept), summary.dropped) == ([font], [])
        assert whats(upscaled(path, tmp_path / "out.mp4").dropped) == [font, "tags ODD"]
        assert whats(upscaled(path, tmp_path / "out.webm").dropped) == [font]
        dropped = whats(upscaled(path, tmp_path / "out.ts").dropped)
        assert dropped == [font, "tags title, ODD", "2 of 2 chapters"]


def captions_in(path: Path) -> list[bytes | None]:
    """Return the captions of every frame, as FFmpeg decodes them."""
    found = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            side_data: Any = frame.side_data
            data = side_data.get("A53_CC")
            found.append(None if data is None else bytes(data))
    return found


def sound_of(path: Path) -> bytes:
    """Return the payload of all packets of a file's sound."""
    with av.open(f"file:{path}") as container:
        return b"".join(bytes(packet) for packet in container.demux(audio=0))


def trimmed(path: Path, *, seconds: Fraction) -> Path:
    """Make an MP4 begin later with edit lists alone, as editors do without encoding."""
    data = bytearray(path.read_bytes())
    at = 0
    while (at := data.find(b"elst", at)) >= 0:
        media_time = struct.unpack_from(">i", data, at + 16)[0]
        scale_at = data.index(b"mdhd", at) + 16
        (scale,) = struct.unpack_from(">I", data, scale_at)
        struct.pack_into(">i", data, at + 16, media_time + round(seconds * scale))
        at += 4
    path.write_bytes(data)
    return path
