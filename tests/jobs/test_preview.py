"""Tests ``rbvsr-run --preview``: a page with frames from all over the input, and an estimate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from rbvsr_deploy.commands.run import run
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.jobs.preview import Preview, write_preview
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.units import show_duration
from rbvsr_deploy.video import ReadOptions
from rbvsr_deploy.video.images import write_image
from tests.conftest import short_clip
from tests.jobs.test_page import Page, check_self_contained, decoded
from tests.support import engine_doubles as doubles
from tests.support import media
from tests.support.chromium import CHROMIUM, Chromium

FRAMES = 60
NUMBERS = [6, 18, 30, 42, 54]
"""Numbers of five evenly spread frames."""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(run, [str(a) for a in arguments])


def level(number: int) -> int:
    return 4 * number + 10


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of grey frames, each lighter than the one before, 40 ms apart, from 1 s on."""
    return media.make_video(
        tmp_path_factory.mktemp("preview") / "in.mp4",
        stamps=[1000 + 40 * number for number in range(FRAMES)],
        time_base=Fraction(1, 1000),
        rate=Fraction(25),
        b_frames=2,
        images=[np.full((48, 64, 3), level(number), np.uint8) for number in range(FRAMES)],
    )


def preview(path: Path, page: Path, **options: Any) -> tuple[Preview, Page]:
    engine = options.pop("engine", None) or doubles.BicubicEngine()
    written = write_preview(path, page, engine=engine, **options)
    return written, Page.read(page)


def check_levels(page: Page, numbers: list[int]) -> None:
    """Check that the page shows the frames of these numbers, before and after."""
    assert len(page.frames) == len(numbers)
    for shown, number in zip(page.frames, numbers, strict=True):
        for side in ("before", "after"):
            image = decoded(shown[side])
            assert image.shape == (192, 256, 3)
            assert abs(image.mean() - level(number)) < 2


def test_frames_come_from_all_over(video: Path, tmp_path: Path) -> None:
    """They are evenly spread, at the right times, before and after; only the page is written."""
    seen: list[tuple[str, int, int | None]] = []
    made, page = preview(
        video,
        tmp_path / "page.html",
        count=5,
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )
    check_self_contained(page)
    check_levels(page, NUMBERS)
    labels = ["0:00.240", "0:00.720", "0:01.200", "0:01.680", "0:02.160"]
    assert [shown["label"] for shown in page.frames] == labels == made.pictures
    assert page.labels[1:] == labels
    assert seen[-1] == ("forward", 5 * 11, 5 * 11)
    assert (made.frames, made.width, made.height) == (FRAMES, 256, 192)
    assert made.estimated_seconds == pytest.approx(FRAMES * made.seconds_per_frame, abs=0.1)
    estimate = show_duration(made.estimated_seconds)
    assert page.figures["All frames"] == f"about {estimate}"
    assert page.figures["Frames shown"].startswith("5,")
    assert f"All 60 frames would take about {estimate} on this machine" in page.text
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_of_a_range(video: Path, tmp_path: Path) -> None:
    """The frames are spread over the range; nothing outside of it is read."""
    reading = ReadOptions(start=Fraction(1), end=Fraction(2))
    made, page = preview(video, tmp_path / "page.html", count=3, reading=reading)
    assert made.frames == 25
    check_levels(page, [29, 37, 45])
    assert made.pictures == ["0:01.160", "0:01.480", "0:01.800"]
    made, page = preview(
        video, tmp_path / "few.html", count=9, reading=ReadOptions(start=Fraction(2), frames=3)
    )
    check_levels(page, [50, 51, 52])


@pytest.mark.parametrize("cut", [None, 20])
def test_frames_have_neighbours_up_to_a_cut(cut: int | None, tmp_path: Path) -> None:
    """Five frames on each side contribute to a frame, by the engine's own arithmetic, and none of
    another scene.
    """
    folder = tmp_path / "in"
    folder.mkdir()
    values = [7 * i * i % 13 + (0 if cut is None or i < cut else 200) for i in range(36)]
    for number, value in enumerate(values):
        write_image(folder / f"{number:02}.png", image=np.full((1, 1, 3), value, np.uint8))
    made, page = preview(
        folder,
        tmp_path / "page.html",
        count=1,
        engine=doubles.ArithmeticEngine(has_cleaning=False),
        settings=Settings(memory=2500),
    )
    assert made.pictures == ["18.png"]
    ahead = values[18 : min(24, cut or 24)]
    expected = doubles.output_level(
        values[18], doubles.backward_state(ahead), doubles.forward_state(values[13:19])
    )
    assert abs(decoded(page.frames[0]["after"]).mean() - expected) < 3


