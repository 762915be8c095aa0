"""Implements RealBasicVSR in one file: real-world video super-resolution, x4.

Chan et al., "Investigating Tradeoffs in Real-World Video Super-Resolution", CVPR 2022. The names
and shapes of the ``state_dict`` are exactly those of the published code (RealBasicVSR, mmediting
and mmagic, Apache-2.0), so a released checkpoint loads with ``strict=True``. Without the cleaning
module the same class is BasicVSR (CVPR 2021).

Read top to bottom: configuration, leaves, flow, propagation step, head, network. The methods
``clean``, ``flow``, ``backward_step``, ``forward_step`` and ``reconstruct`` become the exported
graphs; ``forward`` chains them over a whole sequence and is the reference that everything else is
tested against.

Precision: features and convolutions run in the dtype of the weights, while flow, sampling
coordinates and the sampling itself are always float32, because a float16 coordinate is off by up to
0.2 px at width 320 and 0.8 px at 1280.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rbvsr_deploy.graphs import MAX_CLEANINGS

__all__ = ["COMPACT", "PUBLISHED", "RealBasicVSR", "RealBasicVSRConfig"]


# Names of what the published network does not have.
_FLOW_REDUCTION = "basicvsr.spynet.reduction"
_RECONSTRUCTION = "basicvsr.reconstruction"


@dataclass(frozen=True)
class RealBasicVSRConfig:
    """Holds the sizes of a network, which a checkpoint's shapes determine: see
    :meth:`from_state_dict`.

    The defaults are the published RealBasicVSR (6,294,834 parameters).
    """

    mid_channels: int = 64
    propagation_blocks: int = 20
    cleaning_blocks: int | None = 20
    """Residual blocks of the cleaning module; ``None`` for a network without one (BasicVSR)."""
    flow_channels: tuple[int, ...] = (32, 64, 32, 16)
    """Widths of the hidden convolutions of each flow level; the last convolution always has the two
    flow channels.
    """
    flow_kernel: int = 7
    flow_levels: int = 6
    flow_reduction: int = 1
    """The flow pyramid's finest level is this many times smaller than the frames, reduced by a
    learned convolution; 1 leaves it out, as published.
    """
    reconstruction_blocks: int = 0
    """Residual blocks of the head, where both branches have met; 0 is the published head."""
    single_shuffle: bool = False
    """True: the head reaches x4 in one pixel shuffle; False: the published two steps of x2 and two
    convolutions.
    """

    @property
    def flow_multiple(self) -> int:
        """Number that height and width must be a multiple of inside the flow pyramid (32 for the
        published six levels).
        """
        return int(2 ** (self.flow_levels - 1)) * self.flow_reduction

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON manifest; :meth:`from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RealBasicVSRConfig:
        """Invert :meth:`as_dict`.

        Raises:
            TypeError: a name is unknown or a value is not iterable where widths are expected.
        """
        return cls(**{**values, "flow_channels": tuple(values["flow_channels"])})

    @classmethod
    def from_state_dict(cls, shapes: Mapping[str, tuple[int, ...]]) -> RealBasicVSRConfig:
        """Derive the sizes from the names and shapes of a ``state_dict``.

        Only the few tensors that determine a size are inspected; loading with ``strict=True``
        afterwards finds every missing, unexpected or mis-shaped one.

        Args:
            shapes: tensor shape per published name (see :class:`RealBasicVSR`).

        Raises:
            KeyError: a tensor that determines a size is absent; the argument is its name.
            ValueError: the name of a numbered module has no number, or an absurd one.
        """

        def count(prefix: str) -> int:
            """Count the consecutively numbered modules below ``prefix``; at least 1, so that a gap
            is reported as missing.
            """
            numbers = {
                int(k[len(prefix) :].split(".", 1)[0]) for k in shapes if k.startswith(prefix)
            }
            if max(numbers, default=0) >= len(shapes):
                raise ValueError(f"{prefix}{max(numbers)} cannot be one of {len(shapes)} tensors")
            return max(numbers, default=0) + 1

        level = "basicvsr.spynet.basic_module.0.basic_module."
        first_flow_conv = shapes[f"{level}0.conv.weight"]
        flow_convs = count(level)
        return cls(
            mid_channels=shapes["basicvsr.fusion.weight"][0],
            propagation_blocks=count("basicvsr.backward_resblocks.main.2."),
            cleaning_blocks=(
                count("image_cleaning.0.main.2.")
                if any(k.startswith("image_cleaning.") for k in shapes)
                else None
            ),
            flow_channels=tuple(
                shapes[f"{level}{i}.conv.weight"][0] for i in range(flow_convs - 1)
            ),
            flow_kernel=first_flow_conv[-1],
            flow_levels=count("basicvsr.spynet.basic_module."),
            flow_reduction=shapes.get(f"{_FLOW_REDUCTION}.weight", (1,))[-1],
            reconstruction_blocks=(
                count(f"{_RECONSTRUCTION}.")
                if any(k.startswith(f"{_RECONSTRUCTION}.") for k in shapes)
                else 0
            ),
            single_shuffle="basicvsr.upsample.upsample_conv.weight" in shapes,
        )


PUBLISHED = RealBasicVSRConfig()
COMPACT = RealBasicVSRConfig(
    mid_channels=32,
    propagation_blocks=1,
    cleaning_blocks=1,
    flow_channels=(24, 24, 16, 8),
    flow_kernel=3,
    flow_levels=4,
    flow_reduction=2,
    reconstruction_blocks=4,
    single_shuffle=True,
)
"""Preset for CPUs, with about 37 times less arithmetic than the published size. Most of its depth
is in the head, which runs once per frame and sees both branches.
"""


# ------------------------------------------------------------------------------------------ leaves


def warp(image: Tensor, flow: Tensor, *, padding_mode: str) -> Tensor:
    """Sample ``image`` at each pixel's position plus ``flow`` (bilinear, pixel centres on
    integers).

    Args:
        image: (N, C, H, W), any float dtype; sampled in float32 and returned in its own dtype.
        flow: (N, 2, H, W) float32, pixels, (dx, dy).
        padding_mode: "zeros" for features, "border" inside the flow network, as published.

    Returns:
        (N, C, H, W), dtype of ``image``.
    """
    height, width = image.shape[-2:]
    ys = torch.arange(height, device=flow.device, dtype=flow.dtype)
    xs = torch.arange(width, device=flow.device, dtype=flow.dtype)
    x = _grid_axis(xs.view(1, 1, width) + flow[:, 0], width, clamp=padding_mode == "border")
    y = _grid_axis(ys.view(1, height, 1) + flow[:, 1], height, clamp=padding_mode == "border")
    grid = torch.stack((x, y), dim=-1)  # (N, H, W, 2)
    # Corners that are not aligned, and zeros even where the positions are clamped to the border:
    # ONNX Runtime samples several times faster that way.
    sampled = F.grid_sample(
        image.to(flow.dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return sampled.to(image.dtype)


def _grid_axis(positions: Tensor, size: int, *, clamp: bool) -> Tensor:
    """Convert pixels to the coordinates of ``grid_sample``, where -1 and 1 are the image's edges.

    As in the published code, a side of one pixel is sampled at that pixel, whatever the flow.
    """
    last = torch.sym_max(size - 1, 1)  # type: ignore[no-untyped-call]
    aligned = 2.0 * positions / last - 1.0  # -1 and 1 are the centres of the outermost pixels
    if clamp:
        aligned = aligned.clamp(-1.0, 1.0)
    return aligned * ((size - 1) / size)  # type: ignore[no-any-return]


class ResidualBlockNoBN(nn.Module):
    """Computes ``x + conv2(relu(conv1(x)))``: 3x3, no normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        for conv in (self.conv1, self.conv2):  # published: Kaiming, fan in, scaled by 0.1
            nn.init.kaiming_normal_(conv.weight, a=0.0, mode="fan_in")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            conv.weight.data *= 0.1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))  # type: ignore[no-any-return]


