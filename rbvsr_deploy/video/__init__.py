"""Reads and writes videos, images and image folders with PyAV.

::

    with open_source(path) as source:
        width, height = 4 * source.width, 4 * source.height
        with (
            Job(output, identity={"input": str(path)}) as job,
            open_sink(output, source=source, width=width, height=height, job=job) as sink,
        ):
            for frame in source:
                sink.write(dataclasses.replace(frame, image=upscaled(frame.image)))
            sink.finish()

PyAV is imported when the first file is opened, not when this package is imported.
"""

from __future__ import annotations

from rbvsr_deploy.video.base import Frame, Sink, Source
from rbvsr_deploy.video.images.sink import ImageSink, numbered
from rbvsr_deploy.video.images.source import ImageSource
from rbvsr_deploy.video.open import (
    default_output,
    frame_size,
    open_sink,
    open_source,
    output_multiple,
)
from rbvsr_deploy.video.options import Alpha, ReadOptions, WriteOptions
from rbvsr_deploy.video.pipes import is_pipe
from rbvsr_deploy.video.staging.job import Job
from rbvsr_deploy.video.staging.parts import SegmentRecord
from rbvsr_deploy.video.video_sink import VideoSink
from rbvsr_deploy.video.video_source import VideoSource

__all__ = [
    "Alpha",
    "Frame",
    "ImageSink",
    "ImageSource",
    "Job",
    "ReadOptions",
    "SegmentRecord",
    "Sink",
    "Source",
    "VideoSink",
    "VideoSource",
    "WriteOptions",
    "default_output",
    "frame_size",
    "is_pipe",
    "numbered",
    "open_sink",
    "open_source",
    "output_multiple",
]
