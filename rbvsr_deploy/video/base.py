"""What every input and output has in common: ``Frame``, ``Source`` and ``Sink``."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.video.pyav import media_errors

if TYPE_CHECKING:
    from rbvsr_deploy.pixels import Image
    from rbvsr_deploy.video.colour.colour import Colour
    from rbvsr_deploy.video.colour.hdr import HdrMetadata
    from rbvsr_deploy.video.staging.job import Job
    from rbvsr_deploy.video.staging.parts import PartRecord


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture as it is shown: upright, full-range RGB."""

    image: Image
    """``(H, W, 3)`` RGB, contiguous: uint8, or uint16 where the source has more than 8 bits."""
    pts: int | None = None
    """Presentation time stamp in ticks of the source's ``time_base``; ``None``: next in line."""
    duration: int = 0
    """How long the frame is shown, in ticks of the source's ``time_base``; 0: not known."""
    name: str | None = None
    """File name of the picture, for folders of images."""
    opacity: Image | None = None
    """``(H, W, 1)`` of the image's dtype, in sources and sinks that keep it; ``None``: opaque."""


@dataclass(frozen=True)
class Excerpt:
    """A part of an input, whose frames come with their times counted from its start."""

    start: Fraction
    """Seconds on the input's clock that become 0."""
    offset: Fraction
    """Seconds from the input's first frame to that of the excerpt."""


class Source(Closing):
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
    depth: int
    """Bits per sample; with more than 8, frames are uint16."""
    codec: str | None = None
    """FFmpeg's name of the codec of a video."""
    pix_fmt: str | None = None
    """FFmpeg's name of the pixel format of a video."""
    keeps_opacity = False
    """Whether frames can have opacity."""
    hdr: HdrMetadata | None = None
    """What a video of high dynamic range tells beside its colour."""
    notes: tuple[str, ...] = ()
    """What was assumed of the input, for the user: a sentence each."""
    excerpt: Excerpt | None = None
    """Which part of the input is read; ``None``: all of it."""

    @property
    def lost_frames(self) -> int:
        """How many could not be decoded, of what was read so far."""
        return 0

    @property
    def damaged_frames(self) -> int:
        """How many came out damaged so far."""
        return 0

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Yields the frames; a second pass needs a newly opened source."""

    def interrupt(self) -> None:
        """Ends a wait for the next frame in another thread, where one could last for ever."""
        return

    def close(self) -> None:
        """Frees the input; calling it again does nothing."""
        return


class Sink(Closing):
    """Takes frames and publishes them as one output at the very end.

    Until ``finish`` returns, nothing exists under the output's name. Frames come in parts: what
    ``end_part`` has returned for survives any end of the process, and the next sink for the same
    output continues behind it, with the same bytes as if nothing had happened. ::

        with Job(path, identity=identity) as job:
            with open_sink(path, source=source, width=w, height=h, job=job) as sink:
                done = sum(part.frames for part in sink.finished_parts)
                for number, frame in enumerate(source):
                    if number >= done:
                        sink.write(enlarged(frame))
                        if number % 100 == 99:
                            sink.end_part({"scene": 1})
                sink.finish()
    """

    path: Path
    """Where the finished output will be."""
    job: Job
    """Where the work is kept until then."""
    _closed = False

    @property
    def finished_parts(self) -> list[PartRecord]:
        """The parts that are encoded and on the disk, those of earlier runs included."""
        return list(self.job.parts)

    def attachment(self) -> bytes | None:
        """What ``end_part`` was given for the last finished part.

        Raises:
            MediaError: it cannot be read.
        """
        return self.job.attachment()

    @property
    def folder(self) -> Path | None:
        """Where other unfinished work may lie, if there is such a place."""
        return self.job.folder

    @abstractmethod
    def write(self, frame: Frame) -> None:
        """Adds one frame of the size the sink was opened for.

        After a resume, the first is the one behind the last finished part.

        Raises:
            ValueError: the image has another shape, or another dtype than uint8 and uint16; or the
                sink is closed.
            MediaError: the frame could not be encoded or written; the sink is closed, and the
                finished parts stay.
        """

    @abstractmethod
    def end_part(self, note: dict[str, Any], attachment: bytes | None = None) -> None:
        """Ends a part; when this returns, a power failure does not undo it.

        Args:
            note: comes back in ``finished_parts``; JSON must be able to hold it.
            attachment: comes back from ``attachment`` until the next part ends; of any size.

        Raises:
            ValueError: no frame was written since the last part, or the sink is closed.
            TypeError: JSON cannot hold the note.
            MediaError: the part could not be encoded or written; the sink is closed, and the
                parts before stay.
        """

    @abstractmethod
    def finish(self) -> None:
        """Ends the part that is open, if any, joins all and renames the output into place.

        Raises:
            ValueError: the sink is closed.
            MediaError: nothing was written, or the output could not be completed; the finished
                parts stay.
        """

    def interrupt(self) -> None:
        """Ends a wait of ``write`` in another thread, where one could last for ever."""
        return

    @abstractmethod
    def close(self) -> None:
        """Frees everything and gives up the open part; does nothing after ``finish``."""

    @staticmethod
    def _check(frame: Frame, *, shape: tuple[int, int, int]) -> None:
        """Raises ValueError with what came and what is allowed."""
        image, opacity = frame.image, frame.opacity
        if image.shape != shape or image.dtype not in ("uint8", "uint16"):
            raise ValueError(
                f"expected uint8 or uint16 of {shape}, got {image.dtype} of {image.shape}"
            )
        if opacity is not None and (opacity.shape, opacity.dtype) != (
            (*shape[:2], 1),
            image.dtype,
        ):
            raise ValueError(
                f"expected opacity as {image.dtype} of {(*shape[:2], 1)}, got {opacity.dtype} of "
                f"{opacity.shape}"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What fails in here leaves the open part in no usable state: the sink is closed."""
        if self._closed:
            raise ValueError(f"{self.path} is finished or closed")
        try:
            with media_errors(f"cannot write {self.path}"):
                yield
        except BaseException:
            self.close()
            raise