class ResidualBlocksWithInputConv(nn.Module):
    """Applies a 3x3 convolution, LeakyReLU(0.1), then ``blocks`` residual blocks."""

    def __init__(self, in_channels: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, 1, 1),
            nn.LeakyReLU(0.1),
            nn.Sequential(*(ResidualBlockNoBN(channels) for _ in range(blocks))),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)  # type: ignore[no-any-return]


class PixelShufflePack(nn.Module):
    """Applies a 3x3 convolution and a pixel shuffle by ``scale``."""

    def __init__(self, in_channels: int, out_channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.upsample_conv = nn.Conv2d(in_channels, out_channels * scale**2, 3, 1, 1)
        nn.init.kaiming_normal_(self.upsample_conv.weight, a=0.0, mode="fan_in")
        nn.init.zeros_(self.upsample_conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.upsample_conv(x), self.scale)


# -------------------------------------------------------------------------------------------- flow


class _FlowConv(nn.Module):
    """Holds a convolution under the published name ``conv``."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class _FlowLevel(nn.Module):
    """Computes the flow correction (2) of one pyramid level from reference (3), warped neighbour
    (3) and the flow so far (2).
    """

    def __init__(self, channels: tuple[int, ...], kernel: int) -> None:
        super().__init__()
        widths = (8, *channels, 2)
        self.basic_module = nn.Sequential(
            *(_FlowConv(i, o, kernel) for i, o in itertools.pairwise(widths))
        )

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.basic_module
        for conv in hidden:
            x = F.relu(conv(x))
        return last(x)  # type: ignore[no-any-return]


def _averaging_conv(factor: int) -> nn.Conv2d:
    """A convolution that makes frames ``factor`` times smaller, at first by averaging."""
    conv = nn.Conv2d(3, 3, factor, factor)
    average = torch.eye(3)[:, :, None, None].expand(conv.weight.shape) / factor**2
    conv.weight.data.copy_(average)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class SPyNet(nn.Module):
    """Estimates optical flow with a spatial pyramid (Ranjan and Black, CVPR 2017), in the form that
    RealBasicVSR contains.

    The weights in the published checkpoints derive from weights under a non-commercial licence;
    this file contains none.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: RealBasicVSRConfig) -> None:
        super().__init__()
        self.multiple, self.factor = config.flow_multiple, config.flow_reduction
        self.basic_module = nn.ModuleList(
            _FlowLevel(config.flow_channels, config.flow_kernel) for _ in range(config.flow_levels)
        )
        self.reduction: nn.Module = nn.Identity()
        if config.flow_reduction > 1:
            self.reduction = _averaging_conv(config.flow_reduction)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, reference: Tensor, neighbour: Tensor) -> Tensor:
        """Return the flow with ``neighbour(x + flow) ~ reference(x)``.

        Args:
            reference, neighbour: (N, 3, H, W), RGB, [0, 1], dtype of the weights. Any size: both
                are resized to the next multiple of 2^(levels-1) by bilinear interpolation (not
                padded), the flow back and rescaled.

        Returns:
            (N, 2, H, W) float32, pixels, (dx, dy).
        """
        height, width = reference.shape[-2:]
        full = tuple(
            (s + self.multiple - 1) // self.multiple * self.multiple for s in (height, width)
        )
        pyramid = [
            self.reduction(
                (F.interpolate(image, size=full, mode="bilinear", align_corners=False) - self.mean)
                / self.std
            )
            for image in (reference, neighbour)
        ]
        levels = [tuple(pyramid)]
        for _ in range(len(self.basic_module) - 1):
            levels.append(tuple(F.avg_pool2d(image, 2, 2) for image in levels[-1]))

        flow: Tensor | None = None
        for module, (ref, supp) in zip(self.basic_module, reversed(levels), strict=True):
            if flow is None:  # coarsest level: no flow yet
                flow = torch.zeros_like(ref[:, :2], dtype=torch.float32)
            else:
                flow = 2.0 * F.interpolate(
                    flow, size=ref.shape[-2:], mode="bilinear", align_corners=True
                )
            warped = warp(supp, flow, padding_mode="border")
            flow = flow + module(torch.cat((ref, warped, flow.to(ref.dtype)), dim=1)).float()
        assert flow is not None  # there is at least one level

        flow = F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False)
        dx = flow[:, 0:1] * (width * self.factor / full[1])
        dy = flow[:, 1:2] * (height * self.factor / full[0])
        return torch.cat((dx, dy), dim=1)


