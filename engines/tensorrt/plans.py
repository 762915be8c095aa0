"""Finds compiled engines in the bundle and the user's cache, and compiles them as a last resort.

A driver or TensorRT upgrade never breaks a command: engines that no longer fit are ignored, engines
that fit but do not load are skipped, and the last candidate is always compiled on demand.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rbvsr_deploy.bundle import Bundle
from rbvsr_deploy.bundle.engine_sets import INTERFACE, EngineSet, ShapeProfile
from rbvsr_deploy.engines.base import Engine, Network
from rbvsr_deploy.engines.tensorrt.base import Candidate
from rbvsr_deploy.engines.tensorrt.build import (
    JETSON,
    BuildOptions,
    Progress,
    build_engine_set,
    describe_gpu,
    this_platform,
)
from rbvsr_deploy.engines.tensorrt.cache import (
    cache_folder,
    cache_key,
    read_cached,
    remove_cached,
    write_cached,
)
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT
from rbvsr_deploy.engines.tensorrt.int8_timing import keep_faster
from rbvsr_deploy.engines.tensorrt.values import compare_values
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.graphs import GRAPHS

if TYPE_CHECKING:
    from rbvsr_deploy.engines.cuda.driver import CudaDriver, Gpu

__all__ = ["MachinePlans", "fits", "fits_machine", "profile_for"]

logger = logging.getLogger(__name__)

_LEAST_BAND = 12
"""Rows, with those above and below, of the smallest band that memory is planned for."""

_FORMAT = 2
"""Version of cached sets; increase it to recompile graphs that have not changed."""


class MachinePlans:
    """The :class:`~rbvsr_deploy.engines.tensorrt.base.Plans` of a bundle on this machine.

    Args:
        bundle: the bundle that contains the graphs.
        tensorrt: the flavour that will run the engines.
        driver: the driver of the machine's GPU.
        options: options for compiling engines.
        report: called with one line before compiling, which may take minutes.
        progress: called as the compiler advances.
    """

    def __init__(
        self,
        bundle: Bundle,
        tensorrt: TensorRT,
        driver: CudaDriver,
        *,
        options: BuildOptions | None = None,
        report: Callable[[str], None] = lambda line: None,
        progress: Progress = lambda graph, phase, step, steps: None,
    ) -> None:
        self._bundle = bundle
        self._tensorrt = tensorrt
        self._driver = driver
        self._gpu = gpu = describe_gpu(driver)
        self._options = options or BuildOptions()
        self._report = report
        self._progress = progress
        graphs = {name: hashlib.sha256(data).hexdigest() for name, data in bundle.graphs().items()}
        key = cache_key(
            _FORMAT,
            graphs,
            *tensorrt.on(gpu),
            this_platform(),
            asdict(self._options),
        )
        self._folder = cache_folder() / "engines" / key

    def candidates(self, height: int, width: int, *, batch: int) -> Iterator[Candidate]:
        sets = self._bundle.manifest.engine_sets
        # Before 10.1, engines have the batch that fits into memory, and larger ones run in parts.
        least = batch if self._tensorrt.scratch_by_shape else 1
        held = [s for s in sets if fits_machine(s, self._tensorrt, self._gpu)]
        for engine_set in _covering(held, height, width, batch=least):
            yield Candidate(engine_set, self._bundle.plans(engine_set), "from the bundle")

        cached = dict(self._cached())
        by_set = {engine_set.name: path for path, (engine_set, _) in cached.items()}
        kept = [engine_set for engine_set, _ in cached.values()]
        refused = []
        for engine_set in _covering(kept, height, width, batch=least):
            path = by_set[engine_set.name]
            plans = cached[path][1]
            check = None if engine_set.psnr else self._check(path, engine_set, plans)
            yield Candidate(engine_set, plans, "compiled earlier, from the cache", check)
            refused.append(path)

        # The caller asked for more, so none of these could be loaded.
        for path in refused:
            remove_cached(path)
        beside = [engine_set.profile for engine_set in (*held, *kept)]
        network = Network.of(self._bundle.manifest)
        profile = (
            profile_for(height, width, batch=batch, network=network, beside=beside)
            if self._tensorrt.scratch_by_shape
            else _profile_of_size(
                height, width, batch=batch, network=network, memory=self._gpu.total_memory
            )
        )
        self._report(
            f"Compiling engines for {width}x{height} on {self._gpu.name}, once for all runs"
        )
        engine_set, plans = build_engine_set(
            self._tensorrt,
            self._bundle.manifest,
            self._bundle.graphs(),
            profile=profile,
            compute_capability=self._gpu.compute_capability,
            driver=self._driver,
            options=self._options,
            progress=self._progress,
        )
        engine_set, plans = keep_faster(
            self._tensorrt,
            self._driver,
            self._bundle,
            engine_set,
            plans,
            options=self._options,
            progress=self._progress,
            report=self._report,
        )
        path = self._folder / f"{profile}.engines"
        write_cached(path, _packed(engine_set, plans))
        check = self._check(path, engine_set, plans)
        yield Candidate(engine_set, plans, "compiled now", check)

    def _check(
        self, path: Path, engine_set: EngineSet, plans: Mapping[str, bytes]
    ) -> Callable[[Engine], None]:
        """Return a function that compares engines with the CPU, once: it keeps the result in the
        cache, or removes the engines from it if they compute wrong values.
        """

        def check(engine: Engine) -> None:
            try:
                figures = compare_values(engine, self._bundle, engine_set)
            except EngineError:
                remove_cached(path)
                raise
            write_cached(path, _packed(replace(engine_set, psnr=figures), plans))

        return check

    def _cached(self) -> Iterator[tuple[Path, tuple[EngineSet, dict[str, bytes]]]]:
        for path in sorted(self._folder.glob("*.engines")):
            content = read_cached(path)
            if content is None:
                continue
            try:
                found = _unpacked(content)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                logger.warning("the cache file '%s' does not contain engines and is rebuilt", path)
                remove_cached(path)
            else:
                yield path, found


def fits_machine(engine_set: EngineSet, tensorrt: TensorRT, gpu: Gpu) -> bool:
    """Return whether this machine may be able to run a set, by :func:`fits`."""
    return fits(
        engine_set,
        flavour=tensorrt.name,
        version=tensorrt.version,
        compute_capability=gpu.compute_capability,
        platform=this_platform(),
    )


def fits(
    engine_set: EngineSet, *, flavour: str, version: str, compute_capability: str, platform: str
) -> bool:
    """Return whether a machine may be able to run a set; only loading it is conclusive.

    Args:
        engine_set: set of engines in a bundle.
        flavour, version: the machine's TensorRT.
        compute_capability: compute capability of its GPU.
        platform: its operating system and processor.
    """
    theirs, ours = _numbers(engine_set.version), _numbers(version)
    versions = theirs <= ours if engine_set.version_compatible else theirs == ours
    if engine_set.hardware_compatible:
        gpus = _numbers(compute_capability) >= (8, 0) and compute_capability not in JETSON
    else:
        gpus = engine_set.compute_capability == compute_capability
    # TensorRT-RTX engines are the same on Windows and Linux.
    if flavour == "tensorrt-rtx":
        platforms = engine_set.platform.split("-")[1] == platform.split("-")[1]
    else:
        platforms = engine_set.platform == platform
    same = engine_set.flavour == flavour and engine_set.interface == INTERFACE
    return same and versions and gpus and platforms


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def profile_for(
    height: int,
    width: int,
    *,
    batch: int,
    network: Network | None = None,
    beside: Iterable[ShapeProfile] = (),
) -> ShapeProfile:
    """Return a profile tuned for a size and wide enough for most others.

    Args:
        height, width, batch: must be covered.
        network: that will be run; ``None`` for any.
        beside: profiles that do not cover them; the new one covers all their sizes too, so that
            a user who changes sizes does not recompile repeatedly.
    """
    usual = ShapeProfile()
    profiles = [*beside, usual]
    smallest, largest = zip(*((p.min_size, p.max_size) for p in profiles), strict=True)
    least = (
        min(height, *(h for h, _ in smallest)),
        min(width, *(w for _, w in smallest)),
    )
    # Portrait as well as landscape, and at least the size itself if a GPU cannot address the rest.
    largest_sizes = (
        (
            max(height, usual.max_size[1], *(h for h, _ in largest)),
            max(width, *(w for _, w in largest)),
        ),
        (height, width),
    )
    frames = max(batch, *(p.batch for p in profiles))
    wide, exact = (ShapeProfile(least, (height, width), most, frames) for most in largest_sizes)
    return wide if _is_addressable(wide, network) else exact


def _is_addressable(profile: ShapeProfile, network: Network | None) -> bool:
    """Return whether a GPU can address one of a profile's largest frames in every graph."""
    channels = 64 if network is None else network.channels
    try:
        for spec in GRAPHS.values():
            profile.shapes(spec, channels=channels)
    except ValueError:
        return False
    return True


