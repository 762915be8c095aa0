"""Formats results as the rows of the Markdown table in ``benchmarks/README.md``."""

from __future__ import annotations

from rbvsr_deploy.bench.result import BenchResult
from rbvsr_deploy.units import show_bytes

__all__ = ["COLUMNS", "markdown_row"]

COLUMNS = (
    *("machine", "engine", "model", "input", "frames/s", "ms per frame, network"),
    *("latency p50 / p90", "peak memory", "J per frame", "PSNR", "date"),
)
"""Headings of the table."""


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
        f"{throughput.frames_per_second:.3g}",
        f"{throughput.network_ms.p50:.3g} (spread {100 * throughput.network_spread:.0f} %)",
        f"{latency.p50:.3g} / {latency.p90:.3g} ms",
        "unknown" if peak is None else show_bytes(peak),
        "unknown" if joules is None else f"{joules:.3g}",
        "unknown" if quality is None else _psnr(quality.psnr),
        f"{result.date}{''.join(f'; {note}' for note in notes)}",
    ]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _psnr(value: float | None) -> str:
    return "equal to float32" if value is None else f"{value:.1f} dB"