# ----------------------------------------------------------------------------------------- network


class BasicVSR(nn.Module):
    """Holds bidirectional propagation and the x4 head. Use it through :class:`RealBasicVSR`."""

    def __init__(self, config: RealBasicVSRConfig) -> None:
        super().__init__()
        channels = config.mid_channels
        self.spynet = SPyNet(config)
        self.backward_resblocks = ResidualBlocksWithInputConv(
            channels + 3, channels, config.propagation_blocks
        )
        self.forward_resblocks = ResidualBlocksWithInputConv(
            channels + 3, channels, config.propagation_blocks
        )
        self.fusion = nn.Conv2d(channels * 2, channels, 1)
        self.reconstruction = nn.Sequential(
            *(ResidualBlockNoBN(channels) for _ in range(config.reconstruction_blocks))
        )
        self.single_shuffle = config.single_shuffle
        if config.single_shuffle:
            self.upsample = PixelShufflePack(channels, 3, 4)
        else:
            self.upsample1 = PixelShufflePack(channels, channels, 2)
            self.upsample2 = PixelShufflePack(channels, channels, 2)
            self.conv_hr = nn.Conv2d(channels, channels, 3, 1, 1)
            self.conv_last = nn.Conv2d(channels, 3, 3, 1, 1)

    def head(self, features: Tensor) -> Tensor:
        """Return the detail that is added to the enlarged frame: (N, 2C, H, W), backward features
        first, to (N, 3, 4H, 4W).
        """
        x = self.reconstruction(F.leaky_relu(self.fusion(features), 0.1))
        if self.single_shuffle:
            return self.upsample(x)  # type: ignore[no-any-return]
        x = F.leaky_relu(self.upsample1(x), 0.1)
        x = F.leaky_relu(self.upsample2(x), 0.1)
        x = F.leaky_relu(self.conv_hr(x), 0.1)
        return self.conv_last(x)  # type: ignore[no-any-return]


