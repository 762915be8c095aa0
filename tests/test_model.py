"""Tests the network against the published data flow (``support/reference.py``) and sizes."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rbvsr_deploy.model import COMPACT, PUBLISHED, RealBasicVSR, RealBasicVSRConfig, warp
from tests.support import reference

SMALL = RealBasicVSRConfig(
    mid_channels=8, propagation_blocks=2, cleaning_blocks=2, flow_channels=(6, 8), flow_levels=3
)
"""Small network of the published structure, for tests with many runs."""

TOLERANCE = 1e-4
"""Largest difference in [0, 1] units, float32; about 1e-6 was measured."""


def make_model(config: RealBasicVSRConfig, seed: int = 0) -> RealBasicVSR:
    """Return a model with random weights under which every part matters: flow from sub-pixels to
    pixels, residues that shrink from pass to pass, and features that affect the output.
    """
    generator = torch.Generator().manual_seed(seed)
    model = RealBasicVSR(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.normal_(std=0.1, generator=generator)
        else:
            gain = 0.1 if ".main.2." in name else 1.0
            fan_in = weight[0].numel()
            weight.normal_(std=gain * math.sqrt(2 / fan_in), generator=generator)
    state = model.state_dict()
    last = f"basic_module.{len(config.flow_channels)}.conv"
    for level in range(config.flow_levels):
        state[f"basicvsr.spynet.basic_module.{level}.{last}.weight"].mul_(0.3)
    if config.cleaning_blocks is not None:
        # The first three features are the colours; the change pulls them towards grey.
        first, final = state["image_cleaning.0.main.0.weight"], state["image_cleaning.1.weight"]
        final.mul_(0.02)
        for colour in range(3):
            first[colour].zero_()
            first[colour, colour, 1, 1] = 1.0
            final[colour, colour, 1, 1] -= 0.4
        state["image_cleaning.0.main.0.bias"][:3] = 0.0
        state["image_cleaning.1.bias"].fill_(0.2)
    return model


def make_frames(n: int, t: int, height: int, width: int, seed: int = 1) -> Tensor:
    """Return a moving smooth texture with noise: (N, T, 3, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(height, dtype=torch.float32).view(-1, 1)
    x = torch.arange(width, dtype=torch.float32).view(1, -1)
    frames = torch.empty(n, t, 3, height, width)
    for i in range(n):
        for j in range(t):
            for c in range(3):
                waves = torch.sin(0.4 * (x + 1.5 * j) + c + i) * torch.cos(0.3 * (y - 0.7 * j) + i)
                frames[i, j, c] = 0.5 + 0.35 * waves
    noise = torch.empty_like(frames).normal_(std=0.05, generator=generator)
    return (frames + noise).clamp(0, 1)


def assert_close(got: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert got.shape == expected.shape
    difference = (got - expected).abs()
    quantiles = torch.quantile(difference.flatten()[:1_000_000], torch.tensor([0.5, 0.99, 1.0]))
    assert difference.max() < tolerance, f"median, 99 %, largest difference: {quantiles.tolist()}"


@pytest.fixture(scope="module")
def published() -> RealBasicVSR:
    return make_model(PUBLISHED)


@pytest.fixture(scope="module")
def small() -> RealBasicVSR:
    return make_model(SMALL)


@pytest.fixture(scope="module")
def residues(published: RealBasicVSR) -> list[float]:
    """Return the reference's residues of three passes over the six-frame clip, 0-255 scale."""
    found = reference.clean(published.state_dict(), make_frames(1, 6, 12, 20), 0.0)[1]
    assert len(found) == 3
    assert 255 > found[0] > 1.2 * found[1] > 1.44 * found[2] > 1  # the decisions are not marginal
    return found


# ---------------------------------------------------------------------- against the published flow


@pytest.mark.slow
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_published_size_matches_published_data_flow(
    published: RealBasicVSR, residues: list[float], passes: int
) -> None:
    """Six frames through the published network equal the transcription of the published code, with
    one, two and three cleaning passes, decided by threshold and fixed.
    """
    frames = make_frames(1, 6, 12, 20)
    threshold = {
        1: 255.0,
        2: (residues[0] + residues[1]) / 2,
        3: (residues[1] + residues[2]) / 2,
    }[passes]
    expected = reference.realbasicvsr(published.state_dict(), frames, threshold)
    with torch.inference_mode():
        cleaned = published.refine(frames, refine_threshold=threshold)
        assert_close(published.refine(frames, cleanings=passes), cleaned, 1e-6)
        assert_close(published.propagate(cleaned), expected)


@pytest.mark.slow
def test_test_weights_make_every_part_matter(published: RealBasicVSR) -> None:
    """The comparison above means something: flow is sub-pixel to pixels and varies, the head adds
    to the enlarged frame, and both branches carry over time.
    """
    frames = make_frames(1, 3, 12, 20)
    with torch.inference_mode():
        cleaned = published.refine(frames)
        for flow in published.flows(cleaned):
            assert 0.3 < flow.abs().mean() < 5
            assert flow.std() > 0.3
            assert 1 < flow.abs().max() < 30
        whole = published.propagate(cleaned)
        enlarged = torch.nn.functional.interpolate(cleaned[0], scale_factor=4, mode="bilinear")
        assert (whole[0] - enlarged).abs().mean() > 0.05
        # The middle frame sees the first one (forward branch) and the last one (backward branch).
        for end in (0, 2):
            changed = cleaned.clone()
            changed[:, end] = 1 - changed[:, end]
            assert (published.propagate(changed)[:, 1] - whole[:, 1]).abs().mean() > 0.005


@pytest.mark.slow
def test_published_size_at_full_pyramid_size(published: RealBasicVSR) -> None:
    """Sides that are multiples of 32, where nothing is resized, match too."""
    frames = make_frames(1, 2, 32, 32)
    with torch.inference_mode():
        assert_close(published(frames), reference.realbasicvsr(published.state_dict(), frames))


@pytest.mark.parametrize(
    ("n", "t", "height", "width"),
    [
        (1, 1, 24, 32),
        (1, 2, 8, 8),
        (1, 3, 17, 23),
        (1, 3, 7, 70),
        (1, 2, 3, 2),
        (1, 2, 1, 1),
        (1, 2, 1, 9),
        (2, 4, 10, 13),
        (3, 1, 9, 5),
    ],
)
def test_any_length_size_and_batch_matches(
    small: RealBasicVSR, n: int, t: int, height: int, width: int
) -> None:
    """One frame, odd, tiny and elongated sizes (the published code refuses sides under 64) and
    batches: all equal the published data flow.
    """
    frames = make_frames(n, t, height, width)
    expected = reference.realbasicvsr(small.state_dict(), frames, 20.0)
    with torch.inference_mode():
        got = small(frames, refine_threshold=20.0)
    assert got.shape == (n, t, 3, 4 * height, 4 * width)
    assert_close(got, expected)


def test_mirrored_sequence_matches(small: RealBasicVSR) -> None:
    """A sequence followed by its reverse, which the published code detects to save half of the
    flow, gives the same result here, without such detection.
    """
    half = make_frames(1, 3, 12, 20)
    frames = torch.cat([half, half.flip(1)], dim=1)
    assert reference.is_mirror_extended(frames)
    assert not reference.is_mirror_extended(torch.cat([half, half], dim=1))
    with torch.inference_mode():
        assert_close(small.propagate(frames), reference.basicvsr(small.state_dict(), frames))


def test_flow_and_warp_match(small: RealBasicVSR) -> None:
    """Flow and warping equal the published ones on their own, so that a difference is located."""
    state = small.state_dict()
    first, second = make_frames(2, 2, 18, 22).unbind(1)
    flow = small.flow(first, second)
    assert flow.abs().max() > 1
    assert_close(flow, reference.spynet(state, first, second))
    for padding in ("zeros", "border"):
        expected = reference.flow_warp(first, flow.permute(0, 2, 3, 1), padding)
        assert_close(warp(first, flow, padding_mode=padding), expected)


# --------------------------------------------------------------------------------------- refinement


def test_one_decision_for_everything_given_at_once(small: RealBasicVSR) -> None:
    """An item that alone would be cleaned once is cleaned as often as the whole batch needs."""
    strong, weak = make_frames(1, 2, 8, 8), 0.5 + 0.05 * make_frames(1, 2, 8, 8)
    state = small.state_dict()
    alone = [reference.clean(state, item, 0.0)[1] for item in (strong, weak)]
    both = torch.cat([strong, weak])
    together = reference.clean(state, both, 0.0)[1]
    threshold = (together[1] + together[0]) / 2
    assert alone[1][0] < threshold < alone[0][0]  # weak alone: one pass
    got = small.refine(both, refine_threshold=threshold)
    assert_close(got, reference.clean(state, both, threshold)[0])
    assert_close(got, small.refine(both, cleanings=2))
    assert_close(
        small.refine(weak, refine_threshold=threshold), small.refine(weak, cleanings=1), 1e-6
    )


def test_residue_is_the_mean_absolute_change_of_each_frame(small: RealBasicVSR) -> None:
    """``clean`` returns the frame plus its change, and per frame the mean of the absolute change;
    the published code decides by their mean.
    """
    frames = make_frames(1, 3, 8, 12)
    cleaned, residue = small.clean(frames[0])
    assert residue.shape == (3,)
    assert_close(residue, (cleaned - frames[0]).abs().mean(dim=(1, 2, 3)), 1e-6)
    expected = reference.clean(small.state_dict(), frames, 255.0)[1][0]
    assert 255 * residue.mean().item() == pytest.approx(expected, rel=1e-4)


def test_refinement_limits(small: RealBasicVSR) -> None:
    """Threshold 255 cleans once, 0 three times and no more; a fixed count is used, including 0; a
    negative one is refused; the caller's frames are not modified.
    """
    frames = make_frames(1, 2, 8, 8)
    before = frames.clone()
    assert torch.equal(small.refine(frames), small.refine(frames, cleanings=1))
    assert torch.equal(
        small.refine(frames, refine_threshold=0.0), small.refine(frames, cleanings=3)
    )
    assert torch.equal(small.refine(frames, cleanings=0), frames)
    assert not torch.allclose(small.refine(frames, cleanings=4), small.refine(frames, cleanings=3))
    with pytest.raises(ValueError, match="cleanings must be 0 or more, got -1"):
        small.refine(frames, cleanings=-1)
    assert torch.equal(frames, before)


# ------------------------------------------------------------------------------------ names, sizes


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of the released generator."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (out, into, kernel, kernel)
        shapes[f"{name}.bias"] = (out,)

    for trunk, channels in (
        ("image_cleaning.0", 3),
        ("basicvsr.backward_resblocks", 67),
        ("basicvsr.forward_resblocks", 67),
    ):
        conv(f"{trunk}.main.0", 64, channels, 3)
        for block in range(20):
            for i in (1, 2):
                conv(f"{trunk}.main.2.{block}.conv{i}", 64, 64, 3)
    conv("image_cleaning.1", 3, 64, 3)
    shapes["basicvsr.spynet.mean"] = shapes["basicvsr.spynet.std"] = (1, 3, 1, 1)
    for level in range(6):
        for i, (out, into) in enumerate([(32, 8), (64, 32), (32, 64), (16, 32), (2, 16)]):
            conv(f"basicvsr.spynet.basic_module.{level}.basic_module.{i}.conv", out, into, 7)
    conv("basicvsr.fusion", 64, 128, 1)
    conv("basicvsr.upsample1.upsample_conv", 256, 64, 3)
    conv("basicvsr.upsample2.upsample_conv", 256, 64, 3)
    conv("basicvsr.conv_hr", 64, 64, 3)
    conv("basicvsr.conv_last", 3, 64, 3)
    return shapes


def shapes_of(model: RealBasicVSR) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_names_and_shapes_are_the_published_ones(published: RealBasicVSR) -> None:
    """The default network has exactly the 320 published tensors, 6,294,834 parameters and the flow
    net's normalisation constants.
    """
    expected = published_shapes()
    assert len(expected) == 320
    assert shapes_of(published) == expected
    assert sum(p.numel() for p in published.parameters()) == 6_294_834
    state = published.state_dict()
    assert state["basicvsr.spynet.mean"].flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert state["basicvsr.spynet.std"].flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert RealBasicVSRConfig.from_state_dict(expected) == PUBLISHED


@pytest.mark.parametrize(
    "config",
    [
        PUBLISHED,
        COMPACT,
        SMALL,
        RealBasicVSRConfig(propagation_blocks=30, cleaning_blocks=None),
        RealBasicVSRConfig(mid_channels=4, propagation_blocks=1, cleaning_blocks=1, flow_levels=1),
        replace(SMALL, flow_reduction=2, reconstruction_blocks=3),
        replace(SMALL, flow_reduction=4, reconstruction_blocks=1, single_shuffle=True),
    ],
    ids=["published", "compact", "small", "basicvsr", "least", "reduced flow", "deep head"],
)
def test_config_comes_back_from_shapes_and_from_json(config: RealBasicVSRConfig) -> None:
    """Sizes read from a network's tensors and from a manifest's JSON are the original ones."""
    assert RealBasicVSRConfig.from_state_dict(shapes_of(RealBasicVSR(config))) == config
    assert RealBasicVSRConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_config_refuses_unknown_names_and_incomplete_shapes() -> None:
    """An unknown size is a TypeError; the error about incomplete shapes names a tensor."""
    with pytest.raises(TypeError, match="depth"):
        RealBasicVSRConfig.from_dict({**PUBLISHED.as_dict(), "depth": 3})
    shapes = published_shapes()
    del shapes["basicvsr.fusion.weight"]
    with pytest.raises(KeyError, match=r"basicvsr\.fusion\.weight"):
        RealBasicVSRConfig.from_state_dict(shapes)


@pytest.mark.parametrize("size", [(24, 32), (21, 30)], ids=["multiple", "odd"])
def test_flow_of_reduced_frames_is_in_pixels_of_the_frames(size: tuple[int, int]) -> None:
    """The finest level adds a flow in its own pixels, which are larger by the reduction."""
    config = replace(SMALL, flow_reduction=2)
    model = make_model(config)
    finest = model.basicvsr.spynet.basic_module[-1].basic_module[-1].conv
    for name, weight in model.basicvsr.spynet.named_parameters():
        if not name.startswith("reduction"):
            weight.zero_()
    finest.bias.copy_(torch.tensor([1.0, -0.5]))
    frames = make_frames(1, 2, *size)[0]
    flow = model.flow(frames[:1], frames[1:])
    assert flow.shape == (1, 2, *size)
    expected = torch.tensor([2.0, -1.0]) * torch.tensor([size[1] / 32, size[0] / 24])
    torch.testing.assert_close(flow, expected.view(1, 2, 1, 1).expand_as(flow))


def test_fresh_reduction_of_the_flow_averages() -> None:
    """Flow of reduced frames is, before training, that of frames averaged beforehand."""
    config = replace(SMALL, flow_reduction=2)
    model = RealBasicVSR(config).eval().requires_grad_(False)
    half = RealBasicVSR(SMALL).eval().requires_grad_(False)
    weights = model.basicvsr.spynet.state_dict()
    half.basicvsr.spynet.load_state_dict(
        {k: v for k, v in weights.items() if not k.startswith("reduction")}
    )
    frames = make_frames(1, 2, 32, 48)[0]
    averaged = torch.nn.functional.avg_pool2d(frames, 2)
    smaller = 2.0 * half.flow(averaged[:1], averaged[1:])
    expected = torch.nn.functional.interpolate(smaller, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(model.flow(frames[:1], frames[1:]), expected, atol=1e-5, rtol=1e-5)


def test_blocks_of_the_head_come_after_the_fusion() -> None:
    """A head with blocks that add nothing is the published one, and they can add something."""
    plain = make_model(SMALL)
    model = RealBasicVSR(replace(SMALL, reconstruction_blocks=2)).eval().requires_grad_(False)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.startswith("basicvsr.reconstruction.") for name in missing)
    frame, states = make_frames(1, 1, 8, 8)[0], torch.rand(2, 1, 8, 8, 8)
    for block in model.basicvsr.reconstruction:
        block.conv2.weight.zero_()
        block.conv2.bias.zero_()
    expected = plain.reconstruct(frame, *states)
    torch.testing.assert_close(model.reconstruct(frame, *states), expected)
    model.basicvsr.reconstruction[1].conv2.bias.fill_(0.1)
    assert not torch.allclose(model.reconstruct(frame, *states), expected, atol=1e-3)


def operations_per_frame(config: RealBasicVSRConfig) -> float:
    """Count the multiply-accumulates of one more 64x64 frame with one cleaning pass."""
    with torch.device("meta"):
        model = RealBasicVSR(config)
    totals = []
    for frames in (2, 3):
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, frames, 3, 64, 64, device="meta"), cleanings=1)
        totals.append(counter.get_total_flops() / 2)
    return float(totals[1] - totals[0])


