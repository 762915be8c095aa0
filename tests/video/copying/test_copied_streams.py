"""Streams, chapters and tags other than the video: copied, or re-encoded if necessary."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from av.stream import Disposition

from rbvsr_deploy.video import ReadOptions, open_source
from rbvsr_deploy.video.copying import packet_copy
from tests.support import media
from tests.support.sinks import job_sink, write_segments
from tests.support.streams import Data, Sound, Text, heard, jpeg, packets, texts, write

LINES = ((200, 400, r"Hallo {\i1}Welt{\i0}\Nzwei"), (800, 500, r"Ünïcode & mehr"))


def through(path: Path, out: Path, *, reading: ReadOptions | None = None, **options: Any) -> Path:
    """Send a video through source and sink without upscaling."""
    with (
        open_source(path, reading or ReadOptions()) as source,
        job_sink(out, source=source, width=source.width, height=source.height, **options) as sink,
    ):
        for frame in source:
            sink.write(frame)
        sink.finish()
    return out


@pytest.mark.parametrize(
    ("sound", "suffix", "out", "codec", "layout", "rate"),
    [
        (Sound("flac"), ".mkv", ".mov", "aac", "stereo", 48000),
        (Sound("flac", rate=44100), ".mkv", ".mov", "aac", "stereo", 44100),
        (Sound("flac", rate=44100), ".mkv", ".webm", "opus", "stereo", 48000),
        (Sound("aac"), ".mp4", ".webm", "opus", "stereo", 48000),
        (Sound("flac", layout="5.1(side)"), ".mkv", ".mov", "aac", "5.1", 48000),
        (Sound("flac", layout="5.1(side)"), ".mkv", ".webm", "opus", "5.1", 48000),
        (Sound("pcm_s16le", layout="7.1"), ".mov", ".webm", "opus", "7.1", 48000),
        (Sound("flac", rate=8000, layout="mono"), ".mkv", ".mov", "aac", "mono", 8000),
        (Sound("flac", start=0.4, clicks=(0.1, 0.9)), ".mkv", ".mov", "aac", "stereo", 48000),
        (Sound("vorbis"), ".mkv", ".ts", "aac", "stereo", 48000),
        (Sound("pcm_s16le"), ".mkv", ".flv", "aac", "stereo", 48000),
        (Sound("vorbis"), ".mkv", ".avi", "aac", "stereo", 48000),
        (Sound("vorbis", start=0.4), ".mkv", ".avi", "aac", "stereo", 48000),
    ],
)
def test_unsupported_audio_is_re_encoded_with_its_timing(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    sound: Sound,
    suffix: str,
    out: str,
    codec: str,
    layout: str,
    rate: int,
) -> None:
    """Every click stays within a millisecond of its time relative to the video."""
    path = write(tmp_path / f"in{suffix}", sound)
    result = through(path, tmp_path / f"out{out}")
    before, after = heard(path), heard(result)
    # AVI has no timestamps: FFmpeg gives frames the times at which the decoder returns them.
    shift = float(media.stamps_of(result)[0] - media.stamps_of(path)[0]) if out != ".avi" else 0
    assert len(before.clicks) == 2
    expected = [sound.start + click + shift for click in sound.clicks]
    # AAC spreads a click over some samples, and Matroska and FLV count milliseconds.
    assert after.clicks == pytest.approx(expected, abs=0.001)
    assert (after.codec, after.layout, after.rate) == (codec, layout, rate)
    messages = [r.getMessage() for r in caplog.records if "Converted:" in r.getMessage()]
    assert len(messages) == 1
    assert "cannot hold it unchanged" in messages[0]


@pytest.mark.parametrize("out", [".mp4", ".mov", ".webm", ".mkv"])
@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("subrip", ".mkv"), ("ass", ".mkv"), ("webvtt", ".mkv"), ("mov_text", ".mp4")],
)
def test_text_subtitles_remain_text(tmp_path: Path, codec: str, suffix: str, out: str) -> None:
    """Words, italics, line breaks and times are kept in the container's text format."""
    path = write(tmp_path / f"in{suffix}", Text(codec, LINES, disposition=Disposition.forced.value))
    result = through(path, tmp_path / f"out{out}")
    # In MP4 text, a reset takes the place of the end of italics.
    found = [(a, b, t.replace(r"{\r}", r"{\i0}")) for a, b, t in texts(result)]
    assert found == [(start / 1000, length / 1000, text) for start, length, text in LINES]
    with av.open(str(result)) as container:
        (stream,) = container.streams.subtitles
        assert stream.language == ("ger" if out == ".mov" else "deu")
        assert out == ".mov" or stream.disposition & Disposition.forced


