"""Draws a result: a roofline, and the time of each graph next to its floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rbvsr_deploy.bench.result import BenchResult
from rbvsr_deploy.bench.tables import short
from rbvsr_deploy.errors import MissingDependencyError

__all__ = ["SUFFIXES", "check_plot", "draw"]

SUFFIXES = (".png", ".svg")


def check_plot() -> None:
    """Check that plots can be drawn, before long work begins.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingDependencyError("matplotlib", extra="bench", purpose="drawing") from None


def draw(result: BenchResult, path: Path) -> None:
    """Draw a result as PNG or SVG, by the suffix of its name."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 11, "svg.hashsalt": "rbvsr"}):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
        _draw_roofline(left, result)
        _draw_times(right, result)
        protocol = result.protocol
        note = "" if protocol.comparable else "; quick, not comparable"
        note += "" if result.calm.calm else "; the machine was not calm"
        figure.suptitle(
            f"{result.bundle} in {result.precision}, {protocol.width}x{protocol.height}, "
            f"{result.engine} on {result.machine.name}: "
            f"{result.throughput.frames_per_second:.3g} frames/s{note}",
            fontsize=11,
        )
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)


def _draw_roofline(axes: Any, result: BenchResult) -> None:
    """Draw attained GFLOP/s against FLOPs per byte, below the measured ceilings."""
    graphs = {name: g for name, g in result.graphs.items() if g.counted.flops}
    intensity = {name: g.counted.flops / g.counted.bytes for name, g in graphs.items()}
    lowest, highest = min(intensity.values()) / 2, max(intensity.values()) * 4
    matrix, copy = result.ceilings.matrix_flops, result.ceilings.copy_bytes
    if matrix is not None and copy is not None:
        ridge = matrix / copy
        lowest, highest = min(lowest, ridge / 4), max(highest, ridge * 4)
        axes.plot(
            [lowest, ridge, highest],
            [lowest * copy / 1e9, matrix / 1e9, matrix / 1e9],
            color="black",
            linewidth=1.5,
        )
        axes.annotate(
            f"measured ceilings: {matrix / 1e9:.4g} GFLOP/s, {copy / 1e9:.3g} GB/s",
            (ridge, matrix / 1e9),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    alone = result.graphs_ms
    for number, (name, graph) in enumerate(graphs.items()):
        share = graph.runs_per_frame * graph.latency_ms.p50 / alone
        axes.scatter(
            intensity[name],
            graph.attained.flops_per_second / 1e9,
            s=40 + 500 * share,
            alpha=0.75,
            label=f"{name}, {100 * share:.0f} % of a frame",
            color=f"C{number}",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(lowest, highest)
    axes.margins(y=0.2)
    axes.set_xlabel("FLOP per byte, each node reading and writing once")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("Roofline")
    axes.grid(alpha=0.3)
    legend = axes.legend(fontsize=9, loc="lower right")
    for handle in legend.legend_handles:
        handle.set_sizes([45])


def _draw_times(axes: Any, result: BenchResult) -> None:
    """Draw milliseconds per frame by graph, with floors, and the whole pipeline."""
    names = list(result.graphs)
    times = [g.runs_per_frame * g.latency_ms.p50 for g in result.graphs.values()]
    floors = [
        None if g.attained.floor_ms is None else g.runs_per_frame * g.attained.floor_ms
        for g in result.graphs.values()
    ]
    throughput = result.throughput
    names += ["graphs together", "network in a scene", "whole pipeline"]
    times += [result.graphs_ms, throughput.network_ms.p50, throughput.total_ms.p50]
    known = [floor for floor in floors if floor is not None]
    floors += [sum(known) if known else None, throughput.attained.floor_ms, None]
    places = range(len(names))
    colours = [f"C{n}" for n in range(len(result.graphs))] + ["0.55"] * 3
    axes.barh(places, times, color=colours, alpha=0.85)
    label = "floor: the least the ceilings allow"
    for place, floor in zip(places, floors, strict=True):
        if floor is not None:
            axes.plot([floor] * 2, [place - 0.42, place + 0.42], color="black", label=label)
            label = ""
    for place, value in zip(places, times, strict=True):
        axes.annotate(
            short(value), (value, place), xytext=(4, -4), textcoords="offset points", fontsize=9
        )
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(times))
    axes.set_xlabel("milliseconds per frame (medians)")
    axes.set_title("Time by graph")
    axes.grid(alpha=0.3, axis="x")
    if known:
        axes.legend(fontsize=9, loc="upper right")
