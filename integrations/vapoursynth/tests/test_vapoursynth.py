"""Tests the filter in VapourSynth itself, against ``rbvsr-run``; skipped where there is none."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from rbvsr_deploy.commands.run import run
from tests.conftest import moving_clip
from vsrealbasicvsr import realbasicvsr

vs = pytest.importorskip("vapoursynth")

CUTS = (37, 38, 80)


@pytest.fixture(scope="module")
def clip16() -> NDArray[np.uint16]:
    """Return 120 small frames of 16 bits that use all of them, with three cuts."""
    clip = moving_clip(120, 20, 24).astype(np.uint16) * 257
    clip += np.random.default_rng(0).integers(0, 200, clip.shape, np.uint16)
    for cut in CUTS:
        clip[cut:] = 65535 - clip[cut:]
    return clip


@pytest.fixture(scope="module")
def upscaled(
    clip16: NDArray[np.uint16], tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> NDArray[np.uint16]:
    """Return what ``rbvsr-run`` makes of them, with these cuts, as 16-bit PNG images."""
    return upscaled_by_command(clip16, tiny_bundle, tmp_path_factory.mktemp("command"), cuts=CUTS)


def upscaled_by_command(
    images: NDArray[Any], bundle: Path, folder: Path, *, cuts: Sequence[int] = (), **options: Any
) -> NDArray[Any]:
    (folder / "in").mkdir()
    for number, image in enumerate(images):
        cv2.imwrite(str(folder / "in" / f"{number:04}.png"), image[..., ::-1])
    (folder / "cuts.txt").write_text("".join(f"{cut}\n" for cut in cuts))
    arguments = [folder / "in", "-o", f"{folder}/out/", "--engine", bundle, "--device", "cpu"]
    arguments += ["--scene-list", folder / "cuts.txt"] if cuts else ["--no-scene-cuts"]
    for name, value in options.items():
        arguments += [f"--{name}", value]
    done = CliRunner().invoke(run, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    files = sorted(Path(folder, "out").rglob("*.png"))
    assert len(files) == len(images)
    return np.stack([np.asarray(cv2.imread(str(f), -1))[..., ::-1] for f in files])


def clip_of(images: NDArray[Any], *, cuts: Iterable[int] = (), format: int | None = None) -> Any:
    """Return a clip of RGB images, with the property that marks cuts."""
    core = vs.core
    kind = vs.RGB48 if images.dtype == np.uint16 else vs.RGB24
    _, height, width, _ = images.shape
    blank = core.std.BlankClip(width=width, height=height, format=kind, length=len(images))
    starts = set(cuts)

    def fill(n: int, f: Any) -> Any:
        frame = f.copy()
        for channel in range(3):
            np.copyto(np.asarray(frame[channel]), images[n, ..., channel])
        frame.props["_SceneChangePrev"] = int(n in starts)
        frame.props["Number"] = n
        return frame

    return blank.std.ModifyFrame(blank, fill).resize.Point(format=format or vs.RGBS)


def image_of(clip: Any, number: int) -> NDArray[Any]:
    with clip.get_frame(number) as frame:
        return np.stack([np.asarray(frame[channel]) for channel in range(3)], axis=-1).copy()


@pytest.mark.parametrize("order", ["forwards", "backwards", "random", "threads"])
def test_every_order_equals_the_command(
    order: str, clip16: NDArray[np.uint16], upscaled: NDArray[np.uint16], tiny_bundle: Path
) -> None:
    """In whatever order frames are asked for, also by eight threads at random, each one is the
    command's, to the last of 16 bits.
    """
    result = realbasicvsr(clip_of(clip16, cuts=CUTS), tiny_bundle, device="cpu")
    assert result.format.id == vs.RGBS
    result = result.resize.Point(format=vs.RGB48)
    numbers = list(range(len(clip16)))
    if order in ("random", "threads"):
        random.Random(5).shuffle(numbers)
    elif order == "backwards":
        numbers.reverse()
    with ThreadPoolExecutor(8 if order == "threads" else 1) as threads:
        images = threads.map(lambda n: image_of(result, n), numbers)
        for number, image in zip(numbers, images, strict=True):
            np.testing.assert_array_equal(image, upscaled[number], err_msg=f"frame {number}")


def test_eight_bits_equal_the_command(tiny_bundle: Path, tmp_path: Path) -> None:
    """8-bit frames give the command's 8-bit images. Values halfway between two levels may be
    rounded to either: the filter's pass through 16 bits.
    """
    clip = moving_clip(12, 24, 32)
    want = upscaled_by_command(clip, tiny_bundle, tmp_path)
    result = realbasicvsr(clip_of(clip), tiny_bundle, device="cpu").resize.Point(format=vs.RGB24)
    got = np.stack([image_of(result, n) for n in range(12)])
    difference = np.abs(got.astype(int) - want)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"lookahead": 3},
        {"cleanings": 0},
        {"cleanings": 2, "lookahead": 0},
        {"scale": 2},
        {"scale": 1.5, "strength": 0.25},
        {"scale": 1, "strength": 0},
    ],
)
def test_options_are_those_of_the_command(
    options: dict[str, Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    clip = moving_clip(8, 16, 18).astype(np.uint16) * 257
    want = upscaled_by_command(clip, tiny_bundle, tmp_path, **options)
    result = realbasicvsr(clip_of(clip), tiny_bundle, device="cpu", **options)
    result = result.resize.Point(format=vs.RGB48)
    np.testing.assert_array_equal(np.stack([image_of(result, n) for n in range(8)]), want)


def test_half_precision(tiny_bundle: Path) -> None:
    """RGBH in, RGBH out, equal to RGBS within half a level of 255."""
    clip = clip_of(moving_clip(3, 16, 16), format=vs.RGBH)
    result = realbasicvsr(clip, tiny_bundle, device="cpu")
    full = realbasicvsr(clip.resize.Point(format=vs.RGBS), tiny_bundle, device="cpu")
    assert result.format.id == vs.RGBH
    np.testing.assert_allclose(image_of(result, 2), image_of(full, 2), atol=0.5 / 255)


def test_values_outside_the_range(tiny_bundle: Path) -> None:
    """They are clipped as a display would, and NaN is black; the output is finite."""
    clip = clip_of(moving_clip(2, 16, 16))
    wild = clip.std.Expr("x 3 * 1 -")
    clipped = wild.std.Limiter(0, 1)
    wild, clipped = (realbasicvsr(c, tiny_bundle, device="cpu") for c in (wild, clipped))
    np.testing.assert_array_equal(image_of(wild, 1), image_of(clipped, 1))

    def spoil(n: int, f: Any) -> Any:
        frame = f.copy()
        np.asarray(frame[1])[3:5] = np.nan
        return frame

    nan = clip.std.ModifyFrame(clip, spoil)
    assert np.isfinite(image_of(realbasicvsr(nan, tiny_bundle, device="cpu"), 0)).all()


def test_properties_are_kept(tiny_bundle: Path) -> None:
    """Every frame has the properties of its input frame; the rate is the clip's."""
    clip = clip_of(moving_clip(5, 16, 20), cuts=(3,)).std.AssumeFPS(fpsnum=24000, fpsden=1001)
    clip = clip.std.SetFrameProps(_Matrix=0, Note="a note", _SARNum=4, _SARDen=3)
    result = realbasicvsr(clip, tiny_bundle, device="cpu")
    assert (result.width, result.height, result.num_frames) == (80, 64, 5)
    assert result.fps == clip.fps
    for n in (4, 0, 3):
        with clip.get_frame(n) as before, result.get_frame(n) as after:
            assert dict(after.props) == dict(before.props)
            assert after.props["Number"] == n


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_filters_in_a_row(threads: int, tiny_bundle: Path) -> None:
    """Two of them in one script neither wait for each other nor run out of threads."""
    core, before = vs.core, vs.core.num_threads
    core.num_threads = threads
    try:
        clip = clip_of(moving_clip(20, 8, 8), cuts=(9,))
        once = realbasicvsr(clip, tiny_bundle, device="cpu", lookahead=1)
        twice = realbasicvsr(once, tiny_bundle, device="cpu", lookahead=1, cleanings=0)
        assert sum(1 for _ in twice.frames(close=True)) == 20
    finally:
        core.num_threads = before