@pytest.mark.slow
def test_arithmetic_of_both_presets() -> None:
    """A 64x64 frame costs 26.7 G multiply-accumulates in the published network and 30 to 60 times
    less in the compact one.
    """
    published, compact = operations_per_frame(PUBLISHED), operations_per_frame(COMPACT)
    assert published / 1e9 == pytest.approx(26.7, rel=0.01)
    assert 30 < published / compact < 60


def test_compact_preset_runs() -> None:
    """The one-shuffle head upscales any size by four, and differs from the enlarged frame."""
    model = make_model(COMPACT)
    frames = make_frames(1, 2, 9, 14)
    with torch.inference_mode():
        upscaled = model(frames)
        enlarged = torch.nn.functional.interpolate(
            model.refine(frames)[0], scale_factor=4, mode="bilinear"
        )
    assert upscaled.shape == (1, 2, 3, 36, 56)
    assert (upscaled[0] - enlarged).abs().mean() > 1e-3


def test_network_without_cleaning_is_basicvsr() -> None:
    """``cleaning_blocks=None`` leaves frames unchanged and equals the published BasicVSR."""
    model = make_model(RealBasicVSRConfig(**{**SMALL.as_dict(), "cleaning_blocks": None}))
    frames = make_frames(1, 3, 10, 12)
    assert not model.has_cleaning
    assert not any(name.startswith("image_cleaning") for name in model.state_dict())
    with torch.inference_mode():
        assert torch.equal(model.refine(frames, cleanings=3), frames)
        assert_close(model(frames), reference.basicvsr(model.state_dict(), frames))


