"""Implements the published RealBasicVSR independently, as a reference.

This is a literal transcription of the data flow of the published code to a plain ``state_dict`` and
torch.nn.functional, with its layout (flow as (N, H, W, 2)), its loops and its mirror check. It
shares no line with ``rbvsr_deploy.model``, which is compared with it, and must not import that
module. It has only the published head (two shuffles of x2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def flow_warp(x: Tensor, flow: Tensor, padding_mode: str = "zeros") -> Tensor:
    """Sample x (N, C, H, W) at the pixel index plus flow (N, H, W, 2), pixels, (dx, dy)."""
    _, _, h, w = x.size()
    grid_y, grid_x = torch.meshgrid(torch.arange(0, h), torch.arange(0, w), indexing="ij")
    grid = torch.stack((grid_x, grid_y), 2).type_as(x)  # (H, W, 2)
    grid_flow = grid + flow
    grid_flow_x = 2.0 * grid_flow[:, :, :, 0] / max(w - 1, 1) - 1.0
    grid_flow_y = 2.0 * grid_flow[:, :, :, 1] / max(h - 1, 1) - 1.0
    grid_flow = torch.stack((grid_flow_x, grid_flow_y), dim=3)
    return F.grid_sample(
        x, grid_flow, mode="bilinear", padding_mode=padding_mode, align_corners=True
    )


def _count(sd: State, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in sd if name.startswith(prefix)})


def _conv(sd: State, name: str, x: Tensor) -> Tensor:
    weight = sd[f"{name}.weight"]
    return F.conv2d(x, weight, sd[f"{name}.bias"], stride=1, padding=weight.shape[-1] // 2)


def residual_blocks_with_input_conv(sd: State, name: str, x: Tensor) -> Tensor:
    x = F.leaky_relu(_conv(sd, f"{name}.main.0", x), negative_slope=0.1)
    for b in range(_count(sd, f"{name}.main.2.")):
        identity = x
        out = F.relu(_conv(sd, f"{name}.main.2.{b}.conv1", x))
        x = identity + _conv(sd, f"{name}.main.2.{b}.conv2", out) * 1.0
    return x


def compute_flow(sd: State, ref: Tensor, supp: Tensor) -> Tensor:
    """Run SPyNet on sizes that are multiples of the pyramid's: (N, H, W, 2)."""
    n, _, h, w = ref.size()
    mean, std = sd["basicvsr.spynet.mean"], sd["basicvsr.spynet.std"]
    levels = _count(sd, "basicvsr.spynet.basic_module.")
    refs, supps = [(ref - mean) / std], [(supp - mean) / std]
    for _ in range(levels - 1):
        refs.append(F.avg_pool2d(refs[-1], kernel_size=2, stride=2, count_include_pad=False))
        supps.append(F.avg_pool2d(supps[-1], kernel_size=2, stride=2, count_include_pad=False))
    refs, supps = refs[::-1], supps[::-1]

    coarsest = 2 ** (levels - 1)
    flow = refs[0].new_zeros(n, 2, h // coarsest, w // coarsest)
    for level in range(levels):
        if level == 0:
            flow_up = flow
        else:
            flow_up = F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True) * 2.0
        warped = flow_warp(supps[level], flow_up.permute(0, 2, 3, 1), padding_mode="border")
        x = torch.cat([refs[level], warped, flow_up], 1)
        name = f"basicvsr.spynet.basic_module.{level}.basic_module."
        convs = _count(sd, name)
        for c in range(convs):
            x = _conv(sd, f"{name}{c}.conv", x)
            if c < convs - 1:
                x = F.relu(x)
        flow = flow_up + x
    return flow


