"""Tests the report page: its content, and its behaviour in a browser."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from rbvsr_deploy.commands.run import run
from rbvsr_deploy.engines.base import Description
from rbvsr_deploy.jobs.page import choose_frames, write_report_page
from rbvsr_deploy.jobs.summary import Summary
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.stream import SceneRecord
from rbvsr_deploy.video import ReadOptions, open_source
from rbvsr_deploy.video.images import write_image
from tests.conftest import moving_clip, short_clip
from tests.support.chromium import CHROMIUM, Chromium


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(run, [str(a) for a in arguments])


@dataclass
class Page(HTMLParser):
    """Parses a page."""

    text: str
    addresses: list[str] = field(default_factory=list)
    """Everything that elements load."""
    tags: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    """Labels of the strip's buttons."""
    frames: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._data = ""
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._data = ""
        loading = ("src", "href", "srcset", "data", "action", "poster", "background")
        self.addresses += [value or "" for name, value in attrs if name in loading]

    def handle_data(self, data: str) -> None:
        self._data += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "dt":
            self._term = self._data
        elif tag == "dd":
            self.figures[self._term] = self._data
        elif tag == "button":
            self.labels.append(self._data)
        elif tag == "script" and self._data.lstrip().startswith("["):
            self.frames = json.loads(self._data)

    @classmethod
    def read(cls, path: Path) -> Page:
        return cls(path.read_text(encoding="utf-8"))


def decoded(uri: str) -> NDArray[np.int64]:
    """Return the (H, W, 3) RGB levels of a data URI."""
    kind, _, data = uri.partition(";base64,")
    assert kind == "data:image/jpeg"
    image = cv2.imdecode(
        np.frombuffer(base64.b64decode(data, validate=True), np.uint8), cv2.IMREAD_COLOR_RGB
    )
    return np.asarray(image, np.int64)


def frames(path: Path) -> list[NDArray[np.int64]]:
    with open_source(path) as source:
        return [frame.image.astype(np.int64) for frame in source]


def check_frames(page: Page, source: Path, output: Path) -> None:
    """Check that "before" is the input's frame, enlarged by four and not shifted, and "after" the
    output's, both up to JPEG losses.
    """
    inputs, outputs = frames(source), frames(output)
    for shown in page.frames:
        number = int(shown["label"].removeprefix("Frame "))
        before, after = decoded(shown["before"]), decoded(shown["after"])
        height, width = inputs[number].shape[:2]
        assert before.shape == after.shape == (4 * height, 4 * width, 3)
        means = before.reshape(height, 4, width, 4, 3).mean((1, 3))

        def distance(x: int, y: int, means: Any = means, number: int = number) -> float:
            moved = np.roll(inputs[number], (y, x), (0, 1))[4:-4, 4:-4]
            return float(np.abs(means[4:-4, 4:-4] - moved).mean())

        assert distance(0, 0) < 4
        for x, y in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            assert distance(x, y) > 1.5 * distance(0, 0)
        assert np.abs(after - outputs[number]).mean() < 3
        others = (np.abs(after - other).mean() for i, other in enumerate(outputs) if i != number)
        assert np.abs(after - outputs[number]).mean() < min(others, default=np.inf)


def check_self_contained(page: Page) -> None:
    """Check that nothing is loaded from outside, and that the page's policy forbids it."""
    assert page.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    for word in ("http://", "https://", "@import", "url(", "fetch(", "XMLHttpRequest", "//cdn"):
        assert word not in page.text
    assert "default-src 'none'; img-src data:;" in page.text


@pytest.fixture
def clip(sample: Path, tmp_path: Path) -> Path:
    return short_clip(sample, tmp_path / "clip.mp4")


def test_chosen_frames_are_spread_and_begin_scenes() -> None:
    """They are evenly spread; at most half are first frames of scenes; never more than exist."""
    assert choose_frames(100, scene_starts=[0], at_most=5) == [10, 30, 50, 70, 90]
    assert choose_frames(100, scene_starts=[0, 42], at_most=5) == [12, 37, 42, 62, 87]
    assert choose_frames(1, scene_starts=[0], at_most=8) == [0]
    assert choose_frames(3, scene_starts=[0, 1], at_most=8) == [0, 1, 2]
    many = choose_frames(1000, scene_starts=range(0, 1000, 10), at_most=8)
    assert len(many) == 8
    assert sum(number % 10 == 0 for number in many) == 4
    assert max(np.diff([0, *many, 999])) < 250


