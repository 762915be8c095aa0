"""Opens a GPU with whichever CUDA package is installed."""

from __future__ import annotations

import importlib.util
import os

from rbvsr_deploy.engines.cuda.driver import CudaDriver
from rbvsr_deploy.errors import EngineError

__all__ = ["open_driver"]


def open_driver(index: int = 0) -> CudaDriver:
    """Open a GPU with cuda-python, or with pycuda.

    pycuda is used if it is the only one installed or if the environment variable ``RBVSR_CUDA`` is
    set to ``pycuda``.

    Args:
        index: of the GPU, as CUDA numbers them in this process.

    Raises:
        EngineError: neither package is installed; the driver is missing or too old; the GPU does
            not exist; ``RBVSR_CUDA`` names neither package.
    """
    wanted = os.environ.get("RBVSR_CUDA", "")
    if wanted not in ("", "cuda-python", "pycuda"):
        raise EngineError(
            f"RBVSR_CUDA is '{wanted}', but must be 'cuda-python' or 'pycuda': set it to one of "
            "them or unset it"
        )
    installed = {"cuda-python": _is_installed("cuda.bindings"), "pycuda": _is_installed("pycuda")}
    if wanted and not installed[wanted]:
        extra = {"cuda-python": "engines", "pycuda": "pycuda"}[wanted]
        raise EngineError(
            f"RBVSR_CUDA selects {wanted}, which is not installed: "
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
                "pip install 'rbvsr-deploy[engines]', or 'rbvsr-deploy[pycuda]' if cuda-python has "
                "no wheels for this platform"
            )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # its parent package is missing
        return False
