"""Compares the losses and their networks with independent implementations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from rbvsr_deploy.errors import CheckpointError, RbvsrError
from rbvsr_deploy.training.discriminator import Discriminator
from rbvsr_deploy.training.losses import (
    adversarial_loss,
    charbonnier,
    cleaning_target,
    flow_loss,
    gradient_loss,
    grid_loss,
    l1,
    steadiness_loss,
)
from rbvsr_deploy.training.perceptual import PerceptualLoss, load_vgg19

# conv_i of the published discriminator: weight shape; 0 and 9 are plain, with bias.
PUBLISHED_DISCRIMINATOR = {
    0: (64, 3, 3, 3),
    1: (128, 64, 4, 4),
    2: (256, 128, 4, 4),
    3: (512, 256, 4, 4),
    4: (256, 512, 3, 3),
    5: (128, 256, 3, 3),
    6: (64, 128, 3, 3),
    7: (64, 64, 3, 3),
    8: (64, 64, 3, 3),
    9: (1, 64, 3, 3),
}
TORCHVISION_CONVS = {
    0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128),
    10: (256, 128), 12: (256, 256), 14: (256, 256), 16: (256, 256),
    19: (512, 256), 21: (512, 512), 23: (512, 512), 25: (512, 512),
    28: (512, 512), 30: (512, 512), 32: (512, 512), 34: (512, 512),
}  # fmt: skip
NAMES = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 4, 4, 4), start=1) for i in range(1, n + 1)]


# ------------------------------------------------------------------------------------ plain losses


def test_pixel_losses_by_hand() -> None:
    """They are the means of |d| and of sqrt(d^2 + epsilon^2)."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 5, 5)), rng.random((2, 3, 5, 5))
    ours = [loss(torch.tensor(a), torch.tensor(b)).item() for loss in (l1, charbonnier)]
    assert ours == pytest.approx([np.abs(a - b).mean(), np.sqrt((a - b) ** 2 + 1e-6).mean()])


def test_cleaning_target_is_the_mean_of_each_block() -> None:
    """(N, T, 3, 4H, 4W) is averaged by blocks of 4x4, which equals torch's ``area`` resizing."""
    truth = torch.rand(2, 3, 3, 8, 12)
    target = cleaning_target(truth)
    blocks = truth.numpy().reshape(2, 3, 3, 2, 4, 3, 4).mean(axis=(4, 6))
    np.testing.assert_allclose(target.numpy(), blocks, rtol=1e-5)
    area = F.interpolate(truth.flatten(0, 1), scale_factor=0.25, mode="area")
    torch.testing.assert_close(target.flatten(0, 1), area)


def test_adversarial_loss_by_hand() -> None:
    """It is -log sigmoid(x) for real, -log(1 - sigmoid(x)) for generated, without overflow."""
    x = np.array([-40.0, -1.0, 0.5, 3.0, 40.0])
    real, made = np.logaddexp(0, -x).mean(), np.logaddexp(0, x).mean()
    logits = torch.tensor(x)
    assert adversarial_loss(logits, real=True).item() == pytest.approx(real)
    assert adversarial_loss(logits, real=False).item() == pytest.approx(made)


def test_flow_loss_by_hand() -> None:
    """It is weighted by 1 / (0.5 + length); pixels of unknown flow are ignored."""
    truth, known = torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    truth[:, 0, :, 3] = 1e6
    known[:, :, 3] = False
    truth[:, 1, :, 0] = 3.5
    flow = torch.zeros(1, 2, 4, 4)
    flow[:, 1] = 3.0
    loss, error = flow_loss(flow, truth, known)
    assert error.item() == pytest.approx((0.5 + 3 + 3) / 3, abs=1e-4)
    assert loss.item() == pytest.approx((0.5 / 4 + 6 + 6) / 3, abs=1e-4)