def test_page_of_a_video(clip: Path, tiny_bundle: Path) -> None:
    """It has the right frames before and after, the figures of --json, and loads nothing."""
    path, output = clip.with_name("page.html"), clip.with_name("clip_x4.mp4")
    result = invoke(clip, "--engine", tiny_bundle, "--device", "cpu", "--json", "--report", path)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    page = Page.read(path)
    check_self_contained(page)
    assert [frame["label"] for frame in page.frames] == [f"Frame {i}" for i in range(6)]
    assert page.labels[1:] == [frame["label"] for frame in page.frames]
    check_frames(page, clip, output)
    assert page.figures["Input"] == f"clip.mp4, 96×54, {clip.stat().st_size / 1e3:.1f} kB"
    assert page.figures["Output"] == f"clip_x4.mp4, 384×216, {output.stat().st_size / 1e3:.1f} kB"
    assert tiny_bundle.name in page.figures["Engine"]
    assert (page.figures["Frames"], page.figures["Scenes"]) == ("6", "1")
    total = summary["seconds"]["total"]
    assert page.figures["Seconds"] == f"{total:.1f}"
    assert page.figures["Frames/s"] == f"{6 / total:.2f}"
    assert sorted(p.name for p in clip.parent.iterdir()) == [
        "clip.mp4",
        "clip_x4.mp4",
        "page.html",
    ]


@pytest.mark.slow
def test_page_of_a_resumed_run(clip: Path, tiny_bundle: Path) -> None:
    """The page includes the frames of an earlier run, and says so."""
    output, path = clip.with_name("out.mkv"), clip.with_name("page.html")
    command = (clip, "-o", output, "--engine", tiny_bundle, "--device", "cpu")
    assert invoke(*command, "--keep-job").exit_code == 0
    output.unlink()
    result = invoke(*command, "--report", path)
    assert result.exit_code == 0, result.output
    page = Page.read(path)
    assert len(page.frames) == 6
    check_frames(page, clip, output)
    assert page.figures["Seconds"].endswith("for 0 frames; an earlier run had made 6")
    assert "Frames/s" not in page.figures


