"""Measures what the stochastic degradation scheme saves: loading L/2 frames and mirroring them in
time, compared with loading L different frames.

Both schemes load the same footage in the same run, alternating clip by clip, in one process with
one thread; times are CPU seconds of that process, per clip. Three sources of the same frames are
measured: the original video files, which must be decoded from the preceding key frame; folders of
PNG files made from them, the layout of REDS; and the cache of decoded frames. Loading ends with the
crop; sharpening is the unsharp mask, applied to distinct frames only; degrading takes equally long
in both schemes.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import av
import click
import cv2
import msgspec
import numpy as np
from common import environment

from rbvsr_deploy.training.data import training_set as data_module
from rbvsr_deploy.training.data.training_set import DataConfig, SourceConfig, TrainingSet
from rbvsr_deploy.training.degradations.clip_degradation import MODERATE, PUBLISHED

PARTS = ("loading", "sharpening", "degrading")
SCHEMES = {"L/2 mirrored": True, "L different": False}
CONFIGS = {"published": PUBLISHED, "moderate": MODERATE}

Seconds = dict[str, float]


class Clock:
    """Measures the CPU seconds of each part of :meth:`TrainingSet.sample`."""

    def __init__(self) -> None:
        self.seconds: Seconds = dict.fromkeys(PARTS, 0.0)
        for part, name in (("sharpening", "sharpen"), ("degrading", "degrade")):
            setattr(data_module, name, self.timed(part, getattr(data_module, name)))

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.process_time()
            try:
                return function(*arguments)
            finally:
                self.seconds[part] += time.process_time() - started

        return call

    def sample(self, data: TrainingSet, index: int) -> Seconds:
        """Return the seconds one clip takes, by part and in total."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        started = time.process_time()
        data.sample(index)
        return {**self.seconds, "total": time.process_time() - started}


def make_frames(videos: Iterable[Path], folder: Path, *, frames: int) -> None:
    """Write the first frames of every video as PNG files, one folder per video."""
    for video in videos:
        target = folder / video.stem
        target.mkdir(parents=True)
        with av.open(str(video)) as container:
            for number, frame in zip(range(frames), container.decode(video=0), strict=False):
                image = cv2.cvtColor(frame.to_ndarray(format="rgb24"), cv2.COLOR_RGB2BGR)
                cv2.imwrite(str(target / f"{number:08d}.png"), image)


def measure(
    sources: dict[str, tuple[SourceConfig, Path | None]], *, length: int, crop: int, clips: int
) -> list[dict[str, Any]]:
    """Return mean seconds per clip for every source, configuration and scheme."""
    clock = Clock()
    rows: list[dict[str, Any]] = []
    for way, (source, cache) in sources.items():
        config = DataConfig(
            sources=(source,), length=length, crop=crop, cache=None if cache is None else str(cache)
        )
        for name, degradation in CONFIGS.items():
            sets = {
                scheme: TrainingSet(
                    msgspec.structs.replace(config, stochastic=on), degradation, seed=1
                )
                for scheme, on in SCHEMES.items()
            }
            for data in sets.values():
                data.check()
                (opened,) = data.sources
                for footage in opened.usable:  # fills the cache of decoded frames
                    next(footage.decode(0, 1))
                opened.clip = clock.timed("loading", opened.clip)  # type: ignore[method-assign]
            times: dict[str, list[Seconds]] = {scheme: [] for scheme in sets}
            for index in range(clips):
                for scheme, data in sets.items():
                    times[scheme].append(clock.sample(data, index))
            means = {
                scheme: {k: float(np.mean([s[k] for s in seconds])) for k in seconds[0]}
                for scheme, seconds in times.items()
            }
            half, full = means.values()
            ratios = {k: full[k] / half[k] for k in ("loading", "total")}
            rows.append({"source": way, "degradations": name, "seconds": means, "ratios": ratios})
            print(f"{way}, {name}: loading {ratios['loading']:.2f}, whole {ratios['total']:.2f}")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows as a Markdown table."""
    lines = ["| source | degradations | scheme | loading | sharpening | degrading | whole |"]
    lines.append("|" + "---|" * 7)
    for row in rows:
        for scheme, seconds in row["seconds"].items():
            figures = " | ".join(f"{1000 * seconds[k]:.0f}" for k in (*PARTS, "total"))
            lines.append(f"| {row['source']} | {row['degradations']} | {scheme} | {figures} |")
        loading, total = row["ratios"]["loading"], row["ratios"]["total"]
        lines.append(
            f"| {row['source']} | {row['degradations']} | **times faster** | **{loading:.2f}** "
            f"| | | **{total:.2f}** |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw CPU milliseconds per clip as stacked bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = dict(zip(PARTS, ("#c8553d", "#e8b04a", "#8aa1b1"), strict=True))
    figure, axes = plt.subplots(figsize=(8, 0.55 * 2 * len(rows) + 1), layout="constrained")
    labels, y = [], 0.0
    for row in rows:
        for scheme, seconds in row["seconds"].items():
            left = 0.0
            for part in PARTS:
                width = 1000 * seconds[part]
                axes.barh(y, width, left=left, color=colours[part], label=part)
                left += width
            labels.append((y, f"{row['source']}, {row['degradations']}\n{scheme}"))
            y += 1.0
        axes.text(left, y - 1.5, f"  {row['ratios']['total']:.2f}x", va="center")
        y += 0.5
    axes.set_yticks([place for place, _ in labels], [text for _, text in labels], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("CPU milliseconds per clip")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[: len(PARTS)], names[: len(PARTS)])
    figure.savefig(path, dpi=120)


@click.command()
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--length", default=30, show_default=True, help="Frames per clip.")
@click.option("--crop", default=64, show_default=True, help="Side of the degraded frames.")
@click.option("--clips", default=24, show_default=True, help="Clips measured with each scheme.")
@click.option(
    "--frames", default=90, show_default=True, help="Frames of each video to write as PNG files."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="PNG file to write.")
def main(
    videos: tuple[Path, ...],
    length: int,
    crop: int,
    clips: int,
    frames: int,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Measure the loader on VIDEOS, which must all have the same frame size."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        links = Path(folder, "videos")
        links.mkdir()
        for video in videos:
            (links / video.name).symlink_to(video.resolve())
        make_frames(videos, Path(folder, "png"), frames=frames)
        sources = {
            "video files": (SourceConfig("videos", str(links)), None),
            "PNG folders": (SourceConfig("frames", str(Path(folder, "png"))), None),
            "video files, cached": (SourceConfig("videos", str(links)), Path(folder, "cache")),
        }
        rows = measure(sources, length=length, crop=crop, clips=clips)
    print(table(rows))
    result = {
        **environment(),
        "versions": {"av": av.__version__, "cv2": cv2.__version__, "numpy": np.__version__},
        "videos": [video.name for video in videos],
        "length": length,
        "crop": crop,
        "clips": clips,
        "rows": rows,
    }
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if plot_path is not None:
        plot(rows, plot_path)


if __name__ == "__main__":
    main()
