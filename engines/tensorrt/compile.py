"""Compiles engines into a bundle, after choosing the GPUs to compile for and the TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rbvsr_deploy.bundle import check_bundle_path, open_bundle, write_bundle
from rbvsr_deploy.bundle.engine_sets import EngineSet, ShapeProfile
from rbvsr_deploy.engines.tensorrt.build import (
    BuildOptions,
    Progress,
    build_engine_set,
    check_target,
    describe_gpu,
)
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT, installed_flavours, load_flavour
from rbvsr_deploy.engines.tensorrt.int8_timing import keep_faster
from rbvsr_deploy.engines.tensorrt.signing import sign
from rbvsr_deploy.engines.tensorrt.values import run_once
from rbvsr_deploy.errors import BundleError, EngineError

if TYPE_CHECKING:
    from rbvsr_deploy.engines.cuda.driver import CudaDriver, Gpu

__all__ = [
    "Target",
    "TargetName",
    "check_installed",
    "choose_targets",
    "compile_into_bundle",
    "flavour_for",
]

TargetName = Literal["auto", "tensorrt", "tensorrt-rtx"]
"""A flavour, or ``auto`` for the first installed one that compiles for this machine's GPU."""


@dataclass(frozen=True)
class Target:
    """One engine set to compile."""

    tensorrt: TensorRT
    compute_capability: str
    driver: CudaDriver | None
    """The driver of this machine's GPU, if it has one."""

    def runs_here(self) -> bool:
        """Return whether this machine's GPU can run the engines."""
        return self.driver is not None and (
            describe_gpu(self.driver).compute_capability == self.compute_capability
        )


def choose_targets(
    name: TargetName, compute_capabilities: Sequence[str] = (), *, options: BuildOptions
) -> list[Target]:
    """Choose the engine sets to compile, before long work.

    Args:
        name: a flavour, or ``auto``.
        compute_capabilities: of the GPUs that will run the engines; this machine's if empty.
        options: of the builder.

    Raises:
        EngineError: a GPU is needed but missing, TensorRT is not installed, or no installed
            flavour compiles for the requested GPUs.
    """
    driver, no_gpu = _this_machines_driver()
    gpu = None if driver is None else describe_gpu(driver)
    wanted = list(dict.fromkeys(compute_capabilities))
    if name == "auto":
        if gpu is None:
            raise EngineError(
                f"there is no GPU here to compile for ({no_gpu}): give the target tensorrt-rtx and "
                "the compute capabilities of the GPUs that will run the engines, such as 8.6,8.9",
                parameters=("target", "compute_capabilities"),
            )
        tensorrt = flavour_for(gpu, options=options)
    else:
        tensorrt = load_flavour(name)
        if tensorrt.compute_capabilities() is not None and gpu is None and not wanted:
            raise EngineError(
                f"{name} needs to know which GPUs to compile for, as there is none here "
                f"({no_gpu}): give their compute capabilities, such as 8.6,8.9,12.0",
                parameters=("compute_capabilities",),
            )
    if not wanted:
        wanted = [gpu.compute_capability] if gpu is not None else [""]
    for compute_capability in wanted:
        check_target(tensorrt, compute_capability, gpu=gpu, options=options)
    return [Target(tensorrt, compute_capability, driver) for compute_capability in wanted]


def check_installed() -> None:
    """Check that TensorRT is installed.

    Raises:
        EngineError: no flavour is installed.
    """
    if not installed_flavours():
        raise EngineError(
            "TensorRT is not installed: pip install 'rbvsr-deploy[tensorrt]', or "
            "'rbvsr-deploy[rtx]' for a GeForce or RTX card"
        )


def flavour_for(gpu: Gpu, *, options: BuildOptions) -> TensorRT:
    """Return the first installed TensorRT that compiles for a GPU.

    Raises:
        EngineError: no installed flavour does.
    """
    check_installed()
    reasons = []
    for name in installed_flavours():
        try:
            tensorrt = load_flavour(name)
            check_target(tensorrt, gpu.compute_capability, gpu=gpu, options=options)
        except EngineError as error:
            reasons.append(str(error))
        else:
            return tensorrt
    raise EngineError("; ".join(reasons))


def compile_into_bundle(
    path: Path,
    targets: Sequence[Target],
    *,
    profile: ShapeProfile | None = None,
    options: BuildOptions | None = None,
    remove: Collection[str] = (),
    output: Path | None = None,
    progress: Progress = lambda graph, phase, step, steps: None,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[EngineSet, ...]:
    """Add engine sets to a bundle, signed by this user, and remove others, atomically.

    Args:
        path: a bundle.
        targets: sets to compile; an existing set of the same name is replaced.
        profile: sizes and batches.
        options: of the builder.
        remove: names of sets to remove.
        output: where to write the bundle; ``None`` overwrites ``path``.
        progress: called as the builder advances.
        report: called with one line per set, and with the times of int8 and float16.

    Returns:
        The sets that the bundle now contains.

    Raises:
        BundleError: it cannot be read or written, or does not contain a set named in ``remove``.
        EngineError: compiling failed, or an engine computes wrong values on this machine's GPU;
            the file is unchanged.
    """
    output = output or path
    check_bundle_path(output)
    bundle = open_bundle(path)
    sets = {engine_set.name: engine_set for engine_set in bundle.manifest.engine_sets}
    if unknown := [name for name in remove if name not in sets]:
        raise BundleError(
            f"'{path}' does not contain the engine set '{unknown[0]}' to remove; it contains "
            f"{', '.join(sets) or 'none'}"
        )
    engines = {
        name: (engine_set, bundle.plans(engine_set))
        for name, engine_set in sets.items()
        if name not in remove
    }
    for target in targets:
        engine_set, plans = build_engine_set(
            target.tensorrt,
            bundle.manifest,
            bundle.graphs(),
            profile=profile or ShapeProfile(),
            compute_capability=target.compute_capability,
            driver=target.driver,
            options=options,
            progress=progress,
        )
        engine_set, plans = keep_faster(
            target.tensorrt,
            target.driver if target.runs_here() else None,
            bundle,
            engine_set,
            plans,
            options=options,
            progress=progress,
            report=report,
        )
        if target.driver is not None and target.runs_here():
            engine_set = run_once(target.tensorrt, target.driver, bundle, engine_set, plans)
        engine_set = sign(engine_set, bundle.graphs(), plans)
        engines[engine_set.name] = engine_set, plans
        size = sum(len(plan) for plan in plans.values()) / 1e6
        report(f"compiled {engine_set.name}: {size:.1f} MB")
    write_bundle(output, bundle.manifest, bundle.graphs(), list(engines.values()))
    return tuple(engine_set for engine_set, _ in engines.values())


def _this_machines_driver() -> tuple[CudaDriver | None, str]:
    """Return the driver of this machine's GPU, or ``None`` and the reason."""
    from rbvsr_deploy.engines.cuda.open import open_driver

    try:
        return open_driver(), ""
    except EngineError as error:
        return None, str(error)
