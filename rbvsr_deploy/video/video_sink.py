"""Writes a video file: encodes the frames in segments and copies everything else at the end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.assembly import Assembly
from rbvsr_deploy.video.base import Frame, Sink, Source
from rbvsr_deploy.video.encoding.captions import CAPTIONED
from rbvsr_deploy.video.encoding.conversions import Conversions
from rbvsr_deploy.video.encoding.encoder import needs_constant_rate
from rbvsr_deploy.video.encoding.encoder_settings import Encoder
from rbvsr_deploy.video.encoding.packets import end_of_presentation, read_packets, reordered
from rbvsr_deploy.video.encoding.part_encoder import SegmentEncoder
from rbvsr_deploy.video.encoding.stream_settings import StreamSettings
from rbvsr_deploy.video.image_metadata import report_metadata
from rbvsr_deploy.video.matroska import write_sample_aspect
from rbvsr_deploy.video.options import WriteOptions
from rbvsr_deploy.video.pyav import media_errors, open_input
from rbvsr_deploy.video.staging.job import Job
from rbvsr_deploy.video.staging.parts import SegmentRecord
from rbvsr_deploy.video.staging.publish import sync
from rbvsr_deploy.video.timing.output_time import output_shift
from rbvsr_deploy.video.timing.timestamps import NOTABLE_SHIFT

__all__ = ["VideoSink"]

logger = logging.getLogger(__name__)

_BESIDE = ("left_right", "right_left", "col_interleaved_lr", "col_interleaved_rl")
_BELOW = ("top_bottom", "bottom_top", "row_interleaved_lr", "row_interleaved_rl")
"""Layouts of two views in one frame, by Matroska's names in FFmpeg."""
_MOST_REORDERED = 64
"""Maximum reordering delay of any encoder, in packets; H.264 and HEVC allow 16."""