def test_page_of_a_folder_and_of_an_image(tmp_path: Path, tiny_bundle: Path) -> None:
    """They get the same page as a video; a single image does not need a strip."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i, image in enumerate(moving_clip(2, 40, 64)):
        write_image(folder / f"{i}.png", image=image)
    for source, output in (
        (folder, tmp_path / "out"),
        (folder / "1.png", tmp_path / "1_x4.png"),
    ):
        path = output.with_suffix(".html")
        options = ("-o", output, "--engine", tiny_bundle, "--device", "cpu", "--report", path)
        result = invoke(source, *options)
        assert result.exit_code == 0, result.output
        page = Page.read(path)
        check_frames(page, source, output)
        assert page.labels == (["Zoom", "Frame 0", "Frame 1"] if source == folder else ["Zoom"])
    assert len(page.frames) == 1


@pytest.mark.slow
def test_bad_pages_are_refused_before_the_work(clip: Path) -> None:
    """Each gets one sentence; nothing is written or replaced."""
    existing = clip.with_name("existing.html")
    existing.write_bytes(b"precious")
    folder = clip.with_name("folder.html")
    folder.mkdir()
    out = clip.with_name("out.html")
    for page, word, options in (
        (existing, "exists", ()),
        (clip.parent / "nowhere" / "a.html", "cannot be written", ()),
        (clip.with_name("a.png"), ".html", ()),
        (folder, "cannot be written", ("--overwrite",)),
        (out, "is the output itself", ("-o", out)),
        (clip, "is the input itself", ("--overwrite",)),
        (out, "pipe", ("-o", "-")),
    ):
        result = invoke(clip, "--report", page, "--device", "cpu", *options)
        assert result.exit_code == 1
        assert word in result.stderr
        assert len([line for line in result.stderr.splitlines() if "rror" in line]) == 1
        assert "Memory:" not in result.stderr  # the work has not begun
    assert existing.read_bytes() == b"precious"
    assert sorted(p.name for p in clip.parent.iterdir()) == [
        "clip.mp4",
        "existing.html",
        "folder.html",
    ]


def test_a_page_is_about_one_input(clip: Path) -> None:
    """A page for several inputs is a usage error."""
    result = invoke(clip, clip, "--report", clip.with_name("page.html"))
    assert result.exit_code == 2
    assert "--report needs a single input" in result.stderr


def test_overwrite_replaces_a_page(tmp_path: Path, tiny_bundle: Path) -> None:
    """With --overwrite an existing page is replaced, as the output is."""
    source, path = tmp_path / "a.png", tmp_path / "page.html"
    write_image(source, image=moving_clip(1, 40, 64)[0])
    path.write_bytes(b"old")
    options = ("--engine", tiny_bundle, "--device", "cpu", "--report", path, "--overwrite")
    assert invoke(source, *options).exit_code == 0
    assert len(Page.read(path).frames) == 1


COLOURS = (
    ((200, 40, 40), (40, 40, 200)),
    ((200, 200, 40), (40, 160, 40)),
    ((120, 40, 160), (230, 230, 230)),
)
"""Colours of three flat frames, before and after."""


def flat_page(folder: Path, *, name: str = "in") -> Path:
    """Write a page of three frames of one colour each."""
    source, output = folder / name, folder / "out"
    for path, size, side in ((source, (36, 64), 0), (output, (144, 256), 1)):
        path.mkdir()
        for i, colours in enumerate(COLOURS):
            write_image(path / f"{i}.png", image=np.full((*size, 3), colours[side], np.uint8))
    summary = Summary(
        input=str(source),
        output=str(output),
        frames=3,
        resumed_frames=0,
        width=256,
        height=144,
        engine=Description(
            engine="onnxruntime",
            version="1.0",
            device="cpu",
            precision="float32",
            model="a <b> & 'c'.plan",
            weights="0",
            reason="--device cpu",
        ),
        memory=0,
        plan=MemoryPlan(window=1, batch=1, band=1, in_memory=1),
        scenes=[SceneRecord(0, 2, 1, []), SceneRecord(2, 1, 1, [])],
        seconds={"total": 1.5},
    )
    page = folder / "page.html"
    write_report_page(page, source, output, summary=summary, reading=ReadOptions())
    return page


def test_names_are_text(tmp_path: Path) -> None:
    """Markup, templates and invalid Unicode in file names do no harm."""
    name = "<script>alert(1)<b>$page \"'&" + os.fsdecode(b"\xff")
    page = Page.read(flat_page(tmp_path, name=name))
    check_self_contained(page)
    assert page.tags.count("script") == 2
    assert page.figures["Input"].startswith("<script>alert(1)<b>$page \"'&?, 64×36")
    assert page.figures["Engine"].startswith("a <b> & 'c'.plan")
    assert page.labels == ["Zoom", "Frame 0", "Frame 1", "Frame 2 · new scene"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with Chromium(tmp_path_factory.mktemp("chromium")) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flat_page(tmp_path_factory.mktemp("page"))


@dataclass
class View:
    """Locates the page's view in the browser window."""

    browser: Chromium

    def __post_init__(self) -> None:
        box = self.browser.run(
            "(() => { const b = document.getElementById('view').getBoundingClientRect();"
            " return [b.left, b.top, b.width, b.height]; })()"
        )
        self.left, self.top, self.width, self.height = box

    def point(self, across: float, down: float = 0.5) -> tuple[float, float]:
        return self.left + across * self.width, self.top + down * self.height

    def check_divider(self, across: float, *, frame: int = 0) -> None:
        """Check that "before" is left of the divider and "after" right of it."""
        self.browser.settle()
        image = self.browser.screenshot().astype(int)
        ratio = self.browser.run("devicePixelRatio")
        y = round(ratio * (self.top + 0.8 * self.height))
        row = image[y, round(ratio * self.left) : round(ratio * (self.left + self.width))]
        divider = round(ratio * across * self.width)
        margin = round(6 * ratio)  # the divider and its shadow
        before, after = COLOURS[frame]
        for piece, colour in (
            (row[: max(0, divider - margin)], before),
            (row[divider + margin :], after),
        ):
            assert piece.size == 0 or np.abs(piece - colour).max() <= 4
        value = self.browser.run("document.getElementById('handle').ariaValueNow")
        assert int(value) == round(100 * across)


