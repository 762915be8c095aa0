"""One page of HTML with chosen frames before and after, and the figures of the run.

Everything is inside the file: it opens from the disk, without a network.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from rbvsr_deploy.before_after import check_new_file, enlarged, frames_of
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.video import ReadOptions, open_source
from rbvsr_deploy.video.images import encode_jpeg

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rbvsr_deploy.upscale_file import Summary

__all__ = ["check_comparison_page", "choose_frames", "write_comparison_page"]

# Pixels on each side of the line, of all frames together: the page stays at some megabytes.
_PIXELS = 24_000_000
_FEWEST, _MOST = 2, 8
_THUMBNAIL = 144
"""Height in pixels, twice that of the strip: for fine screens."""


def check_comparison_page(path: Path, *, source: Path, output: Path, overwrite: bool) -> None:
    """Refuse now what could not be written after hours of work.

    Raises:
        MediaError: the page cannot be written there.
    """
    for what, other in (("input", source), ("output", output)):
        if path.resolve() == other.resolve():
            raise MediaError(f"the page '{path}' is the {what} itself: choose another page")
    check_new_file(path, what="page", suffixes=(".htm", ".html"), overwrite=overwrite)


def choose_frames(frames: int, *, scene_starts: Iterable[int], at_most: int) -> list[int]:
    """Numbers of frames to show: spread evenly, and up to half of them the first of a scene that
    follows another.
    """
    starts = sorted(set(scene_starts) - {0})
    chosen = {starts[i] for i in _spread(len(starts), at_most // 2)}
    return sorted(chosen.union(_spread(frames, at_most - len(chosen))))


def write_comparison_page(
    path: Path, source: Path, output: Path, *, summary: Summary, reading: ReadOptions
) -> None:
    """Write the page; the frames are read back from the input and from the finished output.

    Args:
        path: of the page.
        source, output: what was read, and what was made of it.
        summary: of the run.
        reading: how the source was read.

    Raises:
        MediaError: input or output cannot be read, or the page not written.
    """
    most = min(_MOST, max(_FEWEST, _PIXELS // (summary.width * summary.height)))
    starts = {scene.first_frame for scene in summary.scenes}
    numbers = choose_frames(summary.frames, scene_starts=starts, at_most=most)
    with open_source(output) as shown:
        aspect = summary.width * (shown.sample_aspect or 1) / summary.height
    pictures, strip = [], []
    both = zip(frames_of(source, numbers, reading), frames_of(output, numbers), strict=True)
    for number, (before, after) in zip(numbers, both, strict=True):
        label = f"Frame {number}"
        pictures.append(
            {
                "label": label,
                "before": _data_uri(enlarged(before, width=summary.width, height=summary.height)),
                "after": _data_uri(after),
            }
        )
        if summary.frames > 1:
            thumbnail = enlarged(
                after, width=max(1, round(_THUMBNAIL * float(aspect))), height=_THUMBNAIL
            )
            scene = " · new scene" if number in starts and number > 0 else ""
            strip.append(
                f'<li><button type="button"><img src="{_data_uri(thumbnail)}" alt="">'
                f"{label}{scene}</button></li>"
            )
    figures = (
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        for name, value in _figures(source, output, summary=summary)
    )
    template = resources.files("rbvsr_deploy") / "comparison_page.html"
    page = Template(template.read_text(encoding="utf-8")).substitute(
        title=html.escape(f"{source.name}, four times larger"),
        aspect=f"{float(aspect):.6f}",
        strip="\n".join(strip),
        figures="\n".join(figures),
        pictures=json.dumps(pictures),
    )
    try:
        # Names of files may hold what is no text.
        write_atomically(path, page.encode("utf-8", errors="replace"))
    except OSError as error:
        raise MediaError(
            f"the page '{path}' cannot be written ({error.strerror}); {output} is complete"
        ) from None


def _figures(source: Path, output: Path, *, summary: Summary) -> list[tuple[str, str]]:
    made, total = summary.frames - summary.resumed_frames, summary.seconds["total"]
    seconds = f"{total:.1f}"
    if summary.resumed_frames:
        seconds += f" for {made} frames; an earlier run had made {summary.resumed_frames}"
    before = f"{summary.width // 4}×{summary.height // 4}"
    after = f"{summary.width}×{summary.height}"
    return [
        ("Input", f"{source.name}, {before}{_size(source)}"),
        ("Output", f"{output.name}, {after}{_size(output)}"),
        ("Engine", str(summary.engine)),
        ("Frames", str(summary.frames)),
        ("Scenes", str(len(summary.scenes))),
        ("Seconds", seconds),
        ("Frames/s", f"{made / total:.2f}"),
    ]


def _size(path: Path) -> str:
    if not path.is_file():
        return ""
    size = path.stat().st_size
    return f", {size / 1e6:.1f} MB" if size >= 1e6 else f", {size / 1e3:.1f} kB"


def _data_uri(image: NDArray[np.uint8]) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image)).decode()


def _spread(total: int, count: int) -> list[int]:
    """``count`` numbers below ``total``, or all of them: each in the middle of an equal share."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
