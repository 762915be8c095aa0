"""Writes a preview: a report page with a few evenly spread frames of an input, and an estimate of
how long all of it would take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from rbvsr_deploy.engines.base import Description, Engine
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.jobs.page import Page, check_report_page, file_size
from rbvsr_deploy.jobs.samples import Samples
from rbvsr_deploy.jobs.upscale_file import Progress
from rbvsr_deploy.pixels import eight_bits
from rbvsr_deploy.runtime.output_size import OutputSize, output_sides
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.units import show_bytes, show_duration
from rbvsr_deploy.video import ReadOptions, is_pipe
from rbvsr_deploy.video.excerpts import EmptyExcerptError

__all__ = ["Preview", "write_preview"]


@dataclass(frozen=True)
class Preview:
    """Reports what a preview shows; ``rbvsr-run --preview --json`` prints it."""

    input: str
    page: str
    pictures: list[str]
    """Times of the frames that are shown or, for a folder, their names."""
    frames: int
    """Number of frames in the input, or in the requested excerpt of it."""
    width: int
    """Width of the upscaled frames in pixels."""
    height: int
    """Height of the upscaled frames in pixels."""
    engine: Description
    seconds_per_frame: float
    """Time of the network, without reading and writing, which run in parallel."""
    estimated_seconds: float
    """Estimated time for all frames."""


def write_preview(
    path: Path,
    page: Path,
    *,
    count: int,
    engine: Engine,
    settings: Settings | None = None,
    size: OutputSize | None = None,
    scene_cuts: bool = True,
    reading: ReadOptions | None = None,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> Preview:
    """Write a page with frames of an input before and after.

    Args:
        path: video, image or image folder.
        page: path of the page.
        count: number of frames to show; fewer if the input has fewer.
        engine: stays open; the caller closes it.
        settings: scenes, lookahead, refinement, strength and memory.
        size: how large the output would be; four times the input if ``None``.
        scene_cuts: detect cuts.
        reading: options for reading the input.
        overwrite: replace an existing page.
        progress: called after every frame of every stage with the frames done and their total.
        report: called with a line about every choice that was made.

    Raises:
        MediaError: the input cannot be read or the page not written.
        EngineError: the engine failed.
        RbvsrError: out of memory.
    """
    if is_pipe(path):
        raise MediaError("a preview seeks in its input, which pipes do not allow: give a file")
    check_report_page(page, overwrite=overwrite, others={"input": path})
    samples = Samples(
        path, count=count, size=size or OutputSize(), reading=reading or ReadOptions()
    )
    height, width = output_sides(samples.target, height=samples.height, width=samples.width)
    shown = Page(
        width=width,
        height=height,
        sample_aspect=samples.sample_aspect or Fraction(1),
        target=samples.target,
    )
    labels: list[str] = []
    times: list[float] = []

    def skipped(number: int, error: EmptyExcerptError) -> None:
        if number == samples.numbers[-1] and not labels:
            raise error
        report(f"One frame less: {error}")

    with samples.stream(
        engine, settings or Settings(), progress=samples.counted(progress)
    ) as stream:
        report(f"Memory: {show_bytes(stream.memory)} for {stream.plan}")
        for sample in samples.upscaled(stream, scene_cuts=scene_cuts, skipped=skipped):
            labels.append(sample.label)
            times.append(sample.seconds_per_frame)
            shown.add(sample.label, before=eight_bits(sample.frame.image), after=sample.upscaled)
    # The first excerpt also warms up the engine.
    per_frame = float(np.mean(times[1:] or times))
    preview = Preview(
        input=str(path),
        page=str(page),
        pictures=labels,
        frames=samples.frames,
        width=width,
        height=height,
        engine=engine.describe(),
        seconds_per_frame=round(per_frame, 6),
        estimated_seconds=round(samples.frames * per_frame, 1),
    )
    _write(shown, page, path, preview=preview, size=(samples.height, samples.width))
    return preview


def _write(shown: Page, page: Path, path: Path, *, preview: Preview, size: tuple[int, int]) -> None:
    estimate = show_duration(preview.estimated_seconds)
    shown.write(
        page,
        title=f"{path.name}, upscaled: a preview",
        note=f"This is a preview; no video was written. All {preview.frames} frames would take "
        f"about {estimate} on this machine.",
        figures=[
            ("Input", f"{path.name}, {size[1]}×{size[0]}{file_size(path)}"),
            ("Output", f"{preview.width}×{preview.height}"),
            ("Engine", str(preview.engine)),
            ("Frames shown", f"{len(preview.pictures)}, each upscaled with its neighbours"),
            ("Frames", str(preview.frames)),
            ("Frames/s", f"{1 / preview.seconds_per_frame:.2f}"),
            ("All frames", f"about {estimate}"),
        ],
    )
