"""Gives each graph of a bundle to the execution provider that runs it fastest on this machine.

Every plug-in is checked against ONNX Runtime's own CPU provider, on sizes that exercise odd shapes
and on the size that it is timed at. A provider that cannot open a graph, fails or gives other
values does not get it. What was measured is kept in the cache folder.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.bundle import Bundle
from rbvsr_deploy.engines.processors import usable_cores
from rbvsr_deploy.engines.providers import Provider
from rbvsr_deploy.engines.sessions import open_session
from rbvsr_deploy.engines.user_folders import cache_folder, cache_key
from rbvsr_deploy.errors import MissingDependencyError, first_line
from rbvsr_deploy.files import make_private_folder, read_private, write_atomically
from rbvsr_deploy.graphs import GRAPHS, SCALE, Precision, named_sizes
from rbvsr_deploy.resampling import example_inputs

__all__ = ["DEFAULT_SIZE", "Placement", "kept_placements", "place", "sizes_of"]

logger = logging.getLogger(__name__)

DEFAULT_SIZE = (180, 320)
"""H and W that a placement is measured at where the size of the frames is not known yet."""

_SIZES = ((90, 160), DEFAULT_SIZE, (360, 640))
"""Sizes to measure at: the largest that has no more pixels than the frames."""

_ODD_SIZE = (45, 70)
_RUNS = 5
_GAIN = 0.95  # a plug-in takes at most this part of the CPU's time: less is noise

_TOLERANCE: Mapping[Precision, float] = {"float32": 1e-4, "float16": 1e-2}
"""Largest difference from the CPU's values, relative to the largest value or 1."""


@dataclass(frozen=True)
class Placement:
    """Says which provider runs each graph of a bundle, and what that was decided from."""

    machine: str
    """Providers and threads."""
    size: tuple[int, int]
    """H and W that it was measured at."""
    chosen: Mapping[str, str]
    """Name of the provider by graph."""
    milliseconds: Mapping[str, Mapping[str, float]]
    """Shortest run by graph and provider."""
    refused: Mapping[str, Mapping[str, str]]
    """Reason why a provider cannot run a graph, by graph and provider."""


