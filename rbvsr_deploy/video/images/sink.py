"""Writes frames to an image folder or to a single image file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.base import Frame, Sink, Source
from rbvsr_deploy.video.colour.opacity import no_room_for_opacity
from rbvsr_deploy.video.image_metadata import metadata_of_colour, report_metadata
from rbvsr_deploy.video.images.files import (
    ALPHA_SUFFIXES,
    FORMATS,
    IMAGE_SUFFIXES,
    encode_image,
    image_size,
)
from rbvsr_deploy.video.pyav import media_errors
from rbvsr_deploy.video.staging.job import Job
from rbvsr_deploy.video.staging.parts import SegmentRecord, StoredFile
from rbvsr_deploy.video.staging.publish import sync

__all__ = ["ImageSink", "numbered"]

logger = logging.getLogger(__name__)

_IMAGES = "pictures"


class ImageSink(Sink):
    """Writes an image folder or a single image.

    In a folder, frames keep their names; frames without a name become numbered PNG files.

    Args:
        path: the folder or file to publish.
        width, height: size of the images in pixels.
        folder: whether to write a folder.
        job: keeps the images until they are published.
        source: the input, of which the images keep the metadata or colours.

    Raises:
        MediaError: the output exists or cannot be written to.
    """

    is_folder: bool
    """Whether the output is a folder."""

    def __init__(
        self, path: Path, *, width: int, height: int, folder: bool, job: Job, source: Source
    ) -> None:
        self.path = path
        self.job = job
        self._changes = source.changes
        self._metadata = metadata_of_colour(source.colour)
        self._shape = (height, width, 3)
        self.is_folder = folder
        job.check(folder=folder)
        # Kept as earlier versions recorded it, so that their work can be resumed.
        kind = "a folder of pictures" if folder else "a picture"
        self._finished: set[str] = set()  # names of the images of finished segments
        job.start(
            {"kind of output": kind, "picture size": f"{width}x{height}"}, fits=self._is_plausible
        )
        with media_errors(f"cannot write {path}"):
            self._images = job.storage.make_folder(_IMAGES)
        self._count = sum(segment.frames for segment in job.segments)
        self._open: list[Path] = []

    def write(self, frame: Frame) -> None:
        self._check(frame, shape=self._shape)
        with self._writing():
            name = self.path.name
            if self.is_folder:
                name = _writable_name(frame.name or numbered(self._count))
            elif self._count:
                raise MediaError(
                    f"{self.path} can hold one image only: choose a folder or a video as output"
                )
            path = self._images / name
            if frame.opacity is not None and path.suffix.lower() not in ALPHA_SUFFIXES:
                raise no_room_for_opacity(path)
            self.note(frame)
            metadata = frame.metadata or self._metadata
            data = encode_image(frame.image, path.suffix, opacity=frame.opacity, metadata=metadata)
            try:
                with self.job.storage.create(f"{_IMAGES}/{name}", mode=0o666) as file:
                    file.write(data)
            except FileExistsError:
                raise _same_name(name) from None
            self._open.append(path)
        self._count += 1

    def note(self, frame: Frame) -> None:
        name = _writable_name(frame.name or numbered(0)) if self.is_folder else self.path.name
        format_name = FORMATS.get(Path(name).suffix.lower())
        report_metadata(self._changes, frame.metadata or self._metadata, name=format_name)

    def take_segments(
        self, folder: Path, segments: Sequence[SegmentRecord], *, note: dict[str, Any], state: bytes
    ) -> None:
        """Take over the next segments from a sink that wrote them elsewhere, as one segment; see
        :meth:`rbvsr_deploy.video.VideoSink.take_segments`.
        """
        with self._writing():
            names = {file.name for segment in segments for file in segment.files}
            if double := names & self._finished:
                raise _same_name(Path(min(double)).name)
            if not all(map(self._is_plausible, segments)):
                raise MediaError(f"the segments in {folder} do not fit {self.path}")
            self.job.take_segments(
                folder, segments, note=note, media={}, attachment=state, keep_names=True
            )
            self._count += self.job.segments[-1].frames

    def end_segment(self, note: dict[str, Any], attachment: bytes | None = None) -> None:
        if not self._open and not self._closed:
            raise ValueError("no frame was written since the last segment")
        with self._writing():
            self.job.storage.check()
            for path in self._open:
                sync(path)
            sync(self._images)
            self.job.add_segment(
                frames=len(self._open),
                note=note,
                media={},
                files=[
                    StoredFile(f"{_IMAGES}/{path.name}", path.stat().st_size) for path in self._open
                ],
                attachment=attachment,
            )
            self._open = []

    def finish(self) -> None:
        if self._open:
            self.end_segment({})
        with self._writing():
            if not self.job.segments:
                raise MediaError(f"{self.path} is not written: the input has no images")
            names = {Path(file.name).name for part in self.job.segments for file in part.files}
            self.job.publish(self._images if self.is_folder else self._images / self.path.name)
            if self.is_folder and self.job.overwrite:
                self._remove_older(names)
        self.close()

    def close(self) -> None:
        self._closed = True
        self._open = []

    def _remove_older(self, names: set[str]) -> None:
        """Remove images of an earlier output, which have the same size, from the published folder.

        Other images, which may be the user's, are left and reported.
        """
        others = 0
        for path in sorted(self.path.iterdir()):
            if path.name in names or path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            if image_size(path) == (self._shape[1], self._shape[0]):
                path.unlink()
            else:
                others += 1
        if others:
            logger.warning(
                "%s also holds %d image%s of other sizes, which %s left there",
                self.path,
                others,
                "s" * (others > 1),
                "are" if others > 1 else "is",
            )

    def _is_plausible(self, segment: SegmentRecord) -> bool:
        """Return whether a segment has one image per frame, with unique names."""
        names = {file.name for file in segment.files}
        if not self.is_folder and names != {f"{_IMAGES}/{self.path.name}"}:
            return False
        fits = segment.frames == len(segment.files) == len(names - self._finished) and all(
            name.startswith(f"{_IMAGES}/") for name in names
        )
        self._finished |= names
        return fits


def numbered(number: int) -> str:
    """Return the name of the image of a frame that has none of its own."""
    return f"{number:08d}"


def _same_name(name: str) -> MediaError:
    return MediaError(
        f"two images of the input would both be written as {name}: rename one of them"
    )


def _writable_name(name: str) -> str:
    """Return the name, with ".png" appended unless its suffix is a supported image format."""
    return name if Path(name).suffix.lower() in IMAGE_SUFFIXES else f"{name}.png"
