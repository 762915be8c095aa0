"""Tests that the teacher is read from ncnn's layout, and its output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rbvsr_deploy.errors import CheckpointError
from rbvsr_deploy.training.teacher import load_teacher
from tests.support.teachers import Layers, make_layers, write_ncnn


@pytest.fixture(scope="module")
def layers() -> Layers:
    return make_layers(seed=0)


def by_hand(frame: NDArray[np.float32], layers: Layers) -> NDArray[np.float64]:
    """Compute (3, H, W) -> (3, 4H, 4W) in float64, with convolutions as sums over windows, PReLU,
    and the shuffle by index.
    """
    x = frame.astype(np.float64)
    for weight, bias, slopes in layers:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        x = np.einsum("ihwyx,oiyx->ohw", windows, weight.astype(np.float64), optimize=True)
        x += bias[:, None, None]
        if slopes is not None:
            x = np.where(x > 0, x, slopes[:, None, None] * x)
    height, width = frame.shape[1:]
    out = np.empty((3, 4 * height, 4 * width))
    for channel in range(48):
        colour, place = divmod(channel, 16)
        out[colour, place // 4 :: 4, place % 4 :: 4] = x[channel] + frame[colour]
    return out


def test_a_teacher_is_the_network_in_its_file(layers: Layers, tmp_path: Path) -> None:
    """Every one of the 1,213,296 parameters is in its place, within float16 of the weights."""
    write_ncnn(tmp_path / "teacher.bin", layers)
    teacher = load_teacher(tmp_path / "teacher.bin")
    assert sum(p.numel() for p in teacher.parameters()) == 1_213_296
    assert not any(p.requires_grad for p in teacher.parameters())
    frame = np.random.default_rng(1).random((3, 5, 7)).astype(np.float32)
    expected = by_hand(frame, layers)
    result = teacher(torch.from_numpy(frame)[None])[0].numpy()
    assert np.abs(expected - frame.repeat(4, axis=1).repeat(4, axis=2)).max() > 0.1
    np.testing.assert_allclose(result, expected, atol=2e-4)


def test_two_teachers_are_mixed_parameter_by_parameter(layers: Layers, tmp_path: Path) -> None:
    """The mixture has 0.7 of the first file and 0.3 of the second."""
    others = make_layers(seed=1)
    write_ncnn(tmp_path / "a.bin", layers)
    write_ncnn(tmp_path / "b.bin", others)
    mixed = load_teacher(tmp_path / "a.bin", other=tmp_path / "b.bin", share=0.7).state_dict()
    one, two = (load_teacher(tmp_path / f"{name}.bin").state_dict() for name in "ab")
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.7 * one[name] + 0.3 * two[name])


def test_images_are_upscaled_rounded_and_clipped(layers: Layers, tmp_path: Path) -> None:
    """Input and output are 8-bit, and no result depends on the other images."""
    write_ncnn(tmp_path / "teacher.bin", layers)
    teacher = load_teacher(tmp_path / "teacher.bin")
    images = np.random.default_rng(2).integers(0, 256, (2, 4, 6, 3), np.uint8)
    images[0, 0, 0], images[0, 3, 5] = 0, 255
    upscaled = teacher.upscale(images)
    assert upscaled.shape == (2, 16, 24, 3)
    assert upscaled.dtype == np.uint8
    exact = by_hand(images[0].transpose(2, 0, 1).astype(np.float32) / 255, layers)
    levels = exact.transpose(1, 2, 0).clip(0, 1) * 255
    assert np.abs(upscaled[0] - levels).max() < 0.6
    np.testing.assert_array_equal(teacher.upscale(images[1:])[0], upscaled[1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "end within body.66.bias"),
        (lambda data: data + b"\0\0\0\0", r"\d+ bytes instead of \d+"),
        (lambda data: b"\0\0\0\0" + data[4:], "no float16 weights at byte 0"),
        (lambda data: data[:4] + b"\x00\x7c" + data[6:], "body.0.weight is not finite"),
        (lambda data: b"", "no float16 weights at byte 0"),
    ],
    ids=["short", "long", "other kind", "infinite", "empty"],
)
def test_another_file_is_refused(damage: object, message: str, tmp_path: Path) -> None:
    write_ncnn(tmp_path / "teacher.bin", make_layers(seed=0))
    data = (tmp_path / "teacher.bin").read_bytes()
    (tmp_path / "teacher.bin").write_bytes(damage(data))
    with pytest.raises(CheckpointError, match=message):
        load_teacher(tmp_path / "teacher.bin")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.bin' cannot be read: No such file"):
        load_teacher(tmp_path / "nothing.bin")
