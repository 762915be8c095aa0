"""Old codecs: every frame arrives, and a damaged packet costs one frame and not the run."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import av
import pytest

from rbvsr_deploy.video import open_source
from tests.support import media

CODECS = {
    "msmpeg4": (".avi", (64, 48)),
    "msmpeg4v2": (".avi", (64, 48)),
    "h263": (".mov", (176, 144)),
    "h263p": (".avi", (64, 48)),
    "wmv1": (".wmv", (64, 48)),
    "wmv2": (".wmv", (64, 48)),
    "h261": (".avi", (176, 144)),
    "dvvideo": (".dv", (720, 576)),
    "prores_ks": (".mov", (64, 48)),
    "rpza": (".mov", (64, 48)),
    "svq1": (".mov", (64, 48)),
    "cinepak": (".avi", (64, 48)),
    "mpeg1video": (".mpg", (64, 48)),
    "huffyuv": (".avi", (64, 48)),
    "qtrle": (".mov", (64, 48)),
    "rv10": (".rm", (64, 48)),
    "flv": (".flv", (64, 48)),
}
PIX_FMTS = {"prores_ks": "yuv422p10le", "rpza": "rgb555le", "svq1": "yuv410p", "cinepak": "rgb24"}
PIX_FMTS |= {"huffyuv": "yuv422p", "qtrle": "rgb24"}
FRAMES = 10


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("old")
    return {
        codec: media.make_video(
            folder / f"{codec}{suffix}",
            codec=codec,
            pix_fmt=PIX_FMTS.get(codec),
            stamps=list(range(FRAMES)),
            time_base=Fraction(1, 25),
            rate=Fraction(25),
            size=size,
        )
        for codec, (suffix, size) in CODECS.items()
    }


def read(path: Path) -> tuple[list[int | None], int]:
    """Return the timestamps of the frames and the number of lost ones."""
    with open_source(path) as source:
        return [frame.pts for frame in source], source.lost_frames


@pytest.mark.parametrize("codec", CODECS)
def test_every_frame_arrives(videos: dict[str, Path], codec: str) -> None:
    """As many as plain PyAV decodes, in order, none of them counted as lost."""
    with av.open(str(videos[codec])) as container:
        expected = sum(1 for _ in container.decode(video=0))
    stamps, lost = read(videos[codec])
    assert (len(stamps), lost) == (expected, 0)
    assert stamps == sorted(set(stamps), key=lambda stamp: stamp or 0)
    assert expected >= FRAMES - 1


def damaged(path: Path, target: Path, *, seed: int) -> Path:
    """Copy a video with the first 16 bytes of its fourth packet replaced."""
    with av.open(str(path)) as given, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            data = bytes(packet)
            if number == 3:
                data = random.Random(seed).randbytes(16) + data[16:]
            copy = av.Packet(data)
            copy.stream, copy.time_base = stream, packet.time_base
            copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
            copy.is_keyframe = packet.is_keyframe
            out.mux(copy)
    return target


def error_of(path: Path) -> type[Exception] | None:
    """Return the error of plain PyAV for the first packet that cannot be decoded."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"
        for packet in container.demux(stream):
            try:
                packet.decode()
            except av.FFmpegError as error:
                return type(error)
    return None


@pytest.mark.parametrize("codec", ["msmpeg4", "h263"])
def test_any_error_of_a_decoder_is_damage_to_one_frame(
    videos: dict[str, Path], tmp_path: Path, codec: str
) -> None:
    """Decoders answer damage with errors of all kinds, such as "operation not permitted"."""
    suffix = CODECS[codec][0]
    for seed in range(3000):
        path = damaged(videos[codec], tmp_path / f"damaged{suffix}", seed=seed)
        error = error_of(path)
        if error not in (None, av.InvalidDataError, av.ArgumentError):
            break
    else:
        pytest.fail("no damage with another error was found")
    stamps, lost = read(path)
    assert (len(stamps), lost) == (FRAMES - 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["wmv2", "svq1", "mpeg1video", "prores_ks", "dvvideo"])
def test_damage_never_ends_the_run(videos: dict[str, Path], tmp_path: Path, codec: str) -> None:
    """Other codecs that plain PyAV can decode are read."""
    suffix = CODECS[codec][0]
    for seed in range(5):
        path = damaged(videos[codec], tmp_path / f"damaged{suffix}", seed=seed)
        stamps, lost = read(path)
        assert len(stamps) + lost >= FRAMES - 1
        assert len(stamps) >= FRAMES // 2