def test_bitmap_subtitles_are_copied_to_matroska_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "in.mkv"
    plain = write(tmp_path / "plain.mkv")
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        bitmaps = target.add_mux_stream("hdmv_pgs_subtitle")
        bitmaps.time_base = Fraction(1, 1000)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
        # Blu-ray segments: an empty composition of 1920x1080, and its end.
        empty = av.Packet(bytes.fromhex("16000b 0780 0438 10 0000 80 00 00 00 800000"))
        empty.stream, empty.time_base, empty.pts, empty.dts = bitmaps, Fraction(1, 1000), 9, 9
        target.mux(empty)
    assert len(packets(path, "subtitle")) == 1
    assert packets(through(path, tmp_path / "out.mkv"), "subtitle") == packets(path, "subtitle")
    assert not caplog.records
    with av.open(str(through(path, tmp_path / "out.mp4"))) as container:
        assert not container.streams.subtitles
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("Dropped: subtitle stream 1 (hdmv_pgs_subtitle): mp4 cannot hold")
    assert ".mkv" in message


def test_codec_that_ffmpeg_does_not_support_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Teletext, as in recorded broadcasts, is left out; the other streams are copied."""
    plain, path = write(tmp_path / "plain.ts", Sound("aac")), tmp_path / "in.ts"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        copies = [target.add_stream_from_template(stream) for stream in source.streams]
        target.add_mux_stream("dvb_teletext")
        for packet in source.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
    result = through(path, tmp_path / "out.ts")
    with av.open(str(result)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
    assert "Dropped: subtitle stream 2 (unknown codec, und): this build of" in caplog.text


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("out", [".mp4", ".mkv"])
def test_cover_is_copied(tmp_path: Path, suffix: str, out: str) -> None:
    """The bytes are unchanged, it is still a cover, and no video frame moves in time."""
    path = write(tmp_path / f"in{suffix}", Sound("aac"), cover=jpeg())
    result = through(path, tmp_path / f"out{out}")
    with av.open(str(result)) as container:
        cover = container.streams.video[1]
        assert cover.disposition & Disposition.attached_pic
        assert bytes(next(iter(container.demux(cover)))) == jpeg()
        if suffix == out == ".mkv":
            assert cover.metadata["filename"] == "front.jpg"
    assert media.stamps_of(result) == media.stamps_of(path)
    assert [s.kind for s in media.companions_of(result)] == ["audio"]


@pytest.mark.parametrize("out", [".mov", ".webm", ".ts", ".avi", ".flv"])
def test_unsupported_cover_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, out: str
) -> None:
    path = write(tmp_path / "in.mp4", cover=jpeg())
    with av.open(str(through(path, tmp_path / f"out{out}"))) as container:
        assert len(container.streams) == 1
    assert "Dropped: video stream 1 (mjpeg)" in caplog.text


@pytest.mark.parametrize(
    ("codec", "suffix", "out"),
    [("bin_data", ".mp4", ".mp4"), ("bin_data", ".mp4", ".mov"), ("klv", ".ts", ".ts")],
)
def test_timed_data_is_copied(tmp_path: Path, codec: str, suffix: str, out: str) -> None:
    """Camera positions and drone metadata are copied packet by packet."""
    path = write(tmp_path / f"in{suffix}", Data(codec), start=2)
    result = through(path, tmp_path / f"out{out}")
    before, after = packets(path, "data"), packets(result, "data")
    shift = media.stamps_of(result)[0] - media.stamps_of(path)[0]
    assert len(before) == 8
    assert [(time + shift, data) for time, data in before] == after


def test_unsupported_timed_data_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "in.ts", Data("klv"))
    with av.open(str(through(path, tmp_path / "out.mp4"))) as container:
        assert not container.streams.data
    assert "Dropped: data stream 1 (klv): mp4 cannot hold it" in caplog.text


@pytest.mark.parametrize("out", [".mov", ".mp4", ".mkv"])
def test_time_code_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture, out: str) -> None:
    path = write(tmp_path / "in.mov", timecode="01:02:03:04")
    result = through(path, tmp_path / f"out{out}")
    with av.open(str(result)) as container:
        tags = {name.lower(): text for name, text in container.streams.video[0].metadata.items()}
        assert tags["timecode"] == "01:02:03:04"
        assert len(container.streams.data) == (out != ".mkv")
    assert not caplog.records


def test_only_one_video_is_upscaled_and_the_other_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "two.mkv"
    plain = write(tmp_path / "plain.mkv")
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        copies = [target.add_stream_from_template(source.streams.video[0]) for _ in range(2)]
        for packet in source.demux(video=0):
            for copy in copies if packet.size else ():
                packet.stream = copy
                target.mux(packet)
    with av.open(str(through(path, tmp_path / "out.mkv"))) as container:
        assert len(container.streams) == 1
    assert "Dropped: video stream 1 (mpeg4)" in caplog.text


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_tags_languages_and_dispositions_are_kept(tmp_path: Path, suffix: str) -> None:
    """Two audio tracks, forced subtitles, and titles of the file, tracks and chapters are kept."""
    tags = {
        "title": "Été à Köln",
        "artist": "某人",
        "date": "2024",
        "comment": "one\ntwo",
        "creation_time": "2021-03-04T05:06:07.000000Z",
    }
    text = "subrip" if suffix == ".mkv" else "mov_text"
    path = write(
        tmp_path / f"in{suffix}",
        Sound("aac", language="fra", title="Ton", disposition=Disposition.default.value),
        Sound("aac", layout="5.1", language="eng", disposition=Disposition.comment.value),
        Text(text, LINES, language="ita", disposition=Disposition.forced.value),
        metadata=tags,
        chapters=((0, 600, "eins"), (600, 1600, "zwei & drei")),
    )
    result = through(path, tmp_path / f"out{suffix}")
    assert [_description(stream) for stream in _streams(path)] == [
        _description(stream) for stream in _streams(result)
    ]
    assert media.companions_of(result) == media.companions_of(path)
    with av.open(str(path)) as before, av.open(str(result)) as after:
        for name, text in before.metadata.items():
            if name.lower() not in ("encoder", "minor_version", "compatible_brands"):
                assert after.metadata[name] == text
        assert {name.lower() for name in after.metadata} >= set(tags)
        titles = [chapter["metadata"]["title"] for chapter in after.chapters()]
        assert titles == ["eins", "zwei & drei"]


def _streams(path: Path) -> list[dict[str, Any]]:
    with av.open(str(path)) as container:
        return [
            {
                "type": stream.type,
                "disposition": stream.disposition,
                "tags": dict(stream.metadata),
                "layout": stream.layout.name if isinstance(stream, av.AudioStream) else None,
            }
            for stream in container.streams
        ]


def _description(stream: dict[str, Any]) -> dict[str, Any]:
    """Return a stream's properties without the tags that the muxer writes itself."""
    own = ("duration", "encoder", "vendor_id", "handler_name")
    tags = {name: text for name, text in stream["tags"].items() if name.lower() not in own}
    return {**stream, "tags": tags}


