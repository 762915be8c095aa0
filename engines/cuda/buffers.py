"""Allocates GPU memory and pinned host memory once per size and reuses it.

Ownership:

- A pool owns its blocks: it allocates them from the driver, keeps them between uses, and frees them
  when the GPU runs out of memory and when the pool is closed.
- A :class:`Loan` is the right to use a block. The block returns to its pool when the loan is
  garbage collected, in any thread, with the marks of operations still in flight on it: its next
  user waits for these, on the GPU.
- A :class:`DeviceArray` holds a loan of device memory, which its slices share.
- An array from :func:`host_array`, such as a downloaded frame, holds a loan of pinned memory, even
  after the pool is closed. Data waiting to be copied to the GPU is kept in pinned blocks without a
  loan: they are reused once the copy has completed.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.cuda.driver import CudaDriver
from rbvsr_deploy.engines.cuda.queues import Block, Queues, Span, free_each
from rbvsr_deploy.errors import DeviceMemoryError, EngineError

__all__ = ["ALIGNMENT", "DeviceArray", "DevicePool", "Loan", "PinnedPool", "host_array"]

logger = logging.getLogger(__name__)

ALIGNMENT = 256
"""Alignment of the addresses passed to TensorRT, in bytes."""

_GRAIN = 512  # block sizes are multiples of this, as in the driver
_IDLE_PINNED = 256 * 2**20  # bytes of pinned memory that may stay idle in sizes no longer used


class Loan:
    """The right to use a block, until the loan is garbage collected."""

    def __init__(self, block: Block, give_back: Callable[[Block], None]) -> None:
        self.block = block
        self._give_back = give_back

    def __del__(self) -> None:
        self._give_back(self.block)


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A contiguous array, or a slice of one, in the GPU's memory."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    loan: Loan
    offset: int = 0
    """Position of the first byte within the block."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def address(self) -> int:
        return self.loan.block.address + self.offset

    @property
    def span(self) -> Span:
        return self.loan.block, self.offset, self.offset + self.nbytes

    def slice(self, start: int, stop: int) -> DeviceArray:
        """Items ``start`` to ``stop`` along the first axis, in the same memory."""
        if not 0 <= start < stop <= self.shape[0]:
            raise ValueError(f"there are no items {start} to {stop} in an array {self.shape}")
        item = math.prod(self.shape[1:]) * self.dtype.itemsize
        shape = (stop - start, *self.shape[1:])
        return DeviceArray(shape, self.dtype, self.loan, self.offset + start * item)


