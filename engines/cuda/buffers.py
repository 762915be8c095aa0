"""Memory of the GPU and pinned memory of the host, allocated once per size and used again.

Who owns what:

- A pool owns its blocks: it gets them from the driver, keeps them between uses, and gives them back
  when the GPU's memory runs short and when it is closed.
- A :class:`Loan` is the right to use a block. The block returns to its pool when the loan is
  garbage, in whatever thread, with the marks of what is still in flight on it: the next to use it
  waits for that, on the GPU.
- A :class:`DeviceArray` holds a loan of device memory, which its parts share.
- An array of :func:`host_array`, such as a downloaded picture, holds a loan of pinned memory, even
  beyond the pool's closing. What waits to be copied to the GPU lies in pinned blocks that nobody
  holds: they are used again once the copy is done.
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
"""Bytes; of addresses that are given to TensorRT."""

_GRAIN = 512  # sizes of blocks are multiples of it, as those of the driver are
_IDLE_PINNED = 256 * 2**20  # bytes of pinned memory that may lie idle in sizes no longer asked for


class Loan:
    """The right to use a block, until it is garbage."""

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
    """Of the first byte within the block."""

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
    """Device memory.

    Args:
        driver: of the GPU.
        queues: where the work on it is given.
        on_shortage: is called when the GPU's memory runs short, and lets go of loans that can be
            done without.
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
        """A block of so many bytes at least, with any content.

        Raises:
            DeviceMemoryError: the GPU has too little memory left, even without what lies idle.
        """
        size = -(-max(size, 1) // _GRAIN) * _GRAIN
        idle = self._idle[size]
        block = idle.popleft() if idle else self._allocate(size)
        return Loan(block, idle.append)

    @property
    def idle_bytes(self) -> int:
        """Bytes that no loan holds."""
        return sum(size * len(blocks) for size, blocks in self._idle.items())

    def release(self) -> None:
        """Give idle memory back to the driver."""
        self._queues.finish_all()
        idle = {block for blocks in self._idle.values() for block in blocks}
        for blocks in self._idle.values():
            blocks.clear()
        kept = [block for block in self._blocks if block not in idle]
        # Those to free come last, and stay in the list until they are freed.
        self._blocks = kept + list(idle)
        while len(self._blocks) > len(kept):
            self._driver.free(self._blocks[-1].address)
            self._blocks.pop()

    def close(self) -> None:
        """Free everything, lent or not; nothing may be in flight."""
        free_each(self._blocks, lambda block: self._driver.free(block.address))
        self._idle.clear()

    def _allocate(self, size: int) -> Block:
        try:
            address = self._driver.malloc(size)
        except DeviceMemoryError:
            self._on_shortage()
            self.release()
            try:
                address = self._driver.malloc(size)
            except DeviceMemoryError as error:
                raise DeviceMemoryError(
                    f"{size / 2**20:.1f} MiB were asked for where the GPU has "
                    f"{self._driver.free_memory() / 2**20:.1f} MiB left"
                ) from error
        block = Block(address, size)
        self._blocks.append(block)
        return block


class PinnedPool:
    """Pinned memory of the host. A block is lent when nothing is in flight on it: the host may
    write to it.

    Args:
        driver: of the GPU.
        queues: where the work on it is given.
    """

    def __init__(self, driver: CudaDriver, queues: Queues) -> None:
        self._driver = driver
        self._queues = queues
        self._idle: defaultdict[int, deque[Block]] = defaultdict(deque)
        self._counts: Counter[int] = Counter()
        self._closed = False

    def lend(self, size: int, *, most: int) -> Loan:
        """A block of so many bytes.

        Args:
            size: in bytes.
            most: where there are so many blocks of that size already, wait for one that is not
                lent, if there is one.

        Raises:
            DeviceMemoryError: so much memory cannot be pinned.
        """
        idle = self._idle[size]
        for _ in range(len(idle)):
            loan = Loan(idle.popleft(), self._give_back)
            if self._queues.are_done(loan.block.marks(writes=True)):
                return loan
            del loan  # back to the others' end
        if idle and self._counts[size] >= most:
            loan = Loan(idle.popleft(), self._give_back)
            self._queues.finish(*loan.block.marks(writes=True))
            return loan
        return Loan(self._allocate(size), self._give_back)

    def count(self, size: int) -> int:
        """Blocks of a size, lent or not."""
        return self._counts[size]

    def close(self) -> None:
        """Free what is not lent, and from now on what is when it returns."""
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
            # When the program ends, CUDA may have ended before.
            with suppress(EngineError), self._driver.current():
                self._free_idle()

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
    """Bytes of the host's memory for NumPy, whose arrays keep this and with it the loan."""

    def __init__(self, loan: Loan, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._loan = loan
        self.__array_interface__ = {
            "data": (loan.block.address, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }


def host_array(loan: Loan, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array in lent pinned memory; the loan lasts as long as the array and all its views."""
    return np.asarray(_OnLoan(loan, shape, dtype))
