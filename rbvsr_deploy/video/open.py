"""Opens the right source or sink for a path."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Literal

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import is_same_place
from rbvsr_deploy.video.animations import WebPAnimation, is_animated, is_webp, refuse_heif
from rbvsr_deploy.video.base import Sink, Source
from rbvsr_deploy.video.colour.opacity import no_room_for_opacity
from rbvsr_deploy.video.encoding.encoder import (
    CONTAINERS,
    choose_encoder,
    pix_fmt_for,
    size_multiple,
)
from rbvsr_deploy.video.images.files import ALPHA_SUFFIXES, IMAGE_SUFFIXES, is_image
from rbvsr_deploy.video.images.sink import ImageSink
from rbvsr_deploy.video.images.source import ImageSource
from rbvsr_deploy.video.options import ReadOptions, WriteOptions
from rbvsr_deploy.video.pipes import (
    PipeSink,
    PipeSource,
    is_pipe,
    piped_frame_size,
    piped_pix_fmt,
)
from rbvsr_deploy.video.staging.job import Job
from rbvsr_deploy.video.video_sink import VideoSink
from rbvsr_deploy.video.video_source import VideoSource

_DEFAULT_READING, _DEFAULT_WRITING = ReadOptions(), WriteOptions()


def open_source(path: Path, options: ReadOptions = _DEFAULT_READING) -> Source:
    """Open a video, an image or an image folder.

    The kind of input is detected from its content, not from its name. The only exception is Motion
    JPEG without a container.

    Args:
        path: the file or folder; "-" reads y4m from standard input.
        options: how to read the input.

    Raises:
        MediaError: the input does not exist or cannot be read; one sentence that says what to do.
    """
    path = Path(path)
    if options.fps is not None and not path.is_dir():
        raise MediaError(f"fps is for image folders, and the input {path} is not one: leave it out")
    if is_pipe(path):
        if options.decoder is not None:
            raise MediaError("decoder is for files, and y4m is uncompressed: leave it out")
        return PipeSource(options)
    if not path.exists():
        raise MediaError(
            f"the input {path} does not exist: give a video, an image or an image folder"
        )
    if path.is_dir():
        return _image_source(path, options)
    if not path.is_file():
        raise MediaError(
            f"the input {path} is not a regular file: give a video, an image or an image folder"
        )
    if path.stat().st_size == 0:
        raise MediaError(f"the input {path} is empty: give a complete video or image")
    refuse_heif(path)
    # Raw Motion JPEG starts with the same bytes as a single JPEG.
    if not is_image(path) or path.suffix.lower() in (".mjpeg", ".mjpg"):
        return VideoSource(path, options)
    if not is_animated(path):
        return _image_source(path, options)
    return WebPAnimation(path, options) if is_webp(path) else VideoSource(path, options)


def frame_size(path: Path, options: ReadOptions = _DEFAULT_READING) -> tuple[int, int]:
    """Return the height and width of an input's frames in pixels.

    Raises:
        MediaError: see :func:`open_source`.
    """
    if is_pipe(path):
        return piped_frame_size()
    with open_source(path, options) as source:
        return source.height, source.width


def default_output(path: Path, *, ending: str = "x4") -> Path:
    """Return the default output path of an input: next to it, with "_x4" appended to the name.

    Args:
        path: the input, which need not exist.
        ending: what is appended instead, for another size.

    Returns:
        A folder for a folder and an image for an image, as PNG if its own format cannot be written.
        A video gets the same container if that can hold the output, otherwise Matroska, which can
        hold any codec. An animated image counts as a video.
    """
    path = Path(path)
    if path.is_dir():
        path = path if path.name not in ("", "..") else path.resolve()
        return path.with_name(f"{path.name}_{ending}")
    suffix = path.suffix
    if suffix.lower() not in CONTAINERS and path.is_file():
        writable = suffix.lower() in IMAGE_SUFFIXES
        if not is_image(path) or is_animated(path):
            suffix = suffix if writable and not is_animated(path) else ".mkv"
        elif not writable:
            suffix = ".png"
    elif suffix.lower() not in (*CONTAINERS, *IMAGE_SUFFIXES):
        suffix = ".mkv"
    return path.with_name(f"{path.stem}_{ending}{suffix}")


def output_multiple(
    path: Path, *, source: Source, options: WriteOptions = _DEFAULT_WRITING
) -> tuple[int, int]:
    """Return what the height and width of an output must be multiples of, by its pixel format.

    Args:
        path, source, options: as for :func:`open_sink`.

    Raises:
        MediaError: the path or an option is not supported.
    """
    if is_pipe(path):
        return size_multiple(piped_pix_fmt(options.pix_fmt))
    if _output_kind(path, source=source) != "video":
        return 1, 1
    container = CONTAINERS[path.suffix.lower()]
    return size_multiple(pix_fmt_for(container, options, source=source))


def open_sink(
    path: Path,
    *,
    source: Source,
    width: int,
    height: int,
    job: Job | None,
    sample_aspect: Fraction | None = None,
    options: WriteOptions = _DEFAULT_WRITING,
) -> Sink:
    """Open the output; nothing appears under its name before ``Sink.finish``.

    Args:
        path: a video or image file, identified by its suffix, or a folder for images; "-" writes
            y4m to standard output, where each frame appears at once.
        source: the input that the frames come from.
        width: width of the frames that will be written, in pixels.
        height: height of the frames that will be written, in pixels.
        job: job of the same path, which decides whether existing files may be replaced. The sink
            adds its settings to the job's identity. ``None`` for standard output.
        sample_aspect: width of a pixel of these frames divided by its height; that of the source if
            ``None``.
        options: how to write the output.

    Raises:
        MediaError: an option or the path is not supported; one sentence that says what is.
        ValueError: the job belongs to another output.
    """
    path = Path(path)
    aspect = source.sample_aspect if sample_aspect is None else sample_aspect
    if job is None:
        if not is_pipe(path):
            raise ValueError(f"the output {path} needs a job")
        for name in ("codec", "crf"):
            if getattr(options, name) is not None:
                raise MediaError(f"{name} is for files, and y4m is uncompressed: leave it out")
        _drop_companions(source, "a y4m stream", options)
        return PipeSink(
            source=source,
            width=width,
            height=height,
            sample_aspect=aspect,
            pix_fmt=options.pix_fmt,
        )
    if path != job.output:
        raise ValueError(f"the job is for {job.output}, not for {path}")
    if is_same_place(path, source.path):
        raise MediaError(f"the output {path} is the input itself: choose another output")
    kind = _output_kind(path, source=source)
    single = isinstance(source, ImageSource) and not source.is_folder
    if kind == "folder" and single and is_same_place(path, source.path.parent):
        raise MediaError(
            f"the input {source.path} is in the output folder {path}, where it could be replaced: "
            "choose another output"
        )
    is_folder = os.path.isdir(path)  # raises nothing, whatever the disk says
    if kind == "folder" and is_folder and isinstance(source, VideoSource) and not job.overwrite:
        raise MediaError(
            f"the output {path} is a folder: give a file name such as "
            f"{default_output(source.path).name}, or a new folder for the frames as PNG"
        )
    if kind == "video":
        container = CONTAINERS[path.suffix.lower()]
        encoder = choose_encoder(container, options, size=(width, height), source=source)
        return VideoSink(
            path,
            source=source,
            width=width,
            height=height,
            sample_aspect=aspect,
            container=container,
            encoder=encoder,
            options=options,
            job=job,
        )
    for name in ("codec", "crf", "pix_fmt"):
        if getattr(options, name) is not None:
            raise MediaError(
                f"{name} is for videos, and the output {path} is not one: leave it out"
            )
    if kind == "image" and source.keeps_opacity and path.suffix.lower() not in ALPHA_SUFFIXES:
        raise no_room_for_opacity(path)
    if kind == "image" and source.frame_count != 1:
        raise MediaError(
            f"the output {path} can hold only one image, and the input has more: "
            "give a folder or a video"
        )
    _drop_companions(source, "an image" if kind == "image" else "an image folder", options)
    return ImageSink(
        path,
        width=width,
        height=height,
        folder=kind == "folder",
        job=job,
        source=source,
    )


def _drop_companions(source: Source, output: str, options: WriteOptions) -> None:
    if isinstance(source, VideoSource):
        source.drop_companions(f"{output} cannot hold it", options)
    if source.hdr is not None:
        source.changes.drop("HDR display metadata", f"{output} cannot hold it")


def _image_source(path: Path, options: ReadOptions) -> ImageSource:
    for name in ("deinterlace", "decoder"):
        if getattr(options, name):
            raise MediaError(f"{name} is for videos, and the input {path} is not one: leave it out")
    return ImageSource(path, options)


def _output_kind(path: Path, *, source: Source) -> Literal["video", "image", "folder"]:
    """Return the kind of output, from the path's suffix and what already exists there."""
    suffix = path.suffix.lower()
    from_folder = isinstance(source, ImageSource) and source.is_folder
    if suffix in CONTAINERS:
        return "video"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if not suffix or os.path.isdir(path) or from_folder:
        return "folder"
    raise MediaError(
        f"the output {path} ends in {path.suffix!r}: videos end in "
        f"{', '.join(sorted(CONTAINERS))}, images in {', '.join(sorted(IMAGE_SUFFIXES))}, "
        "and folders have no extension"
    )
