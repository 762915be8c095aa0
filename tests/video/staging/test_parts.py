"""Tests outputs made of segments: neither joints nor interruptions are visible."""

from __future__ import annotations

import dataclasses
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video import Frame, Job, WriteOptions, open_sink, open_source
from rbvsr_deploy.video.encoding.encoder import choose_encoder
from rbvsr_deploy.video.encoding.packets import (
    PacketWriter,
    StoredPacket,
    decoding_times,
    read_packets,
    reordered,
)
from rbvsr_deploy.video.images import write_image
from tests.support import media
from tests.support.sinks import job_sink, write_segments

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "tests" / "data" / "sample.mp4"
LENGTHS = [9, 1, 8, 6]
COUNT = sum(LENGTHS)
CONSTANT = [1001 * number for number in range(COUNT)]
VARIABLE = [1001 * number + 300 * (number % 3) + 9000 * (number // 10) for number in range(COUNT)]
MILLISECONDS = Fraction(1, 1000)


def packets_of(path: Path) -> list[tuple[bytes, int | None, int | None, int | None, bool]]:
    """Return data, times and key frame flags of the video's packets, in file order."""
    with av.open(str(path)) as container:
        return [
            (bytes(p), p.pts, p.dts, p.duration, p.is_keyframe)
            for p in container.demux(container.streams.video[0])
            if p.size
        ]


def contents_of(path: Path) -> object:
    """Return the video's packets, or the files of an image folder."""
    if path.is_dir():
        return {file.name: file.read_bytes() for file in path.iterdir()}
    return packets_of(path)


def moving(path: Path, *, stamps: list[int], **options: Any) -> Path:
    """Write a video on which x264 uses B-frames: steady motion with some noise."""
    rng = np.random.default_rng(0)
    wide = rng.normal(128, 40, (12, 40, 1)).repeat(4, axis=0).repeat(4, axis=1).repeat(3, axis=2)
    images = [
        np.clip(wide[:, n : n + 64] + rng.normal(0, 2, (48, 64, 1)), 0, 255).astype(np.uint8)
        for n in range(len(stamps))
    ]
    return media.make_video(path, stamps=stamps, images=images, **options)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return moving(tmp_path / "clip.mp4", stamps=CONSTANT, audio="aac")


def image_folder(folder: Path) -> Path:
    folder.mkdir()
    for number in range(COUNT):
        write_image(folder / f"{number}.png", image=media.gradient(number, width=16, height=8))
    return folder


class TestJoints:
    @pytest.mark.parametrize(
        ("out", "stamps", "time_base", "codec"),
        [
            pytest.param("out.mp4", CONSTANT, Fraction(1, 30000), None, id="constant"),
            pytest.param("out.mp4", VARIABLE, Fraction(1, 30000), None, id="variable"),
            pytest.param(
                "out.mp4", [s + 12345 for s in VARIABLE], Fraction(1, 90000), None, id="late"
            ),
            pytest.param("out.mov", VARIABLE, Fraction(1, 30000), None, id="mov"),
            pytest.param(
                "out.mkv", [33 * n + n % 2 for n in range(COUNT)], MILLISECONDS, None, id="mkv"
            ),
            pytest.param("out.mkv", VARIABLE, MILLISECONDS, "libx265", id="hevc"),
            pytest.param("out.webm", VARIABLE, MILLISECONDS, None, id="vp9"),
            pytest.param("out.mp4", VARIABLE, Fraction(1, 30000), "libsvtav1", id="av1"),
        ],
    )
    def test_every_stamp_is_kept(
        self, tmp_path: Path, out: str, stamps: list[int], time_base: Fraction, codec: str | None
    ) -> None:
        path = moving(
            tmp_path / ("in.mkv" if time_base == MILLISECONDS else "in.mp4"),
            stamps=stamps,
            time_base=time_base,
        )
        expected = [stamp * time_base for stamp in stamps]
        assert media.stamps_of(path) == expected
        write_segments(path, tmp_path / out, lengths=LENGTHS, codec=codec)
        assert media.stamps_of(tmp_path / out) == expected
        # Matroska does not store decoding times; FFmpeg guesses some of them.
        found = [(pts, dts) for _, pts, dts, *_ in packets_of(tmp_path / out) if dts is not None]
        assert all(a[1] < b[1] for a, b in itertools.pairwise(found))
        assert all(dts <= pts for pts, dts in found)

    @pytest.mark.parametrize("out", ["out.mp4", "out.ts", "out.avi"])
    def test_frames_after_joints_are_right(self, tmp_path: Path, clip: Path, out: str) -> None:
        """Each segment begins with a key frame, and decoders keep segments apart."""
        write_segments(clip, tmp_path / out, lengths=LENGTHS, crf=4)
        before, after = media.frames_of(clip), media.frames_of(tmp_path / out)
        assert len(after) == COUNT
        for a, b in zip(before, after, strict=True):
            assert np.abs(a.astype(int) - b).mean() < 2
        keys = [number for number, p in enumerate(packets_of(tmp_path / out)) if p[4]]
        assert set(keys) >= {0, 9, 10, 18}

    def test_b_frames_in_segments(self, tmp_path: Path, clip: Path) -> None:
        """Without B-frames, the tests of decoding times would be pointless."""
        write_segments(clip, tmp_path / "out.mp4", lengths=LENGTHS)
        order = [pts for _, pts, *_ in packets_of(tmp_path / "out.mp4") if pts is not None]
        assert order != sorted(order)
        for start, length in zip(itertools.accumulate([0, *LENGTHS]), LENGTHS, strict=False):
            assert set(order[start : start + length]) == set(CONSTANT[start : start + length])

    @pytest.mark.parametrize("stamps", [CONSTANT, VARIABLE], ids=["constant", "variable"])
    def test_one_segment_has_the_encoders_own_decoding_times(
        self, tmp_path: Path, stamps: list[int]
    ) -> None:
        path = moving(tmp_path / "in.mp4", stamps=stamps)
        write_segments(path, tmp_path / "out.mp4", lengths=[COUNT])
        encoder = choose_encoder("mp4", WriteOptions(), size=(64, 48))
        with open_source(path) as source, av.open(str(tmp_path / "plain.mp4"), "w") as plain:
            stream = plain.add_stream("libx264", rate=source.rate, options=encoder.options)
            context = stream.codec_context
            context.width, context.height, context.pix_fmt = 64, 48, "yuv420p"
            context.time_base, context.thread_count = source.time_base, encoder.threads
            own = []
            for frame in source:
                rgb: Any = frame.image
                image = av.VideoFrame.from_ndarray(rgb, format="rgb24")
                image.pts, image.time_base = frame.pts, source.time_base
                own += stream.encode(image)
            own += stream.encode(None)
        found = [(pts, dts) for _, pts, dts, *_ in packets_of(tmp_path / "out.mp4")]
        assert found == [(packet.pts, packet.dts) for packet in own]

    def test_long_after_the_start(self, tmp_path: Path) -> None:
        """MPEG-4 counts elapsed seconds in frame headers; segments may begin at any second."""
        path = media.make_video(
            tmp_path / "in.mkv",
            stamps=[9_920 + 40 * n for n in range(6)],
            rate=Fraction(25),
            time_base=MILLISECONDS,
        )
        write_segments(path, tmp_path / "out.mkv", lengths=[3, 3], codec="mpeg4")
        assert media.stamps_of(tmp_path / "out.mkv") == media.stamps_of(path)

    def test_sound_is_complete(self, tmp_path: Path, clip: Path) -> None:
        write_segments(clip, tmp_path / "out.mp4", lengths=LENGTHS, stop_after=12)
        write_segments(clip, tmp_path / "out.mp4", lengths=LENGTHS)
        assert media.companions_of(tmp_path / "out.mp4") == media.companions_of(clip)


class TestInterruptions:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("out", "codec"),
        [
            ("out.mp4", None),
            ("out.webm", None),
            ("out.mkv", "ffv1"),
            ("out.avi", "mpeg4"),
            ("frames", None),
        ],
    )
    def test_bytes_are_those_of_an_uninterrupted_run(
        self, tmp_path: Path, clip: Path, out: str, codec: str | None
    ) -> None:
        path = image_folder(tmp_path / "in") if out == "frames" else clip
        plain = tmp_path / f"plain-{out}"
        write_segments(path, plain, lengths=LENGTHS, codec=codec)
        for stop in (9, 10, 14, 18, 24):
            target = tmp_path / f"{stop}-{out}"
            write_segments(path, target, lengths=LENGTHS, codec=codec, stop_after=stop)
            assert not target.exists()
            job = write_segments(path, target, lengths=LENGTHS, codec=codec)
            assert job.resumed_segments == sum(end <= stop for end in (9, 10, 18, 24))
            assert job.started_over is None
            assert contents_of(target) == contents_of(plain)

    def test_after_every_segment(self, tmp_path: Path, clip: Path) -> None:
        """One output survives four interruptions."""
        write_segments(clip, tmp_path / "plain.mp4", lengths=LENGTHS)
        out = tmp_path / "out.mp4"
        for stop in (3, 9, 10, 20):
            write_segments(clip, out, lengths=LENGTHS, stop_after=stop)
        write_segments(clip, out, lengths=LENGTHS)
        assert packets_of(out) == packets_of(tmp_path / "plain.mp4")
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "clip.mp4",
            "out.mp4",
            "plain.mp4",
        ]

    @pytest.mark.parametrize("out", ["out.mp4", "frames"])
    def test_killed_within_a_segment(self, tmp_path: Path, clip: Path, out: str) -> None:
        path = image_folder(tmp_path / "in") if out == "frames" else clip
        code = f"""
import itertools, time
from pathlib import Path
from rbvsr_deploy.video import Job, open_sink, open_source
source, out = open_source(Path({str(path)!r})), Path({str(tmp_path / out)!r})
job = Job(out, identity={{}})
sink = open_sink(out, source=source, width=source.width, height=source.height, job=job)
for number, frame in enumerate(source):
    sink.write(frame)
    if number in (8, 9):
        sink.end_segment({{"end": number + 1}}, attachment=b"state")
    if number == 14:
        break
print("here", flush=True)
time.sleep(60)
"""
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            with pytest.raises(MediaError, match="another run is working on"):
                Job(tmp_path / out, identity={})
            process.send_signal(signal.SIGKILL)
        job = write_segments(path, tmp_path / out, lengths=LENGTHS)
        assert job.resumed_segments == 2
        write_segments(path, tmp_path / f"plain-{out}", lengths=LENGTHS)
        assert contents_of(tmp_path / out) == contents_of(tmp_path / f"plain-{out}")
        assert not list(tmp_path.glob(".*"))

    def test_killed_after_the_rename(self, tmp_path: Path, clip: Path) -> None:
        """The next run only cleans up, even if it is refused."""
        out = tmp_path / "out.mp4"
        code = f"""
import os
from pathlib import Path
from rbvsr_deploy.video.staging.job import Job
from tests.support.sinks import job_sink, write_segments
Job.close = lambda job: os._exit(9)
write_segments(Path({str(clip)!r}), Path({str(out)!r}), lengths={LENGTHS})
"""
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
        assert out.exists()
        assert list(tmp_path.glob(".*/part-*"))
        with pytest.raises(MediaError, match="exists"):
            write_segments(clip, out, lengths=LENGTHS)
        assert not list(tmp_path.glob(".*"))
        assert len(media.stamps_of(out)) == COUNT

    @pytest.mark.parametrize("out", ["out.mp4", "frames"])
    def test_disk_full_within_a_segment(self, tmp_path: Path, clip: Path, out: str) -> None:
        """A file size limit simulates a full disk."""
        noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
        small = [np.zeros_like(noise)] * 3
        plain = tmp_path / f"plain-{out}"

        def work(path: Path) -> None:
            with (
                open_source(clip) as source,
                Job(path, identity={}) as job,
                open_sink(path, source=source, width=320, height=240, job=job) as sink,
            ):
                done = sum(part.frames for part in sink.finished_segments)
                for number, image in enumerate([*small, noise, noise[::-1], noise[:, ::-1]]):
                    if number >= done:
                        sink.write(Frame(np.ascontiguousarray(image), pts=1001 * number))
                        if number == 2:
                            sink.end_segment({})
                sink.finish()

        work(plain)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
        try:
            with pytest.raises(MediaError, match="cannot write") as caught:
                work(tmp_path / out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert "too large" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.glob(".*/part-*.json"))
        work(tmp_path / out)
        assert contents_of(tmp_path / out) == contents_of(plain)
        assert not list(tmp_path.glob(".*"))

    def test_constant_rate_continues_counting(self, tmp_path: Path) -> None:
        """Frames without timestamps continue the count after a resume."""
        path = media.make_video(
            tmp_path / "in.avi", stamps=list(range(6)), time_base=Fraction(1, 25), rate=Fraction(25)
        )
        out = tmp_path / "out.avi"
        for stop in (True, False):
            with (
                open_source(path) as source,
                Job(out, identity={}) as job,
                open_sink(out, source=source, width=64, height=48, job=job) as sink,
            ):
                for _ in range(3):
                    sink.write(Frame(media.gradient(0)))
                sink.end_segment({})
                if not stop:
                    sink.finish()
        assert [dts for _, _, dts, *_ in packets_of(out)] == list(range(6))

    def test_stamps_after_a_resume_may_not_go_back(self, tmp_path: Path, clip: Path) -> None:
        out = tmp_path / "out.avi"
        write_segments(clip, out, lengths=LENGTHS, stop_after=9)
        with (
            open_source(clip) as source,
            Job(out, identity={}) as job,
            open_sink(out, source=source, width=64, height=48, job=job) as sink,
            pytest.raises(MediaError, match="constant frame rate only"),
        ):
            sink.write(Frame(media.gradient(0), pts=0))


