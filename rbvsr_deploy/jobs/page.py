"""Writes the report page: one HTML file with selected frames before and after, and the figures of
the run.

The file is self-contained: it opens from the disk, without a network.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping
from fractions import Fraction
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.jobs.before_after import (
    check_apart,
    check_new_file,
    enlarged,
    frames_of,
    shown_before,
)
from rbvsr_deploy.video import ReadOptions, open_source
from rbvsr_deploy.video.images import encode_jpeg

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rbvsr_deploy.jobs.summary import Summary
    from rbvsr_deploy.runtime.output_size import Target

__all__ = [
    "Page",
    "check_report_page",
    "choose_frames",
    "data_uri",
    "file_size",
    "write_report_page",
]

# Pixels on each side of the divider, of all frames together: the page stays at a few megabytes.
_PIXELS = 24_000_000
_FEWEST, _MOST = 2, 8
_THUMBNAIL = 144
"""Height in pixels, twice that of the strip, for high-resolution screens."""


def check_report_page(path: Path, *, overwrite: bool, others: Mapping[str, Path]) -> None:
    """Refuse now what could not be written after hours of work.

    Args:
        path: of the page.
        overwrite: whether it may exist.
        others: files that it may not replace, by what they are.

    Raises:
        MediaError: the page cannot be written there.
    """
    check_apart(path, what="page", others=others)
    check_new_file(path, what="page", suffixes=(".htm", ".html"), overwrite=overwrite)


def choose_frames(frames: int, *, scene_starts: Iterable[int], at_most: int) -> list[int]:
    """Return the numbers of frames to show: evenly spread, and for up to half of them the first
    frame of a scene that follows another.
    """
    starts = sorted(set(scene_starts) - {0})
    chosen = {starts[i] for i in _spread(len(starts), at_most // 2)}
    return sorted(chosen.union(_spread(frames, at_most - len(chosen))))


def write_report_page(
    path: Path,
    source: Path,
    output: Path,
    *,
    summary: Summary,
    reading: ReadOptions,
    target: Target | None = None,
) -> None:
    """Write the page; the frames are read again from the input and from the finished output.

    Args:
        path: path of the page.
        source, output: input and output of the run.
        summary: report of the run.
        reading: options the source was read with.
        target: size of the output, if it is not four times the input.

    Raises:
        MediaError: input or output cannot be read, or the page not written.
    """
    most = min(_MOST, max(_FEWEST, _PIXELS // (summary.width * summary.height)))
    starts = {scene.first_frame for scene in summary.scenes}
    numbers = choose_frames(summary.frames, scene_starts=starts, at_most=most)
    with open_source(output) as shown:
        aspect = shown.sample_aspect or Fraction(1)
    page = Page(width=summary.width, height=summary.height, sample_aspect=aspect, target=target)
    both = zip(frames_of(source, numbers, reading), frames_of(output, numbers), strict=True)
    for number, (before, after) in zip(numbers, both, strict=True):
        mark = " · new scene" if number in starts and number > 0 else ""
        page.add(f"Frame {number}", before=before, after=after, mark=mark)
    page.write(
        path,
        title=f"{source.name}, upscaled{'' if target else ' by four'}",
        figures=_figures(source, output, summary=summary, target=target),
        also=f"; {output} is complete",
    )


class Page:
    """Collects frames, then writes the page.

    Args:
        width, height: size of the upscaled frames in pixels.
        sample_aspect: width of a pixel divided by its height.
        target: size of the upscaled frames, if it is not four times the input.
    """

    def __init__(
        self,
        *,
        width: int,
        height: int,
        sample_aspect: Fraction,
        target: Target | None = None,
    ) -> None:
        self._target = target
        self._aspect = float(width * sample_aspect / height)
        self._frames: list[dict[str, str]] = []
        self._strip: list[str] = []

    def add(
        self, label: str, *, before: NDArray[np.uint8], after: NDArray[np.uint8], mark: str = ""
    ) -> None:
        """Add one frame.

        Args:
            label: name of the frame.
            before: (H, W, 3) RGB, enlarged here by bicubic interpolation.
            after: (4H, 4W, 3) RGB, or of the target's size.
            mark: text after the label in the strip.
        """
        before = shown_before(before, self._target)
        self._frames.append({"label": label, "before": data_uri(before), "after": data_uri(after)})
        thumbnail = enlarged(
            after, width=max(1, round(_THUMBNAIL * self._aspect)), height=_THUMBNAIL
        )
        self._strip.append(
            f'<li><button type="button"><img src="{data_uri(thumbnail)}" alt="">'
            f"{html.escape(label + mark)}</button></li>"
        )

    def write(
        self,
        path: Path,
        *,
        title: str,
        figures: Iterable[tuple[str, str]],
        note: str = "",
        also: str = "",
    ) -> None:
        """Write the page, with at least one frame.

        Args:
            path: path of the page.
            title: its headline.
            figures: names and values for the table.
            note: a sentence under the headline, if any.
            also: appended to the error message if the page cannot be written.

        Raises:
            MediaError: it cannot be written.
        """
        rows = (
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in figures
        )
        template = resources.files("rbvsr_deploy.jobs") / "page.html"
        page = Template(template.read_text(encoding="utf-8")).substitute(
            title=html.escape(title),
            note=f'<p class="note">{html.escape(note)}</p>' if note else "",
            aspect=f"{self._aspect:.6f}",
            # A single frame does not need a strip.
            strip="\n".join(self._strip) if len(self._strip) > 1 else "",
            figures="\n".join(rows),
            # A file name could contain the end tag of the script.
            frames=json.dumps(self._frames).replace("<", "\\u003c"),
        )
        try:
            # File names may not be valid Unicode.
            write_atomically(path, page.encode("utf-8", errors="replace"))
        except OSError as error:
            raise MediaError(
                f"the page '{path}' cannot be written ({error.strerror}){also}"
            ) from None


def _figures(
    source: Path, output: Path, *, summary: Summary, target: Target | None
) -> list[tuple[str, str]]:
    done, total = summary.frames - summary.resumed_frames, summary.seconds["total"]
    seconds = f"{total:.1f}"
    rate = [("Frames/s", f"{done / total:.2f}")] if done else []
    counts = (("Lost to damage", summary.lost_frames), ("Damaged", summary.damaged_frames))
    damage = [(name, str(number)) for name, number in counts if number]
    changes = [
        (name, f"{change.what}: {change.reason}")
        for name, listed in (("Converted", summary.converted), ("Dropped", summary.dropped))
        for change in listed
    ]
    if summary.resumed_frames:
        seconds += f" for {done} frames; an earlier run had made {summary.resumed_frames}"
    size = (summary.height // SCALE, summary.width // SCALE) if target is None else target.source
    before = f"{size[1]}×{size[0]}"
    after = f"{summary.width}×{summary.height}"
    return [
        ("Input", f"{source.name}, {before}{file_size(source)}"),
        ("Output", f"{output.name}, {after}{file_size(output)}"),
        ("Engine", str(summary.engine)),
        ("Frames", str(summary.frames)),
        *damage,
        *changes,
        ("Scenes", str(len(summary.scenes))),
        ("Seconds", seconds),
        *rate,
    ]


def file_size(path: Path) -> str:
    """Return the size of a file as text that follows its name; empty for a folder."""
    if not path.is_file():
        return ""
    size = path.stat().st_size
    return f", {size / 1e6:.1f} MB" if size >= 1e6 else f", {size / 1e3:.1f} kB"


def data_uri(image: NDArray[np.uint8]) -> str:
    """Return an image (H, W, 3) RGB as the address of an image in HTML, in JPEG."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image)).decode()


def _spread(total: int, count: int) -> list[int]:
    """Return ``count`` numbers below ``total``, or all: each in the middle of an equal share."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
