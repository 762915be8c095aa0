"""Tests that tiny runs learn, resume exactly after any interruption, and report errors early."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from rbvsr_deploy.checkpoint import load_checkpoint
from rbvsr_deploy.errors import CheckpointError, MediaError, RbvsrError
from rbvsr_deploy.model import PUBLISHED, RealBasicVSR, RealBasicVSRConfig
from rbvsr_deploy.training.config import TrainingConfig, load_config
from rbvsr_deploy.training.data.sources import SourceConfig
from rbvsr_deploy.training.data.training_set import Sample, TrainingSet
from rbvsr_deploy.training.discriminator import Discriminator
from tests.support.training_runs import changed, lines, saved, state_of, train

ROOT = Path(__file__).parents[2]


def stop_at(phase: str, iteration: int, how: Callable[[], None]) -> Callable[[str, int, int], None]:
    def on_step(name: str, done: int, total: int) -> None:
        if (name, done) == (phase, iteration):
            how()

    return on_step


@pytest.fixture(scope="session")
def whole(config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    train(config, output=folder)
    return folder


# ------------------------------------------------------------------------------------ interruption


def assert_same_run(folder: Path, whole: Path) -> None:
    """Assert that networks, averages, spectral norms, optimisers and the log are identical."""
    expected, result = saved(whole), saved(folder)
    assert expected.keys() == result.keys()
    differing = [name for name in expected if not torch.equal(expected[name], result[name])]
    assert differing == []
    assert len([name for name in expected if "/optimizer/discriminator/" in name]) > 20
    assert lines(folder) == lines(whole)
    assert [(v["phase"], v["iteration"]) for v in lines(folder)] == [
        *(("flow", i) for i in (1, 2, 3)),
        *(("restoration", i) for i in (1, 2, 3, 4)),
    ]


@pytest.mark.slow
def test_a_killed_run_resumes_exactly(config: TrainingConfig, whole: Path, tmp_path: Path) -> None:
    """After kill -9 of a separate process, log lines beyond the checkpoint are discarded."""
    program = """
import os, signal, sys
import msgspec, torch
from pathlib import Path
from rbvsr_deploy.training.config import TrainingConfig
from rbvsr_deploy.training.run import train

def kill(phase, done, total):
    if (phase, done) == ("restoration", 3):  # its own checkpoint is not written yet
        os.kill(os.getpid(), signal.SIGKILL)

config = msgspec.json.decode(sys.argv[1], type=TrainingConfig)
train(config, output=Path(sys.argv[2]), device="cpu", on_step=kill)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, msgspec.json.encode(config).decode(), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert state_of(tmp_path) == ("restoration", 2)
    assert lines(tmp_path)[-1]["iteration"] == 3
    train(config, output=tmp_path)
    assert_same_run(tmp_path, whole)


class PowerCutError(Exception):
    """Raised to simulate a power cut."""


@pytest.mark.slow
def test_a_run_interrupted_in_its_first_phase_resumes_exactly(
    config: TrainingConfig, whole: Path, tmp_path: Path
) -> None:
    """The flow network, its optimiser and its clips resume too."""

    def cut() -> None:
        raise PowerCutError

    with pytest.raises(PowerCutError):
        train(config, output=tmp_path, on_step=stop_at("flow", 3, cut))
    assert state_of(tmp_path) == ("flow", 2)
    train(config, output=tmp_path)
    assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_signals_end_the_iteration_and_save_it(
    config: TrainingConfig, whole: Path, tmp_path: Path
) -> None:
    """Termination, hang-up and Ctrl-C write a checkpoint first, even if none is due, and the
    handlers of the caller are restored.
    """
    config = changed(config, "output.checkpoint_every=1000")
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    for number, error, place in zip(
        numbers,
        (SystemExit, SystemExit, KeyboardInterrupt),
        (("flow", 1), ("flow", 2), ("restoration", 2)),
        strict=True,
    ):

        def handler(number: int, frame: object) -> None:
            raise AssertionError("the handler from before the training")

        before = signal.signal(number, handler)
        try:
            send = partial(os.kill, os.getpid(), number)
            with pytest.raises(error) as stopped:
                train(config, output=tmp_path, on_step=stop_at(*place, send))
            assert signal.getsignal(number) is handler
        finally:
            signal.signal(number, before)
        if error is SystemExit:
            assert stopped.value.args == (128 + number,)
        assert state_of(tmp_path) == place
    train(config, output=tmp_path)
    assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_ignored_signals_do_not_end_a_training(config: TrainingConfig, tmp_path: Path) -> None:
    """Under nohup, a closed terminal does not."""
    config = changed(config, "flow.iterations=0", "iterations=2")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        send = partial(os.kill, os.getpid(), signal.SIGHUP)
        train(config, output=tmp_path, on_step=stop_at("restoration", 1, send))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert state_of(tmp_path) == ("restoration", 2)


