"""Opens a bundle with this machine's TensorRT."""

from __future__ import annotations

from collections.abc import Callable

from rbvsr_deploy.bundle import Bundle
from rbvsr_deploy.engines.base import Network
from rbvsr_deploy.engines.cuda.open import open_driver
from rbvsr_deploy.engines.tensorrt.build import BuildOptions, Progress, describe_gpu
from rbvsr_deploy.engines.tensorrt.compile import check_installed, flavour_for
from rbvsr_deploy.engines.tensorrt.engine import TensorRTEngine
from rbvsr_deploy.engines.tensorrt.plans import MachinePlans
from rbvsr_deploy.engines.tensorrt.runtime import TensorRTRuntime

__all__ = ["open_tensorrt"]


def open_tensorrt(
    bundle: Bundle,
    *,
    size: Callable[[], tuple[int, int]] | None = None,
    reason: str,
    report: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda graph, phase, step, steps: None,
) -> TensorRTEngine:
    """Open a bundle with TensorRT or TensorRT-RTX, whichever runs on this machine's GPU.

    Args:
        bundle: an opened bundle.
        size: returns H and W of the frames to expect; called once a GPU and a TensorRT for it are
            found. Engines for that size are loaded now, and compiled if there are none; without it
            this happens when the first frames arrive.
        reason: why TensorRT was chosen, as a clause.
        report: called with one line before compiling, which may take minutes.
        progress: called as the compiler advances.

    Raises:
        EngineError: the GPU, its driver or a TensorRT for it is missing, or engines are missing
            and cannot be compiled.
    """
    check_installed()
    driver = open_driver()
    gpu = describe_gpu(driver)
    tensorrt = flavour_for(gpu, options=BuildOptions())
    plans = MachinePlans(bundle, tensorrt, driver, report=report, progress=progress)
    return TensorRTEngine(
        Network.of(bundle.manifest),
        plans,
        TensorRTRuntime(tensorrt, gpu),
        driver,
        model=bundle.path.name,
        weights=bundle.sha256,
        reason=reason,
        size=None if size is None else size(),
    )
