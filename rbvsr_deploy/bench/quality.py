"""Compares the images of an engine with those of a float32 reference: the speed of an engine with
wrong images means nothing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.bench.result import Quality
from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.engines import CHECKPOINT_SUFFIXES, Engine, open_engine
from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.pixels import psnr_of
from rbvsr_deploy.upscaler import Upscaler

__all__ = ["compare_with_reference"]

_FRAMES = 8  # of the clip; the reference may be slow


def compare_with_reference(
    engine: Engine,
    model: Path,
    clip: NDArray[np.uint8],
    *,
    reference: Path | None,
    cleanings: int,
) -> tuple[Quality | None, str]:
    """Upscale the beginning of a clip with both, and compare the images.

    Args:
        engine: the engine that was measured.
        model: its bundle.
        clip: (T, H, W, 3) RGB.
        reference: bundle or checkpoint of the same network in float32; the bundle itself, run by
            ONNX Runtime on the CPU, if ``None``.
        cleanings: number of cleaning passes.

    Returns:
        The comparison, and why there is none, or "".

    Raises:
        RbvsrError: the reference is of another network, or not in float32.
    """
    if reference is None and engine.network.types != "float32":
        return None, "the bundle is not float32, and no reference was given"
    if reference is not None:
        _check_weights(model, reference)
    with open_engine(reference or model, device="cpu") as other:
        if other.network.types != "float32":
            raise RbvsrError(
                f"the reference '{reference}' is in {other.network.types}: use a float32 bundle or "
                "a checkpoint"
            )
        frames = clip[:_FRAMES]
        ours, theirs = (
            np.stack(list(Upscaler(side, cleanings=cleanings).frames(frames)))
            for side in (engine, other)
        )
        difference = np.abs(ours.astype(np.int16) - theirs)
        mean_square = float(np.mean(np.square(difference, dtype=np.float64)))
        equal = mean_square == 0
        return Quality(
            reference=str(other.describe()),
            frames=len(frames),
            psnr=None if equal else psnr_of(mean_square, peak=255.0, most=200.0),
            max_levels=int(difference.max()),
        ), ""


def _check_weights(model: Path, reference: Path) -> None:
    """Check that two files hold the same weights."""
    if reference.suffix in CHECKPOINT_SUFFIXES:
        theirs = hashlib.sha256(reference.read_bytes()).hexdigest()
    else:
        theirs = open_bundle(reference).manifest.weights.sha256
    if theirs != open_bundle(model).manifest.weights.sha256:
        raise RbvsrError(
            f"the reference '{reference}' has other weights than '{model}': use a float32 bundle "
            "of the same checkpoint, or the checkpoint itself"
        )