@pytest.mark.slow
def test_the_divider_follows_the_mouse_and_the_keys(browser: Chromium, page: Path) -> None:
    """It can be dragged, clicked next to, and moved with keys; it stays inside the image."""
    browser.open(page, width=1000, height=800)
    view = View(browser)
    view.check_divider(0.5)
    browser.drag(view.point(0.5), view.point(0.4), view.point(0.25))
    view.check_divider(0.25)
    browser.drag(view.point(0.8, 0.3))
    view.check_divider(0.8)
    browser.drag(view.point(0.8), (view.left + view.width + 40, view.top))
    view.check_divider(1)
    for key, across in (
        ("ArrowLeft", 0.98),
        ("PageDown", 0.88),
        ("ArrowUp", 0.9),
        ("Home", 0),
        ("ArrowLeft", 0),
        ("ArrowRight", 0.02),
        ("End", 1),
    ):
        browser.press(key)
        view.check_divider(across)
    assert browser.errors == []


def test_the_strip_is_reached_with_tab(browser: Chromium, page: Path) -> None:
    """Tab reaches the handle, zoom, then the frames; Enter selects one, and arrow keys still move
    the divider.
    """
    browser.open(page, width=1000, height=800)
    view = View(browser)
    focused = []
    for _ in range(5):
        browser.press("Tab")
        focused.append(browser.run("document.activeElement.id || document.activeElement.innerText"))
    assert [text.strip() for text in focused] == [
        "handle",
        "zoom",
        "Frame 0",
        "Frame 1",
        "Frame 2 · new scene",
    ]
    browser.press("Enter")
    view.check_divider(0.5, frame=2)
    current = "[...document.querySelectorAll('#strip button')].map(b => b.ariaCurrent)"
    assert browser.run(current) == ["false", "false", "true"]
    browser.press("ArrowRight")
    view.check_divider(0.52, frame=2)


def test_zoom_keeps_the_divider(browser: Chromium, page: Path) -> None:
    """Zoomed in and scrolled, "before" is still left of the divider and "after" right of it."""
    browser.open(page, width=1000, height=800)
    view = View(browser)
    browser.run("document.getElementById('zoom').click()")
    before, after = (
        browser.run(f"document.getElementById('{name}').getBoundingClientRect().toJSON()")
        for name in ("before", "after")
    )
    assert before == after
    assert before["width"] >= 2 * view.width
    view.check_divider(0.5)
    browser.drag(view.point(0.8), view.point(0.3))  # the image, not the divider
    assert browser.run("document.getElementById('pan').scrollLeft") > view.width / 2
    view.check_divider(0.5)
    browser.drag(view.point(0.5), view.point(0.7))
    view.check_divider(0.7)


def test_on_a_phone(browser: Chromium, page: Path) -> None:
    """Touch moves the divider; nothing is wider than the screen; buttons are large enough."""
    browser.open(page, width=390, height=844, phone=True)
    view = View(browser)
    view.check_divider(0.5)
    browser.swipe(view.point(0.5), view.point(0.4), view.point(0.3))
    view.check_divider(0.3)
    assert browser.run("document.documentElement.scrollWidth") == 390
    sizes = browser.run(
        "[...document.querySelectorAll('button, [role=slider]')].map(element => {"
        " const box = element.getBoundingClientRect(); return Math.min(box.width, box.height); })"
    )
    assert min(sizes) >= 44


def test_light_and_dark(browser: Chromium, page: Path) -> None:
    """The page follows the system's choice; text has enough contrast in both."""
    levels = {}
    for scheme in ("light", "dark"):
        browser.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        browser.open(page, width=390, height=844)
        image = browser.screenshot().astype(int).mean(2)
        levels[scheme] = image[-2, 2]
        # The lightest and darkest point of the figures are far apart.
        assert image[600:].max() - image[600:].min() > 180
    assert levels["light"] > 230
    assert levels["dark"] < 40


def test_nothing_is_requested(browser: Chromium, page: Path) -> None:
    """Opened from the disk, the page requests only itself, and nothing from the network."""
    browser.requests.clear()
    browser.open(page, width=1000, height=800)
    requests = [url for url in browser.requests if not url.startswith("data:image/jpeg")]
    assert requests == [page.as_uri()]
    assert browser.errors == []
