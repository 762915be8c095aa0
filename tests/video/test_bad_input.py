"""Tests that every problem with an input or output ends in one clear ``MediaError``."""

from __future__ import annotations

import itertools
import logging
import resource
import signal
import socket
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video import Frame, Job, Sink, open_source
from tests.support import media
from tests.support.sinks import job_sink


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return media.make_video(tmp_path / "clip.mp4", audio="aac")


def read_all(path: Path) -> int:
    with open_source(path) as source:
        return sum(1 for _ in source)


def write_all(path: Path, out: Path, **options: Any) -> None:
    with open_source(path) as source:
        size: dict[str, Any] = {"width": source.width, "height": source.height}
        with job_sink(out, source=source, **size, **options) as sink:
            for frame in source:
                sink.write(frame)
            sink.finish()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_one_sentence(error: BaseException) -> None:
    message = str(error)
    assert "\n" not in message
    assert len(message) < 400
    assert "Errno" not in message
    assert "Traceback" not in message


def send_noise(sink: Sink) -> None:
    """Write frames of 320x240 that compress badly."""
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    for number in range(60):
        sink.write(Frame(image=np.roll(noise, number, 0), pts=number * 1001))
    sink.finish()


class TestInput:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(MediaError, match="does not exist: give a video"):
            open_source(tmp_path / "none.mp4")

    def test_folder_without_images(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("not an image")
        with pytest.raises(MediaError, match="contains no images: PNG, JPEG"):
            open_source(tmp_path)

    def test_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "empty.mp4").touch()
        with pytest.raises(MediaError, match="is empty"):
            open_source(tmp_path / "empty.mp4")

    @pytest.mark.parametrize("name", ["text.mp4", "text.mkv", "text.txt", "text"])
    def test_text(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("this is not a video\n" * 200)
        with pytest.raises(MediaError, match="not a complete video, image or image") as caught:
            open_source(tmp_path / name)
        assert_one_sentence(caught.value)

    def test_playlist_opens_no_connection(self, tmp_path: Path) -> None:
        """An untrusted file must not make this machine connect to another one."""
        visits: list[socket.socket] = []

        def answer() -> None:
            visits.append(server.accept()[0])
            visits[-1].close()

        with socket.create_server(("127.0.0.1", 0)) as server:
            thread = threading.Thread(target=answer)
            thread.start()
            port = server.getsockname()[1]
            playlist = tmp_path / "list.m3u8"
            playlist.write_text(
                f"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:{port}/x.ts\n#EXT-X-ENDLIST\n"
            )
            with pytest.raises(MediaError):
                read_all(playlist)
            assert not visits
            socket.create_connection(("127.0.0.1", port)).close()  # lets the thread end
            thread.join()

    def test_device(self) -> None:
        with pytest.raises(MediaError, match="is not a regular file"):
            open_source(Path("/dev/null"))

    def test_index_missing(self, tmp_path: Path, clip: Path) -> None:
        """An MP4 without the index at its end, as after a power failure."""
        cut = tmp_path / "cut.mp4"
        cut.write_bytes(clip.read_bytes()[:-2000])
        with pytest.raises(MediaError, match="not a complete video") as caught:
            open_source(cut)
        assert_one_sentence(caught.value)

    def test_index_in_front_and_data_cut(self, tmp_path: Path) -> None:
        whole = media.make_video(
            tmp_path / "whole.mp4",
            options={"movflags": "faststart"},
            stamps=list(range(0, 9000, 300)),
        )
        cut = tmp_path / "cut.mp4"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
        with pytest.raises(MediaError, match=r"cut off: only (\d+) of its 30 frames") as caught:
            open_source(cut)
        readable = int(str(caught.value).split("only ")[1].split()[0])
        assert 10 < readable < 30

    def test_fragments_cut(self, tmp_path: Path) -> None:
        """Each fragment has its own index, so only reading finds the end missing."""
        whole = media.make_video(
            tmp_path / "whole.mp4",
            options={"movflags": "frag_keyframe+empty_moov"},
            stamps=list(range(0, 9000, 300)),
        )
        cut = tmp_path / "cut.mp4"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
        with pytest.raises(MediaError, match=r"cut off: only \d+ of its \d+ frames"):
            read_all(cut)
        out = tmp_path / "out.mp4"
        with pytest.raises(MediaError, match="cut off"):
            write_all(cut, out)
        assert names(tmp_path) == {"whole.mp4", "cut.mp4"}

    def test_cut_while_reading(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A cut that the check on opening misses is found when the frames end too early."""
        whole = media.make_video(
            tmp_path / "whole.mp4",
            options={"movflags": "faststart"},
            stamps=list(range(0, 9000, 300)),
        )
        cut = tmp_path / "cut.mp4"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
        monkeypatch.setattr(
            "rbvsr_deploy.video.video_source.refuse_cut_off", lambda *args, **options: None
        )
        with open_source(cut) as source:
            frames = iter(source)
            next(frames)
            with pytest.raises(MediaError, match=r"only \d+ of its 30 frames can be read"):
                list(frames)

    @pytest.mark.parametrize("suffix", [".mkv", ".webm"])
    def test_matroska_cut(self, tmp_path: Path, suffix: str) -> None:
        codec = "libvpx" if suffix == ".webm" else "libx264"
        whole = media.make_video(tmp_path / f"whole{suffix}", codec=codec, size=(32, 16))
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(whole.read_bytes()[:-50])
        assert read_all(whole) == 12
        with pytest.raises(MediaError, match=r"cut off: only \d+ of its frames can be read"):
            open_source(cut)

    def test_matroska_of_unknown_length(self, tmp_path: Path) -> None:
        """A live recording does not state its length, so it is read to its end."""
        path = media.make_video(tmp_path / "live.mkv", options={"live": "1"})
        assert read_all(path) == 12

    def test_audio_only(self, tmp_path: Path) -> None:
        path = tmp_path / "audio.mp4"
        with av.open(str(path), "w") as container:
            stream = media._add_audio(container, "aac")
            media._write_audio(container, stream, start=Fraction(0))
        with pytest.raises(MediaError, match="no video stream, only one audio stream"):
            open_source(path)

    def test_no_stream(self, tmp_path: Path) -> None:
        path = tmp_path / "none.mp4"
        with av.open(str(path), "w") as container:
            container.add_stream("mpeg4", rate=25, width=64, height=48)
            container.start_encoding()
        with pytest.raises(MediaError, match="has no streams: give a file with video"):
            open_source(path)

    def test_no_frames(self, tmp_path: Path) -> None:
        path = media.make_video(tmp_path / "none.mp4", codec="mpeg4")
        data = path.read_bytes()
        start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
        path.write_bytes(data[:start] + bytes(end - start) + data[end:])
        with pytest.raises(MediaError, match=r"no video frame that can be decoded \(12 packets"):
            open_source(path)

    def test_damaged_frame_is_skipped_with_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = media.make_video(
            tmp_path / "in.mov", codec="png", stamps=list(range(0, 12000, 1000))
        )
        data = bytearray(path.read_bytes())
        third = [i for i in range(len(data)) if data[i : i + 4] == b"\x89PNG"][2]
        data[third : third + 100] = bytes(100)
        path.write_bytes(data)
        with caplog.at_level(logging.WARNING):
            assert read_all(path) == 11
        assert "that are left out: 1" in caplog.text

    def test_second_pass_is_refused(self, clip: Path) -> None:
        with open_source(clip) as source:
            assert len(list(source)) == 12
            with pytest.raises(RuntimeError, match="read only once"):
                list(source)


class TestTimeStamps:
    def test_repeated_stamps_are_moved_with_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "in.mkv"
        still = media.make_video(tmp_path / "one.mkv", codec="mpeg4", stamps=[0])
        with av.open(str(still)) as one, av.open(str(path), "w") as container:
            stream = container.add_stream_from_template(one.streams.video[0])
            (packet,) = (p for p in one.demux(video=0) if p.size)
            for stamp in (0, 40, 40, 80):
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base = stream, Fraction(1, 1000)
                copy.pts = copy.dts = stamp
                copy.is_keyframe = True
                container.mux(copy)
        with caplog.at_level(logging.WARNING), open_source(path) as source:
            assert [frame.pts for frame in source] == [0, 40, 60, 80]
        assert "did not increase: 1;" in caplog.text

    def test_missing_stamps_are_derived_with_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "in.h264"
        media.make_video(path, rate=Fraction(25), stamps=list(range(6)), time_base=Fraction(1, 25))
        with caplog.at_level(logging.WARNING), open_source(path) as source:
            times = [frame.pts * source.time_base for frame in source]
        steps = {b - a for a, b in itertools.pairwise(times)}
        assert len(times) == 6
        assert steps == {Fraction(1, 25)}
        assert "has no timestamps; its frames are shown at 25 per second" in caplog.text


class TestOutput:
    @pytest.mark.parametrize(
        ("out", "options", "message"),
        [
            ("no/out.mp4", {}, "no does not exist: create it"),
            ("clip.mp4/out.mp4", {}, "clip.mp4 is not a folder"),
            ("folder", {}, "is a folder: give a file name such as clip_x4.mp4"),
            ("folder.mp4", {}, "is a folder: give the name of a file"),
            ("old.mp4", {}, "old.mp4 exists: choose another output, or allow overwriting"),
            ("clip.mp4", {"overwrite": True}, "is the input itself"),
            ("out.xyz", {}, "ends in '.xyz': videos end in .avi"),
            ("out.png", {}, "can hold only one image"),
            ("out.mp4", {"codec": "h999"}, "no encoder 'h999': use"),
            ("out.mp4", {"codec": "aac"}, "codec 'aac' encodes audio"),
            ("out.webm", {"codec": "libx264"}, "webm cannot hold codec libx264"),
            ("out.mp4", {"codec": "prores_ks"}, "mp4 cannot hold codec prores_ks"),
            ("out.mp4", {"crf": 52}, "crf 52 is out of range for libx264: use 0"),
            ("out.mp4", {"crf": -1}, "crf -1 is out of range"),
            ("out.webm", {"crf": 64}, "crf 64 is out of range for libvpx-vp9"),
            ("out.mkv", {"codec": "ffv1", "crf": 3}, "codec ffv1 has no crf"),
            ("out.mp4", {"pix_fmt": "nonsense"}, "cannot write pixel format 'nonsense'"),
            ("frames", {"crf": 18}, "crf is for videos"),
        ],
    )
    def test_refused_at_once(
        self, tmp_path: Path, clip: Path, out: str, options: dict[str, Any], message: str
    ) -> None:
        (tmp_path / "old.mp4").write_text("old")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder.mp4").mkdir()
        before = names(tmp_path)
        with (
            open_source(clip) as source,
            pytest.raises(MediaError, match=message) as caught,
            job_sink(tmp_path / out, source=source, width=64, height=48, **options),
        ):
            pass
        assert_one_sentence(caught.value)
        assert names(tmp_path) == before
        assert (tmp_path / "old.mp4").read_text() == "old"

    def test_not_writable(self) -> None:
        # A folder in which even root cannot create files.
        with pytest.raises(MediaError, match="cannot write to"):
            Job(Path("/proc/out.mp4"), identity={})

    def test_odd_size_needs_full_chroma(self, tmp_path: Path, clip: Path) -> None:
        out = tmp_path / "out.mp4"
        with open_source(clip) as source:
            with (
                pytest.raises(MediaError, match="63x48 cannot be written as yuv420p"),
                job_sink(out, source=source, width=63, height=48),
            ):
                pass
            with job_sink(out, source=source, width=63, height=47, pix_fmt="yuv444p"):
                pass

    def test_nothing_written(self, tmp_path: Path, clip: Path) -> None:
        with (
            open_source(clip) as source,
            job_sink(tmp_path / "out.mp4", source=source, width=64, height=48) as sink,
            pytest.raises(MediaError, match="no frame to write"),
        ):
            sink.finish()
        assert names(tmp_path) == {"clip.mp4"}

    def test_wrong_shape(self, tmp_path: Path, clip: Path) -> None:
        with (
            open_source(clip) as source,
            job_sink(tmp_path / "out.mp4", source=source, width=64, height=48) as sink,
            pytest.raises(
                ValueError, match=r"shape \(48, 64, 3\), got uint8 of shape \(48, 60, 3\)"
            ),
        ):
            sink.write(Frame(image=np.zeros((48, 60, 3), np.uint8), pts=0))

    @pytest.mark.parametrize("out", ["out.mp4", "out.mkv", "frames"])
    def test_leaving_without_finish_leaves_nothing(
        self, tmp_path: Path, clip: Path, out: str
    ) -> None:
        def fail_midway() -> None:
            with (
                open_source(clip) as source,
                job_sink(tmp_path / out, source=source, width=64, height=48) as sink,
            ):
                for frame in source:
                    sink.write(frame)
                assert len(names(tmp_path)) == 2  # the temporary one exists by now
                raise KeyError("something else failed")

        with pytest.raises(KeyError):
            fail_midway()
        assert names(tmp_path) == {"clip.mp4"}

    def test_overwriting_replaces_at_the_end(self, tmp_path: Path, clip: Path) -> None:
        old = tmp_path / "old.mp4"
        old.write_text("old")
        with (
            open_source(clip) as source,
            job_sink(old, source=source, width=64, height=48, overwrite=True) as sink,
        ):
            for frame in source:
                sink.write(frame)
            assert old.read_text() == "old"
            sink.finish()
        assert len(media.stamps_of(old)) == 12
        assert names(tmp_path) == {"clip.mp4", "old.mp4"}

    def test_output_created_by_someone_else_is_not_replaced(
        self, tmp_path: Path, clip: Path
    ) -> None:
        """The work is not lost either: once the other file is gone, the parts are only joined."""
        out = tmp_path / "out.mp4"
        with (
            open_source(clip) as source,
            job_sink(out, source=source, width=64, height=48) as sink,
        ):
            for frame in source:
                sink.write(frame)
            out.write_text("someone else's")
            with pytest.raises(MediaError, match="exists"):
                sink.finish()
        assert out.read_text() == "someone else's"
        assert names(tmp_path) == {"clip.mp4", "out.mp4", ".out.mp4.job"}
        out.unlink()
        with (
            open_source(clip) as source,
            job_sink(out, source=source, width=64, height=48) as sink,
        ):
            sink.finish()
        assert len(media.stamps_of(out)) == 12
        assert names(tmp_path) == {"clip.mp4", "out.mp4"}

    @pytest.mark.parametrize("out", ["out.mp4", "out.mkv", "frames"])
    def test_disk_full(self, tmp_path: Path, clip: Path, out: str) -> None:
        """A file size limit stands in for a full disk."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with (
            open_source(clip) as source,
            job_sink(tmp_path / out, source=source, width=320, height=240) as sink,
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
            try:
                with pytest.raises(MediaError, match="cannot write") as caught:
                    send_noise(sink)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
                signal.signal(signal.SIGXFSZ, ignored)
        assert_one_sentence(caught.value)
        assert "too large" in str(caught.value)
        assert names(tmp_path) == {"clip.mp4"}

    def test_varying_rate_does_not_fit_into_avi(self, tmp_path: Path) -> None:
        path = media.make_video(
            tmp_path / "in.mkv", stamps=[0, 1, 2, 500], time_base=Fraction(1, 1000)
        )
        with pytest.raises(MediaError, match="constant frame rate only"):
            write_all(path, tmp_path / "out.avi")
        assert names(tmp_path) == {"in.mkv"}

    @pytest.mark.parametrize(
        ("out", "codec"),
        [
            ("out.mkv", "libx265"),
            ("out.mp4", "libsvtav1"),
            ("out.mkv", "ffv1"),
            ("out.mov", "prores_ks"),
            ("out.mp4", "mpeg4"),
            ("out.mp4", "h264"),
            ("out.webm", "libvpx"),
        ],
    )
    def test_other_encoders(self, tmp_path: Path, out: str, codec: str) -> None:
        path = media.make_video(tmp_path / "in.mp4", stamps=[0, 1001, 2002], size=(96, 80))
        write_all(path, tmp_path / out, codec=codec)
        before, after = media.frames_of(path), media.frames_of(tmp_path / out)
        assert len(after) == 3
        assert np.abs(before[0].astype(int) - after[0]).mean() < 6


def test_import_is_light() -> None:
    """PyAV takes a third of a second to import and is not needed for a help text."""
    code = "import sys, rbvsr_deploy.video; print('av' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
