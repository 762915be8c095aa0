"""Writes the log of a run: ``log.jsonl``, and TensorBoard's files if that is installed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from rbvsr_deploy.files import open_no_follow, usual_mode
from rbvsr_deploy.training.run_folder import writes

__all__ = ["RunLog"]

logger = logging.getLogger(__name__)


class RunLog:
    """Logs values by phase and iteration.

    Args:
        folder: run folder.
        length: number of bytes of the log to keep; later lines describe iterations to be repeated.
        phase, iteration: position of the run; later entries of TensorBoard are hidden.
        silent: write nothing; for all processes but the first.

    Raises:
        RbvsrError: the log cannot be written; raised by all methods too.
    """

    def __init__(
        self, folder: Path, *, length: int, phase: str, iteration: int, silent: bool
    ) -> None:
        self._path, self._silent, self._has_tensorboard = folder / "log.jsonl", silent, False
        self._folder, self._purge = folder / "tensorboard", {phase: iteration + 1}
        self._writers: dict[str, Any] = {}
        if silent:
            return
        with self._opened() as file:
            if file.tell() > length:
                file.truncate(length)
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
        """Current size of the log in bytes."""
        return self._path.stat().st_size if self._path.exists() else 0

    def scalars(self, phase: str, iteration: int, values: Mapping[str, float]) -> None:
        """Write one line of the log, and a point of each TensorBoard curve."""
        if self._silent:
            return
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        line = json.dumps({"phase": phase, "iteration": iteration, **rounded}) + "\n"
        with self._opened() as file:
            file.write(line.encode())
        with writes(self._folder):
            if writer := self._writer(phase):
                for name, value in values.items():
                    writer.add_scalar(name, value, iteration)

    def image(self, phase: str, iteration: int, strip: Tensor) -> None:
        """Write an image (3, H, W), RGB, [0, 1], to TensorBoard."""
        with writes(self._folder):
            if writer := self._writer(phase):
                # TensorBoard would truncate values instead of rounding them.
                writer.add_image("clip", strip.clamp(0, 1).mul(255).round().byte().cpu(), iteration)

    def close(self) -> None:
        """Flush and close TensorBoard's files."""
        with writes(self._folder):
            for writer in self._writers.values():
                writer.close()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """Open the log to append to it; a link is not followed."""
        with writes(self._path):
            handle = open_no_follow(
                self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, mode=usual_mode()
            )
            with os.fdopen(handle, "ab") as file:
                yield file

    def _writer(self, phase: str) -> Any:
        """Return the TensorBoard writer of a phase, as each phase counts its own iterations."""
        if not self._has_tensorboard:
            return None
        if phase not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[phase] = SummaryWriter(
                str(self._folder / phase), purge_step=self._purge.get(phase)
            )
        return self._writers[phase]
