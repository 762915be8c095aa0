"""Explains the figures of a result that could not be measured."""

from __future__ import annotations

from collections.abc import Mapping

from rbvsr_deploy.bench.result import BenchResult

__all__ = ["explain_missing"]


def explain_missing(result: BenchResult, known: Mapping[str, str]) -> dict[str, str]:
    """Return why figures are ``null``, by their path in the JSON file.

    Args:
        result: the result, complete but for this.
        known: reasons found while measuring, by "ceilings", "quality", "gpu_sensors" and
            "power_mode"; empty ones do not count.
    """
    on_cpu, sensors, machine = result.device == "cpu", result.sensors, result.machine
    no_gpu = "the network runs on the CPU" if on_cpu else known.get("gpu_sensors", "")
    unsupported = "no sensor that this user can read says it"
    reasons = {
        "machine.memory_bytes": (machine.memory_bytes, "the system does not say it"),
        "machine.accelerator": (machine.accelerator, no_gpu or "NVML does not know the device"),
        "machine.driver": (machine.driver, no_gpu or "the driver does not say it"),
        "calm.load_before": (result.calm.load_before, "this system has no load average"),
        "calm.others_share": (result.calm.others_share, "only Linux counts it"),
        "ceilings": (result.ceilings.matrix_flops, known.get("ceilings", "")),
        "graphs.enqueue_ms": (
            next(iter(result.graphs.values())).enqueue_ms,
            "ONNX Runtime returns when the result is complete",
        ),
        "p99": (
            None if _lacks_p99(result) else 0,
            "fewer than 100 measurements do not give a 99th percentile",
        ),
        "throughput.peak_host_bytes": (
            result.throughput.peak_host_bytes,
            "only Linux counts it from a given moment on",
        ),
        "throughput.peak_device_bytes": (
            result.throughput.peak_device_bytes,
            no_gpu or "the driver does not say it of single processes",
        ),
        "quality": (result.quality, known.get("quality", "")),
        "quality.psnr": (
            None if result.quality is not None and result.quality.psnr is None else 0,
            "the images are equal",
        ),
        "sensors.total_watts": (sensors.total_watts, known.get("gpu_sensors") or unsupported),
        "sensors.joules_per_frame": (sensors.joules_per_frame, "it follows from total_watts"),
        "sensors.power_mode": (
            sensors.power_mode,
            known.get("power_mode") or "only Jetson boards have power modes",
        ),
        "sensors.power_limit_watts": (sensors.power_limit_watts, unsupported),
        "sensors.throttling": (sensors.throttling, unsupported),
    }
    return {path: reason for path, (figure, reason) in reasons.items() if figure is None}


def _lacks_p99(result: BenchResult) -> bool:
    times = [graph.latency_ms for graph in result.graphs.values()]
    times += [result.latency.latency_ms, result.throughput.total_ms]
    return any(t.p99 is None for t in times)
