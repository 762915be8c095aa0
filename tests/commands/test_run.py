"""Tests ``rbvsr-run`` from the outside: a real clip is upscaled, or refused in one sentence."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result

from rbvsr_deploy.commands.run import run
from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.images import write_image
from tests.conftest import DATA, moving_clip, short_clip


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(run, [str(a) for a in arguments])


def video_times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [Fraction(frame.pts * stream.time_base) for frame in container.decode(stream)]


def audio_packets(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [
            (Fraction(p.pts * stream.time_base), bytes(p))
            for p in container.demux(stream)
            if p.pts is not None
        ]


@pytest.fixture
def clip(sample: Path, tmp_path: Path) -> Path:
    return short_clip(sample, tmp_path / "clip.mp4")


def test_video_keeps_frames_times_and_audio(clip: Path) -> None:
    """Four times the size, the same frames at the same times, the same audio packets, and no
    temporary file.
    """
    result = invoke(clip, "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    output = clip.with_name("clip_x4.mp4")
    with open_source(output) as got:
        assert (got.width, got.height) == (384, 216)
    assert video_times(output) == video_times(clip)
    assert audio_packets(output) == audio_packets(clip)
    assert sorted(clip.parent.iterdir()) == [clip, output]


def test_json_summary(clip: Path) -> None:
    """Frames, engine, cleanings of the scene and seconds per stage, as JSON on standard output."""
    summary = json.loads(invoke(clip, "--json", "--cleanings", 2, "--device", "cpu").stdout)
    assert summary["frames"] == 6
    assert (summary["width"], summary["height"]) == (384, 216)
    assert summary["engine"]["engine"] == "onnxruntime"
    assert summary["engine"]["model"] == "compact.plan"
    (scene,) = summary["scenes"]
    assert (scene["first_frame"], scene["frames"], scene["cleanings"]) == (0, 6, 2)
    assert len(scene["residues"]) == 2
    seconds = summary["seconds"]
    assert set(seconds) == {"read", "network", "write", "waited", "total"}
    assert max(seconds["read"], seconds["write"]) < seconds["total"]
    assert seconds["network"] + seconds["waited"] <= seconds["total"]
    assert summary["resumed_frames"] == 0
    assert 1 <= summary["plan"]["window"] <= 300


@pytest.mark.slow
def test_result_is_the_models(clip: Path, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """A bundle and the checkpoint it was made from give the same images, within one level."""
    folders = []
    for engine in (tiny_bundle, tiny_checkpoint):
        folders.append(clip.parent / engine.suffix[1:])
        result = invoke(clip, "-o", folders[-1], "--engine", engine, "--device", "cpu")
        assert result.exit_code == 0, result.output
    a, b = ([f.image.astype(int) for f in open_source(folder)] for folder in folders)
    assert len(a) == len(b) == 6
    assert max(int(np.abs(x - y).max()) for x, y in zip(a, b, strict=True)) <= 1


@pytest.mark.slow
def test_options_reach_the_encoder(clip: Path) -> None:
    """--codec, --crf and --pix-fmt; a higher crf makes a smaller file."""
    sizes = []
    for crf in (10, 40):
        output = clip.with_name(f"{crf}.mkv")
        options = ("--codec", "libx265", "--crf", crf, "--pix-fmt", "yuv444p", "--device", "cpu")
        result = invoke(clip, "-o", output, *options)
        assert result.exit_code == 0, result.output
        with av.open(str(output)) as container:
            context = container.streams.video[0].codec_context
            assert (context.name, context.pix_fmt) == ("hevc", "yuv444p")
            sizes.append(sum(p.size for p in container.demux(video=0)))
    assert sizes[0] > 2 * sizes[1]


def test_refuses_to_overwrite(clip: Path) -> None:
    """An existing output is kept, unless --overwrite is given."""
    output = clip.with_name("clip_x4.mp4")
    output.write_bytes(b"precious")
    result = invoke(clip, "--device", "cpu")
    assert result.exit_code == 1
    assert "exists" in result.stderr
    assert output.read_bytes() == b"precious"
    assert invoke(clip, "--overwrite", "--device", "cpu").exit_code == 0
    assert len(video_times(output)) == 6


def test_image_and_folder(tmp_path: Path, sample: Path) -> None:
    """An image folder becomes a folder of the same names, an image becomes an image."""
    source = tmp_path / "frames"
    with av.open(str(sample)) as container:
        source.mkdir()
        for i, frame in enumerate(container.decode(video=0)):
            if i == 3:
                break
            image: Any = frame.to_ndarray(format="rgb24")
            write_image(source / f"{i:03}.png", image=image[:40, :64])
    assert invoke(source, "--device", "cpu").exit_code == 0
    output = tmp_path / "frames_x4"
    assert [p.name for p in sorted(output.iterdir())] == ["000.png", "001.png", "002.png"]
    assert invoke(source / "001.png", "-o", tmp_path / "one.png", "--device", "cpu").exit_code == 0
    with open_source(tmp_path / "one.png") as one:
        assert (one.width, one.height) == (256, 160)


def test_rate_of_a_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    """--fps sets the frame rate of a video made from an image folder; elsewhere it is refused."""
    source = tmp_path / "frames"
    source.mkdir()
    for i in range(3):
        write_image(source / f"{i}.tif", image=np.full((48, 64, 3), 80 * i, np.uint8))
    engine = ("--engine", tiny_bundle, "--device", "cpu")
    for value, rate in (("24", 24), ("30000/1001", Fraction(30000, 1001)), ("0.5", Fraction(1, 2))):
        output = tmp_path / f"{value.replace('/', '-')}.mp4"
        result = invoke(source, "-o", output, "--fps", value, *engine)
        assert result.exit_code == 0, result.output
        assert video_times(output) == [i / Fraction(rate) for i in range(3)]
    for arguments in ((output, "-o", tmp_path / "a.mkv"), (source, "-o", tmp_path / "out")):
        result = invoke(*arguments, "--fps", 24, *engine)
        assert result.exit_code == 1
        assert "Error: fps is for" in result.stderr
    assert not (tmp_path / "out").exists()
    for value in ("0", "fast", "1/0", "-3"):
        assert invoke(source, "--fps", value).exit_code == 2


def test_before_after_image(clip: Path) -> None:
    """The middle frame, bicubic on the left, the result on the right."""
    path = clip.with_name("before_after.png")
    result = invoke(clip, "--before-after", path, "--device", "cpu")
    assert result.exit_code == 0, result.output
    with open_source(path) as source:
        (frame,) = source
    assert frame.image.shape == (216, 2 * 384 + 16, 3)
    left, right = frame.image[:, :384].astype(int), frame.image[:, -384:].astype(int)
    assert 0 < np.abs(left - right).mean() < 20  # the same scene, but another image


def test_before_after_is_refused_before_the_work(clip: Path) -> None:
    """An image that could not be written stops the run at once, and nothing is written."""
    existing = clip.with_name("existing.png")
    existing.write_bytes(b"precious")
    for target, word in (
        (existing, "exists"),
        (clip.parent / "nowhere" / "a.png", "folder"),
        (clip.with_name("a.mp4"), ".png"),
    ):
        result = invoke(clip, "--before-after", target, "--device", "cpu")
        assert result.exit_code == 1
        assert word in result.stderr
    assert existing.read_bytes() == b"precious"
    assert not clip.with_name("clip_x4.mp4").exists()


def _bad_inputs(folder: Path) -> dict[str, tuple[Path, str]]:
    """Make inputs that must be refused; return each with a word of its sentence."""
    (folder / "empty folder").mkdir()
    (folder / "text.mp4").write_text("this is text\n" * 100)
    with av.open(str(folder / "sound.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return {
        "missing": (folder / "missing.mp4", "does not exist"),
        "folder": (folder / "empty folder", "image"),
        "text": (folder / "text.mp4", "video"),
        "sound": (folder / "sound.m4a", "video"),
    }


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "sound"])
def test_bad_input_is_one_sentence(kind: str, tmp_path: Path) -> None:
    """One line, exit code 1, nothing written."""
    path, word = _bad_inputs(tmp_path)[kind]
    before = sorted(tmp_path.iterdir())
    result = invoke(path, "-o", tmp_path / "out.mp4", "--device", "cpu")
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert word in errors[0]
    assert "Traceback" not in result.output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("part", [0.3, 0.7, 0.95])
def test_truncated_video_publishes_nothing(part: float, clip: Path) -> None:
    """A file cut short is refused, wherever it is cut."""
    data = clip.read_bytes()
    cut = clip.with_name("cut.mp4")
    cut.write_bytes(data[: int(part * len(data))])
    result = invoke(cut, "--device", "cpu")
    assert result.exit_code == 1
    assert result.stderr.count("Error: ") == 1
    assert not cut.with_name("cut_x4.mp4").exists()


def test_output_in_a_folder_that_cannot_be_written(clip: Path) -> None:
    """A file in place of the folder, or a missing folder."""
    for output in (clip / "out.mp4", clip.parent / "nowhere" / "out.mp4"):
        result = invoke(clip, "-o", output, "--device", "cpu")
        assert result.exit_code == 1
        assert "folder" in result.stderr


class _Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch ran",)


def test_damaged_engines(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """A raw plan, a truncated bundle, a bundle with one flipped byte, an ONNX file, a pickle with
    code in it.
    """
    data = tiny_bundle.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    cases = {
        "raw.plan": (b"ftrt" + bytes(100), "raw TensorRT engine"),
        "cut.plan": (data[: len(data) // 2], "truncated"),
        "flipped.plan": (bytes(flipped), "damaged"),
        "other.onnx": (b"\x08\x0a\x12\x07pytorch", "ONNX file"),
        "code.pth": (pickle.dumps(_Code()), "'posix.system'"),
    }
    for name, (content, words) in cases.items():
        engine = tmp_path / name
        engine.write_bytes(content)
        result = invoke(clip, "--engine", engine, "--device", "cpu")
        assert result.exit_code == 1, name
        assert words in result.stderr, name
        assert not clip.with_name("clip_x4.mp4").exists()
    assert not Path("ran").exists()


def test_device_cuda_without_cuda(clip: Path) -> None:
    """The error names the extra that has CUDA."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    result = invoke(clip, "--device", "cuda")
    assert result.exit_code == 1
    assert "rbvsr-deploy[cuda]" in result.stderr


