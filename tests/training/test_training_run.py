"""A tiny run: the loss falls, and an interrupted run ends exactly like an uninterrupted one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.model import RealBasicVSR, RealBasicVSRConfig
from rbvsr_deploy.training.losses import charbonnier, flow_loss
from rbvsr_deploy.training.old_data import ClipSpec, Sample, TrainingSet, load_photos, load_videos
from rbvsr_deploy.training.run import TrainingConfig, train
from rbvsr_deploy.training.train import main

TINY = RealBasicVSRConfig(
    mid_channels=8,
    propagation_blocks=1,
    cleaning_blocks=1,
    flow_channels=(8, 8),
    flow_kernel=3,
    flow_levels=3,
    single_shuffle=True,
)
CONFIG = TrainingConfig(
    iterations=6,
    flow_iterations=4,
    batch=2,
    length=3,
    crop=16,
    checkpoint_seconds=0.0,  # after every iteration
)


class KilledError(Exception):
    """Stands for the power going off."""


@pytest.fixture(scope="module")
def data(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    cache = tmp_path_factory.mktemp("cache")
    return TrainingSet(
        load_photos([sources[0]], cache=cache, reduction=1),
        videos=load_videos([sources[1]], cache=cache, reduction=1),
        seed=3,
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    timings = ("elapsed", "waited")
    read = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timings} for line in read]


@pytest.mark.parametrize("kill_at", [("flow", 2), ("joint", 3)])
def test_a_killed_run_goes_on_exactly(
    data: TrainingSet, tmp_path: Path, kill_at: tuple[str, int]
) -> None:
    def kill(phase: str, iteration: int) -> None:
        if (phase, iteration) == kill_at:
            raise KilledError

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(CONFIG, data=data, output=whole, network=TINY, log_every=1)
    with pytest.raises(KilledError):
        train(CONFIG, data=data, output=cut, network=TINY, log_every=1, on_step=kill)
    assert not (cut / "model.safetensors").exists()
    with (cut / "log.jsonl").open("a") as file:  # written after the last checkpoint
        file.write('{"phase": "lost"}\n')
    train(CONFIG, data=data, output=cut, network=TINY, log_every=1)

    expected, result = load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors")
    assert expected.keys() == result.keys()
    assert all(torch.equal(expected[k], result[k]) for k in expected)
    assert lines(whole) == lines(cut)
    assert [(v["phase"], v["iteration"]) for v in lines(cut)][3:5] == [("flow", 4), ("joint", 1)]


class OneClip(TrainingSet):
    """The same clip again and again, so that the loss does not depend on the draw."""

    def sample(
        self, index: int, *, spec: ClipSpec, stream: int = 0, motion_only: bool = False
    ) -> Sample:
        return super().sample(0, spec=spec, stream=stream, motion_only=motion_only)


@pytest.mark.parametrize("phase", ["flow", "joint"])
def test_the_loss_falls_and_the_weights_load(data: TrainingSet, tmp_path: Path, phase: str) -> None:
    steps = {"flow": 40, "joint": 1} if phase == "flow" else {"flow": 0, "joint": 40}
    config = replace(CONFIG, flow_iterations=steps["flow"], iterations=steps["joint"])
    config = replace(config, learning_rate=5e-3, flow_learning_rate=1e-2, checkpoint_seconds=1e6)
    clips = OneClip(data.photos, seed=4)
    weights = train(config, data=clips, output=tmp_path, network=TINY, log_every=1)
    losses = [line["loss"] for line in lines(tmp_path) if line["phase"] == phase]
    assert len(losses) == 40
    assert losses[-1] < 0.8 * losses[0]
    RealBasicVSR(TINY).load_state_dict(load_file(weights))  # names and shapes of model.py
    assert not list(tmp_path.glob("*.part"))


def test_a_time_limit_ends_both_phases(data: TrainingSet, tmp_path: Path) -> None:
    config = replace(CONFIG, iterations=10**6, flow_iterations=10**6, minutes=0.02)
    train(config, data=data, output=tmp_path, network=TINY, log_every=1)
    phases = {line["phase"] for line in lines(tmp_path)}
    assert phases == {"flow", "joint"}
    assert lines(tmp_path)[-1]["learning_rate"] < 1e-4  # decayed although not warmed up


def test_another_configuration_is_refused(data: TrainingSet, tmp_path: Path) -> None:
    train(replace(CONFIG, iterations=1), data=data, output=tmp_path, network=TINY)
    changed = replace(CONFIG, iterations=1, learning_rate=1.0)
    with pytest.raises(RbvsrError, match="learning_rate"):
        train(changed, data=data, output=tmp_path, network=TINY)
    with pytest.raises(ValueError, match="workers"):
        train(replace(CONFIG, workers=3), data=data, output=tmp_path / "new", network=TINY)


def test_divergence_stops_the_run(
    data: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(
        model: RealBasicVSR, *args: Any, **options: Any
    ) -> tuple[torch.Tensor, dict[str, float]]:
        parameters = list(nn.Module.parameters(model))
        return torch.stack([p.sum() for p in parameters]).sum() * float("nan"), {}

    monkeypatch.setattr("rbvsr_deploy.training.run.joint_loss", broken)
    config = replace(CONFIG, iterations=100, flow_iterations=0)
    with pytest.raises(RbvsrError, match="diverged"):
        train(config, data=data, output=tmp_path, network=TINY)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.isfinite(v).all() for v in kept.values())


def test_losses_by_hand() -> None:
    zero, half = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
    assert charbonnier(zero, half).item() == pytest.approx(0.5, abs=1e-5)
    truth = torch.zeros(1, 2, 4, 4)
    truth[:, 0, :, 3] = 2.0  # leads out of the frame: nothing is asked there
    flow = torch.zeros(1, 2, 4, 4)
    flow[:, 1] = 3.0
    loss, error = flow_loss(flow, truth)
    assert error.item() == pytest.approx(3.0, abs=1e-4)
    assert loss.item() == pytest.approx(6.0, abs=1e-4)  # a still pixel weighs 1 / 0.5


def test_command_line(sources: tuple[Path, Path], tmp_path: Path) -> None:
    options = ["--iterations", "1", "--flow-iterations", "1", "--batch", "1", "--threads", "1"]
    options += [
        "--length",
        "2",
        "--crop",
        "16",
        "--reduction",
        "1",
        "--output",
        str(tmp_path / "run"),
    ]
    folders = ["--photos", str(sources[0]), "--videos", str(sources[1])]
    result = CliRunner().invoke(main, [*folders, *options])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "model.safetensors").exists()
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 1
    assert "at least one photograph" in result.output