def test_gradient_loss_by_hand() -> None:
    """It compares differences between neighbours in both directions, and ignores a level shift."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 5, 6)), rng.random((2, 3, 5, 6))
    expected = sum(np.abs(np.diff(a, axis=i) - np.diff(b, axis=i)).mean() for i in (2, 3))
    assert gradient_loss(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(expected)
    assert gradient_loss(torch.tensor(a), torch.tensor(a + 0.5)).item() == pytest.approx(0.0)


def moving(shift: int, *, frames: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return a texture that moves right by a number of degraded pixels per frame, its flow to the
    previous frame, and where that is known.
    """
    generator = torch.Generator().manual_seed(0)
    wide = torch.rand(3, 32, 32 + 4 * shift * frames, generator=generator)
    starts = [4 * shift * (frames - i) for i in range(frames)]
    clip = torch.stack([wide[:, :, x : x + 32] for x in starts])[None]
    flow = torch.zeros(1, frames - 1, 2, 8, 8)
    flow[:, :, 0] = -shift
    known = torch.ones(1, frames - 1, 8, 8, dtype=torch.bool)
    known[:, :, :, :shift] = False
    return clip, flow, known


def test_steadiness_loss_follows_the_motion() -> None:
    """An error that moves along costs nothing, unlike one that stays in place or flickers. Pixels
    of unknown motion are ignored.
    """
    clip, flow, known = moving(2)
    nothing = torch.zeros_like(clip)
    assert steadiness_loss(clip, nothing, flow, known).item() == pytest.approx(0.0, abs=1e-6)
    assert steadiness_loss(clip, nothing, 0 * flow, known).item() > 0.1
    assert steadiness_loss(clip, clip, 0 * flow, known).item() == 0.0
    flicker = torch.tensor([0.0, 0.3, 0.0]).view(1, 3, 1, 1, 1).expand_as(clip)
    assert steadiness_loss(flicker, nothing, flow, known).item() == pytest.approx(0.3)
    assert steadiness_loss(flicker, nothing, flow, ~known).item() == pytest.approx(0.3)
    outside = nothing.clone()
    outside[..., :8] = 1.0  # only where nothing is known
    outside[:, 0, :, :, :] = 0.0
    assert steadiness_loss(outside[:, :2], nothing[:, :2], flow[:, :1], known[:, :1]).item() == 0.0
    assert steadiness_loss(flicker, nothing, flow, known & False).item() == 0.0


def test_grid_loss_sees_what_repeats() -> None:
    """A pattern of 4x4 pixels costs its mean height; a constant error and one without a period cost
    next to nothing.
    """
    nothing = torch.zeros(1, 2, 3, 64, 96)
    pattern = torch.zeros(4, 4)
    pattern[1, 2] = 1.0
    grid = pattern.repeat(16, 24).expand_as(nothing)
    assert grid_loss(grid, nothing).item() == pytest.approx((15 / 16 + 15 * (1 / 16)) / 16)
    assert grid_loss(grid, grid).item() == 0.0
    assert grid_loss(nothing + 0.5, nothing).item() == pytest.approx(0.0, abs=1e-6)
    noise = torch.randn(nothing.shape, generator=torch.Generator().manual_seed(1))
    assert grid_loss(noise, nothing).item() < 0.15
    assert grid_loss(grid[..., :12, :20], nothing[..., :12, :20]).item() > 0.1


# ----------------------------------------------------------------------------------- discriminator


