"""Opens a GPU with whichever CUDA package is installed."""

from __future__ import annotations

import importlib.util
import os

from rbvsr_deploy.engines.cuda.driver import CudaDriver
from rbvsr_deploy.errors import EngineError

__all__ = ["open_driver"]


def open_driver(index: int = 0) -> CudaDriver:
    """Open a GPU with cuda-python, or with pycuda where only that is installed or where the
    environment says ``RBVSR_CUDA=pycuda``.

    Args:
        index: of the GPU, as CUDA counts in this process.

    Raises:
        EngineError: neither package is installed; there is no driver, or it is too old; there is no
            such GPU; ``RBVSR_CUDA`` names neither package.
    """
    wanted = os.environ.get("RBVSR_CUDA", "")
    if wanted not in ("", "cuda-python", "pycuda"):
        raise EngineError(
            f"RBVSR_CUDA is '{wanted}', but may be 'cuda-python' or 'pycuda': set one of them or "
            "unset it"
        )
    installed = {"cuda-python": _is_installed("cuda.bindings"), "pycuda": _is_installed("pycuda")}
    if wanted and not installed[wanted]:
        extra = {"cuda-python": "engines", "pycuda": "pycuda"}[wanted]
        raise EngineError(
            f"RBVSR_CUDA asks for {wanted}, which is not installed: "
            f"pip install 'rbvsr-deploy[{extra}]', or unset RBVSR_CUDA"
        )
    match wanted or next((name for name in installed if installed[name]), None):
        case "cuda-python":
            from rbvsr_deploy.engines.cuda.cuda_python import CudaPythonDriver

            return CudaPythonDriver(index)
        case "pycuda":
            from rbvsr_deploy.engines.cuda.pycuda import PycudaDriver

            return PycudaDriver(index)
        case _:
            raise EngineError(
                "running on a GPU needs cuda-python or pycuda, and neither is installed: "
                "pip install 'rbvsr-deploy[engines]', or 'rbvsr-deploy[pycuda]' where there are "
                "no wheels of the former"
            )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # the package above it is missing
        return False