def place(
    bundle: Bundle,
    *,
    cpu: Provider,
    candidates: Sequence[Provider],
    size: tuple[int, int],
    forced: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Placement:
    """Place the graphs of a bundle: as kept in the cache folder, or else as measured now.

    Args:
        bundle: an opened bundle.
        cpu: ONNX Runtime's own provider for the CPU, the reference.
        candidates: plug-ins.
        size: H and W of the frames to come.
        forced: take the first candidate wherever it is right, without timing it.
        report: called with a line before measuring, and with one for each plug-in that cannot run
            every graph.
    """
    measured_at = next((s for s in reversed(_SIZES) if s[0] * s[1] <= size[0] * size[1]), _SIZES[0])
    machine = (
        f"{', '.join(f'{p} on {p.hardware}' for p in (cpu, *candidates))}; {usable_cores()} threads"
    )
    key = cache_key(machine, measured_at, forced, 1)
    path = _path(bundle, key)
    placement = _read(path, graphs=bundle.manifest.graphs)
    known = {cpu.name, *(provider.name for provider in candidates)}
    if placement is None or not known.issuperset(placement.chosen.values()):
        names = " and ".join(provider.name for provider in candidates)
        report(f"Measuring {names} on this machine, once for this model and size")
        placement = _measure(
            bundle, cpu, candidates, machine=machine, size=measured_at, forced=forced
        )
        if set(placement.chosen.values()) != {cpu.name} or any(placement.milliseconds.values()):
            _write(path, placement)
    for provider in candidates:
        refused = {
            graph: reasons[provider.name]
            for graph, reasons in placement.refused.items()
            if provider.name in reasons
        }
        if refused:
            graph, why = next(iter(refused.items()))
            report(f"{provider.name} is not used for {', '.join(refused)}: '{graph}' {why}")
    return placement


def kept_placements(bundle: Bundle) -> list[Placement]:
    """Return the placements of a bundle in the cache folder."""
    path = _path(bundle, "")
    if path is None:
        return []
    files = sorted(path.parent.glob(f"{bundle.sha256[:16]}-*.json"))
    found = (_read(file, graphs=bundle.manifest.graphs) for file in files)
    return [placement for placement in found if placement is not None]


# ---------------------------------------------------------------------------------- measuring


def _measure(
    bundle: Bundle,
    cpu: Provider,
    candidates: Sequence[Provider],
    *,
    machine: str,
    size: tuple[int, int],
    forced: bool,
) -> Placement:
    chosen: dict[str, str] = {}
    milliseconds: dict[str, dict[str, float]] = {}
    refused: dict[str, dict[str, str]] = {}
    for graph in bundle.manifest.graphs:
        reference = open_session(bundle, graph, cpu, sizes={})
        reasons: dict[str, str] = {}
        right: dict[str, Any] = {}  # sessions of the providers that give the CPU's values
        for at in (_ODD_SIZE,) if forced else (_ODD_SIZE, size):
            arrays = _inputs(bundle, graph, at)
            want = reference.run(None, arrays)
            right = {}
            for provider in candidates:
                if provider.name in reasons:
                    continue
                try:
                    session = open_session(bundle, graph, provider, sizes=sizes_of(graph, arrays))
                    why = _difference(bundle, graph, want, session.run(None, arrays), size=at)
                except Exception as error:  # plug-ins raise whatever they like
                    logger.debug("%s", error, exc_info=True)
                    why = f"cannot be run ({first_line(error)})"
                if why is None:
                    right[provider.name] = session
                else:
                    reasons[provider.name] = why
        times = {} if forced or not right else _time({cpu.name: reference, **right}, arrays)
        chosen[graph] = _best(times, cpu.name) if times else next(iter(right), cpu.name)
        milliseconds[graph] = times
        refused[graph] = reasons
    return Placement(machine, size, chosen, milliseconds, refused)


def _difference(
    bundle: Bundle,
    graph: str,
    want: Sequence[NDArray[Any]],
    got: Sequence[NDArray[Any]],
    *,
    size: tuple[int, int],
) -> str | None:
    """Return how a provider's values differ from the CPU's, as a clause, or ``None`` if they do
    not.
    """
    for item, right, other in zip(GRAPHS[graph].outputs, want, got, strict=True):
        where = f"at {size[1]}x{size[0]} in '{item.name}'"
        if right.shape != other.shape or right.dtype != other.dtype:
            return f"has another shape or type {where}"
        peak = float(np.abs(right).max())
        allowed = _TOLERANCE[bundle.manifest.precision] * max(1.0, peak)
        if right.dtype == np.uint8:
            allowed = 1.0
        worst = float(np.abs(right.astype(np.float64) - other.astype(np.float64)).max())
        if not worst <= allowed:  # NaN too
            return f"differs from the CPU by {worst:.2g} {where}"
    return None


def _time(sessions: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Return the milliseconds of the shortest run of each session; they take turns."""
    times = dict.fromkeys(sessions, float("inf"))
    for _ in range(_RUNS):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, arrays)
            times[name] = min(times[name], 1000 * (time.perf_counter() - start))
    return {name: round(value, 3) for name, value in times.items()}


def _best(times: Mapping[str, float], cpu: str) -> str:
    """Return the fastest provider, or the CPU if the others gain too little."""
    best = min(times, key=lambda name: times[name])
    return best if times[best] <= _GAIN * times[cpu] else cpu


def sizes_of(graph: str, arrays: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes that the arrays of a graph have, by the names of its contract."""
    spec = GRAPHS[graph]
    sizes = spec.sizes({item.name: arrays[item.name].shape for item in spec.inputs})
    sizes.pop("C", None)
    if "4H" in sizes:
        sizes |= {"H": sizes["4H"] // SCALE, "W": sizes["4W"] // SCALE}
    return sizes


def _inputs(bundle: Bundle, graph: str, size: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """Make inputs like those of a video: smooth images, flow of a few pixels."""
    height, width = size
    sizes = named_sizes(1, height, width, channels=bundle.manifest.channels)
    rng = np.random.default_rng(0)
    arrays = {}
    for item in GRAPHS[graph].inputs:
        shape = [sizes[s] if isinstance(s, str) else s for s in item.shape]
        axes = [axis for axis, s in enumerate(item.shape) if s in ("H", "W", "4H", "4W")]
        values = rng.random(shape)
        for axis in axes * 2:
            values = (values + np.roll(values, 1, axis) + np.roll(values, 2, axis)) / 3
        if item.name == "flow":
            values = 12.0 * values - 6.0
        elif item.dtype == "uint8":
            values = 255.0 * values
        arrays[item.name] = values.astype(item.numpy_dtype(bundle.manifest.precision))
    return {**arrays, **(example_inputs(height, width) if graph == "resize" else {})}


# ------------------------------------------------------------------------------------- keeping


def _path(bundle: Bundle, key: str) -> Path | None:
    """Return the file of a placement, or ``None`` without a cache folder."""
    try:
        return cache_folder() / "placements" / f"{bundle.sha256[:16]}-{key}.json"
    except MissingDependencyError as error:
        logger.debug("placements are not kept: %s", error)
        return None


def _read(path: Path | None, *, graphs: Mapping[str, Any]) -> Placement | None:
    """Read a placement, or return ``None`` if there is none that can be used."""
    if path is None:
        return None
    import msgspec

    try:
        placement = msgspec.json.decode(read_private(path), type=Placement)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        logger.warning("the placement '%s' is not used and measured again (%s)", path, error)
        return None
    return placement if set(placement.chosen) == set(graphs) else None


def _write(path: Path | None, placement: Placement) -> None:
    if path is None:
        return
    try:
        make_private_folder(path.parent)
        text = json.dumps(dataclasses.asdict(placement), indent=1)
        write_atomically(path, text.encode(), private=True)
    except OSError as error:
        logger.warning(
            "the placement is not kept: '%s' cannot be written (%s); set RBVSR_CACHE to a writable "
            "folder",
            path,
            error.strerror,
        )
