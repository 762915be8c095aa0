"""Lists what the output depends on besides the engine, to compare the workers of one job."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rbvsr_deploy.engines.base import Description
from rbvsr_deploy.version import __version__

__all__ = ["difference", "versions"]

_PACKAGES = ("numpy", "opencv-python-headless", "opencv-python", "scenedetect-headless")
_VECTORS = ("avx", "fma", "amx", "asimd", "sve", "sme")
"""Beginnings of the names of instruction sets with which convolutions are rounded differently."""


def versions(engine: Description) -> dict[str, str]:
    """Return versions by readable names.

    Args:
        engine: an engine on the CPU depends on the processor's instruction sets too.
    """
    import av

    found = {"rbvsr-deploy": __version__, "PyAV": av.__version__}
    found |= {n: ".".join(map(str, number)) for n, number in sorted(av.library_versions.items())}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if engine.device == "cpu":
        found["processor"] = f"{platform.machine()} {_instruction_sets()}".strip()
    return found


def difference(
    engine: Description, found: dict[str, str], *, usual: Description, others: dict[str, str]
) -> str | None:
    """Return how a worker differs from the others, as a clause; ``None`` if it does not.

    Args:
        engine, found: of the worker.
        usual, others: of the others.
    """
    for name, own, other in (
        ("bundle", _bundle(engine), _bundle(usual)),
        ("engine", f"{engine.engine} {engine.version}", f"{usual.engine} {usual.version}"),
        ("device", engine.device, usual.device),
        ("precision", engine.precision, usual.precision),
        ("placement of graphs", engine.placement or "usual", usual.placement or "usual"),
    ):
        if own != other:
            return f"its {name} is {own}, and that of the others {other}"
    for name in {**others, **found}:
        if (own := found.get(name, "missing")) != (other := others.get(name, "missing")):
            return f"its {name} is {own}, and that of the others {other}"
    return None


def _bundle(engine: Description) -> str:
    return f"{engine.model} ({engine.weights[:16]})"


def _instruction_sets() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("ascii", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return " ".join(sorted(v for v in set(values.split()) if v.startswith(_VECTORS)))
    return ""
