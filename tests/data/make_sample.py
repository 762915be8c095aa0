"""Makes tests/data/sample.mp4 from its original clip.

    npm pack @mmomtchev/ffmpeg@2.0.1
    python tests/data/make_sample.py mmomtchev-ffmpeg-2.0.1.tgz tests/data/sample.mp4

It needs only this project's own dependencies. tests/data/README.md gives author and licence.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from rbvsr_deploy.pixels import Image
from rbvsr_deploy.video.colour.colour import colour_of
from rbvsr_deploy.video.colour.conversion import from_rgb, to_rgb

MEMBER = "package/test/data/launch.mp4"
FRAMES = 54
SIZE = (320, 180)  # a quarter of the original
BLUR = 0.6  # pixels
CRF = 29


def main() -> None:
    """Read the package and write the sample."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="mmomtchev-ffmpeg-2.0.1.tgz")
    parser.add_argument("sample", type=Path, help="the file to write, tests/data/sample.mp4")
    arguments = parser.parse_args()
    with tarfile.open(arguments.package) as package:
        member = package.extractfile(MEMBER)
        if member is None:
            raise SystemExit(f"{arguments.package} does not contain {MEMBER}")
        make_sample(member.read(), arguments.sample)


def make_sample(clip: bytes, sample: Path) -> None:
    """Downscale and degrade the first frames and copy the audio."""
    with (
        av.open(io.BytesIO(clip)) as source,
        av.open(str(sample), "w", container_options={"movflags": "faststart"}) as target,
    ):
        video, audio = source.streams.video[0], source.streams.audio[0]
        if video.average_rate is None or video.time_base is None:
            raise SystemExit(f"{MEMBER} has no frame rate")
        out = target.add_stream("libx264", rate=video.average_rate)
        out.codec_context.width, out.codec_context.height = SIZE
        out.codec_context.time_base = out.time_base = video.time_base
        # For the same bytes from every run: with x264's macroblock tree, they differed between
        # runs on a machine with AVX-512, but not with asm=AVX2.
        out.codec_context.thread_count = 1
        out.options = {"crf": str(CRF), "preset": "medium", "mbtree": "0"}
        copy = target.add_stream_from_template(audio)
        end = FRAMES / video.average_rate
        colour = None
        for number, frame in enumerate(source.decode(video)):
            if number == FRAMES:
                break
            colour = colour or dataclasses.replace(colour_of(frame), primaries=1, transfer=1)
            if number == 0:
                context = out.codec_context
                context.colorspace, context.color_range = colour.matrix, colour.range
                context.color_primaries, context.color_trc = colour.primaries, colour.transfer
            small = frame.reformat(*SIZE, interpolation=Interpolation.AREA)
            image = blurred(to_rgb(small, colour=colour))
            degraded = from_rgb(image, pix_fmt="yuv420p", colour=colour)
            degraded.pts, degraded.time_base = frame.pts, video.time_base
            target.mux(out.encode(degraded))
        target.mux(out.encode(None))
        copy_audio(clip, target=target, stream=copy, end=end)


def copy_audio(
    clip: bytes, *, target: av.container.OutputContainer, stream: av.AudioStream, end: Fraction
) -> None:
    """Copy the audio packets that belong to the excerpt."""
    with av.open(io.BytesIO(clip)) as source:
        for packet in source.demux(source.streams.audio[0]):
            if packet.pts is not None and packet.pts * packet.time_base < end:
                packet.stream = stream
                target.mux(packet)


def blurred(image: Image) -> NDArray[np.uint8]:
    """Return ``(H, W, 3)`` uint8 with a Gaussian blur, like that of a cheap lens."""
    taps = np.exp(-(np.arange(-2, 3) ** 2) / (2 * BLUR**2))
    taps /= taps.sum()
    padded = np.pad(image.astype(np.float64), ((2, 2), (2, 2), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    rows = sum(tap * padded[i : i + height] for i, tap in enumerate(taps))
    both = sum(tap * rows[:, i : i + width] for i, tap in enumerate(taps))
    return np.asarray(np.rint(both).clip(0, 255), np.uint8)


if __name__ == "__main__":
    main()