def _aligned_and_joined(frame: Tensor, state: Tensor, flow: Tensor) -> Tensor:
    """Return the input of a propagation step, (N, 3 + C, H, W): the frame and the aligned state."""
    wide = flow.dtype
    aligned = warp(state.to(wide), flow, padding_mode="zeros")
    # Rounded after they are joined, which changes no value: TensorRT-RTX then samples, rounds and
    # joins in a single kernel.
    return torch.cat((frame.to(wide), aligned), dim=1).to(state.dtype)


class RealBasicVSR(nn.Module):
    """Upscales sequences by four. Frames are RGB in [0, 1]; the dtype is that of the weights
    (float32, or float16 after ``half()``).

    Args:
        config: sizes; the published network by default.
    """

    def __init__(self, config: RealBasicVSRConfig = PUBLISHED) -> None:
        super().__init__()
        self.config = config
        if config.cleaning_blocks is not None:
            self.image_cleaning = nn.Sequential(
                ResidualBlocksWithInputConv(3, config.mid_channels, config.cleaning_blocks),
                nn.Conv2d(config.mid_channels, 3, 3, 1, 1),
            )
        self.basicvsr = BasicVSR(config)

    @property
    def has_cleaning(self) -> bool:
        """True if the network cleans its input (RealBasicVSR), False if not (BasicVSR)."""
        return self.config.cleaning_blocks is not None

    def clean(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Run one cleaning pass.

        Args:
            frame: (N, 3, H, W).

        Returns:
            The cleaned frame (N, 3, H, W), and the residue (N) float32: the mean absolute change of
            each frame.
        """
        change = self.image_cleaning(frame)
        return frame + change, change.float().abs().mean(dim=(1, 2, 3))

    def flow(self, reference: Tensor, neighbour: Tensor) -> Tensor:
        """Return the flow (N, 2, H, W) float32 with ``neighbour(x + flow) ~ reference(x)``; see
        :class:`SPyNet`.
        """
        return self.basicvsr.spynet(reference, neighbour)  # type: ignore[no-any-return]

    def backward_step(self, frame: Tensor, state: Tensor, flow: Tensor) -> Tensor:
        """Run one step of the branch that goes backward in time.

        Args:
            frame: (N, 3, H, W) cleaned.
            state: (N, C, H, W) of the next frame; zeros at the end of a scene.
            flow: (N, 2, H, W) float32 from this frame to the next one; zeros at the end of a scene.

        Returns:
            The state (N, C, H, W) of this frame.
        """
        joined = _aligned_and_joined(frame, state, flow)
        return self.basicvsr.backward_resblocks(joined)  # type: ignore[no-any-return]

    def forward_step(self, frame: Tensor, state: Tensor, flow: Tensor) -> Tensor:
        """Run one step of the branch that goes forward in time: as :meth:`backward_step`, but with
        the state of the previous frame and the flow to it.
        """
        joined = _aligned_and_joined(frame, state, flow)
        return self.basicvsr.forward_resblocks(joined)  # type: ignore[no-any-return]

    def reconstruct(self, frame: Tensor, backward_state: Tensor, forward_state: Tensor) -> Tensor:
        """Upscale one frame: the head of both states plus the bilinear x4 of the *cleaned* frame.

        Returns:
            (N, 3, 4H, 4W), not clamped.
        """
        features = torch.cat((backward_state, forward_state), dim=1)
        enlarged = F.interpolate(frame, scale_factor=4, mode="bilinear", align_corners=False)
        return self.basicvsr.head(features) + enlarged

    def refine(
        self, frames: Tensor, *, refine_threshold: float = 255.0, cleanings: int | None = None
    ) -> Tensor:
        """Apply dynamic refinement (paper, section 3.2): clean until the change is small, one to
        three times.

        The published code decides once for the whole call, by the mean absolute change of all
        frames together.

        Args:
            frames: (N, T, 3, H, W).
            refine_threshold: on the 0-255 scale; cleaning continues while the change is at or above
                it. 255, the value of the released configuration, always cleans once.
            cleanings: fixed number of passes instead of a decision; 0 leaves the frames unchanged.

        Raises:
            ValueError: ``cleanings`` is negative.
        """
        if cleanings is not None and cleanings < 0:
            raise ValueError(f"cleanings must be 0 or more, got {cleanings}")
        if not self.has_cleaning:
            return frames
        batch = frames.flatten(0, 1)  # (N*T, 3, H, W)
        for _ in range(MAX_CLEANINGS if cleanings is None else cleanings):
            batch, residue = self.clean(batch)
            if cleanings is None and residue.mean() < refine_threshold / 255.0:
                break
        return batch.view(frames.shape)

    def flows(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return both flows between neighbours of a sequence.

        Args:
            frames: (N, T, 3, H, W), T >= 2.

        Returns:
            ``to_next`` and ``to_previous``, (N, T-1, 2, H, W) each: ``to_next[:, i]`` is from frame
            i to i+1 (used going backward in time), ``to_previous[:, i]`` from frame i+1 to i (used
            going forward).
        """
        n, t, _, height, width = frames.shape
        earlier, later = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
        to_next = self.flow(earlier, later).view(n, t - 1, 2, height, width)
        to_previous = self.flow(later, earlier).view(n, t - 1, 2, height, width)
        return to_next, to_previous

    def propagate(self, frames: Tensor) -> Tensor:
        """Run BasicVSR on cleaned frames: (N, T, 3, H, W) to (N, T, 3, 4H, 4W), not clamped."""
        n, t, _, height, width = frames.shape
        zero_state = frames.new_zeros(n, self.config.mid_channels, height, width)
        zero_flow = frames.new_zeros(n, 2, height, width, dtype=torch.float32)
        to_next, to_previous = self.flows(frames) if t > 1 else (None, None)

        state, backward_states = zero_state, []
        for i in reversed(range(t)):
            flow = zero_flow if to_next is None or i == t - 1 else to_next[:, i]
            state = self.backward_step(frames[:, i], state, flow)
            backward_states.append(state)
        backward_states.reverse()

        state, upscaled = zero_state, []
        for i in range(t):
            flow = zero_flow if to_previous is None or i == 0 else to_previous[:, i - 1]
            state = self.forward_step(frames[:, i], state, flow)
            upscaled.append(self.reconstruct(frames[:, i], backward_states[i], state))
        return torch.stack(upscaled, dim=1)

    def forward(
        self, frames: Tensor, *, refine_threshold: float = 255.0, cleanings: int | None = None
    ) -> Tensor:
        """Upscale a whole sequence at once; everything else in this project is tested against it.

        Args:
            frames: (N, T, 3, H, W), RGB, [0, 1], T, H and W at least 1.
            refine_threshold, cleanings: see :meth:`refine`.

        Returns:
            (N, T, 3, 4H, 4W), RGB, not clamped.
        """
        cleaned = self.refine(frames, refine_threshold=refine_threshold, cleanings=cleanings)
        return self.propagate(cleaned)
