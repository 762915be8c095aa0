"""Tests y4m through standard input and output."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner

from rbvsr_deploy.commands.run import run
from rbvsr_deploy.video.colour.colour import Colour
from rbvsr_deploy.video.colour.conversion import from_rgb
from tests.conftest import short_clip
from tests.support import media

Upscale = Callable[..., subprocess.CompletedProcess[bytes]]

# Background jobs of a shell ignore Ctrl-C, and tests may run in one: this process must not.
COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from rbvsr_deploy.commands.run import run; run()"
)
# Enlarges by four without a network, while other code prints to standard output.
ENLARGE = """
import dataclasses, os, sys
from pathlib import Path
from rbvsr_deploy.video import WriteOptions, open_sink, open_source
with open_source(Path(sys.argv[1])) as source:
    size = {"width": 4 * source.width, "height": 4 * source.height}
    options = WriteOptions(pix_fmt=sys.argv[2] if sys.argv[2:] else None)
    with open_sink(Path("-"), source=source, job=None, options=options, **size) as sink:
        for frame in source:
            print("from Python")
            os.write(1, b"from C")
            image = frame.image.repeat(4, axis=0).repeat(4, axis=1)
            sink.write(dataclasses.replace(frame, image=image))
        sink.finish()
"""


COEFFICIENTS = {6: (0.299, 0.114), 1: (0.2126, 0.0722)}


def y4m(
    images: list[np.ndarray], *, header: str = "F25:1 A4:3", full: bool = False, matrix: int = 6
) -> bytes:
    """Encode y4m without the code under test: BT.601 (6) or BT.709 (1), limited or full range."""
    height, width, _ = images[0].shape
    data = f"YUV4MPEG2 W{width} H{height} {header} C420jpeg".encode()
    data += b" XCOLORRANGE=FULL\n" if full else b"\n"
    kr, kb = COEFFICIENTS[matrix]
    for image in images:
        r, g, b = np.moveaxis(image.astype(float), -1, 0)
        y = kr * r + (1 - kr - kb) * g + kb * b
        u, v = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
        u, v = (x.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for x in (u, v))
        if not full:
            y, u, v = 16 + y * 219 / 255, u * 224 / 255, v * 224 / 255
        planes = [np.clip(x.round(), 0, 255).astype(np.uint8) for x in (y, u + 128, v + 128)]
        data += b"FRAME\n" + b"".join(plane.tobytes() for plane in planes)
    return data


def rgb_of(planes: list[np.uint8], *, full: bool, matrix: int) -> list[float]:
    """Convert one pixel back to RGB."""
    y, u, v = (float(value) for value in planes)
    kr, kb = COEFFICIENTS[matrix]
    u, v = u - 128, v - 128
    if not full:
        y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    r, b = y + v * (2 - 2 * kr), y + u * (2 - 2 * kb)
    return [r, (y - kr * r - kb * b) / (1 - kr - kb), b]


def python(code: str, *arguments: object, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, timeout=120, check=False)


@pytest.fixture
def upscale(tiny_bundle: Path) -> Upscale:
    def upscale(*arguments: object, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        options = ("--engine", tiny_bundle, "--device", "cpu")
        return python(COMMAND, *arguments, *options, data=data)

    return upscale


@pytest.fixture
def clip() -> bytes:
    return y4m([media.gradient(number) for number in range(5)])


def frames_of(data: bytes) -> list[av.VideoFrame]:
    with av.open(io.BytesIO(data), format="yuv4mpegpipe") as container:
        return list(container.decode(video=0))


@pytest.mark.slow
def test_both_ends(upscale: Upscale, clip: bytes, tmp_path: Path) -> None:
    """Frames are the same as from file to file, and standard output holds nothing else."""
    done = upscale("-", "-o", "-", data=clip)
    assert done.returncode == 0, done.stderr
    header, _, _ = done.stdout.partition(b"\n")
    assert header == b"YUV4MPEG2 W256 H192 F25:1 Ip A4:3 C420mpeg2 XCOLORRANGE=LIMITED"
    assert len(done.stdout) == len(header) + 1 + 5 * (len(b"FRAME\n") + 256 * 192 * 3 // 2)
    assert b"-: 5 frames of 256x192" in done.stderr
    (tmp_path / "in.y4m").write_bytes(clip)
    assert upscale(tmp_path / "in.y4m", "-o", tmp_path / "out").returncode == 0
    pngs = [media.frames_of(path)[0] for path in sorted((tmp_path / "out").iterdir())]
    colour = Colour(matrix=6, range=1, primaries=2, transfer=2)
    for frame, png in zip(frames_of(done.stdout), pngs, strict=True):
        expected = from_rgb(png, pix_fmt="yuv420p", colour=colour)
        np.testing.assert_array_equal(frame.to_ndarray(), expected.to_ndarray())


@pytest.mark.slow
def test_ten_bits_at_both_ends(upscale: Upscale) -> None:
    """Ten bits are read unchanged and written on request."""
    planes = [np.full((16, 24), 601), np.full((8, 12), 500), np.full((8, 12), 523)]
    header = b"YUV4MPEG2 W24 H16 F25:1 Ip A1:1 C420p10 XYSCSS=420P10 XCOLORRANGE=LIMITED\n"
    frame = b"FRAME\n" + b"".join(plane.astype("<u2").tobytes() for plane in planes)
    done = upscale("-", "-o", "-", "--pix-fmt", "yuv420p10le", data=header + 2 * frame)
    assert done.returncode == 0, done.stderr
    frames = frames_of(done.stdout)
    assert [(f.format.name, f.width, f.height) for f in frames] == 2 * [("yuv420p10le", 96, 64)]
    luma = np.frombuffer(memoryview(frames[0].planes[0]), np.uint16)
    assert len(set(luma.tolist()) - set(range(0, 1024, 4))) > 0
    done = upscale("-", "-o", "-", data=header + frame)
    assert done.returncode == 0, done.stderr
    assert b"Converted: 10 bits per sample: rounded to 8 bits" in done.stderr
    assert frames_of(done.stdout)[0].format.name == "yuv420p"


@pytest.mark.slow
def test_into_a_file(upscale: Upscale, clip: bytes, tmp_path: Path) -> None:
    """A pipe gives the same bytes as a file as input, and leaves no job folder."""
    (tmp_path / "in.y4m").write_bytes(clip)
    assert upscale(tmp_path / "in.y4m", "-o", tmp_path / "a.mp4").returncode == 0
    done = upscale("-", "-o", tmp_path / "b.mp4", "--json", data=clip)
    assert done.returncode == 0, done.stderr
    assert b'"input": "-"' in done.stdout
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"in.y4m", "a.mp4", "b.mp4"}


@pytest.mark.slow
def test_from_a_file(upscale: Upscale, sample: Path, tmp_path: Path) -> None:
    """A video with audio is written to standard output without it."""
    path = short_clip(sample, tmp_path / "clip.mp4", frames=3)
    done = upscale(path, "-o", "-", "--pix-fmt", "yuv444p")
    assert done.returncode == 0, done.stderr
    assert [(f.width, f.height, f.format.name) for f in frames_of(done.stdout)] == [
        (384, 216, "yuv444p")
    ] * 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("height", "matrix", "full", "pix_fmt"),
    [
        (48, 6, False, "yuv420p"),
        (48, 6, True, "yuv422p"),
        (720, 1, False, "yuv444p"),
        (720, 1, True, "yuv420p"),
    ],
)
def test_colours_are_kept(height: int, matrix: int, full: bool, pix_fmt: str) -> None:
    """Flat colours are kept: the matrix depends on the height of the input, the range on its
    header. Text that is printed during the run is not in the output.
    """
    colours = [(200, 40, 30), (30, 180, 60), (40, 60, 190), (255, 255, 255), (0, 0, 0)]
    images = [np.full((height, 16, 3), colour, np.uint8) for colour in colours]
    data = y4m(images, full=full, matrix=matrix, header="F30000:1001 A1:1")
    done = python(ENLARGE, "-", pix_fmt, data=data)
    assert done.returncode == 0, done.stderr
    assert b"F30000:1001 Ip A1:1" in done.stdout[:100]
    got = frames_of(done.stdout)
    for frame, colour in zip(got, colours, strict=True):
        assert frame.format.name == pix_fmt
        planes = [np.frombuffer(plane, np.uint8)[0] for plane in frame.planes]
        # swscale rounds full range down.
        np.testing.assert_allclose(rgb_of(planes, full=full, matrix=matrix), colour, atol=2 + full)
    assert done.stderr.count(b"from C") == done.stderr.count(b"from Python") == 5


@pytest.mark.parametrize("stamps", [[0, 1001, 2002, 3003], [0, 1001, 5005, 6006]])
def test_variable_rate_is_reported(tmp_path: Path, stamps: list[int]) -> None:
    """y4m has no timestamps: a warning is given, but only if frame durations vary."""
    path = media.make_video(tmp_path / "in.mkv", stamps=stamps)
    done = python(ENLARGE, path)
    assert done.returncode == 0, done.stderr
    assert (b"frames move in time" in done.stderr) == (stamps[-1] == 6006)
    assert len(frames_of(done.stdout)) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (0, b"standard input is empty"),
        (20, b"is not y4m video"),
        (45, b"has no video frame"),
        (-1, b"ends in the middle of a frame"),
        (-3000, b"ends in the middle of a frame"),
    ],
)
def test_input_that_ends_too_early(
    upscale: Upscale, clip: bytes, tmp_path: Path, cut: int, words: bytes
) -> None:
    """The run ends in one sentence and leaves no files."""
    done = upscale("-", "-o", tmp_path / "out.mp4", data=clip[:cut])
    assert done.returncode == 1
    assert done.stderr.count(b"Error: ") == 1
    assert words in done.stderr
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_other_formats_are_refused(upscale: Upscale, sample: Path, tmp_path: Path) -> None:
    """The error for an MP4 on standard input says how to make y4m."""
    done = upscale("-", "-o", tmp_path / "out.mp4", data=sample.read_bytes())
    assert done.returncode == 1
    assert b"ffmpeg -i FILE -f yuv4mpegpipe -" in done.stderr


def start(tiny_bundle: Path) -> subprocess.Popen[bytes]:
    options = ("-", "-o", "-", "--lookahead", "0", "--engine", tiny_bundle, "--device", "cpu")
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_output_that_is_closed_early(tiny_bundle: Path, clip: bytes) -> None:
    """A reader like ``head`` ends the run with one sentence and no traceback."""
    process = start(tiny_bundle)
    process.stdin.write(clip)
    assert len(process.stdout.read(1000)) == 1000
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count(b"Error: cannot write standard output: Broken pipe") == 1
    assert b"Traceback" not in errors
    assert b"Exception" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("side", ["input", "output"])
def test_interrupted_while_waiting(
    tiny_bundle: Path, clip: bytes, side: str, number: int, code: int
) -> None:
    """A signal ends a run that waits for more input, or for its output to be read."""
    process = start(tiny_bundle)
    process.stdin.write(clip)
    process.stdin.flush()
    if side == "input":  # without lookahead, all frames are written while the input is still open
        got, expected = 0, 5 * 256 * 192 * 3 // 2
        while got < expected:
            got += len(os.read(process.stdout.fileno(), 1 << 16))
    else:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 60)[0]
    time.sleep(0.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code, errors
    assert b"Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-"], "give -o"),
        (["-", "a.mp4", "-o", "out"], "one input"),
        (["a.mp4", "b.mp4", "-o", "-"], "one input"),
        (["a.mp4", "-o", "-", "--json"], "--json"),
        (["a.mp4", "-o", "-", "--keep-job"], "--keep-job"),
    ],
)
def test_arguments_that_pipes_do_not_support(arguments: list[str], words: str) -> None:
    """These are usage errors, raised before anything is opened."""
    result = CliRunner().invoke(run, arguments)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--codec", "libx264"), b"codec is for files"),
        (("--pix-fmt", "yuva420p"), b"cannot be piped as y4m"),
        (("--before-after", "a.png"), b"a second time"),
    ],
)
def test_options_that_y4m_does_not_support(
    upscale: Upscale, clip: bytes, tmp_path: Path, options: tuple[str, ...], words: bytes
) -> None:
    """The run ends in one sentence, and standard output is empty."""
    done = upscale("-", "-o", "-", *options, data=clip)
    assert (done.returncode, done.stdout) == (1, b"")
    assert words in done.stderr


def test_header_is_read() -> None:
    """The source takes size, rate, pixel aspect ratio and range from the header."""
    code = (
        "from pathlib import Path; from rbvsr_deploy.video import frame_size, open_source\n"
        "print(frame_size(Path('-')))\n"
        "with open_source(Path('-')) as s:\n"
        "    print(s.rate, s.sample_aspect, s.colour.range, s.frame_count, len(list(s)))"
    )
    data = y4m([media.gradient(0)] * 3, header="F24000:1001 A8:9", full=True)
    done = python(code, data=data)
    assert done.stdout.decode().splitlines() == ["(48, 64)", "24000/1001 8/9 2 None 3"], done.stderr
