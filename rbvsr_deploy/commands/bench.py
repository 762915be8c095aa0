"""``rbvsr-bench``: measures how fast a bundle runs on this machine."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rbvsr_deploy.commands._common import (
    JSON,
    PATH,
    VERBOSE,
    VERSION,
    Command,
    Count,
    command_errors,
    memory_size,
    report,
    show,
)

if TYPE_CHECKING:
    from rich.table import Table

    from rbvsr_deploy.bench.result import BenchResult

__all__ = ["bench"]

_LARGEST = 16384


def _size(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    """Parse width and height such as 320x180."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value, re.ASCII)
    if match is None or max(int(match[1]), int(match[2])) > _LARGEST:
        raise click.BadParameter(
            f"{value[:40]!r} is not a size of up to {_LARGEST}x{_LARGEST}; use for example 320x180"
        )
    return int(match[1]), int(match[2])


def _plot(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    from rbvsr_deploy.bench.plot import SUFFIXES

    if value is not None and value.suffix not in SUFFIXES:
        raise click.BadParameter(f"'{value}' must end in {' or '.join(SUFFIXES)}")
    return value


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--engine", "model", type=PATH, help="Bundle to measure.  [default: compact model]")
@click.option("--device", default="auto", metavar="DEVICE", help="As for rbvsr-run.")
@click.option(
    "--size",
    default="320x180",
    metavar="WxH",
    callback=_size,
    help="Width and height of the synthetic frames.",
)
@click.option("--video", type=PATH, help="Use the first frames of a video, in its own size.")
@click.option(
    "--frames",
    default=30,
    metavar="N",
    type=Count(2, 100_000),
    help="Length of the scene that is upscaled again and again.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    callback=memory_size,
    help="Device memory to use, such as 4GiB.  [default: half of what is free]",
)
@click.option("--quick", is_flag=True, help="Measure for seconds; the result is not comparable.")
@click.option(
    "--reference",
    type=PATH,
    help="Float32 bundle or checkpoint of the same network to compare images with.  [default: "
    "the bundle itself on the CPU, if it is float32]",
)
@click.option(
    "--peer",
    "peers",
    type=PATH,
    multiple=True,
    help="Also measure a checkpoint of the network in PyTorch, eager and compiled, or an ONNX "
    "file of a network that upscales frame by frame. Can be repeated.",
)
@click.option("-o", "--output", type=PATH, help="JSON file to write; an existing one is replaced.")
@click.option(
    "--plot", type=PATH, callback=_plot, help="PNG or SVG to draw: roofline, time by graph."
)
@click.option("--submit", is_flag=True, help="Print the Markdown row for the table of results.")
@click.option(
    "--trust-engines",
    is_flag=True,
    help="Run the compiled engines of the bundle even if somebody else compiled them: they are "
    "machine code.",
)
@JSON
@VERBOSE
@VERSION
def bench(
    model: Path | None,
    device: str,
    size: tuple[int, int],
    video: Path | None,
    frames: int,
    memory: int | None,
    quick: bool,
    reference: Path | None,
    peers: tuple[Path, ...],
    output: Path | None,
    plot: Path | None,
    submit: bool,
    trust_engines: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure how fast a bundle runs on this machine.

    Each graph by itself, then one frame at a time, then whole scenes, for a minute each; the
    images are compared with a float32 reference in the same run.
    """
    with command_errors(verbose=verbose):
        import msgspec

        from rbvsr_deploy.bench.clips import synthetic_clip, video_clip
        from rbvsr_deploy.bench.measure import run_benchmark
        from rbvsr_deploy.bench.plot import check_plot, draw
        from rbvsr_deploy.bench.tables import markdown_row
        from rbvsr_deploy.bench.timing import FULL, QUICK
        from rbvsr_deploy.files import check_writable
        from rbvsr_deploy.pretrained import DEFAULT_BUNDLE

        if plot is not None:
            check_plot()
        for path in (output, plot):
            if path is not None:
                check_writable(path)
        width, height = size
        clip = (
            synthetic_clip(frames, width=width, height=height)
            if video is None
            else video_clip(video, frames)
        )
        result = run_benchmark(
            model or DEFAULT_BUNDLE,
            clip,
            clip_name="synthetic" if video is None else video.name,
            device=device,
            trust_engines=trust_engines,
            memory=memory,
            effort=QUICK if quick else FULL,
            reference=reference,
            peers=peers,
            command=_command_line(),
            report=report,
        )
        encoded = msgspec.json.format(msgspec.json.encode(result), indent=1).decode()
        if output is not None:
            output.write_text(encoded + "\n", encoding="utf-8")
        if plot is not None:
            draw(result, plot)
        if as_json:
            show(encoded)
        else:
            _show(result)
        if submit:
            show(markdown_row(result), err=as_json)


def _command_line() -> str:
    """Return the command as it would be typed, also if it was called as ``rbvsr bench``."""
    arguments = sys.argv[1:]
    return shlex.join(["rbvsr-bench", *arguments[arguments[:1] == ["bench"] :]])


def _show(result: BenchResult) -> None:
    """Print tables: the graphs, then the whole."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("graph", "p50 ms", "p90 ms", "GFLOP", "MB", "GFLOP/s", "of matrix", "floor ms"):
        table.add_column(heading, justify="left" if heading == "graph" else "right")
    for name, graph in result.graphs.items():
        times = f" x{graph.runs_per_frame}" if graph.runs_per_frame > 1 else ""
        attained = graph.attained
        table.add_row(
            name + times,
            f"{graph.latency_ms.p50:.3f}",
            f"{graph.latency_ms.p90:.3f}",
            f"{graph.counted.flops / 1e9:.3g}",
            f"{graph.counted.bytes / 1e6:.3g}",
            f"{attained.flops_per_second / 1e9:.3g}",
            _percent(attained.matrix_share),
            _figure(attained.floor_ms),
        )
    _print(table)
    rows = Table(box=None, pad_edge=False, show_header=False)
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column()
    for label, value in _summary(result).items():
        rows.add_row(label, Text(value))
    show("")
    _print(rows)


def _summary(result: BenchResult) -> dict[str, str]:
    """Return the lines below the table of graphs."""
    from rbvsr_deploy.units import show_bytes

    throughput, latency, sensors = result.throughput, result.latency, result.sensors
    times, per_clip = latency.latency_ms, throughput.total_ms
    network = throughput.network_ms.p50
    p99 = "" if times.p99 is None else f", p99 {times.p99:.3g}"
    lines = {
        "graphs": f"{result.graphs_ms:.4g} ms per frame, one by one",
        "network": f"{network:.4g} ms per frame in whole scenes, "
        f"{throughput.network_over_graphs:.3g} times the graphs; it varied by "
        f"{100 * throughput.network_spread:.1f} % over {throughput.clips} clips",
        "scenes": f"{throughput.frames_per_second:.4g} frames/s, {per_clip.p50:.4g} ms per frame; "
        f"first image of a scene of {result.protocol.scene_frames} frames after "
        f"{throughput.first_image_of_scene_seconds:.3g} s",
        "latency": f"p50 {times.p50:.4g}, p90 {times.p90:.4g}{p99} ms, one frame at a time, "
        f"{latency.queries} frames",
        "start": f"opened in {result.open_seconds:.3g} s, first image of a live stream after "
        f"{result.first_image_seconds:.3g} s",
    }
    host, on_device = throughput.peak_host_bytes, throughput.peak_device_bytes
    lines["memory"] = (
        ", ".join(
            f"{show_bytes(peak)} {where}"
            for peak, where in ((host, "host"), (on_device, "device"))
            if peak is not None
        )
        or "unknown"
    )
    lines["per frame"] = (
        f"{throughput.counted.flops / 1e9:.4g} GFLOP, {throughput.counted.nodes:.0f} nodes in "
        f"{throughput.launches:.3g} runs of graphs, {throughput.allocations:.3g} allocations; "
        f"{throughput.bytes_to_device / 1e6:.3g} MB to the device and "
        f"{throughput.bytes_from_device / 1e6:.3g} MB back"
    )
    if sensors.total_watts is not None and sensors.joules_per_frame is not None:
        mode = f", power mode {sensors.power_mode}" if sensors.power_mode else ""
        lines["power"] = (
            f"{sensors.total_watts:.3g} W, {sensors.joules_per_frame:.3g} J per frame{mode}"
        )
    if sensors.throttling:
        lines["throttling"] = ", ".join(sensors.throttling)
    if result.quality is not None:
        quality = result.quality
        psnr = "equal images" if quality.psnr is None else f"PSNR {quality.psnr:.1f} dB"
        lines["quality"] = (
            f"{psnr}, at most {quality.max_levels} levels, against {quality.reference}"
        )
    ceilings = result.ceilings
    if ceilings.matrix_flops is not None and ceilings.copy_bytes is not None:
        lines["ceilings"] = (
            f"{ceilings.matrix_flops / 1e9:.4g} GFLOP/s, {ceilings.copy_bytes / 1e9:.3g} GB/s, "
            "measured"
        )
    for peer in result.peers:
        lines[f"peer {peer.name}"] = peer.unavailable or (
            f"{peer.frames_per_second:.4g} frames/s"
            + (f", {show_bytes(peer.peak_host_bytes)} host" if peer.peak_host_bytes else "")
        )
    if not result.protocol.comparable:
        lines["note"] = "not comparable: a quick run"
    if not result.calm.calm:
        lines["not calm"] = "; ".join(result.calm.reasons)
    return lines


def _print(table: Table) -> None:
    """Print a table of rich, as wide as the terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(table)
    show("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
