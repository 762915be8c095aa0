"""Prints the packages of ``make test-gpu`` that suit this machine's NVIDIA driver, one per line.

A driver runs programs built for its own major version of CUDA and older ones. The newest torch,
TensorRT and ONNX Runtime are built for CUDA 13, which needs a driver of 2025; many rented machines
have an older one.
"""

from __future__ import annotations

import ctypes
import sys

PACKAGES = {
    12: ["torch>=2.9,<2.11", "tensorrt-cu12", "onnxruntime-gpu[cuda,cudnn]>=1.24,<1.27"],
    13: ["torch>=2.11", "tensorrt-cu13", "onnxruntime-gpu[cuda,cudnn]>=1.27"],
}
"""By the newest major version of CUDA that the driver supports."""


def cuda_major() -> int:
    """Return the major version of CUDA that the driver supports.

    Raises:
        OSError: there is no driver.
    """
    version = ctypes.c_int()
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    if status := driver.cuDriverGetVersion(ctypes.byref(version)):
        raise OSError(f"cuDriverGetVersion returns {status}")
    return version.value // 1000


def packages(major: int) -> list[str]:
    """Return the packages for a major version of CUDA.

    Raises:
        ValueError: nothing suits a driver that old.
    """
    if major < min(PACKAGES):
        raise ValueError(
            f"the NVIDIA driver supports CUDA {major}, and {min(PACKAGES)} is needed: update it"
        )
    return PACKAGES[min(major, max(PACKAGES))]


def main() -> None:
    """Print the packages, without TensorRT if the machine has its own."""
    try:
        wanted = packages(cuda_major())
    except (OSError, ValueError) as error:
        sys.exit(f"no packages for GPU tests: {error}")
    has_tensorrt = "--without-tensorrt" in sys.argv
    print("\n".join(p for p in wanted if not (has_tensorrt and p.startswith("tensorrt"))))


if __name__ == "__main__":
    main()