def test_an_error_of_the_source_is_shown(tiny_bundle: Path) -> None:
    """A frame that its source fails to make fails with the source's message."""
    clip = clip_of(moving_clip(3, 16, 16))

    def fail(n: int, f: Any) -> Any:
        raise vs.Error("the disc is scratched")

    result = realbasicvsr(clip.std.ModifyFrame(clip, fail), tiny_bundle, device="cpu")
    with pytest.raises(vs.Error, match="the disc is scratched"):
        result.get_frame(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": 1}, "this is not a clip"),
        ({"format": "RGB24"}, "only RGBH and RGBS are supported, not RGB24"),
        ({"format": "YUV444PS"}, "only RGBH and RGBS are supported, not YUV444PS"),
        ({"engine": "missing.plan"}, "missing.plan"),
        ({"device": "abacus"}, "abacus"),
        ({"lookahead": -1}, "lookahead must be 0 or more, got -1"),
        ({"cleanings": -1}, "cleanings must be 0 or more, got -1"),
        ({"scale": 5}, "the scale must be one of 1, 1.5, 2, 3, 4, got 5"),
        ({"strength": 2}, "strength"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str, tiny_bundle: Path) -> None:
    """They are ValueErrors that begin with the filter's name."""
    clip = clip_of(moving_clip(1, 16, 16))
    if "format" in change:
        clip = clip.resize.Point(format=getattr(vs, change.pop("format")), matrix_s="709")
    arguments = {"clip": clip, "engine": tiny_bundle, "device": "cpu", **change}
    with pytest.raises(ValueError, match=f"^realbasicvsr: .*{message}"):
        realbasicvsr(**arguments)


def test_clips_whose_size_or_format_changes(tiny_bundle: Path) -> None:
    core, clip = vs.core, clip_of(moving_clip(1, 16, 16))
    for other, what in (
        (clip.std.AddBorders(2), "constant size"),
        (clip.resize.Point(format=vs.RGB24), "variable format"),
    ):
        mixed = core.std.Splice([clip, other], mismatch=True)
        with pytest.raises(ValueError, match=f"^realbasicvsr: only .*{what}"):
            realbasicvsr(mixed, tiny_bundle, device="cpu")


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import numpy as np
import vapoursynth as vs
from vsrealbasicvsr import realbasicvsr
from test_vapoursynth import clip_of

clip = clip_of(np.load({images!r}), cuts={cuts!r})
clip = realbasicvsr(clip, {bundle!r}, device="cpu")
clip.resize.Point(format=vs.YUV444P8, matrix_s="709", range_s="limited").set_output()
"""


def test_vspipe(
    clip16: NDArray[np.uint16], upscaled: NDArray[np.uint16], tiny_bundle: Path, tmp_path: Path
) -> None:
    """``vspipe`` writes a y4m stream of the command's frames, within one level."""
    np.save(tmp_path / "images.npy", clip16)
    here = Path(__file__).parent
    script = SCRIPT.format(
        paths=[str(here), str(here.parent), str(here.parents[2])],
        images=str(tmp_path / "images.npy"),
        cuts=CUTS,
        bundle=str(tiny_bundle),
    )
    (tmp_path / "script.vpy").write_text(script)
    vspipe = Path(sys.executable).with_name("vspipe")
    done = subprocess.run(
        [vspipe, "-c", "y4m", tmp_path / "script.vpy", "-"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    header, stream = done.stdout.split(b"\n", 1)
    assert header.split()[:3] == [b"YUV4MPEG2", b"C444", b"W96"]
    size = 3 * 80 * 96
    assert len(stream) == 120 * (size + len(b"FRAME\n"))
    frames = np.frombuffer(stream, np.uint8).reshape(120, -1)[:, -size:].reshape(120, 3, 80, 96)
    difference = np.abs(frames - limited_yuv(upscaled / 65535))
    assert difference.max() <= 1


def limited_yuv(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N, H, W, 3) RGB as limited-range BT.709: (N, 3, H, W), not rounded (BT.709, 3)."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    cb, cr = (blue - luma) / 1.8556, (red - luma) / 1.5748
    return np.stack([16 + 219 * luma, 128 + 224 * cb, 128 + 224 * cr], axis=1)


@pytest.mark.slow
def test_vs_mlrt_takes_the_file_of_a_window(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The frames of ``rbvsr-export --window`` in vs-mlrt are those of the network on each window
    alone; frames of the clip are its inputs in the order of time.
    """
    if not hasattr(vs.core, "ort"):
        pytest.skip("needs vs-mlrt: pip install vapoursynth-mlrt-ort")
    import torch

    from rbvsr_deploy.checkpoint import load_checkpoint
    from rbvsr_deploy.export.window import export_window

    path = tmp_path / "window.onnx"
    export_window(tiny_checkpoint, path, frames=5)
    images = moving_clip(7, 20, 24)
    clip = clip_of(images)
    clips = [clip[n : n + 3] for n in range(5)]  # of the frames that have two on either side
    result = vs.core.ort.Model(clips, network_path=str(path))
    network = load_checkpoint(tiny_checkpoint).model
    for n in range(3):
        window = torch.from_numpy(images[n : n + 5]).permute(0, 3, 1, 2)[None].float() / 255
        with torch.no_grad():
            want = network.propagate(network.refine(window, cleanings=1))[0, 2].clamp(0, 1)
        got = image_of(result, n)
        np.testing.assert_allclose(got, want.permute(1, 2, 0).numpy(), atol=1e-4)


PEAK = """
import sys
sys.path[:0] = {paths!r}
import numpy as np
import vapoursynth as vs
from vsrealbasicvsr import realbasicvsr

length, scene = {length}, {scene}
blank = vs.core.std.BlankClip(width=32, height=32, format=vs.RGBS, length=length, color=[0.2] * 3)
clip = blank.std.FrameEval(
    lambda n: blank.std.SetFrameProps(_SceneChangePrev=int(n % scene == 0)), clip_src=blank
)
for frame in realbasicvsr(clip, {bundle!r}, device="cpu", {options}).frames(close=True):
    pass
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("scene", [50, 10**6])
def test_memory_does_not_grow_with_the_clip(scene: int, tiny_bundle: Path) -> None:
    """Ten times the frames take the same peak memory, in many scenes and in one (in kilobytes)."""
    here = Path(__file__).parent
    options = "lookahead=2" if scene > 1000 else ""
    peaks = []
    for length in (200, 2000):
        program = PEAK.format(
            paths=[str(here.parent), str(here.parents[2])],
            length=length,
            scene=scene,
            bundle=str(tiny_bundle),
            options=options,
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 10_000, peaks
