"""``rbvsr-run`` from the outside: a real clip in, the same clip four times larger out, or one clear
sentence.
"""

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

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result

from rbvsr_deploy.cli import run
from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.images import write_image
from tests.conftest import short_clip


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(run, [str(a) for a in arguments])


def video_times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.pts * stream.time_base for frame in container.decode(stream)]


def audio_packets(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [
            (p.pts * stream.time_base, bytes(p))
            for p in container.demux(stream)
            if p.pts is not None
        ]


@pytest.fixture
def clip(sample: Path, tmp_path: Path) -> Path:
    return short_clip(sample, tmp_path / "clip.mp4")


def test_video_keeps_frames_times_and_sound(clip: Path) -> None:
    """Four times the size, the same frames at the same times, the same audio packets, no temporary
    file.
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
    assert set(seconds) == {"read", "clean", "backward", "forward", "write", "total"}
    assert sum(seconds.values()) <= 2.05 * seconds["total"]


def test_result_is_the_models(clip: Path, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """A bundle and the checkpoint it was made from write the same pictures, within one level."""
    folders = []
    for engine in (tiny_bundle, tiny_checkpoint):
        folders.append(clip.parent / engine.suffix[1:])
        result = invoke(clip, "-o", folders[-1], "--engine", engine, "--device", "cpu")
        assert result.exit_code == 0, result.output
    a, b = ([f.image.astype(int) for f in open_source(folder)] for folder in folders)
    assert len(a) == len(b) == 6
    assert max(int(np.abs(x - y).max()) for x, y in zip(a, b, strict=True)) <= 1


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
    """An existing output stays as it is, unless --overwrite is given."""
    output = clip.with_name("clip_x4.mp4")
    output.write_bytes(b"precious")
    result = invoke(clip, "--device", "cpu")
    assert result.exit_code == 1
    assert "exists" in result.stderr
    assert output.read_bytes() == b"precious"
    assert invoke(clip, "--overwrite", "--device", "cpu").exit_code == 0
    assert len(video_times(output)) == 6


def test_picture_and_folder(tmp_path: Path, sample: Path) -> None:
    """A folder of pictures becomes a folder of the same names, one picture becomes one picture."""
    source = tmp_path / "frames"
    with av.open(str(sample)) as container:
        source.mkdir()
        for i, frame in enumerate(container.decode(video=0)):
            if i == 3:
                break
            write_image(source / f"{i:03}.png", image=frame.to_ndarray(format="rgb24")[:40, :64])
    assert invoke(source, "--device", "cpu").exit_code == 0
    output = tmp_path / "frames_x4"
    assert [p.name for p in sorted(output.iterdir())] == ["000.png", "001.png", "002.png"]
    assert invoke(source / "001.png", "-o", tmp_path / "one.png", "--device", "cpu").exit_code == 0
    with open_source(tmp_path / "one.png") as one:
        assert (one.width, one.height) == (256, 160)


def test_before_after_picture(clip: Path) -> None:
    """The middle frame, bicubic on the left, the result on the right."""
    picture = clip.with_name("before_after.png")
    result = invoke(clip, "--before-after", picture, "--device", "cpu")
    assert result.exit_code == 0, result.output
    with open_source(picture) as source:
        (frame,) = source
    assert frame.image.shape == (216, 2 * 384 + 16, 3)
    left, right = frame.image[:, :384].astype(int), frame.image[:, -384:].astype(int)
    assert 0 < np.abs(left - right).mean() < 20  # the same scene, not the same picture


def test_before_after_is_refused_before_the_work(clip: Path) -> None:
    """A picture that could not be written stops the run at once, and nothing is written."""
    picture = clip.with_name("there.png")
    picture.write_bytes(b"precious")
    for target, word in (
        (picture, "exists"),
        (clip.parent / "nowhere" / "a.png", "folder"),
        (clip.with_name("a.mp4"), ".png"),
    ):
        result = invoke(clip, "--before-after", target, "--device", "cpu")
        assert result.exit_code == 1
        assert word in result.stderr
    assert picture.read_bytes() == b"precious"
    assert not clip.with_name("clip_x4.mp4").exists()


def _bad_inputs(folder: Path) -> dict[str, tuple[Path, str]]:
    """Inputs that must be refused, and a word of the sentence for each."""
    (folder / "empty folder").mkdir()
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    with av.open(str(folder / "sound.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return {
        "missing": (folder / "missing.mp4", "does not exist"),
        "folder": (folder / "empty folder", "picture"),
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


def test_output_folder_that_cannot_be_written(clip: Path) -> None:
    """A file in place of the folder, and no folder at all."""
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
    """Says what is offered here, and how to get CUDA."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    result = invoke(clip, "--device", "cuda")
    assert result.exit_code == 1
    assert "rbvsr-deploy[cuda]" in result.stderr


def test_usage_error_is_2(clip: Path) -> None:
    """Wrong options are click's business."""
    assert invoke(clip, "--cleanings", "-1").exit_code == 2
    assert invoke().exit_code == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_leaves_nothing(
    number: int, code: int, sample: Path, tmp_path: Path
) -> None:
    """Ctrl-C and termination in the middle of the work remove the unfinished output."""
    output = tmp_path / "out.mp4"
    # Tests may run in the background of a shell, where Ctrl-C is ignored: not in this process.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{listen}; from rbvsr_deploy.cli import run; run()"]
    process = subprocess.Popen(
        [*command, str(sample), "-o", str(output), "--device", "cpu"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)  # until the unfinished output is there
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert list(tmp_path.iterdir()) == []