@pytest.mark.slow
def test_a_finished_run_can_be_extended(config: TrainingConfig, tmp_path: Path) -> None:
    """Some iterations first and the rest later give the same result as all at once, if the learning
    rate does not depend on their number.
    """
    config = changed(config, 'optimizer.schedule="constant"', "flow.iterations=0", "iterations=2")
    train(config, output=tmp_path / "whole")
    train(changed(config, "iterations=1"), output=tmp_path / "parts")
    train(config, output=tmp_path / "parts")
    expected, result = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert all(torch.equal(expected[name], result[name]) for name in expected)


@pytest.mark.slow
def test_changes_when_a_run_resumes(
    config: TrainingConfig, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Keys about the pace of learning and the hardware may change, which is logged with the old and
    the new value; keys that do not affect the weights may change without a message.
    """
    folder = shutil.copytree(whole, tmp_path / "run")
    quiet = ("output.log_every=7", "validation.clips=2", "workers=1", "checkpointing=true")
    train(changed(config, *quiet), output=folder)
    assert "the run so far" not in caplog.text
    changes = ("batch=1", "accumulate=2", "optimizer.learning_rate=0.001", "iterations=5")
    train(changed(config, *changes, 'optimizer.schedule="constant"'), output=folder)
    assert (
        "the run so far had accumulate = 1, not 2, and batch = 2, not 1, and iterations = 4, "
        'not 5, and optimizer.learning_rate = 0.002, not 0.001, and optimizer.schedule = "cosine", '
        'not "constant"' in caplog.text
    )
    assert lines(folder)[-1]["generator_rate"] == 0.001
    assert state_of(folder) == ("restoration", 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.crop=24", r"a run with data\.crop = 16, not 24: repeat"),
        ("losses.gan_weight=0.1", r"a run with losses\.gan_weight = 0\.05, not 0\.1: repeat"),
        ("optimizer.betas=[0.5, 0.9]", r"optimizer\.betas = \[0\.9, 0\.99\], not \[0\.5, 0\.9\]:"),
        ("optimizer.ema_decay=0.5", r"optimizer\.ema_decay = 0\.95, not 0\.5: repeat"),
        ("seed=1", r"a run with seed = 0, not 1: repeat"),
        ("batch=1", r"a run with 2 clips per iteration, but this one has 1 \("),
        ("accumulate=3", r"a run with 2 clips per iteration, but this one has 6 \("),
    ],
)
def test_another_recipe_is_refused(
    config: TrainingConfig, whole: Path, change: str, message: str
) -> None:
    """The weights depend on the clips, losses, averages and batch size of the run; the message
    names the key and both values.
    """
    before = (whole / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match=message):
        train(changed(config, change), output=whole)
    assert (whole / "config.json").read_bytes() == before


def test_a_damaged_checkpoint_is_refused(config: TrainingConfig, tmp_path: Path) -> None:
    """The message is one sentence, not that of torch."""
    (tmp_path / "latest.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(CheckpointError, match=r"latest\.pth' is damaged or not a checkpoint"):
        train(config, output=tmp_path)


@pytest.mark.slow
def test_a_full_disk_keeps_the_previous_checkpoint(
    config: TrainingConfig, whole: Path, tmp_path: Path
) -> None:
    """It gives one sentence and no incomplete file; with free space, the same command resumes. A
    limit on file sizes simulates the full disk: to the program both look the same.
    """
    config = changed(config, "output.pictures_every=0")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))

    try:
        with pytest.raises(RbvsrError, match=r"latest\.pth' cannot be written \(.*\): free some"):
            train(config, output=tmp_path, on_step=stop_at("restoration", 2, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert state_of(tmp_path) == ("restoration", 1)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
    train(config, output=tmp_path)
    assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_two_runs_cannot_share_a_folder(config: TrainingConfig, tmp_path: Path) -> None:
    def start_another() -> None:
        with pytest.raises(RbvsrError, match="another run is training in"):
            train(config, output=tmp_path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, output=tmp_path, on_step=stop_at("flow", 1, start_another))
    before = lines(tmp_path)
    train(config, output=tmp_path, on_step=stop_at("flow", 2, lambda: None))
    assert lines(tmp_path)[: len(before)] == before


def test_a_log_that_is_a_link_is_not_followed(config: TrainingConfig, tmp_path: Path) -> None:
    file = tmp_path / "important.txt"
    file.write_text("important\n")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.jsonl").symlink_to(file)
    with pytest.raises(RbvsrError, match=r"log\.jsonl' cannot be written"):
        train(config, output=folder)
    assert file.read_text() == "important\n"


def test_a_folder_that_cannot_be_written_is_refused(config: TrainingConfig, tmp_path: Path) -> None:
    """The error comes before any slow step."""
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RbvsrError, match=r"cannot be written .*choose another output folder"):
            train(config, output=folder)


# ---------------------------------------------------------------------------------------- learning


class OneClip(TrainingSet):
    """Gives the same clip for every index, so that the loss does not depend on the draw."""

    _sample: Sample | None = None

    def sample(self, index: int, *, stream: int = 0, motion_only: bool = False) -> Sample:
        if self._sample is None:
            self._sample = super().sample(3, stream=stream, motion_only=motion_only)
        return self._sample


@pytest.mark.slow
def test_losses_fall(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flow error, output loss and cleaning loss fall on a fixed clip, with a discriminator."""
    monkeypatch.setattr("rbvsr_deploy.training.clips.TrainingSet", OneClip)
    monkeypatch.setattr("rbvsr_deploy.training.phases.TrainingSet", OneClip)
    config = changed(
        config,
        "flow.iterations=12",
        "iterations=14",
        "flow.learning_rate=0.01",
        "optimizer.learning_rate=0.005",
        "output.checkpoint_every=1000",
        "output.pictures_every=0",
    )
    train(config, output=tmp_path)
    flow = [line["loss"] for line in lines(tmp_path) if line["phase"] == "flow"]
    pixel, cleaning, judge = (
        [line[name] for line in lines(tmp_path) if line["phase"] == "restoration"]
        for name in ("pixel", "cleaning", "discriminator")
    )
    assert flow[-1] < 0.9 * flow[0]
    assert pixel[-1] < 0.8 * pixel[0]
    assert cleaning[-1] < 0.85 * cleaning[0]
    assert judge[0] == pytest.approx(2 * math.log(2), abs=0.1)
    assert judge[-1] < judge[0]


def test_a_run_writes_checkpoints_for_export(whole: Path) -> None:
    """``rbvsr-export`` reads the averaged generator of ``latest.pth`` and ``model.safetensors``."""
    checkpoint = torch.load(whole / "latest.pth", weights_only=True)
    prefixes = {name.split(".")[0] for name in checkpoint["state_dict"]}
    assert prefixes == {"generator", "generator_ema", "discriminator", "step_counter"}
    assert checkpoint["state_dict"]["step_counter"].tolist() == [4.0]
    for name in ("latest.pth", "model.safetensors"):
        model = load_checkpoint(whole / name).model
        for key, value in model.state_dict().items():
            assert torch.equal(value, checkpoint["state_dict"][f"generator_ema.{key}"]), key
    assert not [path for path in whole.iterdir() if path.name.endswith(".part")]


@pytest.mark.slow
def test_the_average_follows_the_published_rule(config: TrainingConfig, tmp_path: Path) -> None:
    """After each iteration, average = 0.9 average + 0.1 generator; a frozen flow network is copied
    and does not change.
    """
    config = changed(
        config, "flow.iterations=1", "flow.factor=0", "iterations=2", "optimizer.ema_decay=0.9"
    )
    generators, averages = [], []

    def read(phase: str, done: int, total: int) -> None:
        previous = torch.load(tmp_path / "latest.pth", weights_only=True) if done > 1 else None
        if phase == "restoration" and previous is not None:
            generators.append(previous["state_dict"])

    train(config, output=tmp_path, on_step=read)
    generators.append(torch.load(tmp_path / "latest.pth", weights_only=True)["state_dict"])
    before, after = generators
    for name in (k.removeprefix("generator.") for k in before if k.startswith("generator.")):
        now, average = after[f"generator.{name}"], after[f"generator_ema.{name}"]
        if "spynet" in name:
            assert torch.equal(now, before[f"generator.{name}"]), name
            assert torch.equal(now, average), name
        else:
            expected = 0.9 * before[f"generator_ema.{name}"] + 0.1 * now
            torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-7)
    averages = [k for k in after if k.startswith("generator_ema.")]
    assert len(averages) == len([k for k in after if k.startswith("generator.")])