class TestRepeatability:
    """Encoders are deterministic, so that a resumed run gives the bytes of an uninterrupted one."""

    @pytest.mark.slow
    def test_x264_at_a_size_where_it_is_not_by_default(self, tmp_path: Path) -> None:
        """Without the remedy, this fails on processors with AVX-512."""
        rng = np.random.default_rng()
        found = []
        for number in range(3):
            rng.bytes(int(rng.integers(1000, 2_000_000)))  # changes the memory layout each time
            out = tmp_path / f"{number}.mp4"
            with (
                open_source(SAMPLE) as source,
                job_sink(out, source=source, width=320, height=180) as sink,
            ):
                for frame in itertools.islice(source, 30):
                    sink.write(frame)
                sink.finish()
            found.append(packets_of(out))
        assert found[0] == found[1] == found[2]

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
    @pytest.mark.parametrize(
        ("out", "codec"),
        [
            ("out.mp4", "libx264"),
            ("out.webm", "libvpx-vp9"),
            ("out.webm", "libvpx"),
            ("out.avi", "mpeg4"),
            ("out.mkv", "ffv1"),
            ("out.mp4", "libx265"),
        ],
    )
    def test_number_of_cores_does_not_matter(self, tmp_path: Path, out: str, codec: str) -> None:
        cores = os.sched_getaffinity(0)
        found: list[Any] = []
        for given in (cores, {min(cores)}):
            os.sched_setaffinity(0, given)
            try:
                with (
                    open_source(SAMPLE) as source,
                    job_sink(
                        tmp_path / f"{len(given)}-{len(found)}-{out}",
                        source=source,
                        width=640,
                        height=360,
                        codec=codec,
                    ) as sink,
                ):
                    for frame in itertools.islice(source, 8):
                        image = frame.image.repeat(2, axis=0).repeat(2, axis=1)
                        sink.write(dataclasses.replace(frame, image=image))
                    sink.finish()
            finally:
                os.sched_setaffinity(0, cores)
            found.append(packets_of(sink.path))
        assert found[0] == found[1]


