"""Writes a contact sheet: an HTML page with details of a few frames at several strengths, each with
the command that upscales the input so.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable
from fractions import Fraction
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from rbvsr_deploy.engines.base import Engine
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.jobs.page import check_report_page, data_uri
from rbvsr_deploy.jobs.samples import Samples
from rbvsr_deploy.jobs.upscale_file import Progress
from rbvsr_deploy.runtime.output_size import OutputSize
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.video import ReadOptions, is_pipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["VARIANTS", "write_contact_sheet"]

VARIANTS = ((1.0, 1.0), (0.7, 1.0), (0.4, 1.0), (1.0, 0.5), (0.7, 0.5), (1.0, 0.0))
"""Strength and denoising of each image."""

_DETAIL = (360, 480)
"""Height and width in pixels of the detail that is shown, from the middle of a frame."""


def write_contact_sheet(
    path: Path,
    page: Path,
    *,
    count: int,
    engine: Engine,
    command: Callable[[float, float], str],
    settings: Settings | None = None,
    size: OutputSize | None = None,
    scene_cuts: bool = True,
    reading: ReadOptions | None = None,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> int:
    """Write a page with details of an input's frames at the strengths of :data:`VARIANTS`.

    Args:
        path: video, image or image folder.
        page: path of the page.
        count: number of frames to show; fewer if the input has fewer.
        engine: stays open; the caller closes it.
        command: returns the command that upscales the input with a strength and a denoising.
        settings: settings of the stream; their strength and denoising are replaced.
        size: how large the output would be; four times the input if ``None``.
        scene_cuts: detect cuts.
        reading: options for reading the input.
        overwrite: replace an existing page.
        progress: called after every frame of every stage with the frames done and their total.

    Returns:
        The number of images on the page.

    Raises:
        MediaError: the input cannot be read or the page not written.
        EngineError: the engine failed.
        RbvsrError: out of memory, or the model was exported by an earlier version.
    """
    if is_pipe(path):
        raise MediaError("a contact sheet seeks in its input, which pipes do not allow: use a file")
    check_report_page(page, overwrite=overwrite, others={"input": path})
    samples = Samples(
        path, count=count, size=size or OutputSize(), reading=reading or ReadOptions()
    )
    settings = settings or Settings()
    count_frames = samples.counted(progress, times=len(VARIANTS))
    figures: dict[str, list[str]] = {}
    detail: NDArray[np.uint8] | None = None
    for strength, denoise in VARIANTS:
        varied = dataclasses.replace(settings, strength=strength, denoise=denoise)
        with samples.stream(engine, varied, progress=count_frames) as stream:
            for sample in samples.upscaled(
                stream, scene_cuts=scene_cuts, skipped=lambda number, error: None
            ):
                detail = _detail(sample.upscaled)
                figures.setdefault(sample.label, []).append(
                    _figure(detail, strength, denoise, command(strength, denoise))
                )
    if detail is None:
        raise MediaError(f"no frame of {path} could be read again: give another input")
    pixel = samples.sample_aspect or Fraction(1)
    _write(
        page,
        path,
        figures,
        aspect=float(detail.shape[1] * pixel / detail.shape[0]),
    )
    return sum(map(len, figures.values()))


def _detail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the middle of an image, at most as large as :data:`_DETAIL`."""
    top, left = (
        max(0, side - most) // 2 for side, most in zip(image.shape[:2], _DETAIL, strict=True)
    )
    return np.ascontiguousarray(image[top : top + _DETAIL[0], left : left + _DETAIL[1]])


def _figure(image: NDArray[np.uint8], strength: float, denoise: float, command: str) -> str:
    title = f"strength {strength:g}, denoise {denoise:g}"
    return (
        f'<figure><img src="{data_uri(image)}" alt="{title}"><figcaption>{title}'
        f"<code>{html.escape(command)}</code></figcaption></figure>"
    )


def _write(page: Path, path: Path, figures: dict[str, list[str]], *, aspect: float) -> None:
    sections = (
        f'<h2>{html.escape(label)}</h2>\n<div class="sheet">\n' + "\n".join(images) + "\n</div>"
        for label, images in figures.items()
    )
    template = resources.files("rbvsr_deploy.jobs") / "contact_sheet.html"
    text = Template(template.read_text(encoding="utf-8")).substitute(
        title=html.escape(f"{path.name} at several strengths"),
        note="Details from the middle of the frames; no video was written. Strength is how far the "
        "output goes from plain enlargement to that of the network, denoise how much of the "
        "cleaning before it is applied. Click a command to select it.",
        aspect=f"{aspect:.6f}",
        frames="\n".join(sections),
    )
    try:
        # File names may not be valid Unicode.
        write_atomically(page, text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise MediaError(f"the page '{page}' cannot be written ({error.strerror})") from None
