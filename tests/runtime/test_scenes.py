"""Tests that cuts are found at the right frames only, and that scene lists survive a round trip."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.runtime.scenes import CutDetector, read_scene_list, write_scene_list
from rbvsr_deploy.video import open_source
from tests.conftest import DATA, moving_clip

Clip = NDArray[np.uint8]


def cuts_of(frames: Iterable[Clip]) -> list[int]:
    detector = CutDetector()
    return [number for number, frame in enumerate(frames) if detector.is_cut(frame)]


@pytest.fixture(scope="module")
def shipped() -> Clip:
    """Return the sample's frames, one shaky scene: (54, 180, 320, 3) uint8 RGB."""
    with open_source(DATA / "sample.mp4") as source:
        return np.stack([frame.image for frame in source])


@pytest.fixture(scope="module")
def other() -> Clip:
    """Return a synthetic scene of the sample's size that moves by sub-pixels."""
    return moving_clip(12, 180, 320)


def with_noise(clip: Clip, sigma: float) -> Clip:
    noise = np.random.default_rng(0).normal(0, sigma, clip.shape)
    return np.clip(clip + noise, 0, 255).astype(np.uint8)


def test_one_scene_has_no_cut(shipped: Clip, other: Clip) -> None:
    """Neither camera shake nor steady motion is a cut."""
    assert cuts_of(shipped) == []
    assert cuts_of(other) == []


def test_cuts_are_found_at_their_frames(shipped: Clip, other: Clip) -> None:
    """The first frame of each joined scene is found, whatever the scene and whatever follows."""
    scenes = [other[:7], shipped[:9], other[7:11], 255 - shipped[20:30]]
    assert cuts_of(np.concatenate(scenes)) == [7, 16, 20]


def test_a_cut_may_come_with_the_second_frame(shipped: Clip, other: Clip) -> None:
    """The first scene may have a single frame."""
    assert cuts_of(np.concatenate([other[:1], shipped[:5]])) == [1]


@pytest.mark.parametrize("change", ["noise", "grey", "small"])
def test_cuts_are_found_in_poor_images(shipped: Clip, other: Clip, change: str) -> None:
    """Noise, missing colour and a tiny size neither hide a cut nor cause one."""
    clip = np.concatenate([shipped[:10], other[:10]])
    if change == "noise":
        clip = with_noise(clip, 12)
    elif change == "grey":
        clip = np.repeat(clip[..., 1:2], 3, axis=-1)
    else:
        clip = np.ascontiguousarray(clip[:, ::30, ::30])
    assert cuts_of(clip) == [10]


def test_noise_alone_is_not_a_cut() -> None:
    """Unrelated frames score high, but equally; the second one has nothing to compare with."""
    noise = np.random.default_rng(1).integers(0, 256, (20, 90, 160, 3), dtype=np.uint8)
    assert cuts_of(noise) == [1]


def test_a_change_of_light_is_not_a_cut(shipped: Clip) -> None:
    """A fade to black over ten frames and back is not detected."""
    light = np.abs(np.linspace(-1, 1, 20))[:, None, None, None]
    assert cuts_of((shipped[:20] * light).astype(np.uint8)) == []


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_flash_begins_one_scene_only(shipped: Clip, length: int) -> None:
    """The return from white frames is not a second cut."""
    clip = shipped[:20].copy()
    clip[10 : 10 + length] = 255
    assert cuts_of(clip) == [10]


