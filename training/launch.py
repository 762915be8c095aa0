"""Where a run takes place: device, precision and, under ``torchrun``, the other processes."""

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
    """Fabric with its processes started.

    Args:
        device: "cpu", "cuda", or "auto" for CUDA where there is a GPU.

    Raises:
        RbvsrError: there is no GPU, or the precision needs one.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RbvsrError("there is no CUDA device here that torch can use: leave the device out")
    precision = Precision()
    if config.precision == "float16":
        if device == "cpu":
            raise RbvsrError("float16 needs a GPU: take bfloat16 or float32 on a CPU")
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
    """Leaves the input of a network as it is: 8-bit pictures would not survive bfloat16."""

    def convert_input(self, data: Any) -> Any:
        return data
