"""Makes the images of README and of the gallery with the default model, in a few minutes.

    python docs/make_images.py

Reads tests/data/sample.mp4 and draws everything else itself, so that anyone can repeat it. Needs
the extras cpu, eval and train. The image of the report page also needs Chromium, and is left
as it is without.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy import Upscaler
from rbvsr_deploy.commands.rbvsr import rbvsr
from rbvsr_deploy.training.degradations.clip_degradation import (
    CLEAN,
    MODERATE,
    degrade,
    draw_degradation,
)
from rbvsr_deploy.training.evaluation.metrics.base import luma
from rbvsr_deploy.training.evaluation.metrics.fidelity import psnr
from rbvsr_deploy.training.evaluation.metrics.resize import enlarge

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "tests" / "data" / "sample.mp4"
IMAGES = ROOT / "docs" / "images"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)

SCALE = 4
FIRST, FRAMES = 0, 15  # of the sample: the frames that are upscaled; the middle one is shown
SHOWN = FRAMES // 2
DRAWING = (384, 576)  # height and width of the ground truth
SEED = 11  # of the degradation of the drawing
SHEET_HEIGHT = 1568  # pixels of the contact sheet that are shown: seven rows
GAP, LABEL = 8, 36  # pixels between panels, and above them for their labels

Image = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, width and height in pixels of the output."""


def read_sample() -> NDArray[np.uint8]:
    """Read some frames of the sample: (T, H, W, 3) RGB."""
    with av.open(str(SAMPLE)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames[FIRST : FIRST + FRAMES])


def draw_clip() -> NDArray[np.uint8]:
    """Draw lines, rings, text and foliage-like texture under a slowly moving camera."""
    height, width = 2 * DRAWING[0] + 200, 2 * DRAWING[1] + 200  # twice as large: antialiased below
    canvas = np.full((height, width, 3), (236, 232, 222), np.uint8)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    rings = 0.5 + 0.5 * np.cos(((x - 380) ** 2 + (y - 400) ** 2) / 2400)
    inside = (x - 380) ** 2 + (y - 400) ** 2 < 230**2
    canvas[inside] = (40 + 190 * rings[inside])[:, None] * np.array([0.8, 0.95, 1.0])
    for angle in np.linspace(0, np.pi / 2, 13):
        end = (int(720 + 480 * np.cos(angle)), int(130 + 480 * np.sin(angle)))
        cv2.line(canvas, (720, 130), end, (150, 60, 50), 5, cv2.LINE_AA)
    rng = np.random.default_rng(0)
    for _ in range(2600):
        centre = (int(rng.uniform(60, width - 60)), int(rng.normal(880, 40)))
        colour = tuple(int(c) for c in rng.uniform((30, 70, 20), (110, 160, 70)))
        axes = (int(rng.uniform(4, 14)), int(rng.uniform(2, 5)))
        turn = float(rng.uniform(0, 180))
        cv2.ellipse(canvas, centre, axes, turn, 0, 360, colour, -1, cv2.LINE_AA)
    font = cv2.FONT_HERSHEY_COMPLEX
    for size, line, base in ((1.9, "Four times as large", 690), (1.1, "0123456789 abcdefg", 760)):
        cv2.putText(canvas, line, (620, base), font, size, (40, 50, 90), 3, cv2.LINE_AA)
    clip = []
    for t in range(FRAMES):
        shift = np.array([[1, 0, -60 - 3.1 * t], [0, 1, -60 - 1.7 * t]], np.float64)
        twice = (2 * DRAWING[1], 2 * DRAWING[0])
        moved = cv2.warpAffine(canvas, shift, twice, flags=cv2.INTER_CUBIC)
        clip.append(cv2.resize(moved, DRAWING[::-1], interpolation=cv2.INTER_AREA))
    return np.stack(clip)