class TestContract:
    def test_notes_and_attachments_are_restored(self, tmp_path: Path, clip: Path) -> None:
        out = tmp_path / "out.mp4"
        write_segments(clip, out, lengths=LENGTHS, stop_after=18)
        with (
            open_source(clip) as source,
            Job(out, identity={}) as job,
            open_sink(out, source=source, width=64, height=48, job=job) as sink,
        ):
            found = [(part.frames, part.note) for part in sink.finished_segments]
            assert found == [(9, {"end": 9}), (1, {"end": 10}), (8, {"end": 18})]
            assert sink.attachment() == b"state 17"
            # Small ones are kept, to resume before an image that has changed.
            assert len(list(job.folder.glob("*.state"))) == 3
            sink.write(Frame(media.gradient(0), pts=CONSTANT[18]))
            sink.end_segment({})
            assert sink.attachment() is None

    @pytest.mark.parametrize("out", ["out.mp4", "frames"])
    def test_misuse(self, tmp_path: Path, clip: Path, out: str) -> None:
        with (
            open_source(clip) as source,
            Job(tmp_path / out, identity={}) as job,
            open_sink(tmp_path / out, source=source, width=64, height=48, job=job) as sink,
        ):
            assert sink.attachment() is None
            with pytest.raises(ValueError, match="no frame was written"):
                sink.end_segment({})
            sink.close()
            calls: tuple[Callable[[], object], ...] = (
                lambda: sink.write(Frame(media.gradient(0), pts=0)),
                lambda: sink.end_segment({}),
                sink.finish,
            )
            for call in calls:
                with pytest.raises(ValueError, match="finished or closed"):
                    call()

    def test_job_of_another_output(self, tmp_path: Path, clip: Path) -> None:
        with (
            open_source(clip) as source,
            Job(tmp_path / "a.mp4", identity={}) as job,
            pytest.raises(ValueError, match="the job is for"),
        ):
            open_sink(tmp_path / "b.mp4", source=source, width=64, height=48, job=job)

    def test_images_with_the_same_name(self, tmp_path: Path) -> None:
        """The image "1" would be written as 1.png and silently replace the other image."""
        folder = tmp_path / "in"
        folder.mkdir()
        write_image(folder / "1.png", image=media.gradient(0))
        shutil.copy(folder / "1.png", folder / "1")
        with pytest.raises(MediaError, match=r"both be written as 1\.png"):
            write_segments(folder, tmp_path / "out", lengths=[2])


