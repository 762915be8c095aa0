"""Measures the PSNR of the averaged generator on held-out clips."""

from __future__ import annotations

import msgspec
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from rbvsr_deploy.model import RealBasicVSR
from rbvsr_deploy.training.clips import to_frames
from rbvsr_deploy.training.config import TrainingConfig
from rbvsr_deploy.training.data.training_set import TrainingSet

__all__ = ["Validation"]

_STREAM = 2


class Validation:
    """Validates on the same degraded clips at every call, and in every run with the same seed.

    Raises:
        MediaError: the validation sources of the recipe cannot be used.
    """

    def __init__(self, config: TrainingConfig) -> None:
        data = msgspec.structs.replace(config.data, sources=config.validation.sources)
        self.clips = TrainingSet(data, config.degradation, seed=config.seed)
        self.clips.check()
        self.count = config.validation.clips

    @torch.no_grad()
    def measure(self, fabric: Fabric, network: RealBasicVSR) -> dict[str, float]:
        """Measure the mean PSNR over the clips in dB, with one cleaning.

        It is measured against the unsharpened ground truth. ``validation_bicubic`` is the PSNR of
        bicubic enlargement. The processes share the clips.
        """
        sums = torch.zeros(3, device=fabric.device)
        for index in range(fabric.global_rank, self.count, fabric.world_size):
            sample = self.clips.sample(index, stream=_STREAM)
            degraded, truth = (
                to_frames(torch.from_numpy(frames), fabric.device)
                for frames in (sample.degraded, sample.truth)
            )
            with fabric.autocast():
                output = network(degraded[None], cleanings=1)[0]
            enlarged = F.interpolate(degraded, scale_factor=4, mode="bicubic", align_corners=False)
            sums += torch.stack((_psnr(output, truth), _psnr(enlarged, truth), sums.new_ones(())))
        total = fabric.all_reduce(sums, reduce_op="sum")
        assert isinstance(total, Tensor)  # like its input
        psnr, bicubic = (total[:2] / total[2]).tolist()
        return {"validation_psnr": psnr, "validation_bicubic": bicubic}


def _psnr(output: Tensor, truth: Tensor) -> Tensor:
    """Compute the PSNR of frames (T, 3, H, W), rounded to 8 bits, as the mean over the frames."""
    rounded = output.float().clamp(0.0, 1.0).mul(255.0).round().div(255.0)
    error = ((rounded - truth) ** 2).mean(dim=(1, 2, 3)).clamp(min=1e-10)
    return (-10.0 * error.log10()).mean()