def spynet(sd: State, ref: Tensor, supp: Tensor) -> Tensor:
    """Return the flow with supp(x + flow) ~ ref(x), for any size: (N, 2, H, W)."""
    h, w = ref.shape[2:4]
    multiple = 2 ** (_count(sd, "basicvsr.spynet.basic_module.") - 1)
    w_up = w if (w % multiple) == 0 else multiple * (w // multiple + 1)
    h_up = h if (h % multiple) == 0 else multiple * (h // multiple + 1)
    ref = F.interpolate(ref, size=(h_up, w_up), mode="bilinear", align_corners=False)
    supp = F.interpolate(supp, size=(h_up, w_up), mode="bilinear", align_corners=False)
    flow = F.interpolate(
        compute_flow(sd, ref, supp), size=(h, w), mode="bilinear", align_corners=False
    )
    flow[:, 0, :, :] *= float(w) / float(w_up)
    flow[:, 1, :, :] *= float(h) / float(h_up)
    return flow


def is_mirror_extended(lrs: Tensor) -> bool:
    """Return whether the second half of (N, T, 3, H, W) is the first half reversed in time."""
    if lrs.size(1) % 2 == 0:
        first, second = torch.chunk(lrs, 2, dim=1)
        if torch.norm(first - second.flip(1)) == 0:
            return True
    return False


def basicvsr(sd: State, lrs: Tensor) -> Tensor:
    """Upscale cleaned frames (N, T, 3, H, W) to (N, T, 3, 4H, 4W)."""
    n, t, c, h, w = lrs.size()
    mirrored = is_mirror_extended(lrs)
    flows_forward = flows_backward = None
    if t > 1:  # the published code calls SPyNet with an empty batch here
        lrs_1 = lrs[:, :-1].reshape(-1, c, h, w)
        lrs_2 = lrs[:, 1:].reshape(-1, c, h, w)
        flows_backward = spynet(sd, lrs_1, lrs_2).view(n, t - 1, 2, h, w)
        if not mirrored:
            flows_forward = spynet(sd, lrs_2, lrs_1).view(n, t - 1, 2, h, w)

    channels = sd["basicvsr.fusion.weight"].shape[0]
    outputs = []
    feat_prop = lrs.new_zeros(n, channels, h, w)
    for i in range(t - 1, -1, -1):
        if i < t - 1:
            assert flows_backward is not None
            feat_prop = flow_warp(feat_prop, flows_backward[:, i].permute(0, 2, 3, 1))
        feat_prop = torch.cat([lrs[:, i], feat_prop], dim=1)
        feat_prop = residual_blocks_with_input_conv(sd, "basicvsr.backward_resblocks", feat_prop)
        outputs.append(feat_prop)
    outputs = outputs[::-1]

    feat_prop = torch.zeros_like(feat_prop)
    for i in range(t):
        lr_curr = lrs[:, i]
        if i > 0:
            if flows_forward is not None:
                flow = flows_forward[:, i - 1]
            else:
                assert flows_backward is not None
                flow = flows_backward[:, -i]
            feat_prop = flow_warp(feat_prop, flow.permute(0, 2, 3, 1))
        feat_prop = torch.cat([lr_curr, feat_prop], dim=1)
        feat_prop = residual_blocks_with_input_conv(sd, "basicvsr.forward_resblocks", feat_prop)

        out = torch.cat([outputs[i], feat_prop], dim=1)
        out = F.leaky_relu(_conv(sd, "basicvsr.fusion", out), 0.1)
        for upsample in ("basicvsr.upsample1", "basicvsr.upsample2"):
            out = F.pixel_shuffle(_conv(sd, f"{upsample}.upsample_conv", out), 2)
            out = F.leaky_relu(out, 0.1)
        out = F.leaky_relu(_conv(sd, "basicvsr.conv_hr", out), 0.1)
        out = _conv(sd, "basicvsr.conv_last", out)
        out = out + F.interpolate(lr_curr, scale_factor=4, mode="bilinear", align_corners=False)
        outputs[i] = out
    return torch.stack(outputs, dim=1)


def clean(sd: State, lqs: Tensor, threshold: float) -> tuple[Tensor, list[float]]:
    """Return the dynamically refined sequence and the residue of each pass on the 0-255 scale.

    A single mean over all items, frames, channels and pixels decides whether to continue.
    """
    n, t, c, h, w = lqs.size()
    residues = []
    for _ in range(3):
        x = lqs.reshape(-1, c, h, w)
        x = residual_blocks_with_input_conv(sd, "image_cleaning.0", x)
        change = _conv(sd, "image_cleaning.1", x).view(n, t, c, h, w)
        lqs = lqs + change
        mean = torch.mean(torch.abs(change))
        residues.append(255.0 * mean.item())
        if mean < threshold / 255.0:
            break
    return lqs, residues


def realbasicvsr(sd: State, lqs: Tensor, threshold: float = 255.0) -> Tensor:
    """Upscale (N, T, 3, H, W) RGB in [0, 1] to (N, T, 3, 4H, 4W), not clamped."""
    return basicvsr(sd, clean(sd, lqs, threshold)[0])
