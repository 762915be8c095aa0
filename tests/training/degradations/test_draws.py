"""Compares 2,000 draws of the published degradations with the published table.

The bounds correspond to a significance level of about 1 in 10,000: 5 standard deviations for a
share, and 2.2 / sqrt(n) for the largest distance between distribution functions (Kolmogorov and
Smirnov). Seeds are fixed, so results do not vary from run to run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import pi, sqrt
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest

from rbvsr_deploy.training.degradations.clip_degradation import (
    CLEAN,
    MODERATE,
    PUBLISHED,
    Degradation,
    draw_degradation,
)
from rbvsr_deploy.training.degradations.config import DegradationConfig
from rbvsr_deploy.training.degradations.steps import (
    Blur,
    GaussianNoise,
    Jpeg,
    PoissonNoise,
    Reduction,
    Resize,
    SincBlur,
    Step,
    VideoCompression,
)

DRAWS = 2000
LENGTH = 30

KINDS = {
    "isotropic": 0.405,
    "anisotropic": 0.225,
    "generalized_isotropic": 0.108,
    "generalized_anisotropic": 0.027,
    "plateau_isotropic": 0.108,
    "plateau_anisotropic": 0.027,
    "sinc": 0.1,
}
SIZES = dict.fromkeys(range(7, 22, 2), 1 / 8)
FILTERS = dict.fromkeys(("bilinear", "area", "bicubic"), 1 / 3)

Stage = dict[str, list[Any]]
_S = TypeVar("_S")


def draws(config: DegradationConfig, *, walk: bool, count: int = DRAWS) -> list[Degradation]:
    rng = np.random.default_rng(20211101)
    return [draw_degradation(config, rng, length=LENGTH, walk=walk) for _ in range(count)]


def stages(degradation: Degradation) -> tuple[list[Step], list[Step], list[Step]]:
    """Split the steps into the first stage up to video, the second up to JPEG, and the rest."""
    steps = list(degradation.steps)
    first = next(i for i, s in enumerate(steps) if isinstance(s, VideoCompression)) + 1
    second = first + next(i for i, s in enumerate(steps[first:]) if isinstance(s, Jpeg)) + 1
    return steps[:first], steps[first:second], steps[second:]


@pytest.fixture(scope="module")
def published() -> list[tuple[list[Step], list[Step], list[Step]]]:
    return [stages(d) for d in draws(PUBLISHED, walk=True)]


def of(kind: type[_S], steps: Iterable[Sequence[Step]]) -> list[_S]:
    return [s for part in steps for s in part if isinstance(s, kind)]


def assert_shares(values: Iterable[object], expected: dict[Any, float], *, total: int) -> None:
    counts = Counter(values)
    assert set(counts) <= set(expected)
    for name, p in expected.items():
        assert abs(counts[name] - total * p) < 5 * sqrt(total * p * (1 - p)) + 1e-9, name


def assert_uniform(values: Sequence[float], low: float, high: float) -> None:
    ordered = (np.sort(values) - low) / (high - low)
    n = len(ordered)
    assert n >= 20
    assert ordered[0] >= 0.0
    assert ordered[-1] <= 1.0
    above = np.arange(1, n + 1) / n - ordered
    assert max(above.max(), (1 / n - above).max()) < 2.2 / sqrt(n)


def test_the_bounds_detect_a_wrong_distribution() -> None:
    """The helpers can fail: they detect a range 10 % too narrow and a share of 0.4 for 0.5."""
    rng = np.random.default_rng(0)
    with pytest.raises(AssertionError):
        assert_uniform(rng.uniform(0.0, 0.9, 800).tolist(), 0.0, 1.0)
    with pytest.raises(AssertionError):
        assert_shares((rng.random(DRAWS) < 0.4).tolist(), {True: 0.5, False: 0.5}, total=DRAWS)


@pytest.mark.slow
def test_the_order_of_the_steps(published: list[Any]) -> None:
    """Blur, resize, noise, JPEG and video come first, then the same without video. The last two
    groups follow in either order, equally often.
    """
    names: dict[type, str] = {
        Blur: "b",
        SincBlur: "b",
        Resize: "r",
        GaussianNoise: "n",
        PoissonNoise: "n",
    }
    names |= {Jpeg: "j", VideoCompression: "v", Reduction: "R"}
    spelt = [["".join(names[type(s)] for s in part) for part in clip] for clip in published]
    assert_shares([first for first, _, _ in spelt], {"brnjv": 1.0}, total=DRAWS)
    assert_shares([second for _, second, _ in spelt], {"brnj": 0.8, "rnj": 0.2}, total=DRAWS)
    last = {"vRb": 0.4, "Rbv": 0.4, "vR": 0.1, "Rv": 0.1}
    assert_shares([end for _, _, end in spelt], last, total=DRAWS)


@pytest.mark.parametrize("order", [0, 1])
def test_blur(published: list[Any], order: int) -> None:
    """Kinds and sizes have the published shares, and every kernel parameter its range."""
    parts = [clip[order] for clip in published]
    blurs, sincs = of(Blur, parts), of(SincBlur, parts)
    both: list[Blur | SincBlur] = [*blurs, *sincs]
    total = len(both)
    assert_shares([b.kind for b in blurs] + ["sinc"] * len(sincs), KINDS, total=total)
    assert_shares([b.size for b in both], SIZES, total=total)
    largest = (3.0, 1.5)[order]
    assert_uniform([b.sigma_x[0] for b in blurs], 0.2, largest)
    anisotropic = [b for b in blurs if b.kind.endswith("anisotropic")]
    assert_uniform([b.sigma_y[0] for b in anisotropic], 0.2, largest)
    assert_uniform([b.angle[0] for b in anisotropic], -pi, pi)
    for b in blurs:
        if b not in anisotropic:
            assert b.sigma_x == b.sigma_y
        if "_" not in b.kind:
            assert set(b.beta) == {1.0}
    of_kind: Callable[[str], list[float]] = lambda k: [  # noqa: E731
        b.beta[0] for b in blurs if b.kind.startswith(k)
    ]
    assert_uniform(of_kind("generalized"), 0.5, 4.0)
    assert_uniform(of_kind("plateau"), 1.0, 2.0)
    assert_uniform([s.cutoff[0] for s in sincs if s.size < 13], pi / 3, pi)
    assert_uniform([s.cutoff[0] for s in sincs if s.size >= 13], pi / 5, pi)


def test_the_final_blur_is_a_sinc(published: list[Any]) -> None:
    """It has any of the sizes, and a cutoff from pi / 3 upwards."""
    last = [clip[2] for clip in published]
    assert not of(Blur, last)
    sincs = of(SincBlur, last)
    assert_shares([s.size for s in sincs], SIZES, total=len(sincs))
    assert_uniform([s.cutoff[0] for s in sincs], pi / 3, pi)
    assert_shares([r.filter for r in of(Reduction, last)], FILTERS, total=DRAWS)


@pytest.mark.parametrize(
    ("order", "directions", "low", "high"),
    [
        (0, {"up": 0.2, "down": 0.7, "keep": 0.1}, 0.15, 1.5),
        (1, {"up": 0.3, "down": 0.4, "keep": 0.3}, 0.3, 1.2),
    ],
)
def test_resize(
    published: list[Any], order: int, directions: dict[str, float], low: float, high: float
) -> None:
    """Directions, filters and scales have the published distributions."""
    resizes = of(Resize, [clip[order] for clip in published])
    assert_shares([r.direction for r in resizes], directions, total=DRAWS)
    assert_shares([r.filter for r in resizes], FILTERS, total=DRAWS)
    assert_uniform([r.scale[0] for r in resizes if r.direction == "down"], low, 1.0)
    assert_uniform([r.scale[0] for r in resizes if r.direction == "up"], 1.0, high)
    assert {r.scale[0] for r in resizes if r.direction == "keep"} == {1.0}


@pytest.mark.parametrize(("order", "sigma", "scale"), [(0, 30.0, 3.0), (1, 25.0, 2.5)])
def test_noise(published: list[Any], order: int, sigma: float, scale: float) -> None:
    """Kinds, the grey share and strengths are as published; every clip has its own noise."""
    parts = [clip[order] for clip in published]
    gaussian, poisson = of(GaussianNoise, parts), of(PoissonNoise, parts)
    both: list[GaussianNoise | PoissonNoise] = [*gaussian, *poisson]
    names = ["g"] * len(gaussian) + ["p"] * len(poisson)
    assert_shares(names, {"g": 0.5, "p": 0.5}, total=DRAWS)
    assert_shares([n.gray for n in both], {True: 0.4, False: 0.6}, total=DRAWS)
    assert_uniform([n.sigma[0] for n in gaussian], 1.0, sigma)
    assert_uniform([n.scale[0] for n in poisson], 0.05, scale)
    assert len({n.seed for n in both}) > DRAWS - 10


@pytest.mark.parametrize("order", [0, 1])
def test_jpeg(published: list[Any], order: int) -> None:
    """All whole qualities from 30 to 95 are equally likely."""
    jpegs = of(Jpeg, [clip[order] for clip in published])
    expected = dict.fromkeys(range(30, 96), 1 / 66)
    assert_shares([j.quality[0] for j in jpegs], expected, total=DRAWS)


@pytest.mark.parametrize("order", [0, 2])
def test_video(published: list[Any], order: int) -> None:
    """Two thirds use H.264, one third MPEG-4, at 10 to 100 thousand bits per frame."""
    videos = of(VideoCompression, [clip[order] for clip in published])
    expected = {"libx264": 2 / 3, "mpeg4": 1 / 3}
    assert_shares([v.encoder for v in videos], expected, total=DRAWS)
    assert_uniform([float(v.bits_per_frame or 0) for v in videos], 10_000, 100_000)
    assert {v.quality for v in videos} == {None}


def assert_walks(walks: Sequence[Sequence[float]], low: float, high: float, step: float) -> None:
    """Assert that steps are uniform away from the ends of the range and never leave it."""
    free: list[float] = []
    for values in walks:
        assert low <= min(values)
        assert max(values) <= high
        for before, after in pairwise(values):
            assert abs(after - before) <= step * (1 + 1e-9)
            if low + step < before < high - step:
                free.append(after - before)
    # Every 7th: Kolmogorov's bound at some 2,000 to 8,000 independent steps.
    assert_uniform([s * (1 - 1e-9) for s in free[::7]], -step, step)


def test_the_walk_of_every_parameter(published: list[Any]) -> None:
    """Steps have the published sizes, in both stages and in the final blur."""
    for order, sigma, scale, noise, shot in (
        (0, 3.0, (0.15, 1.5, 0.015), 30.0, 3.0),
        (1, 1.5, (0.3, 1.2, 0.03), 25.0, 2.5),
    ):
        parts = [clip[order] for clip in published]
        blurs = of(Blur, parts)
        assert_walks([b.sigma_x for b in blurs], 0.2, sigma, 0.02)
        anisotropic = [b for b in blurs if b.kind.endswith("anisotropic")]
        assert_walks([b.sigma_y for b in anisotropic], 0.2, sigma, 0.02)
        assert_walks([b.angle for b in anisotropic], -pi, pi, 0.1 * pi)
        generalized = [b.beta for b in blurs if b.kind.startswith("generalized")]
        assert_walks(generalized, 0.5, 4.0, 0.05)
        assert_walks([b.beta for b in blurs if b.kind.startswith("plateau")], 1.0, 2.0, 0.1)
        assert_walks([r.scale for r in of(Resize, parts)], *scale)
        assert_walks([n.sigma for n in of(GaussianNoise, parts)], 1.0, noise, 0.1)
        assert_walks([n.scale for n in of(PoissonNoise, parts)], 0.05, shot, 0.005)
        sincs = [s.cutoff for s in of(SincBlur, parts) if s.size >= 13]
        assert_walks(sincs, pi / 5, pi, 0.02 * pi)
    final = [s.cutoff for s in of(SincBlur, [clip[2] for clip in published])]
    assert_walks(final, pi / 3, pi, 0.02 * pi)


def test_the_walk_of_the_jpeg_quality(published: list[Any]) -> None:
    """Steps are uniform within 3 and then rounded, so 3 is half as likely as 0, 1 and 2."""
    steps = []
    for jpeg in of(Jpeg, [clip[i] for clip in published for i in (0, 1)]):
        assert 30 <= min(jpeg.quality) <= max(jpeg.quality) <= 95
        steps += [b - a for a, b in pairwise(jpeg.quality) if 33 <= a <= 92]
    steps = steps[::7]
    expected = dict.fromkeys(range(-2, 3), 1 / 6) | {-3: 1 / 12, 3: 1 / 12}
    assert_shares(steps, expected, total=len(steps))


def test_without_the_walk_parameters_stay() -> None:
    """Parameters keep one value over the clip, from the same ranges."""
    values: list[float] = []
    for degradation in draws(PUBLISHED, walk=False, count=200):
        for step in degradation.steps:
            fields = msgspec.structs.asdict(step).values()
            assert all(len(set(f)) == 1 for f in fields if isinstance(f, tuple))
            if isinstance(step, Blur):
                values.append(step.sigma_x[0])
    assert len(set(values)) == len(values)


def test_moderate_draws() -> None:
    """The milder configuration, which has one stage, has its own shares and ranges."""
    drawn = draws(MODERATE, walk=True)
    steps = [d.steps for d in drawn]
    assert abs(len(of(Blur, steps)) - 0.8 * DRAWS) < 5 * sqrt(DRAWS * 0.16)
    assert abs(len(of(GaussianNoise, steps)) - 0.45 * DRAWS) < 5 * sqrt(DRAWS * 0.25)
    assert abs(len(of(PoissonNoise, steps)) - 0.25 * DRAWS) < 5 * sqrt(DRAWS * 0.19)
    assert abs(len(of(Jpeg, steps)) - 0.25 * DRAWS) < 5 * sqrt(DRAWS * 0.19)
    videos = of(VideoCompression, steps)
    assert abs(len(videos) - 0.9 * DRAWS) < 5 * sqrt(DRAWS * 0.09)
    assert {v.quality for v in videos if v.encoder == "libx264"} == set(range(16, 34))
    assert {v.quality for v in videos if v.encoder == "mpeg4"} == set(range(2, 9))
    assert {s for r in of(Resize, steps) for s in r.scale} == {0.25}
    assert all(len(of(Reduction, [s])) == 1 for s in steps)


def test_clean_is_clean() -> None:
    """Only the reduction is drawn: one resize by area, and a second one that changes nothing."""
    for degradation in draws(CLEAN, walk=True, count=20):
        assert [type(s) for s in degradation.steps] == [Resize, Reduction]


@pytest.mark.parametrize("config", [PUBLISHED, MODERATE, CLEAN])
def test_degradations_survive_json(config: DegradationConfig) -> None:
    """A logged degradation is read back exactly, and so is a configuration."""
    for degradation in draws(config, walk=True, count=30):
        text = msgspec.json.encode(degradation)
        assert msgspec.json.decode(text, type=Degradation) == degradation
    assert msgspec.json.decode(msgspec.json.encode(config), type=DegradationConfig) == config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("first", "noise", "sigma", "low"), 31.0, "31.0 to 30.0"),
        (("first", "noise", "gray_probability"), 1.5, "gray_probability"),
        (("first", "blur", "sizes"), [7, 8], "odd"),
        (("first", "blur", "sizes"), [], "odd"),
        (("first", "blur", "kinds"), {"sinc": 0.0}, "kinds of blur"),
        (("first", "blur", "kinds"), {"box": 1.0}, "box"),
        (("first", "resize", "scale", "low"), 0.0, "above 0"),
        (("first", "resize", "speed"), 1, "speed"),
        (("first", "jpeg", "quality", "high"), 101, "1 to 100"),
        (("final_filters",), {"area": -1.0}, "final_filters"),
        (("first", "video", "codecs"), [{"encoder": "libx264"}], "bits_per_frame or quality"),
        (("first", "video", "codecs"), [{"encoder": "mpeg4", "quality": [9, 2]}], "got 9"),
        (("first", "video", "codecs"), [], "codecs"),
    ],
)
def test_impossible_configurations_are_refused(
    path: tuple[str, ...], value: object, message: str
) -> None:
    """One sentence names the fault when the configuration is read."""
    config: dict[str, Any] = msgspec.to_builtins(PUBLISHED)
    inner = config
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(config, DegradationConfig)