def _profile_of_size(
    height: int, width: int, *, batch: int, network: Network, memory: int
) -> ShapeProfile:
    """Return a profile of one size, for a TensorRT that takes scratch memory for the largest
    shapes: its batch and band are as large as a sixth of the GPU's memory allows, and the memory
    plan follows them.
    """
    # ``reconstruct`` holds three of its widest maps at once.
    row = 3 * network.head_channels * np.dtype(network.precision).itemsize * width
    rows = max(_LEAST_BAND, memory // 6 // row)
    frames = max(1, min(batch, rows // height))
    least = min(64, height), min(64, width)
    band = None if rows >= height else rows
    return ShapeProfile(least, (height, width), (height, width), frames, band)


def _covering(sets: Iterable[EngineSet], height: int, width: int, *, batch: int) -> list[EngineSet]:
    """Return the sets whose profile covers a size, the one tuned for the nearest first."""

    def distance(engine_set: EngineSet) -> float:
        usual_height, usual_width = engine_set.profile.opt_size
        return abs(math.log(height / usual_height)) + abs(math.log(width / usual_width))

    found = (s for s in sets if s.profile.covers(height, width, batch=batch))
    # Among equally near sets, prefer those compiled for exactly this machine.
    return sorted(found, key=lambda s: (distance(s), s.version_compatible, s.hardware_compatible))


def _packed(engine_set: EngineSet, plans: Mapping[str, bytes]) -> bytes:
    """Return one line of JSON followed by the serialised engines."""
    header = {
        "set": engine_set.as_dict(),
        "sizes": {graph: len(plan) for graph, plan in plans.items()},
    }
    return json.dumps(header).encode() + b"\n" + b"".join(plans.values())


def _unpacked(content: bytes) -> tuple[EngineSet, dict[str, bytes]]:
    """Restore the set and engines from :func:`_packed`.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, RecursionError: the content is something
            else.
    """
    line, _, rest = content.partition(b"\n")
    header = json.loads(line)
    plans, start = {}, 0
    for graph, size in header["sizes"].items():
        plans[graph] = rest[start : start + size]
        start += size
    return EngineSet.from_dict(header["set"]), plans