def test_usage_error_is_2(clip: Path) -> None:
    """Exit code 2 for a wrong value and for a missing input."""
    assert invoke(clip, "--cleanings", "-1").exit_code == 2
    assert invoke().exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_interrupted_run_leaves_nothing(
    number: int, code: int, sample: Path, tmp_path: Path
) -> None:
    """Ctrl-C, termination and hang-up in the middle of the work remove the unfinished output."""
    output = tmp_path / "out.mp4"
    # Tests may run in the background of a shell, where signals are ignored: not in this process.
    listen = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    )
    command = [sys.executable, "-c", f"{listen}; from rbvsr_deploy.commands.run import run; run()"]
    process = subprocess.Popen(
        [*command, str(sample), "-o", str(output), "--device", "cpu"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".*/job.json")) and time.monotonic() < deadline:
        time.sleep(0.01)  # until the work has begun
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert list(tmp_path.iterdir()) == []


def make_scenes(path: Path, first: int, second: int) -> Path:
    """Write a clip with audio and two scenes: so many frames, then so many of something else."""
    with av.open(str(DATA / "sample.mp4")) as source, av.open(str(path), "w") as target:
        audio_in = source.streams.audio[0]
        video = target.add_stream("libx264", rate=25, options={"crf": "10"})
        video.width, video.height, video.pix_fmt = 24, 16, "yuv420p"
        audio = target.add_stream_from_template(audio_in)
        clip = np.concatenate((moving_clip(first, 16, 24), 255 - moving_clip(second, 16, 24)))
        for number, image in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            target.mux(video.encode(frame))
        target.mux(video.encode(None))
        for packet in source.demux(audio_in):
            if packet.dts is not None:
                packet.stream = audio
                target.mux(packet)
    return path