def test_one_image_and_unknown_lengths(tmp_path: Path) -> None:
    """An image is its own preview; if a stream has no known length, its frames are counted."""
    image = tmp_path / "a.png"
    write_image(image, image=np.full((48, 64, 3), level(7), np.uint8))
    made, page = preview(image, tmp_path / "a.html", count=5)
    assert (made.frames, made.pictures) == (1, ["a.png"])
    assert page.labels == ["Zoom"]
    raw = media.make_video(
        tmp_path / "in.h264", stamps=list(range(20)), time_base=Fraction(1, 25), rate=Fraction(25)
    )
    made, page = preview(raw, tmp_path / "raw.html", count=2)
    assert (made.frames, made.pictures) == (20, ["0:00.200", "0:00.600"])


def test_a_rate_that_varies(tmp_path: Path) -> None:
    """If few frames cover a long time, fewer may be shown; none is shown twice or invented."""
    stamps = [*(40 * number for number in range(40)), 5000, 20_000, 20_040]
    path = media.make_video(
        tmp_path / "in.mp4", stamps=stamps, time_base=Fraction(1, 1000), rate=Fraction(25)
    )
    lines: list[str] = []
    made, page = preview(path, tmp_path / "page.html", count=4, report=lines.append)
    assert 1 <= len(made.pictures) == len(page.frames) <= 4
    assert len(made.pictures) + sum("One frame less" in line for line in lines) == 4


def test_pages_that_cannot_be(video: Path, tmp_path: Path) -> None:
    """Bad pages are refused before the work; with overwrite, an existing one is replaced."""
    page = tmp_path / "page.html"
    page.write_bytes(b"precious")
    with pytest.raises(MediaError, match="exists"):
        preview(video, page, count=1)
    assert page.read_bytes() == b"precious"
    assert len(preview(video, page, count=1, overwrite=True)[1].frames) == 1
    with pytest.raises(MediaError, match=r"\.html"):
        preview(video, tmp_path / "page.png", count=1)
    with pytest.raises(MediaError, match="pipes"):
        preview(Path("-"), tmp_path / "b.html", count=1)


@pytest.mark.slow
def test_command(sample: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """The page has the output's name unless --report gives another, and --json prints it."""
    clip = short_clip(sample, tmp_path / "clip.mp4")
    options = (clip, "--preview", 2, "--engine", tiny_bundle, "--device", "cpu")
    result = invoke(*options)
    assert result.exit_code == 0, result.output
    assert "clip_x4.html: 2 images of 384x216; all 6 frames would take about" in result.stdout
    result = invoke(*options, "--json", "--report", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["page"] == str(tmp_path / "page.html")
    assert len(printed["pictures"]) == 2
    assert printed["estimated_seconds"] > 0
    assert len(Page.read(tmp_path / "page.html").frames) == 2
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["clip.mp4", "clip_x4.html", "page.html"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-o", "a.mp4"), "-o cannot be combined with --preview"),
        (("--keep-job",), "--keep-job cannot be combined with --preview"),
        (("--crf", 20), "--crf cannot be combined with --preview"),
        (("--before-after", "a.png"), "--before-after cannot be combined with --preview"),
        (("-",), "--preview cannot read from -"),
        (("b.mp4",), "--preview needs a single input"),
    ],
)
def test_options_about_the_output_are_refused(
    options: tuple[object, ...], words: str, video: Path
) -> None:
    """Each is refused in one sentence, as a usage error."""
    if options[0] == "-":
        result = invoke("-", "--preview", 2)
    else:
        result = invoke(video, "--preview", 2, *options)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.01, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (754, "12 min 34 s"),
        (12000, "3 h 20 min"),
        (180000, "2 d 2 h"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with Chromium(tmp_path_factory.mktemp("chromium")) as chromium:
        yield chromium


@pytest.mark.slow
@pytest.mark.parametrize(("width", "phone"), [(1000, False), (390, True)])
def test_in_a_browser(
    width: int, phone: bool, browser: Chromium, video: Path, tmp_path: Path
) -> None:
    """The page says that it is a preview, fits the window, and shows another frame on a click."""
    preview(video, tmp_path / "page.html", count=3)
    browser.open(tmp_path / "page.html", width=width, height=800, phone=phone)
    assert "This is a preview" in browser.run("document.querySelector('.note').innerText")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    browser.run("document.querySelectorAll('#strip button')[2].click()")
    browser.settle()
    assert browser.run("document.getElementById('after').alt") == "0:02.000 after"
    image = browser.screenshot().astype(int)
    ratio = browser.run("devicePixelRatio")
    box = browser.run(
        "(() => { const b = document.getElementById('view').getBoundingClientRect();"
        " return [b.left + 0.75 * b.width, b.top + 0.8 * b.height]; })()"
    )
    x, y = (round(ratio * value) for value in box)
    assert np.abs(image[y, x] - level(50)).max() <= 4
    assert browser.errors == []
