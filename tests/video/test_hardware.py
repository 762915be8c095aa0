"""Decoders and encoders chosen by name: missing devices, and what works on every machine.

Hardware coding itself is not tested here, as that requires the devices.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest
from av.codec.hwaccel import HWAccel, hwdevices_available
from click.testing import CliRunner

from rbvsr_deploy.commands.run import run
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video import ReadOptions, WriteOptions, open_source
from rbvsr_deploy.video.decoder import decoder_for
from rbvsr_deploy.video.encoding.encoder import choose_encoder
from rbvsr_deploy.video.images import write_image
from tests.support import media


def opens(codec: str, *, mode: Literal["r", "w"]) -> bool:
    """Return whether this machine has the device that a codec needs, using PyAV only."""
    context = av.CodecContext.create(codec, mode)
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = 640, 480, "nv12"
    if mode == "w":
        context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
    try:
        context.open()
    except (av.FFmpegError, ValueError):
        return False
    return True


def device_exists(kind: str) -> bool:
    try:
        return av.CodecContext.create("h264", "r", HWAccel(kind)).is_hwaccel
    except av.FFmpegError:
        return False


def available(*names: str) -> list[str]:
    return [name for name in names if name in av.codecs_available]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media.make_video(tmp_path_factory.mktemp("clip") / "in.mp4", size=(128, 96))


@pytest.mark.parametrize(
    ("codec", "software"),
    [
        ("h264_nvenc", "libx264"),
        ("hevc_nvenc", "libx265"),
        ("av1_nvenc", "libsvtav1"),
        ("h264_qsv", "libx264"),
        ("hevc_qsv", "libx265"),
        ("vp9_qsv", "libvpx-vp9"),
        ("av1_qsv", "libsvtav1"),
        ("h264_amf", "libx264"),
        ("hevc_amf", "libx265"),
    ],
)
def test_encoder_without_its_device_names_what_is_missing(
    codec: str, software: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if codec not in av.codecs_available:
        pytest.skip("not in this build of FFmpeg")
    if opens(codec, mode="w"):
        pytest.skip("this machine has the device")
    with pytest.raises(MediaError, match=r"on this machine: it needs an? ") as caught:
        choose_encoder("matroska", WriteOptions(codec=codec, crf=30), size=(640, 480))
    message = str(caught.value)
    assert message.startswith(f"codec {codec} cannot encode 640x480 in ")
    assert message.endswith(f"and its driver; use {software} instead")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("codec", available("h264_v4l2m2m", "hevc_v4l2m2m", "mjpeg_qsv"))
def test_encoder_without_a_quality_setting_is_refused(codec: str) -> None:
    with pytest.raises(MediaError, match=f"no quality setting .* codec {codec}: use libx26"):
        choose_encoder("matroska", WriteOptions(codec=codec), size=(640, 480))


@pytest.mark.parametrize(("codec", "largest"), [("libx264", 16384), ("mpeg4", 8190)])
@pytest.mark.parametrize("across", [True, False])
def test_too_large_frames_are_refused_before_any_work(
    codec: str, largest: int, across: bool
) -> None:
    options = WriteOptions(codec=codec)
    for length in (largest, largest + 4):
        size = (length, 16) if across else (16, length)
        if length == largest:
            assert choose_encoder("matroska", options, size=size).name == codec
        else:
            with pytest.raises(MediaError, match=f"codec {codec} cannot encode .*use codec ffv1"):
                choose_encoder("matroska", options, size=size)
            choose_encoder("matroska", WriteOptions(codec="ffv1"), size=size)


@pytest.mark.skipif("hevc_nvenc" not in av.codecs_available, reason="not in this build of FFmpeg")
def test_command_reports_a_missing_device_in_one_line(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error comes before any work, without FFmpeg's own messages."""
    if opens("hevc_nvenc", mode="w"):
        pytest.skip("this machine has the device")
    out = tmp_path / "out.mp4"
    arguments = [clip, "-o", out, "--device", "cpu", "--codec", "hevc_nvenc", "--json"]
    result = CliRunner().invoke(run, [str(a) for a in arguments])
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert "an NVIDIA GPU that supports this format, and its driver; use libx265" in line
    assert "hevc_nvenc @" not in result.stderr
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", hwdevices_available())
def test_decoder_without_its_device_is_reported(
    clip: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if device_exists(kind):
        pytest.skip("this machine has the device")
    with pytest.raises(MediaError, match=f"decoder {kind} .*: leave it out"):
        open_source(clip, ReadOptions(decoder=kind))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", available("h264_cuvid", "h264_qsv", "h264_v4l2m2m"))
def test_decoder_of_a_missing_device_is_reported(
    clip: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if opens(name, mode="r"):
        pytest.skip("this machine has the device, or only detects later that it has not")
    with pytest.raises(MediaError, match=f"decoder {name} finds no device.*: leave it out"):
        open_source(clip, ReadOptions(decoder=name))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", hwdevices_available())
def test_codec_without_hardware_support_is_reported(tmp_path: Path, kind: str) -> None:
    path = media.make_video(tmp_path / "in.mkv", codec="ffv1", time_base=Fraction(1, 1000))
    with pytest.raises(MediaError, match=f"decoder {kind} cannot decode ffv1, which "):
        open_source(path, ReadOptions(decoder=kind))


@pytest.mark.parametrize("name", ["nothing", "libdav1d", "libx264"])
def test_decoder_that_is_unknown_or_for_another_codec(clip: Path, name: str) -> None:
    """The message lists the decoders that are suitable."""
    with pytest.raises(MediaError, match=f"decoder '{name}' is not .*for h264.* one of .*h264,"):
        open_source(clip, ReadOptions(decoder=name))


def test_default_decoder_by_its_name(clip: Path) -> None:
    with (
        open_source(clip) as default,
        open_source(clip, ReadOptions(decoder=default.codec)) as chosen,
    ):
        for a, b in zip(default, chosen, strict=True):
            np.testing.assert_array_equal(a.image, b.image)


@pytest.mark.parametrize("options", [{}, {"start": Fraction(1, 5)}, {"deinterlace": True}])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_another_decoder_gives_the_same_frames(
    tmp_path: Path, options: dict[str, Any], suffix: str
) -> None:
    """Orientation and colours, which only the container specifies, are kept."""
    path = media.make_video(
        tmp_path / "in.mp4",
        codec="libvpx-vp9",
        size=(128, 96),
        tags=(9, 1, 9, 14),
        matrix=(0, 1, 1, 0),
    )
    if suffix != ".mp4":
        path = media.remux(path, tmp_path / f"in{suffix}")
    with open_source(path, ReadOptions(**options)) as default:
        expected = list(default)
        size = (default.width, default.height)
        assert size == (96, 128)
    with open_source(path, ReadOptions(decoder="libvpx-vp9", **options)) as source:
        assert (source.width, source.height) == size
        assert source.colour == default.colour
        for frame, like in zip(source, expected, strict=True):
            assert (frame.pts, frame.duration) == (like.pts, like.duration)
            np.testing.assert_array_equal(frame.image, like.image)


def test_another_decoder_obeys_the_size_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options are set before the decoder is opened, as later ones have no effect."""
    path = media.make_video(tmp_path / "in.mp4", codec="libvpx-vp9", size=(128, 96))
    with av.open(path) as container:
        (stream,) = container.streams.video
        decoder_for(stream, "libvpx-vp9", path=path, options={"max_pixels": str(128 * 96)})
        with pytest.raises(MediaError, match="decoder libvpx-vp9 "):
            decoder_for(stream, "libvpx-vp9", path=path, options={"max_pixels": "100"})
    monkeypatch.setattr("rbvsr_deploy.video.decoder.MAX_PIXELS", 128 * 96 - 1)
    with pytest.raises(MediaError, match="is 128x96, and frames of more than 12,287 pixels"):
        open_source(path, ReadOptions(decoder="libvpx-vp9"))


def test_images_and_pipes_have_no_decoder(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", image=media.gradient(0))
    for path in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(MediaError, match="decoder is for videos"):
            open_source(path, ReadOptions(decoder="cuda"))
    with pytest.raises(MediaError, match="decoder is for files"):
        open_source(Path("-"), ReadOptions(decoder="cuda"))