@pytest.fixture
def two_scenes(tmp_path: Path) -> Path:
    """Return a clip of 60 and 70 frames: more than a segment each."""
    return make_scenes(tmp_path / "scenes.mkv", 60, 70)


@pytest.fixture
def short_scenes(tmp_path: Path) -> Path:
    """Return a clip of 20 and 25 frames."""
    return make_scenes(tmp_path / "scenes.mkv", 20, 25)


def video_packets(path: Path) -> list[tuple[int | None, int | None, bytes]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [(p.pts, p.dts, bytes(p)) for p in container.demux(stream) if p.size]


@pytest.mark.slow
def test_cuts_are_detected_listed_and_read_from_a_list(
    short_scenes: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """--scene-list writes the detected cuts; an existing list is used instead, edited or not."""
    cuts, outputs = tmp_path / "cuts.txt", []
    common = (short_scenes, "--engine", tiny_bundle, "--device", "cpu", "--scene-list", cuts)
    for number, text in enumerate((None, None, "12\n20", "# none")):
        if text is not None:
            cuts.write_text(text)
        output = tmp_path / f"{number}"
        result = invoke(*common, "-o", output, "--json")
        assert result.exit_code == 0, result.output
        scenes = [(s["first_frame"], s["frames"]) for s in json.loads(result.stdout)["scenes"]]
        outputs.append([frame.image for frame in open_source(output)])
        if text is None:
            assert scenes == [(0, 20), (20, 25)]
            assert [line for line in cuts.read_text().splitlines() if line[0] != "#"] == ["0", "20"]
        elif text.startswith("#"):
            assert scenes == [(0, 45)]
        else:
            assert scenes == [(0, 12), (12, 8), (20, 25)]
    found, given, more, none = (np.stack(images) for images in outputs)
    np.testing.assert_array_equal(found, given)
    np.testing.assert_array_equal(found[20:], more[20:])
    assert not np.array_equal(found[:20], more[:20])
    assert not np.array_equal(found, none)


@pytest.mark.slow
def test_no_scene_cuts(short_scenes: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """A single scene, and no list to write."""
    options = ("--engine", tiny_bundle, "--device", "cpu", "--no-scene-cuts")
    result = invoke(short_scenes, "-o", tmp_path / "a", *options, "--json")
    assert [s["frames"] for s in json.loads(result.stdout)["scenes"]] == [45]
    result = invoke(
        short_scenes, "-o", tmp_path / "b", *options, "--scene-list", tmp_path / "c.txt"
    )
    assert result.exit_code == 1
    assert "nothing to write" in result.stderr


@pytest.mark.slow
def test_verbose_reports_scenes(short_scenes: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """-v shows the decision of refinement for each scene, and the memory plan."""
    options = ("--engine", tiny_bundle, "--device", "cpu", "-v", "--memory", "300MiB")
    done = subprocess.run(  # logging goes to the real standard error
        [sys.executable, "-c", "from rbvsr_deploy.commands.run import run; run()"]
        + [str(o) for o in (short_scenes, "-o", tmp_path / "a.mkv", *options)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "scene of 20 frames from frame 0: cleaned" in done.stderr
    assert "scene of 25 frames from frame 20: cleaned" in done.stderr
    assert "Memory: 300 MiB for windows of" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("--lookahead", 2), ("--max-scene", 40), ("--refine-scope", "frame"), ()]
)
def test_a_killed_run_resumes(
    options: tuple[object, ...], two_scenes: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Killed as soon as a segment is finished, the same command makes the same packets, reports
    what was resumed and leaves no other file.
    """
    command = (two_scenes, "--engine", tiny_bundle, "--device", "cpu", *options)
    assert invoke(*command, "-o", tmp_path / "whole.mkv").exit_code == 0
    output = tmp_path / "out.mkv"
    process = subprocess.Popen(
        [sys.executable, "-c", "from rbvsr_deploy.commands.run import run; run()"]
        + [str(o) for o in (*command, "-o", output)],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.mkv.job/part-*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not output.exists()
    result = invoke(*command, "-o", output, "--json")
    assert result.exit_code == 0, result.output
    assert "frames are done already" in result.stderr
    summary = json.loads(result.stdout)
    assert 0 < summary["resumed_frames"] < 130
    assert [(s["first_frame"], s["frames"]) for s in summary["scenes"]] == [(0, 60), (60, 70)]
    assert video_packets(output) == video_packets(tmp_path / "whole.mkv")
    assert audio_packets(output) == audio_packets(two_scenes)
    assert {p.name for p in tmp_path.iterdir()} == {"scenes.mkv", "whole.mkv", "out.mkv"}


@pytest.mark.slow
def test_a_changed_input_option_or_model_starts_over(
    short_scenes: Path, tiny_bundle: Path, tiny_bundle_float16: Path, tmp_path: Path
) -> None:
    """The reason is reported."""
    output = tmp_path / "out.mkv"
    (tmp_path / "list.txt").write_text("20")
    options: dict[str, object] = {"--engine": tiny_bundle, "--device": "cpu"}

    def finished() -> Result:
        """Complete a run, keep its segments and delete its output."""
        words = [word for pair in options.items() for word in pair]
        result = invoke(short_scenes, "-o", output, *words, "--keep-job")
        assert result.exit_code == 0, result.output
        output.unlink()
        return result

    finished()
    for option, value, words in (
        ("--cleanings", 2, "the number of cleanings was by refinement and is 2"),
        ("--scene-list", tmp_path / "list.txt", "the scene cuts was detected and is at 20"),
        ("--engine", tiny_bundle_float16, "the model was tiny-float32.plan"),
        ("--crf", 30, "the encoder setting was crf=18 and is crf=30"),
    ):
        options[option] = value
        assert f"Starting over: {words}" in finished().stderr
    again = finished()
    assert "Continuing: 45 frames are done already" in again.stderr
    assert "Starting over" not in again.stderr
    os.utime(short_scenes, (1, 1))
    assert "Starting over: the input was scenes.mkv" in finished().stderr


def test_only_the_last_step_is_left(clip: Path, tiny_bundle: Path) -> None:
    """All frames done but the output not complete: the next run joins and reports the same."""
    output = clip.with_name("out.mkv")
    command = (clip, "-o", output, "--engine", tiny_bundle, "--device", "cpu", "--json")
    first = json.loads(invoke(*command, "--keep-job").stdout)
    packets = video_packets(output)
    output.unlink()
    again = json.loads(invoke(*command).stdout)
    assert (again["resumed_frames"], again["frames"]) == (6, 6)
    assert again["scenes"] == first["scenes"]
    assert video_packets(output) == packets
    assert sorted(p.name for p in clip.parent.iterdir()) == ["clip.mp4", "out.mkv"]


@pytest.mark.slow
def test_an_interrupted_run_keeps_finished_segments(
    two_scenes: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Ctrl-C after the first segment keeps the job folder and says how to continue."""
    output = tmp_path / "out.mkv"
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{listen}; from rbvsr_deploy.commands.run import run; run()"]
        + [str(o) for o in (two_scenes, "-o", output, "--engine", tiny_bundle, "--device", "cpu")],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.mkv.job/part-*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again to continue" in errors
    assert not output.exists()
    assert (tmp_path / ".out.mkv.job").is_dir()


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--memory", "lots", "4GiB"),
        ("--memory", "9" * 400, "4GiB"),
        ("--refine-threshold", "nan", "not a number"),
        ("--lookahead", "-1", "all"),
        ("--lookahead", "some", "all"),
        ("--max-scene", "0", "1"),
        ("--refine-scope", "clip", "scene"),
    ],
)
def test_wrong_options_are_usage_errors(option: str, value: str, word: str, clip: Path) -> None:
    """Exit code 2, with the allowed values."""
    result = invoke(clip, option, value)
    assert result.exit_code == 2
    assert word in result.stderr


def test_too_little_memory_is_one_sentence(clip: Path) -> None:
    result = invoke(clip, "--memory", "1MiB", "--device", "cpu")
    assert result.exit_code == 1
    assert "allow more" in result.stderr
    assert "(--memory)" in result.stderr
    assert sorted(p.name for p in clip.parent.iterdir()) == ["clip.mp4"]
