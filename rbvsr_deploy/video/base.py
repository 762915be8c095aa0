"""Defines the interfaces of all inputs and outputs: ``Frame``, ``Source`` and ``Sink``."""

from __future__ import annotations

import contextlib
import itertools
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.video.changes import Changes
from rbvsr_deploy.video.pyav import media_errors

if TYPE_CHECKING:
    from rbvsr_deploy.pixels import Image
    from rbvsr_deploy.video.colour.colour import Colour
    from rbvsr_deploy.video.colour.hdr import HdrMetadata
    from rbvsr_deploy.video.image_metadata import ImageMetadata
    from rbvsr_deploy.video.input_files import InputFiles
    from rbvsr_deploy.video.staging.job import Job
    from rbvsr_deploy.video.staging.parts import SegmentRecord


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame as displayed: upright, full-range RGB."""

    image: Image
    """``(H, W, 3)`` RGB, contiguous: uint8, or uint16 if the source has more than 8 bits."""
    pts: int | None = None
    """Presentation timestamp in ticks of the source's ``time_base``; ``None``: right after the
    previous frame."""
    duration: int = 0
    """Display duration in ticks of the source's ``time_base``; 0: unknown."""
    name: str | None = None
    """File name of the image, in image folders."""
    opacity: Image | None = None
    """Alpha channel, ``(H, W, 1)`` with the image's dtype, in sources and sinks that keep it;
    ``None``: opaque."""
    captions: bytes | None = None
    """Closed captions of a video (CTA-708), in triplets of bytes; ``None``: it has none."""
    metadata: ImageMetadata | None = None
    """Metadata of an image file."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.image.nbytes + (0 if self.opacity is None else self.opacity.nbytes)


@dataclass(frozen=True)
class Excerpt:
    """A part of an input. Its frames have timestamps that are relative to its start."""

    offset: Fraction
    """Seconds from the first frame of the input to the first frame of the excerpt."""


class Source(Closing):
    """Reads frames in order of presentation, lazily and once.

    Use it as a context manager, or call ``close``. Iteration raises ``MediaError`` if the input
    turns out to be damaged.
    """

    path: Path
    """The file or folder being read."""
    width: int
    """Width of every frame in pixels, after rotation."""
    height: int
    """Height of every frame in pixels, after rotation."""
    frame_count: int | None
    """Expected number of frames, for progress only; ``None``: unknown."""
    time_base: Fraction
    """Seconds per tick of ``Frame.pts``."""
    rate: Fraction
    """Average frames per second."""
    sample_aspect: Fraction | None
    """Width of a pixel divided by its height, after rotation; ``None``: square or unknown."""
    colour: Colour
    """Matrix, range, primaries and transfer, with defaults for those that are not tagged."""
    depth: int
    """Bits per sample; frames with more than 8 are uint16."""
    codec: str | None = None
    """FFmpeg's name of the codec of a video."""
    pix_fmt: str | None = None
    """FFmpeg's name of the pixel format of a video."""
    keeps_opacity = False
    """True if frames can have an alpha channel."""
    keeps_captions = False
    """True if the output keeps closed captions; set by the sink."""
    hdr: HdrMetadata | None = None
    """Static HDR metadata of a video."""
    notes: tuple[str, ...] = ()
    """Assumptions made about the input, one sentence each, for the user."""
    origin = Fraction(0)
    """Time in seconds on the input's clock that is 0 for the frames."""
    first_time = Fraction(0)
    """Time of the first frame in seconds, 0 or later."""
    excerpt: Excerpt | None = None
    """The part of the input that is read; ``None``: all of it."""
    files: InputFiles | None = None
    """The files that are read; ``None``: standard input."""

    @cached_property
    def changes(self) -> Changes:
        """Parts of the input that the output keeps, converts and drops, as far as known."""
        return Changes()

    @property
    def lost_frames(self) -> int:
        """Return the number of frames so far that could not be decoded."""
        return 0

    @property
    def damaged_frames(self) -> int:
        """Return the number of frames so far that were decoded with damage."""
        return 0

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames; a second pass needs a newly opened source."""

    def frames_from(self, number: int, *, pts: int | None) -> Iterator[Frame]:
        """Yield the frames from one of them on; call it once, instead of iterating.

        Frames that are found by seeking may differ from those of a whole pass, in damaged files and
        where decoding depends on more than a key frame: compare them.

        Args:
            number: its number.
            pts: its timestamp; ``None``: unknown, so that all frames before it are read.

        Raises:
            MediaError: the input cannot be read.
        """
        return itertools.islice(self, number, None)

    def interrupt(self) -> None:
        """End a potentially endless wait for the next frame in another thread."""
        return

    def close(self) -> None:
        """Release the input; further calls do nothing."""
        return


class Sink(Closing):
    """Collects frames and publishes them as one output at the end.

    Until ``finish`` returns, nothing exists under the output's name. Frames are written in
    segments: once ``end_segment`` has returned, the segment survives any end of the process, and
    the next sink for the same output continues after it. The output has the same bytes as without
    an interruption. ::

        with Job(path, identity=identity) as job:
            with open_sink(path, source=source, width=w, height=h, job=job) as sink:
                done = sum(segment.frames for segment in sink.finished_segments)
                for number, frame in enumerate(source):
                    if number >= done:
                        sink.write(upscaled(frame))
                        if number % 100 == 99:
                            sink.end_segment({"scene": 1})
                sink.finish()
    """

    path: Path
    """Path of the finished output."""
    job: Job
    """Job that stores the finished segments until then."""
    _closed = False

    @property
    def finished_segments(self) -> list[SegmentRecord]:
        """Return the segments that are encoded and on disk, including those of earlier runs."""
        return list(self.job.segments)

    def attachment(self) -> bytes | None:
        """Return the attachment passed to ``end_segment`` for the last finished segment.

        Raises:
            MediaError: it cannot be read.
        """
        return self.job.attachment()

    @property
    def folder(self) -> Path | None:
        """Return a folder for other unfinished work, if there is one."""
        return self.job.folder

    @abstractmethod
    def write(self, frame: Frame) -> None:
        """Add one frame of the size the sink was opened for.

        After a resume, the first frame is the one that follows the last finished segment.

        Raises:
            ValueError: the image has the wrong shape or a dtype other than uint8 and uint16, or the
                sink is closed.
            MediaError: the frame could not be encoded or written; the sink is closed, and the
                finished segments remain.
        """

    def note(self, frame: Frame) -> None:
        """Record what the output keeps of a frame besides its pixels; :meth:`write` does so too."""

    @abstractmethod
    def end_segment(self, note: dict[str, Any], attachment: bytes | None = None) -> None:
        """End a segment; once this returns, the segment survives a power failure.

        Args:
            note: JSON-serialisable data, returned in ``finished_segments``.
            attachment: bytes of any length, returned by ``attachment`` until the next segment ends.

        Raises:
            ValueError: no frame was written since the last segment, or the sink is closed.
            TypeError: the note is not JSON-serialisable.
            MediaError: the segment could not be encoded or written; the sink is closed, and the
                previous segments remain.
        """

    @abstractmethod
    def finish(self) -> None:
        """End the open segment, if any, join all segments and rename the output into place.

        Raises:
            ValueError: the sink is closed.
            MediaError: nothing was written, or the output could not be completed; the finished
                segments remain.
        """

    def interrupt(self) -> None:
        """End a potentially endless wait of ``write`` in another thread."""
        return

    @abstractmethod
    def close(self) -> None:
        """Release everything and discard the open segment; does nothing after ``finish``."""

    @staticmethod
    def _check(frame: Frame, *, shape: tuple[int, int, int]) -> None:
        """Raise ValueError if a frame has the wrong shape or dtype."""
        image, opacity = frame.image, frame.opacity
        if image.shape != shape or image.dtype not in ("uint8", "uint16"):
            raise ValueError(
                f"expected a uint8 or uint16 image of shape {shape}, got {image.dtype} of shape "
                f"{image.shape}"
            )
        if opacity is not None and (opacity.shape, opacity.dtype) != (
            (*shape[:2], 1),
            image.dtype,
        ):
            raise ValueError(
                f"expected an alpha channel of {image.dtype} and shape {(*shape[:2], 1)}, got "
                f"{opacity.dtype} of shape {opacity.shape}"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Close the sink if the block fails, as the open segment is then unusable."""
        if self._closed:
            raise ValueError(f"the sink for {self.path} is finished or closed")
        try:
            with media_errors(f"cannot write {self.path}"):
                yield
        except BaseException:
            self.close()
            raise
