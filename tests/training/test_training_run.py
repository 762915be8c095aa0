"""Tiny runs: they learn, they go on exactly after any end, and what is wrong is said beforehand."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from rbvsr_deploy.checkpoint import load_checkpoint
from rbvsr_deploy.errors import CheckpointError, MediaError, RbvsrError
from rbvsr_deploy.model import PUBLISHED, RealBasicVSR, RealBasicVSRConfig
from rbvsr_deploy.training.config import TrainingConfig, load_config
from rbvsr_deploy.training.data import Sample, TrainingSet
from rbvsr_deploy.training.discriminator import Discriminator
from rbvsr_deploy.training.run import train
from rbvsr_deploy.training.sources import SourceConfig

SMALL = (
    "iterations=4",
    "workers=0",
    "data.length=4",
    "data.crop=16",
    "flow.iterations=3",
    "flow.batch=2",
    "losses.gan_weight=0.05",
    "discriminator_channels=4",
    "output.checkpoint_every=1",
    "output.log_every=1",
    "output.pictures_every=0",
)


@pytest.fixture(scope="session")
def clips(sources: tuple[Path, Path]) -> list[SourceConfig]:
    photos, videos = sources
    return [
        SourceConfig(kind="photos", path=str(photos)),
        SourceConfig(kind="videos", path=str(videos)),
    ]


@pytest.fixture(scope="session")
def config(clips: list[SourceConfig]) -> TrainingConfig:
    """Both phases, with a discriminator, in a few iterations."""
    return load_config("tiny-stage1", changes=SMALL, sources=clips)


def changed(config: TrainingConfig, *changes: str) -> TrainingConfig:
    """As --set does it."""
    values = msgspec.to_builtins(config)
    for change in changes:
        keys, _, value = change.partition("=")
        *sections, key = keys.split(".")
        table = values
        for section in sections:
            table = table[section]
        table[key] = json.loads(value)
    return msgspec.convert(values, TrainingConfig)


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log, without what depends on the time it took."""
    read = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "waited")} for line in read]