def test_audio_and_subtitles_can_be_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "in.mkv", Sound("aac"), Text("subrip", LINES), cover=jpeg())
    cases: tuple[tuple[dict[str, Any], list[str]], ...] = (
        ({"audio": False}, ["video", "subtitle", "video"]),
        ({"subtitles": False}, ["video", "audio", "video"]),
        ({"audio": False, "subtitles": False}, ["video", "video"]),
    )
    for options, kinds in cases:
        out = through(path, tmp_path / f"out{len(kinds)}{kinds[1]}.mkv", **options)
        with av.open(str(out)) as container:
            assert [stream.type for stream in container.streams] == kinds
    assert not caplog.records


def test_streams_to_leave_out_may_change_when_a_run_is_resumed(tmp_path: Path) -> None:
    """Streams are only joined at the end of a run, so that no work has to be repeated."""
    path = write(tmp_path / "in.mkv", Sound("aac"), seconds=0.48)
    out = tmp_path / "out.mkv"
    interrupted = write_segments(path, out, lengths=[6, 6], stop_after=6)
    first = [file.sha256 for segment in interrupted.segments for file in segment.files]
    resumed = write_segments(path, out, lengths=[6, 6], audio=False, keep=True)
    assert [file.sha256 for file in resumed.segments[0].files] == first
    assert resumed.started_over is None
    with av.open(str(out)) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_damaged_audio_becomes_silence_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Audio before and after the damage keeps its timing, and the video is complete."""
    path = write(tmp_path / "in.mkv", Sound("flac", clicks=(0.2, 1.4)))
    data = bytearray(path.read_bytes())
    sounds = [payload for time, payload in packets(path, "audio") if 0.6 < time < 1]
    assert len(sounds) >= 3
    for payload in sounds:
        at = data.index(payload, data.index(b"\x1f\x43\xb6\x75"))
        data[at : at + len(payload)] = bytes(len(payload))
        data[at + len(payload) - 1] = 7  # no two are the same
    path.write_bytes(bytes(data))
    out = through(path, tmp_path / "out.mov")
    assert heard(out).clicks == pytest.approx([0.2, 1.4], abs=0.001)
    assert len(media.stamps_of(out)) == 40
    messages = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    assert len(messages) == 1
    assert "audio stream 1 (flac, fra)" in messages[0]


def test_attachment_keeps_name_type_and_bytes(tmp_path: Path) -> None:
    font = bytes(range(256)) * 5
    path = tmp_path / "in.mkv"
    plain = write(tmp_path / "plain.mkv")
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        target.add_attachment("Ä font.ttf", "application/x-truetype-font", font)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    with av.open(str(through(path, tmp_path / "out.mkv"))) as container:
        (found,) = container.streams.attachments
        assert (found.name, found.mimetype, found.data) == (
            "Ä font.ttf",
            "application/x-truetype-font",
            font,
        )


CUT = ReadOptions(start=Fraction("0.4"), end=Fraction("1.2"))


@pytest.mark.parametrize(
    ("codec", "suffix", "out", "coded"),
    [
        ("aac", ".mp4", ".mp4", "aac"),
        ("flac", ".mkv", ".mkv", "flac"),
        ("libmp3lame", ".mkv", ".mp4", "mp3"),
        ("flac", ".mkv", ".mov", "aac"),
        ("flac", ".mkv", ".webm", "opus"),
        ("aac", ".ts", ".mp4", "aac"),
        ("flac", ".mkv", ".avi", "aac"),
    ],
)
@pytest.mark.parametrize("start", [0, 3])
def test_audio_of_an_excerpt_stays_in_sync(
    tmp_path: Path, codec: str, suffix: str, out: str, coded: str, start: int
) -> None:
    """Copied audio has the packets that overlap the excerpt; re-encoded audio is cut exactly."""
    sound = Sound(codec, clicks=(0.2, 0.5, 1.1, 1.4), start=start)
    path = write(tmp_path / f"in{suffix}", sound, start=start)
    result = through(path, tmp_path / f"out{out}", reading=CUT)
    found = heard(result)
    assert found.codec == coded
    inside = [click for click in found.clicks if 0 <= click < 0.8]
    assert inside == pytest.approx([0.1, 0.7], abs=0.001)
    if suffix == out == ".mkv":
        assert -0.097 < found.begin <= 0  # FLAC has packets of 96 ms
        assert 0.8 <= found.end < 0.897
    elif coded != codec.removeprefix("lib").removesuffix("lame"):
        assert found.clicks == inside
        assert found.begin <= 0.001
        assert 0.799 <= found.end < 0.8 + 0.022


def test_packets_of_an_excerpt_are_those_of_the_input(tmp_path: Path) -> None:
    path = write(tmp_path / "in.mp4", Sound("aac"))
    inside = [
        data
        for time, data in packets(path, "audio")
        if Fraction("0.4") - time < Fraction(1024, 48000) and time < Fraction("1.2")
    ]
    result = through(path, tmp_path / "out.mp4", reading=CUT)
    assert [data for time, data in packets(result, "audio")] == inside
    assert packets(result, "audio")[0][0] < 0


@pytest.mark.parametrize("out", [".mkv", ".mp4"])
def test_subtitles_and_chapters_of_an_excerpt_are_clipped(tmp_path: Path, out: str) -> None:
    """Entries that cross a border end there, those outside are dropped, and the cover is kept."""
    lines = [(100, 200, "before"), (300, 200, "into"), (600, 100, "in"), (1000, 500, "out")]
    path = write(
        tmp_path / "in.mkv",
        Text("subrip", [*lines, (1300, 100, "after")]),
        chapters=((0, 400, "before"), (400, 700, "one"), (700, 1600, "two")),
        cover=jpeg(),
        timecode="01:00:00:00",
    )
    result = through(path, tmp_path / f"out{out}", reading=CUT)
    assert texts(result) == [(0, 0.1, "into"), (0.2, 0.1, "in"), (0.6, 0.2, "out")]
    with av.open(str(result)) as container:
        chapters = [
            (c["metadata"]["title"], c["start"] * c["time_base"], c["end"] * c["time_base"])
            for c in container.chapters()
        ]
        assert chapters == [("one", 0, Fraction("0.3")), ("two", Fraction("0.3"), Fraction("0.8"))]
        assert bytes(next(iter(container.demux(container.streams.video[1])))) == jpeg()
        tags = {name.lower() for name in container.streams.video[0].metadata}
        assert "timecode" not in tags  # it was the time of another frame


def test_excerpt_reads_only_what_is_near_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "in.mkv", Sound("flac"), seconds=40)
    times = []
    convert = packet_copy.PacketCopy.convert

    def spy(copy: Any, packet: Any) -> Any:
        times.extend([packet.pts * packet.time_base] if packet else [])
        return convert(copy, packet)

    monkeypatch.setattr(packet_copy.PacketCopy, "convert", spy)
    reading = ReadOptions(start=Fraction(20), end=Fraction(21))
    assert heard(through(path, tmp_path / "out.mkv", reading=reading)).end == pytest.approx(
        1, abs=0.1
    )
    # Apart from the first packet, which shows whether the container can hold the stream.
    assert 5 < min(time for time in times if time >= 1) < 20
    assert 21 < max(times) < 32