# -------------------------------------------------------------------------------- starting weights


def published_checkpoint(path: Path) -> dict[str, Tensor]:
    """Write random values under the published names and shapes, wrapped as published."""
    torch.manual_seed(1)
    generator = RealBasicVSR(PUBLISHED).state_dict()
    weights = {f"generator.{name}": value for name, value in generator.items()}
    weights |= {f"generator_ema.{name}": value * 1.001 for name, value in generator.items()}
    weights |= {f"discriminator.{k}": v for k, v in Discriminator().state_dict().items()}
    weights["step_counter"] = torch.tensor([300_000.0])
    weights["perceptual_loss.vgg.mean"] = torch.zeros(1, 3, 1, 1)
    weights["perceptual_loss.vgg.vgg_layers.0.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save({"meta": {"epoch": 1}, "state_dict": weights}, path)
    return weights


@pytest.mark.slow
def test_a_published_checkpoint_starts_the_second_stage(
    clips: list[SourceConfig], tmp_path: Path
) -> None:
    """Generator, average and discriminator are loaded strictly and trained further; the result is
    again a checkpoint of the published size.
    """
    weights = published_checkpoint(tmp_path / "published.pth")
    config = load_config(
        "published-stage2",
        changes=[
            "iterations=1",
            "workers=0",
            "data.length=2",
            "data.crop=8",
            "losses.perceptual_weight=0",
            f"load_from={tmp_path / 'published.pth'}",
        ],
        sources=clips[:1],
    )
    train(config, output=tmp_path / "run")
    after = torch.load(tmp_path / "run" / "latest.pth", weights_only=True)["state_dict"]
    kept = {k for k in weights if not k.startswith("perceptual_loss.")}
    assert after.keys() == kept
    for name in kept - {"step_counter"}:
        moved = (after[name] - weights[name]).abs().max()
        if "spynet" in name:  # frozen; the average's is a copy
            assert torch.equal(after[name], weights[name.replace("_ema", "")]), name
        elif name.endswith(("weight", "bias", "weight_orig")):
            # One step of Adam is at most its learning rate; the average moves by a thousandth of
            # its distance from the generator.
            assert moved < (2e-3 if name.startswith("generator_ema.") else 1.1e-4), name
    assert load_checkpoint(tmp_path / "run" / "latest.pth").model.config == PUBLISHED


def test_a_checkpoint_of_another_size_is_refused(
    config: TrainingConfig, whole: Path, tmp_path: Path
) -> None:
    """The message names the sizes that differ, for the generator and for the discriminator."""
    start = f'load_from="{whole / "latest.pth"}"'
    with pytest.raises(CheckpointError, match=r"differs in size .*mid_channels 8 instead of 4"):
        train(changed(config, start, "network.mid_channels=4"), output=tmp_path)
    with pytest.raises(CheckpointError, match=r"discriminator.*differs in size.*conv_0\.bias has"):
        train(changed(config, start, "discriminator_channels=2"), output=tmp_path)
    torch.save({"state_dict": {"layer.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="contains no RealBasicVSR generator"):
        train(changed(config, f'load_from="{tmp_path / "other.pth"}"'), output=tmp_path)


@pytest.mark.parametrize("layout", ["mmediting", "basicsr", "checkpoint"])
def test_spynet_is_read_in_every_spelling(
    config: TrainingConfig, tmp_path: Path, layout: str
) -> None:
    """It is read from the files of mmediting and BasicSR and from checkpoints, and stays frozen."""
    torch.manual_seed(5)
    other = RealBasicVSR(config.network)
    spynet = {k: v for k, v in other.basicvsr.spynet.state_dict().items() if "basic_module" in k}
    file: dict[str, Any] = dict(spynet)
    if layout == "basicsr":
        renamed = {}
        for name, value in spynet.items():
            head, number, _, kind = name.rsplit(".", 3)
            renamed[f"{head}.{2 * int(number)}.{kind}"] = value
        file = {"params": renamed}
    elif layout == "checkpoint":
        raw = {f"generator.{k}": v + 1 for k, v in other.state_dict().items()}
        file = {
            "state_dict": raw | {f"generator_ema.{k}": v for k, v in other.state_dict().items()}
        }
    torch.save(file, tmp_path / "flow.pth")
    path = json.dumps(str(tmp_path / "flow.pth"))
    start = ("flow.iterations=0", "flow.factor=0", "iterations=1", f"flow.weights={path}")
    train(changed(config, *start), output=tmp_path / "run")
    after = torch.load(tmp_path / "run" / "latest.pth", weights_only=True)["state_dict"]
    for name, value in spynet.items():
        for prefix in ("generator", "generator_ema"):
            assert torch.equal(after[f"{prefix}.basicvsr.spynet.{name}"], value), name


# ----------------------------------------------------------------------------- errors and outputs


def test_a_flow_network_never_stays_random(
    config: TrainingConfig, clips: list[SourceConfig], tmp_path: Path
) -> None:
    """A network frozen without weights or a phase of its own was a trap of early public recipes."""
    message = "flow network would stay random"
    with pytest.raises(RbvsrError, match=message):
        train(changed(config, "flow.iterations=0", "flow.factor=0"), output=tmp_path)
    videos = msgspec.structs.replace(config.data, sources=(clips[1],))
    without_photos = msgspec.structs.replace(config, data=videos)
    with pytest.raises(RbvsrError, match=message):
        train(changed(without_photos, "flow.factor=0"), output=tmp_path)


def test_bad_data_is_refused_before_the_first_iteration(
    config: TrainingConfig, sources: tuple[Path, Path], tmp_path: Path
) -> None:
    """This covers empty folders, short clips and large crops, also for validation sources."""
    empty = tmp_path / "empty"
    empty.mkdir()
    run = tmp_path / "run"

    def refused(message: str, *changes: str) -> None:
        with pytest.raises(MediaError, match=message):
            train(changed(config, *changes), output=run)
        assert not (run / "latest.pth").exists()

    refused("contains no videos", f'data.sources=[{{"kind": "videos", "path": "{empty}"}}]')
    refused("does not exist", 'data.sources=[{"kind": "photos", "path": "/nowhere"}]')
    refused("crops of 256x256", "data.crop=64")
    videos = f'[{{"kind": "videos", "path": "{sources[1]}"}}]'
    refused("10 frames, but 15 are needed", f"data.sources={videos}", "data.length=30")
    refused("does not exist", 'validation.sources=[{"kind": "photos", "path": "/nowhere"}]')


def test_missing_weights_and_precision(config: TrainingConfig, tmp_path: Path) -> None:
    """Missing weights of VGG19, and a precision that the device lacks, are refused."""
    absent = json.dumps(str(tmp_path / "vgg19.pth"))
    vgg = ("losses.perceptual_weight=1", f"losses.vgg={absent}")
    with pytest.raises(CheckpointError, match=r"vgg19\.pth' is not a file"):
        train(changed(config, *vgg), output=tmp_path)
    with pytest.raises(RbvsrError, match="float16 needs a GPU"):
        train(changed(config, 'precision="float16"'), output=tmp_path)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(
    config: TrainingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The clips are saved with the weights they were used with, the message names the file, and the
    checkpoint does not change.
    """
    from rbvsr_deploy.training import phases
    from rbvsr_deploy.training.losses import charbonnier

    losses: list[float] = []

    def broken(output: Tensor, target: Tensor) -> Tensor:
        losses.append(charbonnier(output, target).item())  # two in an iteration
        return charbonnier(output, target) * (float("nan") if len(losses) > 4 else 1.0)

    monkeypatch.setattr(phases, "charbonnier", broken)
    config = changed(config, "flow.iterations=0")
    with pytest.raises(RbvsrError, match=r"not finite at iteration 2 of restoration.*") as error:
        train(config, output=tmp_path)
    (path,) = tmp_path.glob("not_finite_*.pt")
    assert f"'{path}'" in str(error.value)
    wrong = torch.load(path, weights_only=True)
    assert wrong["batches"][0]["index"].tolist() == [4, 5]
    latest = torch.load(tmp_path / "latest.pth", weights_only=True)
    assert latest["run"]["state"]["iteration"] == 2
    for network in ("generator", "generator_ema", "discriminator"):
        for name, value in wrong[network].items():
            if name.endswith(("_u", "_v")):  # of spectral norms, which every pass refines
                continue
            assert torch.equal(value, latest["state_dict"][f"{network}.{name}"]), name

    # The losses are computed again from the file, as in docs/training.md.
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert "run/not_finite_restoration_123_0.pt" in program
    exec(program.replace("run/not_finite_restoration_123_0.pt", str(path)), {})
    printed = [float(value) for value in capsys.readouterr().out.split()]
    assert printed == pytest.approx(losses[4:6], rel=1e-6)


@pytest.mark.slow
def test_validation_measures_the_average_on_clips_held_out(
    config: TrainingConfig, sources: tuple[Path, Path], tmp_path: Path
) -> None:
    """PSNR is measured every k iterations and at the end, next to that of bicubic enlargement,
    which an untrained network does not reach.
    """
    held_out = f'[{{"kind": "videos", "path": "{sources[1]}"}}]'
    config = changed(
        config,
        "flow.iterations=0",
        f"validation.sources={held_out}",
        "validation.every=2",
        "validation.clips=1",
        "iterations=3",
    )
    train(config, output=tmp_path)
    measured = [line for line in lines(tmp_path) if "validation_psnr" in line]
    assert [line["iteration"] for line in measured] == [2, 3]
    assert len({line["validation_bicubic"] for line in measured}) == 1  # the same clips
    for line in measured:
        assert 5 < line["validation_psnr"] < line["validation_bicubic"] < 60


def test_kept_checkpoints(whole: Path) -> None:
    """In addition to the latest, every second iteration of the main phase is kept."""
    assert sorted(p.name for p in whole.glob("*.pth")) == [
        "iteration_2.pth",
        "iteration_4.pth",
        "latest.pth",
    ]


def test_tensorboard_has_curves_and_strips(config: TrainingConfig, whole: Path) -> None:
    """The curves are those of the log. A strip shows a frame degraded (enlarged without smoothing),
    cleaned, as output and as target, each as large as the ground truth.
    """
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(
        str(whole / "tensorboard" / "restoration"), size_guidance={"images": 0}
    )
    events.Reload()
    logged = [line for line in lines(whole) if line["phase"] == "restoration"]
    for name in ("pixel", "cleaning", "gan", "discriminator", "psnr"):
        curve = events.Scalars(name)
        assert [point.step for point in curve] == [1, 2, 3, 4]
        values = [line[name] for line in logged]
        assert [point.value for point in curve] == pytest.approx(values, rel=1e-4)
    strips = events.Images("clip")
    assert [strip.step for strip in strips] == [2, 4]
    encoded = np.frombuffer(strips[-1].encoded_image_string, np.uint8)
    strip = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    assert strip is not None
    degraded, cleaned, output, wanted = np.split(strip, 4, axis=1)
    clips = TrainingSet(config.data, config.degradation, seed=config.seed)
    clip = clips.sample(6, stream=1)  # the first of the fourth pair
    middle = config.data.length // 2
    assert np.array_equal(wanted, clip.sharpened[middle])
    enlarged = clip.degraded[middle].repeat(4, axis=0).repeat(4, axis=1)
    assert np.array_equal(degraded, enlarged)
    assert not np.array_equal(cleaned, degraded)
    assert np.array_equal(cleaned, cleaned[::4, ::4].repeat(4, axis=0).repeat(4, axis=1))
    assert not np.array_equal(output[::4, ::4].repeat(4, axis=0).repeat(4, axis=1), output)


def test_a_run_follows_its_configuration(config: TrainingConfig, whole: Path) -> None:
    """The run folder contains the configuration, and the checkpoint has its sizes."""
    written = json.loads((whole / "config.json").read_text())
    assert msgspec.convert(written, TrainingConfig) == config
    model = load_checkpoint(whole / "latest.pth").model
    assert isinstance(model.config, RealBasicVSRConfig)
    assert model.config == config.network


def test_weights_that_blow_up_stop_the_run(config: TrainingConfig, tmp_path: Path) -> None:
    """A NaN flow is detected before it is used for sampling, which would crash torch on a CPU."""
    config = changed(config, "flow.iterations=0", "optimizer.learning_rate=1e30")
    with pytest.raises(RbvsrError, match="not finite at iteration 1 of restoration"):
        train(config, output=tmp_path, device="cpu")
    assert len(list(tmp_path.glob("not_finite_*.pt"))) == 1