# --------------------------------------------------------------------------- precision and warping


def test_half_precision_keeps_flow_in_float32(small: RealBasicVSR) -> None:
    """In float16, features and output are float16, flow and residue float32, and the result is
    close to that in float32.
    """
    half = make_model(SMALL).half()
    frames = make_frames(1, 3, 12, 16)
    first, second = frames[:, 0], frames[:, 1]
    with torch.inference_mode():
        flow = half.flow(first.half(), second.half())
        assert flow.dtype == torch.float32
        assert_close(flow, small.flow(first, second), 0.05)
        cleaned, residue = half.clean(first.half())
        assert (cleaned.dtype, residue.dtype) == (torch.float16, torch.float32)
        state = half.backward_step(first.half(), torch.ones(1, 8, 12, 16).half(), flow)
        assert state.dtype == torch.float16
        upscaled = half(frames.half())
        assert upscaled.dtype == torch.float16
        assert_close(upscaled.float(), small(frames), 0.1)


def test_half_precision_samples_exactly_far_from_the_origin() -> None:
    """A shift by 1.25 pixels in a row of 1280 float16 pixels is correct up to float16's rounding;
    float16 coordinates would be off by half a pixel.
    """
    row = (torch.arange(1280) % 2).half().view(1, 1, 1, 1280)
    flow = torch.zeros(1, 2, 1, 1280)
    flow[:, 0] = 1.25
    moved = warp(row, flow, padding_mode="border")
    assert moved.dtype == torch.float16
    x = torch.arange(1270)
    expected = torch.where(x % 2 == 0, 0.75, 0.25)
    assert_close(moved[0, 0, 0, :1270].float(), expected, 2e-3)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (1, 0), (0, -1), (-2, 3), (3, -2), (7, 0)])