class VideoSink(Sink):
    """Writes a video file.

    Encoded segments stay in the job folder until they are joined, so joining needs disk space for a
    second copy of the output.

    Args:
        path: the file to publish.
        source: the input, whose timestamps, colours, sound and subtitles the output keeps.
        width, height: size of the written frames in pixels.
        sample_aspect: width of a pixel divided by its height; ``None``: unknown.
        container: FFmpeg's name of the output format.
        encoder: encoder and its settings.
        options: which other streams and metadata to copy.
        job: keeps the encoded segments.

    Raises:
        MediaError: the output cannot be written with these settings.
    """

    def __init__(
        self,
        path: Path,
        *,
        source: Source,
        width: int,
        height: int,
        sample_aspect: Fraction | None,
        container: str,
        encoder: Encoder,
        options: WriteOptions,
        job: Job,
    ) -> None:
        self.path = path
        self.job = job
        self._source = source
        self._options = options
        constant_rate = needs_constant_rate(container, codec=encoder.name)
        self._settings = StreamSettings(
            container=container,
            encoder=encoder,
            width=width,
            height=height,
            time_base=1 / source.rate if constant_rate else source.time_base,
            rate=source.rate,
            sample_aspect=sample_aspect,
            colour=source.colour,
            constant_rate=constant_rate,
        )
        source.keeps_captions = encoder.name in CAPTIONED
        self._shift = output_shift(source, container=container, constant_rate=constant_rate)
        # Some formats depend on the suffix.
        self._joined = f"joined{path.suffix}"
        self._warned = False
        self._part: SegmentEncoder | None = None
        self._conversions = Conversions[tuple[int, int]](
            pix_fmt=encoder.pix_fmt, colour=self._settings.frame_colour
        )
        job.check(folder=False)
        with media_errors(f"cannot write {path} as {container} with {encoder.name}"):
            # A trial refuses unsupported settings now rather than after all frames are upscaled.
            trial_path = job.storage.emptied(self._joined)
            try:
                with Assembly(
                    trial_path,
                    settings=self._settings,
                    source=source,
                    options=options,
                    shift=self._shift,
                ) as trial:
                    self._extradata = trial.extradata.hex()
                    trial.try_out()
            finally:
                job.storage.remove(self._joined)
        job.start(
            {
                **self._settings.identity(),
                "encoder's header": self._extradata,
                # Named only where it is new: older work on other files can be continued.
                **({"start of time": str(source.origin)} if source.origin else {}),
            },
            fits=self._is_plausible,
        )
        self._frames = sum(segment.frames for segment in job.segments)
        self._next_pts = int(job.segments[-1].media["next_pts"]) if job.segments else 0

    def write(self, frame: Frame) -> None:
        width, height = self._settings.width, self._settings.height
        self._check(frame, shape=(height, width, 3))
        with self._writing():
            if self._part is None:
                self._part = SegmentEncoder(
                    self._settings,
                    path=self.job.next_segment(".packets"),
                    conversions=self._conversions,
                )
            self.note(frame)
            scale = self._source.time_base / self._settings.time_base
            self._part.encode(
                frame.image,
                pts=self._stamp(frame),
                duration=round(frame.duration * scale),
                opacity=frame.opacity,
                captions=frame.captions,
            )
        self._frames += 1

    def note(self, frame: Frame) -> None:
        if frame.metadata is not None:
            report_metadata(self._source.changes, frame.metadata, name=None)

    def end_segment(self, note: dict[str, Any], attachment: bytes | None = None) -> None:
        if self._part is None and not self._closed:
            raise ValueError("no frame was written since the last segment")
        with self._writing():
            segment = self._part
            assert segment is not None
            file, media = segment.finish()
            if media["extradata"] != self._extradata:
                raise MediaError(
                    f"cannot write {self.path}: segments by {self._settings.encoder.name} cannot "
                    "be joined; choose another codec"
                )
            self.job.add_segment(
                frames=segment.frames,
                note=note,
                media={**media, "next_pts": self._next_pts},
                files=[file],
                attachment=attachment,
            )
            segment.close()
            self._part = None

    def take_segments(
        self, folder: Path, segments: Sequence[SegmentRecord], *, note: dict[str, Any], state: bytes
    ) -> None:
        """Take over the next segments from a sink that wrote them elsewhere, as one segment.

        Args:
            folder: job folder of that sink, which keeps its files.
            segments: its segments.
            note, state: note and attachment of the new segment; see ``end_segment``.

        Raises:
            MediaError: the segments are damaged, do not fit, or cannot be taken over; the sink is
                closed, and the previous segments remain.
        """
        with self._writing():
            begins = min(
                packet.pts
                for file in segments[0].files
                for packet in read_packets(folder / file.name, data=False)
            )
            if not all(self._is_plausible(segment, folder=folder) for segment in segments):
                raise MediaError(f"the segments in {folder} do not fit {self.path}")
            if begins < self._next_pts and self._frames:
                raise self._varies()
            media = dict(segments[-1].media)
            media["delay"] = max(segment.media["delay"] for segment in segments)
            self.job.take_segments(folder, segments, note=note, media=media, attachment=state)
            self._frames += self.job.segments[-1].frames
            self._next_pts = int(media["next_pts"])

    def finish(self) -> None:
        if self._part is not None:
            self.end_segment({})
        segments = self.job.segments
        with self._writing():
            if not segments:
                raise MediaError(f"{self.path} is not written: there was no frame to write")
            files = [self.job.folder / file.name for segment in segments for file in segment.files]
            base, rate = self._settings.time_base, self._settings.rate
            joined = self.job.storage.emptied(self._joined)
            with Assembly(
                joined,
                settings=self._settings,
                source=self._source,
                options=self._options,
                shift=self._shift,
                end=end_of_presentation(files[-1], usual=1 / (rate * base)) * base,
            ) as assembly:
                assembly.write(
                    files,
                    delay=max(segment.media["delay"] for segment in segments),
                    name=self.path,
                )
                assembly.finish()
                self._write_sample_aspect(joined)
                assembly.check(joined, name=self.path)
            sync(joined)
            self.job.publish(joined)
        self.close()

    def close(self) -> None:
        self._closed = True
        if self._part is not None:
            self._part.close()
            self._part = None
        self._conversions.close()

    def _is_plausible(self, segment: SegmentRecord, *, folder: Path | None = None) -> bool:
        """Return whether the record of a segment matches its packets."""
        place = folder or self.job.folder
        parts = [
            [packet.pts for packet in read_packets(place / file.name, data=False)]
            for file in segment.files
        ]
        media = segment.media
        return (
            media["extradata"] == self._extradata
            and sum(map(len, parts)) == segment.frames
            and media["next_pts"] == max(parts[-1]) + 1
            and type(media["delay"]) is int
            and max(map(reordered, parts)) <= media["delay"] <= _MOST_REORDERED
        )

    def _write_sample_aspect(self, joined: Path) -> None:
        """Write the sample aspect ratio where neither the codec nor FFmpeg's muxer does."""
        aspect = self._settings.sample_aspect
        if aspect is None:
            return
        with open_input(joined) as joined_file:
            video = joined_file.streams.video[0]
            written = video.sample_aspect_ratio or 1
            stereo = video.metadata.get("stereo_mode", "")
        if written == aspect:
            return
        # Matroska has the size of one view, FFmpeg has that of both.
        own = aspect * (Fraction(1, 2) if stereo in _BESIDE else 2 if stereo in _BELOW else 1)
        container = self._settings.container
        if container not in ("matroska", "webm") or not write_sample_aspect(joined, own):
            logger.warning(
                "%s cannot record that pixels are %s times as wide as high: players will show it "
                "too narrow or too wide; use an output name ending in .mp4",
                self.path,
                aspect,
            )

    def _stamp(self, frame: Frame) -> int:
        """Return the frame's timestamp in ticks of the encoder."""
        time_base = self._settings.time_base
        exact = (
            Fraction(self._next_pts)
            if frame.pts is None
            else (frame.pts * self._source.time_base + self._shift) / time_base
        )
        pts = round(exact)
        if pts < self._next_pts and self._frames:
            raise self._varies()
        if abs(exact - pts) * time_base > NOTABLE_SHIFT and not self._warned:
            logger.warning("%s supports a constant frame rate only: timestamps change", self.path)
            self._warned = True
        self._next_pts = pts + 1
        return pts

    def _varies(self) -> MediaError:
        return MediaError(
            f"{self.path} supports a constant frame rate only, and the timestamps of "
            f"{self._source.path} vary: use an output name ending in .mkv or .mp4"
        )
