"""Rotation, mirroring, the shape of pixels and odd sizes."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.orientation import orientation_of, upright
from tests.video import media
from tests.video.sinks import job_sink

# Signs (a, b, c, d) of a display matrix, which shows (x, y) at (a x + c y, b x + d y).
ORIENTATIONS = {
    (1, 0, 0, 1): lambda image: image,
    (-1, 0, 0, 1): lambda image: image[:, ::-1],
    (1, 0, 0, -1): lambda image: image[::-1],
    (-1, 0, 0, -1): lambda image: image[::-1, ::-1],
    (0, 1, 1, 0): lambda image: image.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (0, -1, 1, 0): lambda image: np.rot90(image, 1),
}


@pytest.mark.parametrize("matrix", sorted(ORIENTATIONS))
def test_orientation_is_applied_and_not_carried_over(tmp_path, matrix):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:16, :16] = 255  # a white corner, top left
    image[:16, 48:] = (200, 0, 0)  # a red one, top right
    path = media.make_video(
        tmp_path / "in.mp4", stamps=[0, 1001], pictures=[image, image], matrix=matrix
    )
    upright = ORIENTATIONS[matrix](image)
    out = tmp_path / "out.mp4"
    with open_source(path) as source:
        assert (source.height, source.width) == upright.shape[:2]
        size = {"width": source.width, "height": source.height}
        with job_sink(out, source=source, **size) as sink:
            for frame in source:
                assert np.abs(frame.image.astype(int) - upright).mean() < 4
                sink.write(frame)
            sink.finish()
    with av.open(str(out)) as container:
        assert orientation_of(next(container.decode(video=0))) is None


@pytest.mark.parametrize("matrix", sorted(ORIENTATIONS))
def test_upright(matrix):
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    turned = upright(image, matrix)
    np.testing.assert_array_equal(turned, ORIENTATIONS[matrix](image))
    assert turned.flags.c_contiguous


def test_other_angles_are_not_applied(tmp_path, caplog):
    path = media.make_video(tmp_path / "in.mp4", stamps=[0], matrix=(1, 1, -1, 1))
    with open_source(path) as source:
        assert (source.width, source.height) == (64, 48)
    assert "no multiple of 90 degrees" in caplog.text


def test_aspect_ratio_turns_with_the_picture(tmp_path):
    path = media.make_video(
        tmp_path / "in.mp4",
        stamps=[0],
        size=(48, 48),
        matrix=(0, 1, -1, 0),
        aspect=Fraction(16, 15),
    )
    with open_source(path) as source:
        assert source.sample_aspect == Fraction(15, 16)
