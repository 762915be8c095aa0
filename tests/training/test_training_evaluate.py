"""The evaluation: its measure, its bookkeeping and its files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.torch import save_file

from rbvsr_deploy.model import RealBasicVSR, RealBasicVSRConfig
from rbvsr_deploy.training.evaluate import (
    enlarge_bicubic,
    enlarge_with_model,
    evaluate,
    load_model,
    main,
    psnr_y,
    summary,
)
from rbvsr_deploy.training.old_data import ClipSpec

TINY = RealBasicVSRConfig(
    mid_channels=8,
    propagation_blocks=1,
    cleaning_blocks=1,
    flow_channels=(8, 8),
    flow_kernel=3,
    flow_levels=3,
    single_shuffle=True,
)

Frames = NDArray[np.uint8]


@pytest.fixture(scope="module")
def model() -> RealBasicVSR:
    torch.manual_seed(0)
    return RealBasicVSR(TINY).eval()


def test_psnr_of_a_known_difference() -> None:
    truth = np.full((2, 32, 32, 3), 100, np.uint8)
    output = truth.copy()
    output[1] += 10  # luma differs by 10 * 219 / 255 in one frame of two; the other is exact
    second = 20 * np.log10(255 / (10 * 219 / 255))
    exact = 10 * np.log10(255**2 / 1e-10)
    assert psnr_y(output, truth) == pytest.approx((second + exact) / 2, abs=1e-3)
    output[:, :4] = 0  # inside the border, so not counted
    assert psnr_y(output, truth) == pytest.approx((second + exact) / 2, abs=1e-3)
    with pytest.raises(ValueError, match="shapes"):
        psnr_y(output[:, :8], truth)


def test_enlarged_frames_have_four_times_the_size(photo: Frames, model: RealBasicVSR) -> None:
    small = photo[None, :16, :20]
    for large in (enlarge_bicubic(small), enlarge_with_model(small, model)):
        assert large.shape == (1, 64, 80, 3)
        assert large.dtype == np.uint8


def test_evaluation_of_a_model_that_is_bilinear(photo: Frames, model: RealBasicVSR) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # what is left is the bilinear enlargement
    scores, pictures = evaluate(model, photos=[photo], spec=ClipSpec(length=3, crop=24), seeds=2)
    assert [(s.source, s.kind, s.seed) for s in scores] == [
        ("photo 1", "photo", 0),
        ("photo 1", "photo", 1),
    ]
    assert len(pictures) == 1
    assert pictures[0].shape == (96, 3 * 96, 3)
    for score in scores:
        assert abs(score.model - score.bicubic) < 2.0
        assert score.clean_bicubic > score.bicubic
        assert score.flow_error == pytest.approx(score.flow_truth)  # no motion found
    again, _ = evaluate(model, photos=[photo], spec=ClipSpec(length=3, crop=24), seeds=2)
    assert scores == again
    means = summary(scores)
    assert means["all"]["gain"] == pytest.approx(np.mean([s.model - s.bicubic for s in scores]))
    assert means["all"]["clips"] == 2
    assert "video" not in means
    assert "flow" in means


def test_command_line(sources: tuple[Path, Path], tmp_path: Path, model: RealBasicVSR) -> None:
    weights = tmp_path / "model.safetensors"
    save_file(model.state_dict(), weights)
    assert load_model(weights).config == TINY
    report, strip = tmp_path / "scores.json", tmp_path / "strip.png"
    arguments = [
        "--model",
        weights,
        "--photos",
        sources[0],
        "--videos",
        sources[1],
        "--output",
        report,
    ]
    arguments += ["--strip", strip, "--cache", tmp_path / "cache", "--length", 3, "--crop", 20]
    result = CliRunner().invoke(
        main, [str(a) for a in (*arguments, "--reduction", 1, "--seeds", 1)]
    )
    assert result.exit_code == 0, result.output
    assert "flow error" in result.output
    assert "video 1" in result.output
    content = json.loads(report.read_text())
    assert len(content["clips"]) == 3
    assert content["means"]["all"]["clips"] == 3
    picture = cv2.imread(str(strip))
    assert picture is not None
    assert picture.shape == (3 * 80, 3 * 80, 3)