class TestPackets:
    def test_file(self, tmp_path: Path) -> None:
        packets = [StoredPacket(-5, 3, True, b"abc"), StoredPacket(2**40, 0, False, b"")]
        writer = PacketWriter(tmp_path / "a")
        for packet in packets:
            writer.write(packet)
        stored = writer.finish()
        assert stored.is_whole(tmp_path)
        assert list(read_packets(tmp_path / "a")) == packets
        assert [p.pts for p in read_packets(tmp_path / "a", data=False)] == [-5, 2**40]

    @pytest.mark.parametrize("missing", [1, 25])
    def test_cut_file(self, tmp_path: Path, missing: int) -> None:
        writer = PacketWriter(tmp_path / "a")
        writer.write(StoredPacket(0, 0, True, bytes(10)))
        writer.finish()
        (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-missing])
        with pytest.raises(MediaError, match="damaged"):
            list(read_packets(tmp_path / "a"))

    def test_decoding_times(self) -> None:
        assert list(decoding_times([0, 10, 20, 30], delay=0)) == [0, 10, 20, 30]
        assert list(decoding_times([0, 10, 20, 30], delay=2))[:4] == [-20, -10, 0, 10]
        assert list(decoding_times([5, 6, 100, 101], delay=2))[:4] == [-90, -89, 5, 6]
        assert list(decoding_times([7], delay=2))[:1] == [7]
        assert list(decoding_times([], delay=2)) == []

    def test_reordered(self) -> None:
        assert reordered([0, 1, 2]) == 0
        assert reordered([0, 3, 1, 2]) == 1
        assert reordered([0, 4, 2, 1, 3]) == 2
        assert reordered([]) == 0
