"""Opens a bundle with this machine's TensorRT."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

from rbvsr_deploy.bundle import Bundle
from rbvsr_deploy.bundle.engine_sets import EngineSet
from rbvsr_deploy.engines.base import Network
from rbvsr_deploy.engines.cuda.driver import Gpu
from rbvsr_deploy.engines.cuda.open import open_driver
from rbvsr_deploy.engines.tensorrt.build import BuildOptions, Progress, describe_gpu
from rbvsr_deploy.engines.tensorrt.compile import check_installed, flavour_for
from rbvsr_deploy.engines.tensorrt.engine import TensorRTEngine
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT
from rbvsr_deploy.engines.tensorrt.plans import MachinePlans, fits_machine
from rbvsr_deploy.engines.tensorrt.runtime import TensorRTRuntime
from rbvsr_deploy.engines.tensorrt.signing import compiled_by_this_user

__all__ = ["open_tensorrt"]

logger = logging.getLogger(__name__)


def open_tensorrt(
    bundle: Bundle,
    *,
    size: Callable[[], tuple[int, int]] | None = None,
    reason: str,
    trust_engines: bool = False,
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
        trust_engines: run the bundle's compiled engines, whoever compiled them: they are machine
            code. Otherwise only those that this user has compiled are run, and engines are compiled
            from the graphs if there are none. ``RBVSR_TRUST_ENGINES=1`` in the environment has the
            same effect.
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
    if not (trust_engines or os.environ.get("RBVSR_TRUST_ENGINES") == "1"):
        bundle = _without_foreign_engines(bundle, tensorrt, gpu)
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


def _without_foreign_engines(bundle: Bundle, tensorrt: TensorRT, gpu: Gpu) -> Bundle:
    """The bundle with those compiled engines only that this user has compiled."""
    ours: list[EngineSet] = []
    foreign: list[EngineSet] = []
    for engine_set in bundle.manifest.engine_sets:
        (ours if compiled_by_this_user(bundle, engine_set) else foreign).append(engine_set)
    if any(fits_machine(engine_set, tensorrt, gpu) for engine_set in foreign):
        logger.warning(
            "The compiled engines in '%s' are not used: they are machine code that this user has "
            "not compiled, and the bundle is not trusted",
            bundle.path.name,
        )
    return replace(bundle, manifest=replace(bundle.manifest, engine_sets=tuple(ours)))
