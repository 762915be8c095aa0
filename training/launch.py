"""Selects the device and precision of a run and, under ``torchrun``, joins the other processes."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.plugins.precision import MixedPrecision, Precision

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.training.config import TrainingConfig

__all__ = ["launch"]


def launch(config: TrainingConfig, device: str) -> Fabric:
    """Set up Fabric and launch its processes.

    Args:
        config: recipe of the run.
        device: "cpu", "cuda", or "auto", which selects CUDA if a GPU is available.

    Raises:
        RbvsrError: no GPU is available, or the precision needs one.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RbvsrError("no CUDA device is available to torch: choose the device 'cpu' or 'auto'")
    precision = Precision()
    if config.precision == "float16":
        if device == "cpu":
            raise RbvsrError("float16 needs a GPU: use bfloat16 or float32 on a CPU")
        precision = _Autocast("16-mixed", device)
    elif config.precision == "bfloat16":
        precision = _Autocast("bf16-mixed", device)
    under_torchrun = TorchElasticEnvironment.detect()
    processes = int(os.environ["WORLD_SIZE"]) if under_torchrun else 1
    of_this_node = int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun else 1
    environment = TorchElasticEnvironment() if under_torchrun else LightningEnvironment()
    fabric = Fabric(
        accelerator=device,
        devices=of_this_node,
        num_nodes=processes // of_this_node,
        strategy="ddp" if processes > 1 else "auto",
        plugins=[precision, environment],
    )
    fabric.launch()
    return fabric


class _Autocast(MixedPrecision):
    """Leaves the input of a network unchanged, as bfloat16 cannot represent 8-bit images."""

    def convert_input(self, data: Any) -> Any:
        return data
