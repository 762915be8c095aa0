"""Alpha channels: dropped, kept outside the network, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.pixels import Image
from rbvsr_deploy.video import ReadOptions, WriteOptions
from tests.support import media
from tests.support.engine_doubles import BicubicEngine
from tests.video.colour.test_colour import planes
from tests.video.colour.test_depth import coded, first_frame


def transparent(dtype: type, *, opacity: float = 0.25) -> np.ndarray:
    """Return (16, 24, 4): one colour, opaque on the left, ``opacity`` on the right."""
    top = np.iinfo(dtype).max
    image: Image = np.full((16, 24, 4), 0.5 * top).astype(dtype)
    image[..., 3] = top
    image[:, 12:, 3] = round(opacity * top)
    return image


def enlarge(path: Path, out: Path, *, codec: str | None = None, **reading: Any) -> None:
    upscale_file(
        path,
        out,
        engine=BicubicEngine(),
        reading=ReadOptions(**reading),
        writing=WriteOptions(codec=codec),
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_images_keep_alpha(
    tmp_path: Path, suffix: str, dtype: type[np.unsignedinteger[Any]]
) -> None:
    path = media.write_still(tmp_path / f"a{suffix}", transparent(dtype))
    out = tmp_path / f"out{suffix}"
    enlarge(path, out, alpha="keep")
    found = media.read_still(out)
    assert (found.shape, found.dtype) == ((64, 96, 4), np.dtype(dtype))
    top = np.iinfo(dtype).max
    np.testing.assert_array_equal(found[:, :40, 3], top)
    np.testing.assert_array_equal(found[:, 56:, 3], round(0.25 * top))


def test_alpha_is_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = media.write_still(tmp_path / "a.png", transparent(np.uint8))
    enlarge(path, tmp_path / "out.png")
    assert media.read_still(tmp_path / "out.png").shape == (64, 96, 3)
    assert "Dropped: alpha channel" in caplog.text


def test_alpha_is_refused(tmp_path: Path) -> None:
    path = media.write_still(tmp_path / "a.png", transparent(np.uint8))
    with pytest.raises(MediaError, match="has an alpha channel, which is to be refused"):
        enlarge(path, tmp_path / "out.png", alpha="refuse")
    opaque = media.write_still(tmp_path / "b.png", transparent(np.uint8, opacity=1))
    enlarge(opaque, tmp_path / "out.png", alpha="refuse")


@pytest.mark.parametrize(
    ("out", "pix_fmt"), [("out.mkv", "yuva444p10le"), ("out.mov", "yuva444p12le")]
)
def test_videos_keep_alpha(tmp_path: Path, out: str, pix_fmt: str) -> None:
    """FFmpeg decodes 10-bit ProRes to 12 bits."""
    numbers = np.full((16, 24, 4), 512)
    numbers[:, 12:, 3] = 100
    path = coded(tmp_path / "in.mkv", [numbers, numbers], pix_fmt="yuva444p10le")
    enlarge(path, tmp_path / out, alpha="keep")
    frame = first_frame(tmp_path / out)
    assert frame.format.name == pix_fmt
    alpha = planes(frame)[3] / (2 ** int(pix_fmt[-4:-2]) - 1)
    np.testing.assert_allclose(alpha[:, :40], 512 / 1023, atol=1e-3)
    np.testing.assert_allclose(alpha[:, 56:], 100 / 1023, atol=1e-3)


@pytest.mark.parametrize("out", ["out.mp4", "out.webm", "out.jpg"])
def test_an_output_without_alpha_is_refused_at_once(tmp_path: Path, out: str) -> None:
    path = media.write_still(tmp_path / "a.png", transparent(np.uint8))
    with pytest.raises(MediaError, match="does not support alpha: set alpha to drop"):
        enlarge(path, tmp_path / out, alpha="keep")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_folder_may_mix_images_with_and_without_alpha(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    media.write_still(folder / "1.png", transparent(np.uint8)[..., :3].copy())
    media.write_still(folder / "2.png", transparent(np.uint8))
    enlarge(folder, tmp_path / "out", alpha="keep")
    shapes = [media.read_still(tmp_path / "out" / f"{n}.png").shape for n in (1, 2)]
    assert shapes == [(64, 96, 3), (64, 96, 4)]
    enlarge(folder, tmp_path / "out.mkv", alpha="keep")
    frame = first_frame(tmp_path / "out.mkv")
    assert frame.format.name == "yuva420p"
    assert (planes(frame)[3] == 255).all()
