"""How long kernels took when they were tried on a GPU, kept so that later builds are fast.

A flipped byte in one aborts the process inside TensorRT, so the file has a checksum.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rbvsr_deploy.engines.tensorrt.cache import read_cached, write_cached
from rbvsr_deploy.engines.tensorrt.flavours import checked

__all__ = ["TimingCache"]

logger = logging.getLogger(__name__)


class TimingCache:
    """The timing cache of one TensorRT on one GPU.

    Args:
        path: its file; made if it is not there. Its name must tell the flavour, the version, the
            GPU and the workspace, which TensorRT itself does not look at.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = read_cached(path) or b""

    def attach(self, config: Any) -> None:
        """Have a build use it."""
        cache = config.create_timing_cache(self._content)
        # A cache of another GPU or version is refused by what is returned, not by an exception.
        if cache is None or not config.set_timing_cache(cache, False):
            logger.warning("TensorRT refused the timing cache '%s': it is made anew", self._path)
            checked(config.set_timing_cache(checked(config.create_timing_cache(b"")), False))

    def keep(self, config: Any) -> None:
        """Store what a build has added."""
        content = bytes(checked(checked(config.get_timing_cache()).serialize()))
        if content != self._content:
            write_cached(self._path, content)
            self._content = content
