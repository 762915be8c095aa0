"""Defines the result of a comparison of two engines, and when it fails."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rbvsr_deploy.engines import Description, Network
from rbvsr_deploy.parity.differences import Errors, FrameErrors, ImageErrors

__all__ = [
    "Comparison",
    "GraphErrors",
    "SceneDecisions",
    "Tolerance",
    "default_tolerance",
    "find_failures",
]


@dataclass(frozen=True)
class GraphErrors:
    """Holds the errors of one graph, given the same inputs in both engines."""

    calls: int
    outputs: dict[str, Errors]
    """Errors by the output's name."""


@dataclass(frozen=True)
class SceneDecisions:
    """Records what dynamic refinement decided for a scene in the reference and in the other."""

    first_frame: int
    frames: int
    cleanings: tuple[int, int]
    residues: tuple[list[float], list[float]]
    """Mean absolute change of each cleaning pass, on the 0-255 scale."""

    @property
    def agree(self) -> bool:
        """True if both cleaned the scene equally often."""
        return self.cleanings[0] == self.cleanings[1]


@dataclass(frozen=True)
class Tolerance:
    """Limits how far two engines may differ, over all upscaled frames before they become uint8;
    the conversion to uint8 may add one level.

    Raises:
        ValueError: a bound is negative.
    """

    min_psnr: float | None = None
    """In dB."""
    max_difference: float | None = None
    """In units of the range [0, 1]."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")


@dataclass(frozen=True)
class Comparison:
    """Reports how far a second engine is from the reference."""

    reference: Description
    other: Description
    clip: str
    """Path of the video, image or image folder."""
    frames: int
    width: int
    """Width of the clip in pixels."""
    height: int
    """Height of the clip in pixels."""
    pictures: Errors
    """Errors of all upscaled frames, before they are clamped and become uint8."""
    images: ImageErrors
    """Errors of all upscaled frames as uint8."""
    per_frame: list[FrameErrors]
    worst_frame: int
    """Number of the frame with the lowest PSNR."""
    graphs: dict[str, GraphErrors]
    """Errors by graph, in the order a frame passes through them."""
    scenes: list[SceneDecisions]
    tolerance: Tolerance
    failures: list[str]
    """Clauses that describe what is out of tolerance; empty if the two agree."""


def default_tolerance(reference: Network, other: Network) -> Tolerance:
    """Return the tolerance for two precisions: 1/1000 of the range for float32, 50 dB if either is
    float16, 40 dB if either is quantised.
    """
    if reference.quantised or other.quantised:
        return Tolerance(min_psnr=40.0)
    if "float16" in (reference.precision, other.precision):
        return Tolerance(min_psnr=50.0)
    return Tolerance(max_difference=1e-3)


def find_failures(
    errors: Errors, images: ImageErrors, graphs: dict[str, GraphErrors], tolerance: Tolerance
) -> list[str]:
    """Describe what is out of tolerance, by how much, and where it originates."""
    broken = [name for name, graph in graphs.items() if _not_finite(graph)]
    if errors.not_finite or broken:
        where = f", first made by the graph '{broken[0]}'" if broken else ""
        return [f"{errors.not_finite} values of the output are NaN or infinite{where}"]
    failures = []
    if tolerance.min_psnr is not None and errors.psnr < tolerance.min_psnr:
        failures.append(
            f"the output has a PSNR of {errors.psnr:.1f} dB, and {tolerance.min_psnr:g} dB are "
            "required"
        )
    if tolerance.max_difference is not None and errors.max_difference > tolerance.max_difference:
        failures.append(
            f"the output differs by up to {errors.max_difference:.2g}, and "
            f"{tolerance.max_difference:g} is allowed"
        )
    if images.max_levels > 255 * errors.max_difference + 1:
        failures.append(
            f"as uint8 the output differs by up to {images.max_levels} levels, more than before "
            "the conversion"
        )
    if failures:
        psnr, name = min(
            (output.psnr, name)
            for name, graph in graphs.items()
            for output in graph.outputs.values()
        )
        failures.append(f"on equal inputs the graph '{name}' differs most, {psnr:.1f} dB")
    return failures


def _not_finite(graph: GraphErrors) -> bool:
    return any(errors.not_finite for errors in graph.outputs.values())