def test_no_frame_waits_for_a_later_one(shipped: Clip, other: Clip) -> None:
    """Later frames do not affect the decision."""
    clip = np.concatenate([shipped[:6], other[:6], shipped[30:36]])
    for frames in range(1, len(clip)):
        assert cuts_of(clip[:frames]) == [cut for cut in cuts_of(clip) if cut < frames]


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 2000), (2000, 1), (2160, 3840)])
def test_frames_of_any_size(shape: tuple[int, int]) -> None:
    """Tiny, thin and huge frames work: black to white is a cut, black to black is not."""
    black = np.zeros((*shape, 3), np.uint8)
    assert cuts_of([black, black, 255 - black]) == [2]


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 6, 4), np.uint8),
        np.zeros((4, 6), np.uint8),
        np.zeros((4, 6, 3), np.float32),
        np.zeros((0, 6, 3), np.uint8),
        np.zeros((6, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(bad: Clip) -> None:
    """A wrong number of channels, type or size is a ValueError that says what came."""
    detector = CutDetector()
    detector.is_cut(np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(ValueError, match=r"not (uint8|float32) of \(.*\)"):
        detector.is_cut(bad)


def test_a_bad_first_frame_is_refused() -> None:
    """It is refused even without an earlier frame to compare its size with."""
    detector = CutDetector()
    for bad in (np.zeros((4, 6), np.uint8), np.zeros((4, 6, 1), np.uint8)):
        with pytest.raises(ValueError, match="not uint8 of"):
            detector.is_cut(bad)
    assert not detector.is_cut(np.zeros((2, 3, 3), np.uint8))


@pytest.mark.parametrize("cuts", [[], [1], [7, 8, 1000]])
def test_a_scene_list_is_read_as_written(tmp_path: Path, cuts: list[int]) -> None:
    """Written cuts are read back, and the file explains itself."""
    path = tmp_path / "scenes.txt"
    write_scene_list(path, cuts)
    assert read_scene_list(path) == cuts
    assert path.read_text().startswith("# First frame of each scene, counted from 0.\n0\n")


@pytest.mark.parametrize("text", ["0\n12\n30\n", "12\n30", "\ufeff# mine\r\n\r\n 12 # x\r\n30\r\n"])
def test_a_scene_list_by_hand(tmp_path: Path, text: str) -> None:
    """A first 0, comments, blank lines, a byte order mark and any line ends are accepted."""
    path = tmp_path / "scenes.txt"
    path.write_bytes(text.encode())
    assert read_scene_list(path) == [12, 30]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\n\n-3\n", r"line 3 of .* is '-3': write the number of a scene's first frame"),
        ("12.5", "line 1 of .* is '12.5': write the number"),
        ("1 2", "line 1 of .* is '1 2': write the number"),
        ("# x\n00:00:12", "line 2 of .* is '00:00:12': write the number"),
        ("1_000", "line 1 of .* is '1_000': write the number"),
        ("\u0661", "line 1 of .*: write the number"),
        ("9" * 5000, "line 1 of .* is '9{40}': write the number"),
        ("5\n5", "line 2 of .* is 5 after 5: every number must be greater"),
        ("5\n0", "line 2 of .* is 0 after 5: every number must be greater"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    """The message names the line, its content and what is allowed."""
    path = tmp_path / "scenes.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MediaError, match=message) as error:
        read_scene_list(path)
    assert "\n" not in str(error.value)


def test_invalid_scene_lists_are_refused(tmp_path: Path) -> None:
    """A missing file, a folder and a video get one sentence each."""
    with pytest.raises(MediaError, match="cannot be read: No such file"):
        read_scene_list(tmp_path / "missing.txt")
    with pytest.raises(MediaError, match="cannot be read: Is a directory"):
        read_scene_list(tmp_path)
    with pytest.raises(MediaError, match="is not a text file"):
        read_scene_list(DATA / "sample.mp4")


@pytest.mark.parametrize("cuts", [[0, 5], [-1], [5, 5], [6, 5]])
def test_bad_cuts_are_not_written(tmp_path: Path, cuts: list[int]) -> None:
    """A list that could not be read again is not written."""
    with pytest.raises(ValueError, match="above 0 and increasing"):
        write_scene_list(tmp_path / "scenes.txt", cuts)
    assert list(tmp_path.iterdir()) == []


def test_a_scene_list_that_cannot_be_written(tmp_path: Path) -> None:
    """A missing folder gets one sentence."""
    with pytest.raises(MediaError, match=r"cannot be written \(No such file"):
        write_scene_list(tmp_path / "missing" / "scenes.txt", [3])


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs a POSIX system")
def test_a_scene_list_without_an_end() -> None:
    with pytest.raises(MediaError, match="has more than 16 MiB"):
        read_scene_list(Path("/dev/zero"))