def test_integer_shift_is_exact(dx: int, dy: int) -> None:
    """Whole-pixel flow moves pixels without changing them; positive flow samples right and down;
    outside of the image, "zeros" gives 0 and "border" the nearest edge pixel.
    """
    height, width = 9, 8
    image = make_frames(1, 2, height, width)[0]
    flow = torch.tensor([dx, dy], dtype=torch.float32).view(1, 2, 1, 1).expand(2, 2, height, width)
    y = torch.arange(height).view(-1, 1) + dy
    x = torch.arange(width).view(1, -1) + dx
    nearest = image[:, :, y.clamp(0, height - 1), x.clamp(0, width - 1)]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    assert_close(warp(image, flow, padding_mode="border"), nearest, 2e-6)
    assert_close(warp(image, flow, padding_mode="zeros"), nearest * inside, 2e-6)


def test_paddings_differ_only_outside() -> None:
    """Both paddings agree where all four neighbours are inside; more than a pixel outside, "zeros"
    is black and "border" is not.
    """
    image = 0.5 + 0.5 * make_frames(1, 1, 12, 12)[0]
    flow = torch.empty(1, 2, 12, 12).uniform_(-6, 6, generator=torch.Generator().manual_seed(3))
    zeros = warp(image, flow, padding_mode="zeros")
    border = warp(image, flow, padding_mode="border")
    at = torch.stack(torch.meshgrid(torch.arange(12), torch.arange(12), indexing="xy")) + flow[0]
    inside = ((at > 0.01) & (at < 10.99)).all(0)
    outside = ((at < -1.01) | (at > 12.01)).any(0)
    assert inside.sum() > 20
    assert outside.sum() > 20
    assert torch.equal(zeros[..., inside], border[..., inside])
    assert (zeros[..., outside] == 0).all()
    assert (border >= 0.5).all()


def test_half_a_pixel_is_the_mean_of_two() -> None:
    """Between pixels the two (or four) neighbours are weighted by distance."""
    image = make_frames(1, 1, 6, 6)[0]
    right = torch.zeros(1, 2, 6, 6)
    right[:, 0] = 0.5
    expected = (image[..., :-1] + image[..., 1:]) / 2
    assert_close(warp(image, right, padding_mode="border")[..., :-1], expected, 2e-6)
    down = torch.zeros(1, 2, 6, 6)
    down[:, 1] = 0.25
    expected = 0.75 * image[:, :, :-1] + 0.25 * image[:, :, 1:]
    assert_close(warp(image, down, padding_mode="border")[:, :, :-1], expected, 2e-6)
