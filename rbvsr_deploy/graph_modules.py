"""Wraps the methods of :class:`~rbvsr_deploy.model.RealBasicVSR` as torch modules, one per graph.

The export writes these modules to ONNX, and the torch engine runs them as the reference. Their
inputs and outputs are listed in :mod:`rbvsr_deploy.graphs`.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rbvsr_deploy.graphs import Precision, graph_names
from rbvsr_deploy.model import RealBasicVSR

__all__ = ["graph_modules"]


class _Ingest(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, image: Tensor) -> Tensor:
        # Divided in float32 and rounded once: float16 cannot represent 1/255. Cast first, as casts
        # are TensorRT's only uint8 operation.
        return (image.float() / 255.0).permute(0, 3, 1, 2).to(self.dtype)


class _Emit(nn.Module):
    def forward(self, picture: Tensor) -> Tensor:
        levels = picture.float().clamp(0.0, 1.0) * 255.0
        return levels.round().permute(0, 2, 3, 1).to(torch.uint8)


class _Mix(nn.Module):
    def forward(self, frame: Tensor, cleaned: Tensor, amount: Tensor) -> Tensor:
        wide = frame.float()
        return (wide + amount * (cleaned.float() - wide)).to(frame.dtype)


class _Blend(nn.Module):
    def forward(self, frame: Tensor, picture: Tensor, amount: Tensor) -> Tensor:
        enlarged = F.interpolate(frame, scale_factor=4, mode="bilinear", align_corners=False)
        wide = enlarged.float()
        return (wide + amount * (picture.float() - wide)).to(picture.dtype)


class _Resize(nn.Module):
    def forward(
        self,
        picture: Tensor,
        rows: Tensor,
        row_weights: Tensor,
        columns: Tensor,
        column_weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        values = _by_blocks(picture.float().clamp(0.0, 1.0), rows, row_weights)
        turned = values.permute(0, 1, 4, 2, 3).flatten(3)  # (N, 3, 4W, RP)
        blocks = _by_blocks(turned, columns, column_weights)
        levels = (blocks * 255.0).clamp(0.0, 255.0).round()
        image = levels.permute(0, 4, 2, 3, 1).flatten(2, 3)
        return blocks.to(picture.dtype), image.to(torch.uint8)


def _by_blocks(values: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Resize the rows: (N, 3, H, W) to (N, 3, R, P, W)."""
    return torch.matmul(weights, values[:, :, places.long()])


class _ModelPart(nn.Module):
    """Holds the network for a module whose ``forward`` is one of its methods."""

    def __init__(self, model: RealBasicVSR) -> None:
        super().__init__()
        self.model = model


class _Clean(_ModelPart):
    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.clean(frame)


class _Flow(_ModelPart):
    def forward(self, reference: Tensor, neighbour: Tensor) -> Tensor:
        return self.model.flow(reference, neighbour)


class _Backward(_ModelPart):
    def forward(self, frame: Tensor, state: Tensor, flow: Tensor) -> Tensor:
        return self.model.backward_step(frame, state, flow)


class _Forward(_ModelPart):
    def forward(self, frame: Tensor, state: Tensor, flow: Tensor) -> Tensor:
        return self.model.forward_step(frame, state, flow)


class _Reconstruct(_ModelPart):
    def forward(self, frame: Tensor, backward_state: Tensor, forward_state: Tensor) -> Tensor:
        return self.model.reconstruct(frame, backward_state, forward_state)


def graph_modules(model: RealBasicVSR, *, precision: Precision) -> dict[str, nn.Module]:
    """Return the graphs of a model in one precision.

    Args:
        model: float32; copied, not changed.
        precision: float type of features and convolutions; flow and coordinates are float32 in
            either case.

    Returns:
        Modules in eval mode by graph name, ``clean`` and ``mix`` only if the model cleans.
    """
    dtype = torch.float16 if precision == "float16" else torch.float32
    typed = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
    modules: dict[str, nn.Module] = {
        "ingest": _Ingest(dtype),
        "flow": _Flow(typed),
        "backward": _Backward(typed),
        "forward": _Forward(typed),
        "reconstruct": _Reconstruct(typed),
        "emit": _Emit(),
        "blend": _Blend(),
        "resize": _Resize(),
    }
    if model.has_cleaning:
        modules |= {"clean": _Clean(typed), "mix": _Mix()}
    return {name: modules[name].eval() for name in graph_names(has_cleaning=model.has_cleaning)}
