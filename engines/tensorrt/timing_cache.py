"""Stores the kernel timings measured on a GPU so that later builds are fast.

A corrupt byte in a timing cache aborts the process inside TensorRT, so the file has a checksum.
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
        path: its file, created if it is missing. The name must depend on the flavour, version, GPU
            and workspace, because TensorRT does not check these.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = read_cached(path) or b""

    def attach(self, config: Any) -> None:
        """Make a build use it."""
        cache = config.create_timing_cache(self._content)
        # TensorRT rejects a cache of another GPU or version by its return value, not an exception.
        if cache is None or not config.set_timing_cache(cache, False):
            logger.warning(
                "TensorRT rejected the timing cache '%s', so a new one is started", self._path
            )
            checked(config.set_timing_cache(checked(config.create_timing_cache(b"")), False))

    def keep(self, config: Any) -> None:
        """Store the timings that a build has added."""
        content = bytes(checked(checked(config.get_timing_cache()).serialize()))
        if content != self._content:
            write_cached(self._path, content)
            self._content = content
