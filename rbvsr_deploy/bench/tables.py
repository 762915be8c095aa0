"""Formats results as the rows of the Markdown table in ``benchmarks/README.md``."""

from __future__ import annotations

from rbvsr_deploy.bench.result import BenchResult
from rbvsr_deploy.units import show_bytes

__all__ = ["COLUMNS", "markdown_row", "short"]

COLUMNS = (
    *("machine", "engine", "model", "input", "frames/s", "ms per frame, network"),
    *("latency p50 / p90", "peak memory", "J per frame", "PSNR", "date"),
)
"""Headings of the table."""


def short(value: float) -> str:
    """Format a figure with three digits, or all those before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def markdown_row(result: BenchResult) -> str:
    """Return one row; what restricts the figures is in it."""
    throughput, quality, latency = result.throughput, result.quality, result.latency.latency_ms
    notes = [] if result.protocol.comparable else ["quick, not comparable"]
    notes += [] if result.calm.calm else ["machine not calm"]
    notes += [] if result.protocol.clip == "synthetic" else [f"clip {result.protocol.clip}"]
    peak = throughput.peak_device_bytes or throughput.peak_host_bytes
    joules = result.sensors.joules_per_frame
    cells = [
        f"{result.machine.name}, {result.machine.cores} cores",
        f"{result.engine} on {result.device}",
        f"{result.bundle}, {result.precision}",
        f"{result.protocol.width}x{result.protocol.height}",
        short(throughput.frames_per_second),
        f"{short(throughput.network_ms.p50)} (spread {100 * throughput.network_spread:.0f} %)",
        f"{short(latency.p50)} / {short(latency.p90)} ms",
        "unknown" if peak is None else show_bytes(peak),
        "unknown" if joules is None else short(joules),
        "unknown" if quality is None else _psnr(quality.psnr),
        f"{result.date}{''.join(f'; {note}' for note in notes)}",
    ]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _psnr(value: float | None) -> str:
    return "equal to float32" if value is None else f"{value:.1f} dB"
