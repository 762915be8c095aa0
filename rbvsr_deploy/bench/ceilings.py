"""Measures what a machine can do at most: large matrix products, and copies of memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from rbvsr_deploy.bench.costs import Cost
from rbvsr_deploy.bench.machine import allowed_processors
from rbvsr_deploy.bench.result import Attained, Ceilings

__all__ = ["compare_with_ceilings", "measure_ceilings"]

_CPU_SIDE, _GPU_SIDE = 2048, 8192  # rows and columns of the matrices
_CPU_COPY, _GPU_COPY = 2**28, 2**31  # bytes, more than the caches hold


def measure_ceilings(device: str, precision: str, *, seconds: float) -> tuple[Ceilings, str]:
    """Measure the ceilings of the device that runs the network.

    Args:
        device: as the engine describes it, such as "cpu" or "cuda:0".
        precision: of the network's features, such as "float32".
        seconds: to spend on each of the two.

    Returns:
        The ceilings, and why one of them is missing, or "".
    """
    if device == "cpu":
        return _of_cpu(seconds), ""
    try:
        import torch
    except ImportError:
        torch = None  # type: ignore[assignment]
    if torch is None or not torch.cuda.is_available():
        none = Ceilings(matrix_flops=None, copy_bytes=None, method="none")
        return none, f"measuring them on {device} needs torch with CUDA"
    return _of_cuda(torch, precision, seconds), ""


def compare_with_ceilings(
    cost: Cost, seconds: float, ceilings: Ceilings, *, frames: int = 1
) -> Attained:
    """Compare the time that some counted work took with the least that the ceilings allow; the
    floor is per frame.
    """
    flops, moved = cost.flops / seconds, cost.bytes / seconds
    matrix, copy = ceilings.matrix_flops, ceilings.copy_bytes
    floor = None
    if matrix is not None and copy is not None:
        floor = 1000 * max(cost.flops / matrix, cost.least_bytes / copy) / frames
    return Attained(
        flops_per_second=flops,
        bytes_per_second=moved,
        matrix_share=None if matrix is None else flops / matrix,
        copy_share=None if copy is None else moved / copy,
        floor_ms=floor,
    )


def _of_cpu(seconds: float) -> Ceilings:
    rng = np.random.default_rng(0)
    a, b = (rng.random((_CPU_SIDE, _CPU_SIDE), np.float32) for _ in range(2))
    product = np.empty_like(a)
    source, target = np.ones(_CPU_COPY, np.uint8), np.empty(_CPU_COPY, np.uint8)
    matrix = _fastest(lambda: np.matmul(a, b, out=product), seconds)
    cores = allowed_processors()
    parts = list(zip(np.array_split(target, cores), np.array_split(source, cores), strict=True))
    with ThreadPoolExecutor(cores) as pool:  # NumPy copies without holding the interpreter
        copy = _fastest(lambda: list(pool.map(lambda part: np.copyto(*part), parts)), seconds)
    return Ceilings(
        matrix_flops=2 * _CPU_SIDE**3 / matrix,
        copy_bytes=2 * _CPU_COPY / copy,
        method=f"fastest of NumPy's float32 products of {_CPU_SIDE}x{_CPU_SIDE} and copies of "
        f"{_CPU_COPY >> 20} MiB, on {cores} cores",
    )


def _of_cuda(torch: Any, precision: str, seconds: float) -> Ceilings:
    dtype = torch.float16 if "float16" in precision else torch.float32
    a, b = (torch.rand(_GPU_SIDE, _GPU_SIDE, device="cuda").to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.ones(_GPU_COPY, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def timed(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            work()
            torch.cuda.synchronize()

        return run

    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # a float32 network does not use it either
    try:
        matrix = _fastest(timed(lambda: torch.matmul(a, b, out=product)), seconds)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    copy = _fastest(timed(lambda: target.copy_(source)), seconds)
    return Ceilings(
        matrix_flops=2 * _GPU_SIDE**3 / matrix,
        copy_bytes=2 * _GPU_COPY / copy,
        method=f"fastest of torch's {dtype} products of {_GPU_SIDE}x{_GPU_SIDE} and copies of "
        f"{_GPU_COPY >> 30} GiB on the GPU",
    )


def _fastest(work: Callable[[], object], seconds: float) -> float:
    """Return the seconds of the fastest of many runs, after one to warm up."""
    work()
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
