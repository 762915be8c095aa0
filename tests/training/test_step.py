"""Tests the gradients of one iteration: they match a computation by hand, and do not depend on
checkpointing, precision, or the number of passes or processes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from rbvsr_deploy.training.config import TrainingConfig
from rbvsr_deploy.training.data.training_set import TrainingSet
from rbvsr_deploy.training.discriminator import Discriminator
from rbvsr_deploy.training.networks import build_networks
from rbvsr_deploy.training.perceptual import PerceptualLoss, load_vgg19
from rbvsr_deploy.training.presets import PRESETS
from tests.support.training_runs import SMALL, changed, lines, saved, train

# Few pixels, to keep the rounding errors of float32 sums small.
ONE_ITERATION = (
    "flow.iterations=0",
    "iterations=1",
    "optimizer.clip_norm=null",
    "data.length=2",
    "data.crop=8",
)


def first_gradients(folder: Path) -> dict[str, Tensor]:
    """Read the gradients: after one iteration, Adam's first moment is a tenth of the gradient."""
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


@pytest.fixture(scope="module")
def double_batch(config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run one iteration of one process with two clips."""
    folder = tmp_path_factory.mktemp("double")
    train(changed(config, *ONE_ITERATION, "batch=2"), output=folder)
    return folder


# ------------------------------------------------------------------------------------------ losses


@pytest.fixture(scope="module")
def vgg19(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a file of random values in torchvision's layout."""
    path = tmp_path_factory.mktemp("vgg19") / "vgg19.safetensors"
    widths = (3, 64, 64, 128, 128, *(256,) * 4, *(512,) * 8)
    numbers = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
    generator, tensors = torch.Generator().manual_seed(0), {}
    for i, before, after in zip(numbers, widths, widths[1:], strict=False):
        weight = torch.randn((after, before, 3, 3), generator=generator)
        tensors[f"features.{i}.weight"] = (weight * (2 / (9 * before)) ** 0.5).half()
        tensors[f"features.{i}.bias"] = torch.zeros(after).half()
    save_file(tensors, path)
    return path


@pytest.mark.slow
def test_an_iteration_by_hand(config: TrainingConfig, vgg19: Path, tmp_path: Path) -> None:
    """All gradients and logged losses equal those of the published second stage, written out. The
    output, the cleaned frames and the features are compared with the sharpened ground truth. The
    real images of the discriminator are not sharpened, and it judges the output from before the
    step of the generator.
    """
    config = changed(
        config,
        *ONE_ITERATION,
        "batch=1",
        "losses.perceptual_weight=0.5",
        f'losses.vgg="{vgg19}"',
        "losses.gan_weight=0.05",
    )
    train(config, output=tmp_path)

    networks = build_networks(config, torch.device("cpu"))  # random weights from the seed
    generator, judge = networks.generator, networks.discriminator
    assert judge is not None
    clips = TrainingSet(config.data, config.degradation, seed=config.seed)
    clip = clips.sample(0, stream=1)
    degraded, truth, sharpened = (
        torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        for frames in (clip.degraded, clip.truth, clip.sharpened)
    )
    cleaned = generator.refine(degraded[None], cleanings=1)
    output = generator.propagate(cleaned)[0]
    reduced = F.interpolate(sharpened, scale_factor=0.25, mode="area")
    losses = {
        "pixel": ((output - sharpened) ** 2 + 1e-6).sqrt().mean(),
        "cleaning": ((cleaned[0] - reduced) ** 2 + 1e-6).sqrt().mean(),
        "perceptual": 0.5 * PerceptualLoss(load_vgg19(vgg19))(output, sharpened),
        "gan": 0.05 * F.softplus(-judge(output)).mean(),
    }
    flow = dict(generator.basicvsr.spynet.named_parameters(prefix="basicvsr.spynet"))
    rest = {name: p for name, p in generator.named_parameters() if name not in flow}
    of_generator = torch.autograd.grad(
        torch.stack(list(losses.values())).sum(), [*rest.values(), *flow.values()]
    )
    real, made = F.softplus(-judge(truth)).mean(), F.softplus(judge(output.detach())).mean()
    of_judge = torch.autograd.grad(real + made, list(judge.parameters()))

    expected = {f"generator/{i}": gradient for i, gradient in enumerate(of_generator)}
    expected |= {f"discriminator/{i}": gradient for i, gradient in enumerate(of_judge)}
    result = first_gradients(tmp_path)
    assert result.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(result[name], gradient, rtol=1e-4, atol=1e-6)
    (line,) = lines(tmp_path)
    for name, loss in {**losses, "discriminator": real + made}.items():
        assert line[name] == pytest.approx(loss.item(), rel=1e-4), name
        assert loss.item() > 0, name
    assert line["loss"] == pytest.approx(sum(loss.item() for loss in losses.values()), rel=1e-4)


# ------------------------------------------------------------------------------- equal gradients


@pytest.mark.slow
def test_checkpointed_gradients_are_the_same(
    config: TrainingConfig, double_batch: Path, tmp_path: Path
) -> None:
    """Recomputed features give the same gradients as stored ones."""
    train(changed(config, *ONE_ITERATION, "batch=2", "checkpointing=true"), output=tmp_path)
    assert_same_gradients(double_batch, tmp_path)


def settled(judge: Discriminator) -> None:
    """Set the first singular vectors, so that further passes do not refine the spectral norms."""
    for conv in judge.children():
        if hasattr(conv, "weight_orig"):
            u, _, v = torch.linalg.svd(conv.weight_orig.detach().flatten(1), full_matrices=False)
            conv.weight_u.copy_(u[:, 0])
            conv.weight_v.copy_(v[0])


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_large_batch(
    config: TrainingConfig, tmp_path: Path
) -> None:
    """Two batches of one clip equal one batch of two, for the generator and for the discriminator,
    if its spectral norms do not depend on the number of passes.
    """
    config = changed(config, *ONE_ITERATION)
    networks = build_networks(config, torch.device("cpu"))
    assert networks.discriminator is not None
    settled(networks.discriminator)
    start = tmp_path / "start.pth"
    weights = {
        f"{prefix}.{name}": value
        for prefix, network in networks.published().items()
        for name, value in network.state_dict().items()
    }
    torch.save({"state_dict": weights}, start)
    config = changed(config, f'load_from="{start}"')
    one, two = tmp_path / "one", tmp_path / "two"
    train(changed(config, "batch=2"), output=one)
    train(changed(config, "batch=1", "accumulate=2"), output=two)
    assert_same_gradients(one, two)
    assert lines(one)[0]["discriminator"] == pytest.approx(lines(two)[0]["discriminator"])


@pytest.mark.slow
def test_two_processes_are_one_with_the_double_batch(
    config: TrainingConfig, double_batch: Path, tmp_path: Path
) -> None:
    """With ``torchrun rbvsr-train`` over gloo, the gradients of generator and discriminator agree
    within 1e-6, and only one process writes and logs.
    """
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(PRESETS["tiny-stage1"].read_text().replace("clip_norm = 1.0", ""))
    changes = [*SMALL, *(c for c in ONE_ITERATION if "null" not in c), "batch=1"]
    sources = [f"{source.kind}:{source.path}" for source in config.data.sources]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("--no-python", Path(sys.executable).with_name("rbvsr-train"), recipe),
        *("--device", "cpu", "--output", tmp_path / "run"),
        *(word for source in sources for word in ("--data", source)),
        *(word for change in changes for word in ("--set", change)),
    ]
    done = subprocess.run(
        list(map(str, command)),
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert_same_gradients(double_batch, tmp_path / "run")
    assert any(name.startswith("discriminator/") for name in first_gradients(tmp_path / "run"))
    assert lines(tmp_path / "run")[0]["loss"] == pytest.approx(lines(double_batch)[0]["loss"])
    assert len(lines(tmp_path / "run")) == 1
    assert done.stdout.count("rbvsr-export") == 1
    assert "Warning" not in done.stderr


@pytest.mark.slow
def test_bfloat16_is_close_and_keeps_float32_weights(
    config: TrainingConfig, double_batch: Path, tmp_path: Path
) -> None:
    """Convolutions use bfloat16, but images, weights and losses stay float32."""
    train(changed(config, *ONE_ITERATION, "batch=2", 'precision="bfloat16"'), output=tmp_path)
    expected, result = lines(double_batch)[0], lines(tmp_path)[0]
    assert result["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert result["loss"] != expected["loss"]
    assert {v.dtype for k, v in saved(tmp_path).items() if "/random/" not in k} == {torch.float32}