def tensors(value: object, name: str = "") -> dict[str, Tensor]:
    """Every tensor in nested dictionaries and lists, by its place."""
    if isinstance(value, Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
    return {
        place: tensor
        for key, inner in items
        if isinstance(inner, Tensor | dict | list)
        for place, tensor in tensors(inner, f"{name}/{key}").items()
    }


def saved(folder: Path) -> dict[str, Tensor]:
    """Networks, optimisers and random state of the latest checkpoint."""
    return tensors(torch.load(folder / "latest.pth", weights_only=True))


def state_of(folder: Path) -> tuple[str, int]:
    """Phase and iteration of the latest checkpoint."""
    state = torch.load(folder / "latest.pth", weights_only=True)["run"]["state"]
    return state["phase"], state["iteration"]


def stop_at(phase: str, iteration: int, how: Callable[[], None]) -> Callable[[str, int, int], None]:
    def on_step(name: str, done: int, total: int) -> None:
        if (name, done) == (phase, iteration):
            how()

    return on_step


@pytest.fixture(scope="session")
def whole(config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train(config, output=folder)
    torch.set_num_threads(before)
    return folder


# ------------------------------------------------------------------------------------ interruption


def assert_same_run(folder: Path, whole: Path) -> None:
    """Bit for bit: networks, averages, spectral norms, optimisers; and the log."""
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


def test_a_run_that_was_killed_goes_on_exactly(
    config: TrainingConfig, whole: Path, tmp_path: Path
) -> None:
    """kill -9 in a process of its own; what the log has beyond the checkpoint is dropped."""
    program = """
import os, signal, sys
import msgspec, torch
from pathlib import Path
from rbvsr_deploy.training.config import TrainingConfig
from rbvsr_deploy.training.run import train

def kill(phase, done, total):
    if (phase, done) == ("restoration", 3):  # its own checkpoint is not written yet
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
config = msgspec.json.decode(sys.argv[1], type=TrainingConfig)
train(config, output=Path(sys.argv[2]), on_step=kill)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, msgspec.json.encode(config).decode(), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert state_of(tmp_path) == ("restoration", 2)
    assert lines(tmp_path)[-1]["iteration"] == 3
    train(config, output=tmp_path)
    assert_same_run(tmp_path, whole)


class PowerCutError(Exception):
    """Comes out of nowhere."""


def test_a_run_cut_in_its_first_phase_goes_on_exactly(
    config: TrainingConfig, whole: Path, tmp_path: Path
) -> None:
    """The flow network, its optimiser and its clips go on too."""

    def cut() -> None:
        raise PowerCutError

    with pytest.raises(PowerCutError):
        train(config, output=tmp_path, on_step=stop_at("flow", 3, cut))
    assert state_of(tmp_path) == ("flow", 2)
    train(config, output=tmp_path)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_ends_the_iteration_and_saves_it(
    config: TrainingConfig, whole: Path, tmp_path: Path, number: int, error: type[BaseException]
) -> None:
    """SIGTERM and Ctrl-C write the checkpoint first, whenever the next one would have been due; the
    handlers of the caller are put back.
    """
    config = changed(config, "output.checkpoint_every=1000")
    before = signal.getsignal(number)
    on_step = stop_at("restoration", 2, lambda: os.kill(os.getpid(), number))
    with pytest.raises(error) as stopped:
        train(config, output=tmp_path, on_step=on_step)
    if error is SystemExit:
        assert stopped.value.args == (128 + signal.SIGTERM,)
    assert signal.getsignal(number) is before
    assert state_of(tmp_path) == ("restoration", 2)
    train(config, output=tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_finished_run_may_be_made_longer(
    config: TrainingConfig, whole: Path, tmp_path: Path
) -> None:
    """Fewer iterations first and the rest later are the same as all at once, if the learning rate
    does not depend on their number.
    """
    config = changed(config, 'optimizer.schedule="constant"', "flow.iterations=0")
    train(config, output=tmp_path / "whole")
    train(changed(config, "iterations=2"), output=tmp_path / "parts")
    train(config, output=tmp_path / "parts")
    expected, result = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert all(torch.equal(expected[name], result[name]) for name in expected)


def test_another_recipe_is_refused(config: TrainingConfig, whole: Path) -> None:
    """What changes the clips or the losses belongs into another folder; the keys are named."""
    other = changed(config, "losses.gan_weight=0.1", "data.crop=24")
    with pytest.raises(CheckpointError, match=r"other values of data\.crop, losses\.gan_weight:"):
        train(other, output=whole)


def test_a_damaged_checkpoint_is_refused(config: TrainingConfig, tmp_path: Path) -> None:
    """One sentence instead of torch's."""
    (tmp_path / "latest.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(CheckpointError, match=r"latest\.pth' is no checkpoint"):
        train(config, output=tmp_path)


# ---------------------------------------------------------------------------------------- learning


class OneClip(TrainingSet):
    """The same clip again and again, so that the loss does not depend on the draw."""

    _sample: Sample | None = None

    def sample(self, index: int, *, stream: int = 0, motion_only: bool = False) -> Sample:
        if self._sample is None:
            self._sample = super().sample(3, stream=stream, motion_only=motion_only)
        return self._sample


def test_losses_fall(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flow error, and output and cleaning loss beside a discriminator, on a clip that stays."""
    monkeypatch.setattr("rbvsr_deploy.training.clips.TrainingSet", OneClip)
    monkeypatch.setattr("rbvsr_deploy.training.phases.TrainingSet", OneClip)
    config = changed(
        config,
        "flow.iterations=20",
        "iterations=24",
        "flow.learning_rate=0.01",
        "optimizer.learning_rate=0.005",
        "output.checkpoint_every=1000",
    )
    train(config, output=tmp_path)
    flow = [line["loss"] for line in lines(tmp_path) if line["phase"] == "flow"]
    pixel, cleaning, judge = (
        [line[name] for line in lines(tmp_path) if line["phase"] == "restoration"]
        for name in ("pixel", "cleaning", "discriminator")
    )
    assert flow[-1] < 0.9 * flow[0]
    assert pixel[-1] < 0.8 * pixel[0]
    assert cleaning[-1] < 0.8 * cleaning[0]
    assert judge[0] == pytest.approx(2 * math.log(2), abs=0.1)
    assert judge[-1] < judge[0]


def test_what_a_run_leaves_is_a_checkpoint(whole: Path) -> None:
    """``latest.pth`` and ``model.safetensors`` are the averaged generator to ``rbvsr-export``."""
    checkpoint = torch.load(whole / "latest.pth", weights_only=True)
    prefixes = {name.split(".")[0] for name in checkpoint["state_dict"]}
    assert prefixes == {"generator", "generator_ema", "discriminator", "step_counter"}
    assert checkpoint["state_dict"]["step_counter"].tolist() == [4.0]
    for name in ("latest.pth", "model.safetensors"):
        model = load_checkpoint(whole / name).model
        for key, value in model.state_dict().items():
            assert torch.equal(value, checkpoint["state_dict"][f"generator_ema.{key}"]), key
    assert not [path for path in whole.iterdir() if path.name.endswith(".part")]


def test_the_average_follows_the_published_rule(config: TrainingConfig, tmp_path: Path) -> None:
    """average = 0.9 average + 0.1 generator after each iteration; a frozen flow network is a copy
    and does not move.
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


def first_gradients(folder: Path) -> dict[str, Tensor]:
    """After one iteration Adam's first moment is a tenth of the gradient."""
    checkpoint = torch.load(folder / "latest.pth", weights_only=True)
    return {
        f"{network}/{i}": state["exp_avg"] / 0.1
        for network, optimizer in checkpoint["optimizer"].items()
        for i, state in optimizer["state"].items()
    }


def assert_same_gradients(one: Path, other: Path) -> None:
    expected, result = first_gradients(one), first_gradients(other)
    assert expected.keys() == result.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(result[name], gradient, rtol=0, atol=1e-6)


# Few pixels: the sums over them are in float32, whose rounding is not the matter here.
ONE_ITERATION = (
    "flow.iterations=0",
    "iterations=1",
    "optimizer.clip_norm=null",
    "data.length=2",
    "data.crop=8",
)


@pytest.fixture(scope="module")
def double_batch(config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One iteration of one process with two clips."""
    folder = tmp_path_factory.mktemp("double")
    train(changed(config, *ONE_ITERATION, "batch=2"), output=folder)
    return folder


def test_checkpointed_gradients_are_the_same(
    config: TrainingConfig, double_batch: Path, tmp_path: Path
) -> None:
    """Features computed again are those that were not kept."""
    train(changed(config, *ONE_ITERATION, "batch=2", "checkpointing=true"), output=tmp_path)
    assert_same_gradients(double_batch, tmp_path)


def test_accumulated_gradients_are_those_of_the_large_batch(
    config: TrainingConfig, tmp_path: Path
) -> None:
    """Two batches of one clip are one batch of two, where no spectral norm counts the passes."""
    config = changed(config, *ONE_ITERATION, "losses.gan_weight=0")
    one, two = tmp_path / "one", tmp_path / "two"
    train(changed(config, "batch=2"), output=one)
    train(changed(config, "batch=1", "accumulate=2"), output=two)
    assert_same_gradients(one, two)


def test_two_processes_are_one_with_the_double_batch(
    config: TrainingConfig, double_batch: Path, tmp_path: Path
) -> None:
    """torchrun, gloo: the same gradients of generator and discriminator, within 1e-6; one process
    writes.
    """
    recipe = changed(config, *ONE_ITERATION, "batch=1")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, msgspec, torch\n"
        "from pathlib import Path\n"
        "from rbvsr_deploy.training.config import TrainingConfig\n"
        "from rbvsr_deploy.training.run import train\n"
        "torch.set_num_threads(1)\n"
        "config = msgspec.json.decode(sys.argv[1], type=TrainingConfig)\n"
        "train(config, output=Path(sys.argv[2]), device='cpu')\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [program, msgspec.json.encode(recipe).decode(), tmp_path / "run"]
    done = subprocess.run(
        [*torchrun, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert_same_gradients(double_batch, tmp_path / "run")
    assert any(name.startswith("discriminator/") for name in first_gradients(tmp_path / "run"))
    assert lines(tmp_path / "run")[0]["loss"] == pytest.approx(lines(double_batch)[0]["loss"])
    assert len(lines(tmp_path / "run")) == 1


def test_bfloat16_is_close_and_keeps_float32_weights(
    config: TrainingConfig, double_batch: Path, tmp_path: Path
) -> None:
    """Convolutions in bfloat16; pictures, weights and losses stay float32."""
    train(changed(config, *ONE_ITERATION, "batch=2", 'precision="bfloat16"'), output=tmp_path)
    expected, result = lines(double_batch)[0], lines(tmp_path)[0]
    assert result["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert result["loss"] != expected["loss"]
    assert {v.dtype for k, v in saved(tmp_path).items() if "/random/" not in k} == {torch.float32}


# -------------------------------------------------------------------------------- starting weights


def published_checkpoint(path: Path) -> dict[str, Tensor]:
    """Random values under the published names and shapes, wrapped as published."""
    torch.manual_seed(1)
    weights = {}
    for prefix in ("generator", "generator_ema"):
        for name, value in RealBasicVSR(PUBLISHED).state_dict().items():
            weights[f"{prefix}.{name}"] = value
    weights |= {f"discriminator.{k}": v for k, v in Discriminator().state_dict().items()}
    weights["step_counter"] = torch.tensor([300_000.0])
    weights["perceptual_loss.vgg.mean"] = torch.zeros(1, 3, 1, 1)
    torch.save({"meta": {"epoch": 1}, "state_dict": weights}, path)
    return weights


def test_a_published_checkpoint_goes_into_the_second_stage(
    clips: list[SourceConfig], tmp_path: Path
) -> None:
    """Generator, average and discriminator are taken over, strictly, and learn from there; the
    result is again a checkpoint of the published size.
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
    """The sizes that differ are named, of generator and discriminator."""
    start = f'load_from="{whole / "latest.pth"}"'
    with pytest.raises(CheckpointError, match=r"another size .*mid_channels 8 instead of 4"):
        train(changed(config, start, "network.mid_channels=4"), output=tmp_path)
    with pytest.raises(CheckpointError, match=r"discriminator.*another size.*conv_0\.bias has"):
        train(changed(config, start, "discriminator_channels=2"), output=tmp_path)
    torch.save({"state_dict": {"layer.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="holds no RealBasicVSR generator"):
        train(changed(config, f'load_from="{tmp_path / "other.pth"}"'), output=tmp_path)


@pytest.mark.parametrize("layout", ["mmediting", "basicsr", "checkpoint"])
def test_spynet_is_read_in_every_spelling(
    config: TrainingConfig, tmp_path: Path, layout: str
) -> None:
    """Its own file as of mmediting and BasicSR, or inside a checkpoint; frozen, it stays so."""
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


# ----------------------------------------------------------------------------- before and after all


def test_a_flow_network_never_stays_random(
    config: TrainingConfig, clips: list[SourceConfig], tmp_path: Path
) -> None:
    """Frozen without weights and without a phase of its own: the trap of early public recipes."""
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
    """Empty folders, clips too short, crops too large, also among what is held out."""
    empty = tmp_path / "empty"
    empty.mkdir()
    run = tmp_path / "run"

    def refused(message: str, *changes: str) -> None:
        with pytest.raises(MediaError, match=message):
            train(changed(config, *changes), output=run)
        assert not (run / "latest.pth").exists()

    refused("holds no videos", f'data.sources=[{{"kind": "videos", "path": "{empty}"}}]')
    refused("does not exist", 'data.sources=[{"kind": "photos", "path": "/nowhere"}]')
    refused("crops of 256x256", "data.crop=64")
    videos = f'[{{"kind": "videos", "path": "{sources[1]}"}}]'
    refused("10 frames and 15 are needed", f"data.sources={videos}", "data.length=30")
    refused("does not exist", 'validation.sources=[{"kind": "photos", "path": "/nowhere"}]')


def test_other_things_that_cannot_be(config: TrainingConfig, tmp_path: Path) -> None:
    """Weights of VGG19 that are missing, and a precision that the device has not."""
    absent = json.dumps(str(tmp_path / "vgg19.pth"))
    vgg = ("losses.perceptual_weight=1", f"losses.vgg={absent}")
    with pytest.raises(CheckpointError, match=r"vgg19\.pth' is not a file"):
        train(changed(config, *vgg), output=tmp_path)
    with pytest.raises(RbvsrError, match="float16 needs a GPU"):
        train(changed(config, 'precision="float16"'), output=tmp_path, device="cpu")


def test_a_loss_that_is_not_finite_stops_the_run(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clips are saved with the weights they met, the message names the file, and the checkpoint
    stays as it was.
    """
    from rbvsr_deploy.training import phases

    calls = 0
    real = phases.charbonnier

    def broken(output: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return real(output, target) * (float("nan") if calls > 4 else 1.0)  # two in an iteration

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
    for name, value in wrong["generator"].items():
        assert torch.equal(value, latest["state_dict"][f"generator.{name}"]), name


def test_validation_measures_the_average_on_clips_held_out(
    config: TrainingConfig, sources: tuple[Path, Path], tmp_path: Path
) -> None:
    """PSNR every k iterations and at the end, beside that of bicubic enlargement, which a network
    that has learnt nothing does not reach.
    """
    held_out = f'[{{"kind": "videos", "path": "{sources[1]}"}}]'
    config = changed(
        config,
        "flow.iterations=0",
        f"validation.sources={held_out}",
        "validation.every=3",
        "validation.clips=2",
    )
    train(config, output=tmp_path)
    measured = [line for line in lines(tmp_path) if "validation_psnr" in line]
    assert [line["iteration"] for line in measured] == [3, 4]
    assert len({line["validation_bicubic"] for line in measured}) == 1  # the same clips
    for line in measured:
        assert 5 < line["validation_psnr"] < line["validation_bicubic"] < 60


def test_kept_checkpoints(config: TrainingConfig, tmp_path: Path) -> None:
    """Besides the latest, every k-th iteration of the main phase."""
    train(changed(config, "output.keep_every=2", "flow.iterations=2"), output=tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == [
        "iteration_2.pth",
        "iteration_4.pth",
        "latest.pth",
    ]


def test_tiny_network_of_the_preset_is_what_it_says(config: TrainingConfig, whole: Path) -> None:
    """The configuration of a run lies beside it, and the checkpoint has its sizes."""
    written = json.loads((whole / "config.json").read_text())
    assert msgspec.convert(written, TrainingConfig) == config
    model = load_checkpoint(whole / "latest.pth").model
    assert isinstance(model.config, RealBasicVSRConfig)
    assert model.config == config.network
