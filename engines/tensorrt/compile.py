"""Putting compiled engines into a bundle: for which GPUs, and by which TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rbvsr_deploy.bundle import check_bundle_path, open_bundle, write_bundle
from rbvsr_deploy.engine_sets import EngineSet, ShapeProfile
from rbvsr_deploy.engines.tensorrt.build import (
    BuildOptions,
    Progress,
    build_engine_set,
    check_target,
    describe_gpu,
)
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT, installed_flavours, load_flavour
from rbvsr_deploy.engines.tensorrt.signing import sign
from rbvsr_deploy.errors import BundleError, EngineError

if TYPE_CHECKING:
    from rbvsr_deploy.engines.cuda.driver import CudaDriver, Gpu

__all__ = [
    "Target",
    "Wish",
    "check_installed",
    "choose_targets",
    "compile_into_bundle",
    "flavour_for",
]

Wish = Literal["here", "tensorrt", "tensorrt-rtx"]
"""``here``: whichever TensorRT compiles for this machine's GPU."""


@dataclass(frozen=True)
class Target:
    """One engine set to compile."""

    tensorrt: TensorRT
    compute_capability: str
    driver: CudaDriver | None
    """Of this machine's GPU."""


def choose_targets(
    wish: Wish, compute_capabilities: Sequence[str] = (), *, options: BuildOptions
) -> list[Target]:
    """What to compile, found out before long work.

    Args:
        wish: a flavour, or this machine.
        compute_capabilities: of the GPUs engines are for; this machine's if there are none.
        options: of the builder.

    Raises:
        EngineError: there is no GPU where one is needed, no TensorRT, or none that compiles for
            what is asked.
    """
    driver, no_gpu = _this_machines_driver()
    gpu = None if driver is None else describe_gpu(driver)
    wanted = list(dict.fromkeys(compute_capabilities))
    if wish == "here":
        if gpu is None:
            raise EngineError(
                f"there is no GPU here to compile for ({no_gpu}): name the GPUs that will run the "
                "engines, such as --target tensorrt-rtx --compute-capability 8.6,8.9"
            )
        tensorrt = flavour_for(gpu, options=options)
    else:
        tensorrt = load_flavour(wish)
        if tensorrt.compute_capabilities() is not None and gpu is None and not wanted:
            raise EngineError(
                f"{wish} must be told which GPUs to compile for, as there is none here ({no_gpu}): "
                "give their compute capabilities, such as --compute-capability 8.6,8.9,12.0"
            )
    if not wanted:
        wanted = [gpu.compute_capability] if gpu is not None else [""]
    for compute_capability in wanted:
        check_target(tensorrt, compute_capability, gpu=gpu, options=options)
    return [Target(tensorrt, compute_capability, driver) for compute_capability in wanted]


def check_installed() -> None:
    """Refuse to begin without any TensorRT.

    Raises:
        EngineError: there is none.
    """
    if not installed_flavours():
        raise EngineError(
            "TensorRT is not installed: pip install 'rbvsr-deploy[tensorrt]', or "
            "'rbvsr-deploy[rtx]' for a GeForce or RTX card"
        )


def flavour_for(gpu: Gpu, *, options: BuildOptions) -> TensorRT:
    """The first TensorRT that is installed and compiles for a GPU.

    Raises:
        EngineError: there is none.
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
    """Add engine sets to a bundle, signed by this user, and take others out, in one piece or not at
    all.

    Args:
        path: a bundle.
        targets: sets to compile; one of the same name is replaced.
        profile: sizes and batches.
        options: of the builder.
        remove: names of sets to take out.
        output: where to write the bundle; over ``path`` if ``None``.
        progress: told how far the builder is.
        report: called with a line per set.

    Returns:
        The sets the bundle holds now.

    Raises:
        BundleError: it cannot be read or written, or holds no set of a name in ``remove``.
        EngineError: compiling failed; the file stays as it was.
    """
    output = output or path
    check_bundle_path(output)
    bundle = open_bundle(path)
    sets = {engine_set.name: engine_set for engine_set in bundle.manifest.engine_sets}
    if unknown := [name for name in remove if name not in sets]:
        raise BundleError(
            f"'{path}' holds no engine set '{unknown[0]}' to remove; it holds "
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
        engine_set = sign(engine_set, bundle.graphs(), plans)
        engines[engine_set.name] = engine_set, plans
        size = sum(len(plan) for plan in plans.values()) / 1e6
        report(f"compiled {engine_set.name}: {size:.1f} MB")
    write_bundle(output, bundle.manifest, bundle.graphs(), list(engines.values()))
    return tuple(engine_set for engine_set, _ in engines.values())


def _this_machines_driver() -> tuple[CudaDriver | None, str]:
    """A driver; or ``None``, and why there is none."""
    from rbvsr_deploy.engines.cuda.driver import open_driver

    try:
        return open_driver(), ""
    except EngineError as error:
        return None, str(error)
