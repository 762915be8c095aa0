"""What a run leaves to look at: ``log.jsonl``, and TensorBoard's files where that is installed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rbvsr_deploy.training.run_folder import writes

__all__ = ["RunLog"]

logger = logging.getLogger(__name__)


class RunLog:
    """Lines and scalars by phase and iteration.

    Args:
        folder: the run's.
        length: bytes of the log to keep; what follows describes iterations that are repeated.
        phase, iteration: where the run is; what TensorBoard has beyond is hidden.
        silent: writes nothing; for all processes but the first.
    """

    def __init__(
        self, folder: Path, *, length: int, phase: str, iteration: int, silent: bool
    ) -> None:
        self._path, self._silent, self._has_tensorboard = folder / "log.jsonl", silent, False
        self._folder, self._purge = folder / "tensorboard", {phase: iteration + 1}
        self._writers: dict[str, Any] = {}
        if silent:
            return
        if self._path.exists() and self._path.stat().st_size > length:
            with writes(self._path):
                os.truncate(self._path, length)
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            logger.warning(
                "tensorboard is not installed, so the run writes %s only: "
                "pip install 'rbvsr-deploy[tensorboard]'",
                self._path.name,
            )
        else:
            self._has_tensorboard = True

    @property
    def length(self) -> int:
        """Bytes of the log so far."""
        return self._path.stat().st_size if self._path.exists() else 0

    def scalars(self, phase: str, iteration: int, values: Mapping[str, float]) -> None:
        """One line of the log, and as many curves."""
        if self._silent:
            return
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        line = json.dumps({"phase": phase, "iteration": iteration, **rounded}) + "\n"
        with writes(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line)
        with writes(self._folder):
            if writer := self._writer(phase):
                for name, value in values.items():
                    writer.add_scalar(name, value, iteration)

    def picture(self, phase: str, iteration: int, strip: Tensor) -> None:
        """A picture (3, H, W) in [0, 1]."""
        with writes(self._folder):
            if writer := self._writer(phase):
                # TensorBoard would cut off what is behind the point instead of rounding it.
                writer.add_image("clip", strip.clamp(0, 1).mul(255).round().byte().cpu(), iteration)

    def close(self) -> None:
        """Write out what is still in memory."""
        with writes(self._folder):
            for writer in self._writers.values():
                writer.close()

    def _writer(self, phase: str) -> Any:
        """TensorBoard's writer of a phase: each counts its own iterations."""
        if not self._has_tensorboard:
            return None
        if phase not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[phase] = SummaryWriter(
                str(self._folder / phase), purge_step=self._purge.get(phase)
            )
        return self._writers[phase]