def panels(rows: list[dict[str, Image]]) -> Image:
    """Lay out images of one size in rows and columns, each with its label above it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height, width = next(iter(rows[0].values())).shape[:2]
    across, down = len(rows[0]), len(rows)
    size = (across * (width + GAP) - GAP, down * (height + LABEL + GAP) - GAP)
    figure = pyplot.figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, facecolor="white")
    for i, row in enumerate(rows):
        top = i * (height + LABEL + GAP)
        for j, (label, image) in enumerate(row.items()):
            left = j * (width + GAP)
            figure.figimage(image, left, size[1] - top - LABEL - height)
            figure.text(
                *(left / size[0], 1 - (top + LABEL / 2) / size[1], label),
                fontsize=15,
                va="center",
                color="#222222",
            )
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    pyplot.close(figure)
    return drawn


def upscaled(upscaler: Upscaler, frames: NDArray[np.uint8]) -> Image:
    """Upscale some frames and return the one that is shown."""
    return np.asarray(list(upscaler.frames(frames))[SHOWN], np.uint8)


def read(path: Path) -> Image:
    """Read an image file: (H, W, 3) RGB."""
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.uint8)


def cut(image: Image, box: Box) -> Image:
    """Return a part of an image."""
    left, top, width, height = box
    return image[top : top + height, left : left + width]


def write(name: str, image: Image) -> None:
    """Write an image of the documentation."""
    path = IMAGES / name
    jpeg, png = [cv2.IMWRITE_JPEG_QUALITY, 85], [cv2.IMWRITE_PNG_COMPRESSION, 9]
    cv2.imwrite(str(path), image[..., ::-1], jpeg if path.suffix == ".jpg" else png)
    print(f"{path.relative_to(ROOT)}: {image.shape[1]}x{image.shape[0]}", flush=True)


def sample_images(upscaler: Upscaler) -> None:
    """Make the images of the real clip: one part for README, three for the gallery."""
    frames = read_sample()
    result = upscaled(upscaler, frames)
    bicubic = enlarge(frames[SHOWN], SCALE)

    def pair(box: Box) -> dict[str, Image]:
        return {"bicubic": cut(bicubic, box), "rbvsr-run": cut(result, box)}

    write("before_after.png", panels([pair((60, 420, 560, 300))]))
    parts: list[Box] = [(60, 440, 480, 270), (720, 0, 480, 270), (760, 400, 480, 270)]
    write("gallery_sample.png", panels([pair(part) for part in parts]))


def drawing_images(upscaler: Upscaler) -> None:
    """Make the images of the drawing, degraded and merely reduced, with their PSNR."""
    truth = draw_clip()
    for name, config in (("degraded", MODERATE), ("clean", CLEAN)):
        rng = np.random.default_rng(SEED)
        frames = degrade(truth, draw_degradation(config, rng, length=FRAMES, walk=False))
        result = upscaled(upscaler, frames)
        bicubic = enlarge(frames[SHOWN], SCALE)
        right = luma(truth[SHOWN])
        figures = (f"{psnr(luma(image), right):.2f} dB" for image in (bicubic, result))
        nearest = frames[SHOWN].repeat(SCALE, 0).repeat(SCALE, 1)
        top = {"input": nearest, f"bicubic, {next(figures)}": bicubic}
        bottom = {f"rbvsr-run, {next(figures)}": result}
        bottom["ground truth"] = truth[SHOWN]
        write(f"gallery_{name}.png", panels([top, bottom]))


def degradation_image() -> None:
    """Make the first rows of the contact sheet of a published degradation."""
    with tempfile.TemporaryDirectory() as folder:
        sheet = Path(folder, "sheet.png")
        options = ["--output", str(sheet), "--seed", "3", "--crop", "40", "--length", "14"]
        rbvsr.main(["degradations", str(SAMPLE), *options], standalone_mode=False)
        rows = read(sheet)
    write("gallery_degradations.jpg", rows[:SHEET_HEIGHT])


def report_image() -> None:
    """Make a screenshot of a report page."""
    if CHROMIUM is None:
        print("gallery_report.jpg: left as it is, as Chromium is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder, "page.html"), Path(folder, "page.png")
        options = ["-o", str(Path(folder, "clip.mp4")), "--frames", "12", "--report", str(page)]
        rbvsr.main(["run", str(SAMPLE), *options], standalone_mode=False)
        subprocess.run(
            [
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *(f"--user-data-dir={folder}/profile", "--window-size=1200,900"),
                *(f"--screenshot={shot}", page.as_uri()),
            ],
            check=True,
            capture_output=True,
        )
        write("gallery_report.jpg", read(shot))


def main() -> None:
    """Make all images."""
    IMAGES.mkdir(exist_ok=True)
    with Upscaler() as upscaler:
        sample_images(upscaler)
        drawing_images(upscaler)
    degradation_image()
    report_image()


if __name__ == "__main__":
    main()
