"""Videos and pictures in and out, through PyAV.

::

    with open_source(path) as source:
        width, height = 4 * source.width, 4 * source.height
        with (
            Job(output, identity={"input": str(path)}) as job,
            open_sink(output, source=source, width=width, height=height, job=job) as sink,
        ):
            for frame in source:
                sink.write(dataclasses.replace(frame, image=enlarged(frame.image)))
            sink.finish()

============================  ==============================================================
``open.py``                   which source or sink a path stands for
``base.py``                   ``Frame`` and what all sources and sinks promise
``video_source.py``           a video file in: upright frames in RGB, with time stamps
``video_pass.py``             its packets, decoded
``timestamps.py``             time stamps that can be true, in place of those that cannot
``seeking.py``                packets from a key frame before a time on
``excerpts.py``               which frames an excerpt holds
``damage.py``                 what is damaged in a video, counted
``decoder.py``                decoding on a device, or with another decoder
``interlacing.py``            whether a video is interlaced, and deinterlacing
``completeness.py``           whether a video file was cut off
``matroska.py``                Matroska's own account of its length and of the pixels' shape
``video_sink.py``             a video file out: parts while frames come, a file at the end
``part_encoder.py``           encoding one part on its own
``packets.py``                encoded packets on the disk, and their decoding times
``assembly.py``               the file at the end: packets of all parts, and copied streams
``copied_streams.py``         everything beside the pictures: how it gets from source to sink
``packet_copy.py``            packet by packet, as it is
``transcoded_audio.py``       sound that the container cannot hold, encoded anew
``text_subtitles.py``         text that the container holds in another format
``time_window.py``            which part of the source's time it is taken from
``options.py``                what a user can wish for an input and an output
``encoder.py``                which encoder and pixel format a video is written with
``encoder_settings.py``       its quality, its threads, and what it needs besides
``encoder_trial.py``          whether an encoder works on this machine, and for large pictures
``pixel_formats.py``          which of an encoder's pixel formats comes closest to an input's
``stream_settings.py``        what is the same for all parts of a video stream
``pipes.py``                  y4m on standard input and output
``opacity.py``                 what becomes of opacity
``images.py``                 pictures and folders of pictures
``animations.py``             pictures that move
``image_sink.py``             pictures out
``colour.py``                 what the numbers of a video mean
``conversion.py``             YUV to RGB and back
``chroma_siting.py``          where chroma samples lie between pixels
``planes.py``                 the numbers of a frame in its memory
``orientation.py``            turning and mirroring frames until they stand upright
``hdr.py``                    what HDR videos tell of the display they were made on
``job.py``                    the folder that holds unfinished work
``parts.py``                  what is recorded of a finished part
``publish.py``                checks of the output, and the final rename
``pyav.py``                   opening files with PyAV, its errors as ``MediaError``
============================  ==============================================================

PyAV is imported when the first file is opened, not with this package.
"""

from __future__ import annotations

from rbvsr_deploy.video.base import Frame, Sink, Source
from rbvsr_deploy.video.image_sink import ImageSink
from rbvsr_deploy.video.images import ImageSource
from rbvsr_deploy.video.open import default_output, frame_size, open_sink, open_source
from rbvsr_deploy.video.options import Alpha, ReadOptions, WriteOptions
from rbvsr_deploy.video.pipes import is_pipe
from rbvsr_deploy.video.staging.job import Job
from rbvsr_deploy.video.staging.parts import PartRecord
from rbvsr_deploy.video.video_sink import VideoSink
from rbvsr_deploy.video.video_source import VideoSource

__all__ = [
    "Alpha",
    "Frame",
    "ImageSink",
    "ImageSource",
    "Job",
    "PartRecord",
    "ReadOptions",
    "Sink",
    "Source",
    "VideoSink",
    "VideoSource",
    "WriteOptions",
    "default_output",
    "frame_size",
    "is_pipe",
    "open_sink",
    "open_source",
]