class DevicePool:
    """A pool of GPU memory.

    Args:
        driver: of the GPU.
        queues: that work on the memory is submitted to.
        on_shortage: called when the GPU is out of memory; drops the loans that are not required.
    """

    def __init__(
        self, driver: CudaDriver, queues: Queues, *, on_shortage: Callable[[], None]
    ) -> None:
        self._driver = driver
        self._queues = queues
        self._on_shortage = on_shortage
        self._blocks: list[Block] = []
        self._idle: defaultdict[int, deque[Block]] = defaultdict(deque)

    def lend(self, size: int) -> Loan:
        """Lend a block of at least ``size`` bytes, with arbitrary content.

        Raises:
            DeviceMemoryError: the GPU is out of memory, even after idle blocks were freed.
        """
        size = -(-max(size, 1) // _GRAIN) * _GRAIN
        idle = self._idle[size]
        block = idle.popleft() if idle else self._allocate(size)
        return Loan(block, idle.append)

    @property
    def idle_bytes(self) -> int:
        """Number of bytes that no loan holds."""
        return sum(size * len(blocks) for size, blocks in self._idle.items())

    def release(self) -> None:
        """Return idle memory to the driver."""
        self._queues.finish_all()
        idle = {block for blocks in self._idle.values() for block in blocks}
        for blocks in self._idle.values():
            blocks.clear()
        kept = [block for block in self._blocks if block not in idle]
        # Blocks to free come last, and stay in the list until they are freed.
        self._blocks = kept + list(idle)
        while len(self._blocks) > len(kept):
            self._driver.free(self._blocks[-1].address)
            self._blocks.pop()

    def close(self) -> None:
        """Free all blocks, lent or not; no operation may be in flight."""
        free_each(self._blocks, lambda block: self._driver.free(block.address))
        self._idle.clear()

    def _allocate(self, size: int) -> Block:
        with self._driver.current():
            address = self._malloc(size)
        block = Block(address, size)
        self._blocks.append(block)
        return block

    def _malloc(self, size: int) -> int:
        try:
            return self._driver.malloc(size)
        except DeviceMemoryError:
            self._on_shortage()
            self.release()
            try:
                return self._driver.malloc(size)
            except DeviceMemoryError as error:
                raise DeviceMemoryError(
                    f"{size / 2**20:.1f} MiB were requested, but the GPU has "
                    f"{self._driver.free_memory() / 2**20:.1f} MiB free"
                ) from error


class PinnedPool:
    """A pool of pinned host memory.

    A block is lent only when no operation is in flight on it, so the host may write to it.

    Args:
        driver: of the GPU.
        queues: that work on the memory is submitted to.
    """

    def __init__(self, driver: CudaDriver, queues: Queues) -> None:
        self._driver = driver
        self._queues = queues
        self._idle: defaultdict[int, deque[Block]] = defaultdict(deque)
        self._counts: Counter[int] = Counter()
        self._closed = False

    def lend(self, size: int, *, most: int) -> Loan:
        """Lend a block.

        Args:
            size: in bytes.
            most: number of blocks of that size from which on to wait for an idle one, if there is
                any, instead of allocating another.

        Raises:
            DeviceMemoryError: no more memory can be pinned.
        """
        idle = self._idle[size]
        for _ in range(len(idle)):
            loan = Loan(idle.popleft(), self._give_back)
            if self._queues.are_done(loan.block.marks(writes=True)):
                return loan
            del loan  # returns it to the end of the idle blocks
        if idle and self._counts[size] >= most:
            loan = Loan(idle.popleft(), self._give_back)
            self._queues.finish(*loan.block.marks(writes=True))
            return loan
        return Loan(self._allocate(size), self._give_back)

    def count(self, size: int) -> int:
        """Return the number of blocks of a size, lent or not."""
        return self._counts[size]

    def close(self) -> None:
        """Free idle blocks now, and lent blocks when they are returned."""
        self._closed = True
        self._free_idle()

    def _allocate(self, size: int) -> Block:
        if sum(size * len(blocks) for size, blocks in self._idle.items()) > _IDLE_PINNED:
            self._queues.finish_all()
            self._free_idle()
        block = Block(self._driver.malloc_host(size), size)
        self._counts[size] += 1
        return block

    def _give_back(self, block: Block) -> None:
        self._idle[block.size].append(block)
        if self._closed:
            # At program exit CUDA may already have shut down.
            with suppress(EngineError), self._driver.current():
                try:
                    self._free_idle()
                except KeyboardInterrupt:
                    self._free_idle()  # nobody comes back for the rest
                    raise

    def _free_idle(self) -> None:
        for size, blocks in list(self._idle.items()):
            while blocks:
                block = blocks.popleft()
                try:
                    self._driver.free_host(block.address)
                except EngineError as error:  # the GPU's context is gone, the memory with it
                    logger.debug("not freed: %s", error)
                except BaseException:
                    blocks.append(block)
                    raise
                self._counts[size] -= 1


class _OnLoan:
    """Presents pinned memory to NumPy, whose arrays keep this object and with it the loan."""

    def __init__(self, loan: Loan, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._loan = loan
        self.__array_interface__ = {
            "data": (loan.block.address, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }


def host_array(loan: Loan, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array in lent pinned memory; the loan lasts as long as the array and its views."""
    return np.asarray(_OnLoan(loan, shape, dtype))