def published_discriminator() -> dict[str, Tensor]:
    """Return random values under the published names, with u and v of the published lengths (one
    value per output, and per input value), near the first singular vectors as after training.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for i, shape in PUBLISHED_DISCRIMINATOR.items():
        weight = torch.randn(shape, generator=generator) * 0.05
        if i in (0, 9):
            tensors[f"conv_{i}.weight"] = weight
            tensors[f"conv_{i}.bias"] = torch.randn(shape[0], generator=generator)
            continue
        u, _, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        assert (len(u), v.shape[1]) == (shape[0], shape[1] * shape[2] * shape[3])
        tensors[f"conv_{i}.weight_orig"] = weight
        tensors[f"conv_{i}.weight_u"] = F.normalize(u[:, 0] + 0.01, dim=0)
        tensors[f"conv_{i}.weight_v"] = F.normalize(v[0] + 0.01, dim=0)
    return tensors


@pytest.mark.slow
def test_a_published_discriminator_loads_strictly() -> None:
    """Names, shapes and number of parameters are the published ones, u and v included."""
    tensors = published_discriminator()
    discriminator = Discriminator()
    discriminator.load_state_dict(tensors, strict=True)
    assert sum(p.numel() for p in discriminator.parameters()) == 4_376_897
    assert sum(b.numel() for b in discriminator.buffers()) == 17_856
    saved = discriminator.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in tensors.items())


@pytest.mark.slow
def test_discriminator_against_plain_convolutions() -> None:
    """The output equals the published forward pass: weight / (u' W v), skips by sum."""
    tensors = published_discriminator()
    discriminator = Discriminator().eval()  # no power iteration: u and v are those of the file
    discriminator.load_state_dict(tensors)

    def weight(i: int) -> Tensor:
        matrix = tensors[f"conv_{i}.weight_orig"]
        u, v = tensors[f"conv_{i}.weight_u"], tensors[f"conv_{i}.weight_v"]
        return matrix / torch.einsum("o,ok,k->", u, matrix.flatten(1), v)

    def up(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    def act(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    image = torch.rand(2, 3, 16, 24)
    f0 = act(F.conv2d(image, tensors["conv_0.weight"], tensors["conv_0.bias"], padding=1))
    f1 = act(F.conv2d(f0, weight(1), stride=2, padding=1))
    f2 = act(F.conv2d(f1, weight(2), stride=2, padding=1))
    f3 = act(F.conv2d(f2, weight(3), stride=2, padding=1))
    f4 = act(F.conv2d(up(f3), weight(4), padding=1)) + f2
    f5 = act(F.conv2d(up(f4), weight(5), padding=1)) + f1
    f6 = act(F.conv2d(up(f5), weight(6), padding=1)) + f0
    x = act(F.conv2d(act(F.conv2d(f6, weight(7), padding=1)), weight(8), padding=1))
    expected = F.conv2d(x, tensors["conv_9.weight"], tensors["conv_9.bias"], padding=1)
    with torch.no_grad():
        logits = discriminator(image)
    assert logits.shape == (2, 1, 16, 24)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_spectral_norm_converges_to_one() -> None:
    """After enough calls in training mode, the largest singular value of a weight is 1."""
    torch.manual_seed(0)
    discriminator = Discriminator(channels=4)
    with torch.no_grad():
        for _ in range(60):
            discriminator(torch.rand(1, 3, 8, 8))
    values = np.linalg.svd(discriminator.conv_4.weight.detach().flatten(1).numpy())[1]
    assert values[0] == pytest.approx(1.0, abs=1e-3)


# --------------------------------------------------------------------------------- perceptual loss


@pytest.fixture(scope="module")
def torchvision_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for i, (out_channels, in_channels) in TORCHVISION_CONVS.items():
        scale = (2.0 / (9 * in_channels)) ** 0.5
        shape = (out_channels, in_channels, 3, 3)
        tensors[f"features.{i}.weight"] = torch.randn(shape, generator=generator) * scale
        tensors[f"features.{i}.bias"] = torch.randn(out_channels, generator=generator) * 0.1
    return tensors


def features(
    weights: dict[str, Tensor], image: Tensor, *, mean: Tensor, std: Tensor
) -> dict[str, Tensor]:
    """Compute every layer of VGG19 before its ReLU, with torchvision's layer numbers."""
    x, found = (image - mean.view(3, 1, 1)) / std.view(3, 1, 1), {}
    for (i, _), name in zip(TORCHVISION_CONVS.items(), NAMES, strict=True):
        if i in (5, 10, 19, 28):
            x = F.max_pool2d(x, kernel_size=2, stride=2)
        x = F.conv2d(x, weights[f"features.{i}.weight"], weights[f"features.{i}.bias"], padding=1)
        found[name] = x
        x = x.clamp(min=0)
    return found


def save(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file(tensors, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["features.", "perceptual_loss.vgg.vgg_layers.", ""])
def test_perceptual_loss_of_torchvision_weights(
    torchvision_weights: dict[str, Tensor], tmp_path: Path, prefix: str
) -> None:
    """It uses the published layers before their ReLU, the published weights and ImageNet's
    normalisation; torchvision's file (with its classifier) and a published checkpoint agree.
    """
    renamed = {k.replace("features.", prefix): v for k, v in torchvision_weights.items()}
    path = save({**renamed, "classifier.0.bias": torch.zeros(4)}, tmp_path / "vgg.safetensors")
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 2, 3, 32, 32, generator=generator)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    ours, theirs = (features(torchvision_weights, p, mean=mean, std=std) for p in (a, b))
    published = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}
    expected = sum(w * (ours[k] - theirs[k]).abs().mean().item() for k, w in published.items())
    loss = PerceptualLoss(load_vgg19(path))
    a.requires_grad_(True)
    b.requires_grad_(True)
    result = loss(a, b)
    assert result.item() == pytest.approx(expected, rel=1e-4)
    result.backward()
    assert a.grad is not None
    assert a.grad.abs().sum() > 0
    assert b.grad is None
    assert not [p for p in loss.parameters() if p.requires_grad]


def test_caffe_weights_get_bgr_of_255(
    torchvision_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """Caffe's layout has named layers, and takes BGR from 0 to 255 minus the mean; the normalised
    layout does this in an extra first convolution.
    """
    values = list(torchvision_weights.values())
    caffe = {
        f"{n}.{k}": v
        for n, k, v in zip(np.repeat(NAMES, 2), ["weight", "bias"] * 16, values, strict=True)
    }
    image = torch.rand(1, 3, 16, 16)
    mean = torch.tensor([103.939, 116.779, 123.68])
    wanted = features(torchvision_weights, image.flip(1) * 255, mean=mean, std=torch.ones(3))
    vgg = load_vgg19(save(caffe, tmp_path / "caffe.safetensors"))
    (result,) = vgg(image, layers=["conv3_4"])
    torch.testing.assert_close(result, wanted["conv3_4"], rtol=1e-4, atol=1e-3)

    numbers = (2, 5, 9, 12, 16, 19, 22, 25, 29, 32, 35, 38, 42, 45, 48, 51)
    normalised = {f"{i}.{k}": caffe[f"{n}.{k}"] for i, n in zip(numbers, NAMES, strict=True)
                  for k in ("weight", "bias")}  # fmt: skip
    flip = torch.tensor([[0.0, 0, 255], [0, 255, 0], [255, 0, 0]]).view(3, 3, 1, 1)
    first = {"0.weight": flip, "0.bias": -mean}
    vgg = load_vgg19(save({**normalised, **first}, tmp_path / "normalised.safetensors"))
    torch.testing.assert_close(vgg(image, layers=["conv3_4"])[0], result)


def test_other_weights_are_refused_as_vgg19(
    torchvision_weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing file, other names and other shapes give one sentence; nothing is downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(RbvsrError, match=r"losses\.vgg"):
        load_vgg19(None)
    with pytest.raises(CheckpointError, match="not a file"):
        load_vgg19(tmp_path / "missing.pth")
    other = save({"layer1.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"contains no VGG19.*begin with layer1\.weight"):
        load_vgg19(other)
    thin = {**torchvision_weights, "features.2.weight": torch.zeros(64, 32, 3, 3)}
    with pytest.raises(CheckpointError, match=r"2\.weight has shape \(64, 32, 3, 3\)"):
        load_vgg19(save(thin, tmp_path / "thin.safetensors"))
    kept = tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"
    kept.parent.mkdir(parents=True)
    torch.save(torchvision_weights, kept)
    bias: Any = load_vgg19(None).convs[0].bias
    assert torch.equal(bias, torchvision_weights["features.0.bias"])
