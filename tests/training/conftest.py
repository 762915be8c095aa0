"""Generates small sources for the tests: photograph-like images and a video that pans over one."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.training.config import TrainingConfig, load_config
from rbvsr_deploy.training.data.sources import SourceConfig
from tests.support.training_runs import SMALL

Frames = NDArray[np.uint8]


def make_photo(seed: int = 0, *, height: int = 240, width: int = 300) -> Frames:
    """Generate an image with smooth colours, edges and some texture; (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    small = rng.uniform(0, 255, (height // 24, width // 24, 3)).astype(np.float32)
    photo = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(25):
        corner = (int(rng.integers(width)), int(rng.integers(height)))
        opposite = (int(rng.integers(width)), int(rng.integers(height)))
        colour = tuple(float(c) for c in rng.uniform(0, 255, 3))
        cv2.line(photo, corner, opposite, colour, 5)
    return cv2.GaussianBlur(photo, (0, 0), 1.0).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photo() -> Frames:
    return make_photo()


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Create a folder with two photographs and a folder with one video of ten frames."""
    root = tmp_path_factory.mktemp("sources")
    photos, videos = root / "photos", root / "videos"
    photos.mkdir()
    videos.mkdir()
    for seed in range(2):
        cv2.imwrite(str(photos / f"{seed}.png"), make_photo(seed)[..., ::-1])
    (photos / "notes.txt").write_text("not an image")
    scene = make_photo(2)
    with av.open(str(videos / "pan.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 240, 200, "yuv420p"
        for i in range(10):
            frame = np.ascontiguousarray(scene[i : i + 200, 2 * i : 2 * i + 240])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return photos, videos


@pytest.fixture(scope="session")
def clips(sources: tuple[Path, Path]) -> list[SourceConfig]:
    photos, videos = sources
    return [
        SourceConfig(kind="photos", path=str(photos)),
        SourceConfig(kind="videos", path=str(videos)),
    ]


@pytest.fixture(scope="session")
def config(clips: list[SourceConfig]) -> TrainingConfig:
    """Return a recipe with both phases and a discriminator, in a few iterations."""
    return load_config("tiny-stage1", changes=SMALL, sources=clips)
