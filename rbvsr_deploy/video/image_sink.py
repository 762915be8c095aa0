"""Writing pictures: a folder of them, or a single one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.base import Frame, Sink
from rbvsr_deploy.video.colour.opacity import no_room_for_opacity
from rbvsr_deploy.video.images import ALPHA_SUFFIXES, IMAGE_SUFFIXES, encode_image
from rbvsr_deploy.video.pyav import media_errors
from rbvsr_deploy.video.staging.job import Job
from rbvsr_deploy.video.staging.parts import StoredFile
from rbvsr_deploy.video.staging.publish import sync

__all__ = ["ImageSink"]

_PICTURES = "pictures"


class ImageSink(Sink):
    """A folder of pictures, or one picture.

    In a folder, frames keep their names; frames without a name are numbered, as PNG.

    Args:
        path: the folder or file to publish.
        width, height: size of the pictures in pixels.
        folder: whether ``path`` is to be a folder.
        job: where the pictures are kept until the end.

    Raises:
        MediaError: the output exists or cannot be written to.
    """

    def __init__(self, path: Path, *, width: int, height: int, folder: bool, job: Job) -> None:
        self.path = path
        self.job = job
        self._shape = (height, width, 3)
        self._folder = folder
        job.check(folder=folder)
        kind = "a folder of pictures" if folder else "a picture"
        job.start({"kind of output": kind, "picture size": f"{width}x{height}"})
        with media_errors(f"cannot write {path}"):
            self._pictures = job.storage.make_folder(_PICTURES)
        self._count = sum(part.frames for part in job.parts)
        self._open: list[Path] = []

    def write(self, frame: Frame) -> None:
        self._check(frame, shape=self._shape)
        with self._writing():
            name = self.path.name
            if self._folder:
                name = _writable_name(frame.name or f"{self._count:08d}")
            elif self._count:
                raise MediaError(
                    f"{self.path} can hold one picture only: give a folder or a video as output"
                )
            path = self._pictures / name
            if frame.opacity is not None and path.suffix.lower() not in ALPHA_SUFFIXES:
                raise no_room_for_opacity(path)
            data = encode_image(frame.image, path.suffix, opacity=frame.opacity)
            try:
                with self.job.storage.create(f"{_PICTURES}/{name}", mode=0o666) as file:
                    file.write(data)
            except FileExistsError:
                raise MediaError(
                    f"two pictures of the input would both be written as {name}: rename one of them"
                ) from None
            self._open.append(path)
        self._count += 1

    def end_part(self, note: dict[str, Any], attachment: bytes | None = None) -> None:
        if not self._open and not self._closed:
            raise ValueError("no frame was written since the last part")
        with self._writing():
            self.job.storage.check()
            for path in self._open:
                sync(path)
            sync(self._pictures)
            self.job.add_part(
                frames=len(self._open),
                note=note,
                media={},
                files=[
                    StoredFile(f"{_PICTURES}/{path.name}", path.stat().st_size)
                    for path in self._open
                ],
                attachment=attachment,
            )
            self._open = []

    def finish(self) -> None:
        if self._open:
            self.end_part({})
        with self._writing():
            if not self.job.parts:
                raise MediaError(f"{self.path} is not written: there was no picture to write")
            self.job.publish(self._pictures if self._folder else self._pictures / self.path.name)
        self.close()

    def close(self) -> None:
        self._closed = True
        self._open = []


def _writable_name(name: str) -> str:
    """The name itself, or with ".png" behind it where it tells no format that can be written."""
    return name if Path(name).suffix.lower() in IMAGE_SUFFIXES else f"{name}.png"
