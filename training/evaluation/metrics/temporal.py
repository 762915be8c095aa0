"""Computes temporal metrics: the warping error, and the distance to the true motion (tOF)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.training.evaluation.metrics.base import CroppedImage, ScoredFrame, require_truth

__all__ = ["TemporalOpticalFlow", "WarpingError", "flow_difference", "reliable", "warp"]

_Result = TypeVar("_Result")
_NONE: Any = None  # accepted by OpenCV, although its types do not say so
Flow = NDArray[np.float32]
"""(H, W, 2) pixels, (dx, dy): position (x, y) of one image is at (x + dx, y + dy) in the other."""


class _LastPairCache(Generic[_Result]):
    """Caches a function of two successive images for the last pair, as several videos are compared
    with the same ground truth.
    """

    def __init__(self, function: Callable[[CroppedImage, CroppedImage], _Result]) -> None:
        self._function = function
        self._pair: tuple[CroppedImage, CroppedImage] | None = None
        self._result: _Result

    def __call__(self, before: CroppedImage, now: CroppedImage) -> _Result:
        if self._pair is None or self._pair[0] is not before or self._pair[1] is not now:
            self._result = self._function(before, now)
            self._pair = (before, now)
        return self._result


class WarpingError:
    """Measures the mean squared difference between a frame and the previous one, warped along the
    motion, in thousandths of the squared range; lower is steadier.

    Lai et al., *Learning blind video temporal consistency*, ECCV 2018, eq. 9 to 11:
    E = sum(M |V_t - warp(V_(t-1))|^2) / sum(M), over pixels and channels in [0, 1], where M is 1
    where the motion is reliable (:func:`reliable`). The flow is that of OpenCV's DIS
    (Kroeger et al., ECCV 2016, preset medium) in place of FlowNet2, on the guide.

    Still or blurred videos score low, so it is meaningful only together with a metric of image
    quality.
    """

    def __init__(self) -> None:
        self._motion = _LastPairCache(_motion)

    def __call__(self, frame: ScoredFrame) -> float | None:
        """Score a frame; ``None`` for the first one, and where no motion is reliable."""
        if frame.previous is None:
            return None
        before, now = frame.previous.image, frame.image
        flow, mask = self._motion(frame.previous.guide or before, frame.guide or now)
        if not mask.any():
            return None
        moved = warp(before.rgb, flow)
        difference = (now.rgb[mask].astype(np.float64) - moved[mask]) / 255.0
        return float(1000.0 * np.mean(difference * difference))


class TemporalOpticalFlow:
    """Measures tOF, the mean distance in pixels between the motion of the video and that of the
    ground truth; lower is better.

    Chu et al., *Learning temporal coherence via self-supervision for GAN-based video generation*
    (TecoGAN), ACM Transactions on Graphics 2020: mean |OF(b_(t-1), b_t) - OF(g_(t-1), g_t)|, with
    OpenCV's Farneback flow and the settings of the authors' code.
    """

    def __init__(self) -> None:
        self._true_flow = _LastPairCache(_farneback)

    def __call__(self, frame: ScoredFrame) -> float | None:
        """Score a frame; ``None`` for the first one."""
        if frame.previous is None:
            return None
        true_flow = self._true_flow(require_truth(frame.previous), require_truth(frame))
        return flow_difference(_farneback(frame.previous.image, frame.image), true_flow)


def flow_difference(flow: Flow, other: Flow) -> float:
    """Compute the mean length of the difference of two flows, in pixels."""
    return float(np.linalg.norm(flow - other, axis=2).mean())


def warp(image: NDArray[Any], flow: Flow) -> NDArray[np.float32]:
    """Sample an image at the positions that a flow points to: (H, W, C) float32, bilinear."""
    height, width = flow.shape[:2]
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    places = flow + np.stack((columns, rows), axis=2).astype(np.float32)
    return np.asarray(
        cv2.remap(
            image.astype(np.float32),
            places,
            _NONE,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
    )


def reliable(flow: Flow, back: Flow) -> NDArray[np.bool_]:
    """Find where a flow is reliable: not occluded, not at a motion boundary, and within the image.

    Ruder, Dosovitskiy and Brox, *Artistic style transfer for videos*, 2016, eq. 5 and 6, on which
    the warping error of Lai et al. is based.

    Args:
        flow: flow from every pixel to the other image.
        back: flow from the other image back.

    Returns:
        (H, W) bool.
    """
    height, width = flow.shape[:2]
    returned = warp(back, flow)
    length, length_back = (np.sum(f * f, axis=2) for f in (flow, returned))
    hidden = np.sum((flow + returned) ** 2, axis=2) > 0.01 * (length + length_back) + 0.5
    slopes = [np.gradient(flow[..., channel]) for channel in (0, 1)]
    steepness = sum(slope * slope for pair in slopes for slope in pair)
    edge = steepness > 0.01 * length + 0.002
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    x, y = columns + flow[..., 0], rows + flow[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return np.asarray(inside & ~hidden & ~edge)


def _motion(before: CroppedImage, now: CroppedImage) -> tuple[Flow, NDArray[np.bool_]]:
    """Compute the flow from every pixel of an image to the previous one, and where it is
    reliable.
    """
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow, back = (
        np.asarray(dis.calc(a.grey, b.grey, _NONE), dtype=np.float32)
        for a, b in ((now, before), (before, now))
    )
    return flow, reliable(flow, back)


def _farneback(before: CroppedImage, now: CroppedImage) -> Flow:
    flow = cv2.calcOpticalFlowFarneback(
        before.grey,
        now.grey,
        _NONE,
        pyr_scale=0.5,
        levels=3,
        winsize=15,
        iterations=3,
        poly_n=5,
        poly_sigma=1.2,
        flags=0,
    )
    return np.asarray(flow, dtype=np.float32)
