"""What every input and output has in common: ``Frame``, ``Source`` and ``Sink``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from rbvsr_deploy.video.colour import Colour


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture as it is shown: upright, full-range RGB."""

    image: NDArray[np.uint8]
    """``(H, W, 3)`` uint8 RGB, contiguous."""
    pts: int | None = None
    """Presentation time stamp in ticks of the source's ``time_base``; ``None``: next in line."""
    duration: int = 0
    """How long the frame is shown, in ticks of the source's ``time_base``; 0: not known."""
    name: str | None = None
    """File name of the picture, for folders of images."""


class Source(ABC):
    """Pictures in order of presentation, read lazily and once.

    Use it as a context manager, or call ``close``. Iterating raises ``MediaError`` where the
    input turns out to be damaged.
    """

    path: Path
    """The file or folder that is read."""
    width: int
    """Width of every frame in pixels, after rotation."""
    height: int
    """Height of every frame in pixels, after rotation."""
    frame_count: int | None
    """How many frames to expect, for progress only; ``None`` where nothing tells."""
    time_base: Fraction
    """Seconds per tick of ``Frame.pts``."""
    rate: Fraction
    """Average frames per second."""
    sample_aspect: Fraction | None
    """Width of a pixel divided by its height, after rotation; ``None``: square or not known."""
    colour: Colour
    """Matrix, range, primaries and transfer, guessed where the input does not tell."""

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Yields the frames; a second pass needs a newly opened source."""

    def close(self) -> None:
        """Frees the input; calling it again does nothing."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Sink(ABC):
    """Takes frames and publishes them as one output at the very end.

    Until ``finish`` returns, nothing exists under the output's name. Leaving the context without
    ``finish`` removes every trace. ::

        with open_sink(path, source=source, width=w, height=h) as sink:
            for frame in source:
                sink.write(enlarged(frame))
            sink.finish()
    """

    path: Path
    """Where the finished output will be."""

    @abstractmethod
    def write(self, frame: Frame) -> None:
        """Adds one frame of the size the sink was opened for.

        Raises:
            ValueError: the image has another shape or dtype.
            MediaError: the frame could not be encoded or written.
        """

    @abstractmethod
    def finish(self) -> None:
        """Completes the output and renames it into place.

        Raises:
            MediaError: nothing was written, or the output could not be completed.
        """

    @abstractmethod
    def close(self) -> None:
        """Removes what is unfinished; does nothing after ``finish``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
