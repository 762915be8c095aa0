"""Videos and pictures in and out, through PyAV.

::

    with open_source(path) as source:
        width, height = 4 * source.width, 4 * source.height
        with open_sink(output, source=source, width=width, height=height) as sink:
            for frame in source:
                sink.write(dataclasses.replace(frame, image=enlarged(frame.image)))
            sink.finish()

============================  ==============================================================
``open.py``                   which source or sink a path stands for
``base.py``                   ``Frame`` and what all sources and sinks promise
``video_source.py``           a video file in: frames, time stamps, damage
``completeness.py``           whether a video file was cut off
``video_sink.py``             a video file out: encoding and muxing
``copied_streams.py``         sound, subtitles, chapters: copied from source to sink
``encoder.py``                which encoder, pixel format and quality a video is written with
``images.py``                 pictures and folders of pictures, in and out
``colour.py``                 YUV to RGB and back, rotation
``publish.py``                temporary names and the final rename
``pyav.py``                   opening files with PyAV, its errors as ``MediaError``
============================  ==============================================================

PyAV is imported when the first file is opened, not with this package.
"""

from __future__ import annotations

from rbvsr_deploy.video.base import Frame, Sink, Source
from rbvsr_deploy.video.images import ImageSink, ImageSource
from rbvsr_deploy.video.open import default_output, open_sink, open_source
from rbvsr_deploy.video.video_sink import VideoSink
from rbvsr_deploy.video.video_source import VideoSource

__all__ = [
    "Frame",
    "ImageSink",
    "ImageSource",
    "Sink",
    "Source",
    "VideoSink",
    "VideoSource",
    "default_output",
    "open_sink",
    "open_source",
]
