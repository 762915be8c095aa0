"""Score a model against bicubic enlargement on held-out clips, from identical degraded frames.

PSNR is of the luma of ITU-R BT.601 in studio range (16-235; MATLAB's ``rgb2ycbcr``) computed in
floating point from 8-bit RGB, peak 255, 4 pixels left out at each border of the x4 output; the
value of a clip is the mean over its frames.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import click
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.model import RealBasicVSR, RealBasicVSRConfig
from rbvsr_deploy.training.old_data import (
    Clip,
    ClipSpec,
    TrainingSet,
    load_photos,
    load_videos,
    photo_clip,
    true_flow,
    video_clip,
)
from rbvsr_deploy.training.old_degradations import (
    CLEAN,
    SCALE,
    Degradation,
    degrade,
    draw_degradation,
)

__all__ = [
    "BORDER",
    "ClipScore",
    "enlarge_bicubic",
    "enlarge_with_model",
    "evaluate",
    "flow_error",
    "load_model",
    "main",
    "psnr_y",
    "summary",
]

BORDER = 4
"""Pixels left out at each border of the output."""

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class ClipScore:
    """PSNR (Y) of one clip, dB."""

    source: str
    kind: str
    """"photo" or "video"."""
    seed: int
    degradation: Degradation
    bicubic: float
    model: float
    clean_bicubic: float
    """Of the same clip after a clean bicubic reduction, for information."""
    clean_model: float
    flow_error: float | None
    """Mean end-point error of the flow, degraded pixels; ``None`` where the truth is unknown."""
    flow_truth: float | None
    """Mean length of the true flow, which is the error of assuming no motion."""


# ----------------------------------------------------------------------------------------- measures


def psnr_y(output: Frames, truth: Frames) -> float:
    """PSNR of the luma, dB, mean over frames.

    Args:
        output, truth: (T, H, W, 3) uint8, RGB.

    Raises:
        ValueError: the shapes differ, or nothing is left inside the border.
    """
    if output.shape != truth.shape or min(output.shape[1:3]) <= 2 * BORDER:
        raise ValueError(f"cannot compare frames of shapes {output.shape} and {truth.shape}")
    weights = np.array([65.481, 128.553, 24.966]) / 255.0
    inner = (slice(None), slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    difference = (output[inner].astype(np.float64) - truth[inner].astype(np.float64)) @ weights
    mse = np.maximum((difference**2).mean(axis=(1, 2)), 1e-10)
    return float((10.0 * np.log10(255.0**2 / mse)).mean())


def enlarge_bicubic(frames: Frames) -> Frames:
    """(T, H, W, 3) -> (T, 4H, 4W, 3) uint8, OpenCV's INTER_CUBIC."""
    size = (frames.shape[2] * SCALE, frames.shape[1] * SCALE)
    return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_CUBIC) for f in frames])


@torch.no_grad()
def enlarge_with_model(frames: Frames, model: RealBasicVSR) -> Frames:
    """(T, H, W, 3) -> (T, 4H, 4W, 3) uint8: the whole clip at once, one cleaning pass."""
    output = model(_to_tensor(frames), cleanings=1)[0]
    pixels: Frames = output.clamp(0.0, 1.0).mul(255.0).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels


@torch.no_grad()
def flow_error(frames: Frames, clip: Clip, model: RealBasicVSR) -> tuple[float, float] | None:
    """Mean end-point error of the flow on cleaned frames, and mean length of the true flow.

    Eight pixels are left out at each border, where the neighbour may not show the place at all.
    """
    if clip.path is None or min(frames.shape[1:3]) <= 16:
        return None
    to_next, _ = model.flows(model.refine(_to_tensor(frames), cleanings=1))
    truth = [
        true_flow(clip.path, reference=i, neighbour=i + 1, crop=frames.shape[1])
        for i in range(len(frames) - 1)
    ]
    wanted = torch.from_numpy(np.stack(truth))[..., 8:-8, 8:-8]
    found = to_next[0][..., 8:-8, 8:-8]
    return (found - wanted).norm(dim=1).mean().item(), wanted.norm(dim=1).mean().item()


def _to_tensor(frames: Frames) -> torch.Tensor:
    """(T, H, W, 3) uint8 -> (1, T, 3, H, W) float32, [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(255.0)[None].contiguous()


# --------------------------------------------------------------------------------------- evaluation


def load_model(path: Path) -> RealBasicVSR:
    """Read weights written by the training script; the sizes follow from their shapes."""
    weights = load_file(path)
    model = RealBasicVSR(
        RealBasicVSRConfig.from_state_dict({k: tuple(v.shape) for k, v in weights.items()})
    )
    model.load_state_dict(weights)
    return model.eval()


def evaluate(
    model: RealBasicVSR,
    *,
    photos: Sequence[Frames] = (),
    videos: Sequence[Frames] = (),
    spec: ClipSpec,
    seeds: int = 3,
) -> tuple[list[ClipScore], list[Frames]]:
    """One clip of each source for each seed.

    Args:
        photos: (H, W, 3) uint8 each, filmed with a synthetic camera.
        videos: (F, H, W, 3) uint8 each.
        spec: size of the clips.
        seeds: clips, and degradations, drawn per source.

    Returns:
        The scores, and for each clip of the first seed its middle frame: bicubic, model and truth
            side by side.
    """
    TrainingSet(photos, videos=videos).check(spec)
    scores, pictures = [], []
    sources = [("photo", i, a) for i, a in enumerate(photos)] + [
        ("video", i, a) for i, a in enumerate(videos)
    ]
    for seed in range(seeds):
        for kind, number, array in sources:
            rng = np.random.default_rng([seed, int(kind == "video"), number])
            clip = (photo_clip if kind == "photo" else video_clip)(array, rng, spec)
            degradation = draw_degradation(rng)
            score, picture = _score(
                model, clip, degradation, name=(f"{kind} {number + 1}", kind, seed)
            )
            scores.append(score)
            if seed == 0:
                pictures.append(picture)
    return scores, pictures


def _score(
    model: RealBasicVSR, clip: Clip, degradation: Degradation, *, name: tuple[str, str, int]
) -> tuple[ClipScore, Frames]:
    """Score of one clip, and its middle frame for a picture."""
    truth = clip.frames
    degraded, clean = degrade(truth, degradation), degrade(truth, CLEAN)
    bicubic, output = enlarge_bicubic(degraded), enlarge_with_model(degraded, model)
    flow = flow_error(degraded, clip, model)
    source, kind, seed = name
    score = ClipScore(
        source=source,
        kind=kind,
        seed=seed,
        degradation=degradation,
        bicubic=psnr_y(bicubic, truth),
        model=psnr_y(output, truth),
        clean_bicubic=psnr_y(enlarge_bicubic(clean), truth),
        clean_model=psnr_y(enlarge_with_model(clean, model), truth),
        flow_error=None if flow is None else flow[0],
        flow_truth=None if flow is None else flow[1],
    )
    middle = len(truth) // 2
    return score, np.concatenate((bicubic[middle], output[middle], truth[middle]), axis=1)


def summary(scores: Sequence[ClipScore]) -> dict[str, dict[str, float]]:
    """Means over the clips: all of them, and by kind."""
    groups = {"all": list(scores)}
    for kind in ("video", "photo"):
        groups[kind] = [s for s in scores if s.kind == kind]
    result = {}
    for group, members in groups.items():
        if members:
            means = {
                key: float(np.mean([getattr(s, key) for s in members]))
                for key in ("bicubic", "model", "clean_bicubic", "clean_model")
            }
            means["gain"] = means["model"] - means["bicubic"]
            means["clips"] = len(members)
            means["clips_better"] = sum(s.model > s.bicubic for s in members)
            result[group] = means
    flows = [(s.flow_error, s.flow_truth) for s in scores if s.flow_error is not None]
    if flows:
        error, truth = np.mean(np.array(flows, dtype=np.float64), axis=0)
        result["flow"] = {
            "error": float(error),
            "no_motion_error": float(truth),
            "clips": len(flows),
        }
    return result


def _strip(pictures: Sequence[Frames], names: Sequence[str]) -> Frames:
    """Rows of bicubic | model | truth, labelled."""
    rows = []
    for picture, name in zip(pictures, names, strict=True):
        row, third = picture.copy(), picture.shape[1] // 3
        for i, label in enumerate((f"{name}: bicubic", "model", "truth")):
            x, font = i * third, cv2.FONT_HERSHEY_SIMPLEX
            cv2.rectangle(row, (x, 0), (x + 10 * len(label) + 12, 24), (0, 0, 0), -1)
            cv2.putText(row, label, (x + 6, 17), font, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        rows.append(row)
    return np.concatenate(rows, axis=0)


# ------------------------------------------------------------------------------------- command line

_FOLDER = click.Path(exists=True, path_type=Path)


@click.command()
@click.option("--model", "weights", required=True, type=_FOLDER, help="Weights (.safetensors).")
@click.option(
    "--photos", multiple=True, type=_FOLDER, help="Folder of held-out photographs; repeatable."
)
@click.option(
    "--videos", multiple=True, type=_FOLDER, help="Folder of held-out videos; repeatable."
)
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="JSON file to write."
)
@click.option(
    "--strip", type=click.Path(path_type=Path), help="PNG of bicubic, model and truth to write."
)
@click.option(
    "--cache", required=True, type=click.Path(path_type=Path), help="Folder for decoded sources."
)
@click.option("--length", default=15, show_default=True, help="Frames per clip.")
@click.option("--crop", default=80, show_default=True, help="Side of the degraded frames.")
@click.option(
    "--reduction", default=2, show_default=True, help="Sources are made this much smaller first."
)
@click.option("--seeds", default=3, show_default=True, help="Clips and degradations per source.")
def main(
    weights: Path,
    photos: Iterable[Path],
    videos: Iterable[Path],
    output: Path,
    strip: Path | None,
    cache: Path,
    reduction: int,
    seeds: int,
    length: int,
    crop: int,
) -> None:
    """Compare a model with bicubic enlargement on held-out photographs and videos."""
    try:
        scores, pictures = evaluate(
            load_model(weights),
            photos=load_photos(photos, cache=cache, reduction=reduction),
            videos=load_videos(videos, cache=cache, reduction=reduction),
            spec=ClipSpec(length=length, crop=crop),
            seeds=seeds,
        )
    except (RbvsrError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    means = summary(scores)
    report: dict[str, Any] = {
        "measure": "PSNR (Y), dB: BT.601 studio-range luma, 4-pixel border left out, "
        "mean over frames, then over clips",
        "settings": {
            "length": length,
            "crop": crop,
            "reduction": reduction,
            "seeds": seeds,
            "cleanings": 1,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "opencv": cv2.__version__,
            "av": av.__version__,
            "numpy": np.__version__,
        },
        "means": means,
        "clips": [asdict(s) for s in scores],
    }
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if strip is not None:
        picture = _strip(pictures, [s.source for s in scores if s.seed == 0])
        cv2.imwrite(str(strip), picture[..., ::-1])
    click.echo(_table(scores, means))


def _table(scores: Sequence[ClipScore], means: dict[str, dict[str, float]]) -> str:
    """The scores as text."""
    lines = [
        (
            f"{'clip':<12}{'seed':>5}{'bicubic':>9}{'model':>9}{'gain':>7}"
            f"{'clean: bicubic':>16}{'model':>8}"
        )
    ]
    for s in scores:
        gain = s.model - s.bicubic
        lines.append(
            f"{s.source:<12}{s.seed:>5}{s.bicubic:>9.2f}{s.model:>9.2f}{gain:>+7.2f}{s.clean_bicubic:>16.2f}"
            f"{s.clean_model:>8.2f}"
        )
    for group in ("video", "photo", "all"):
        if group in means:
            m = means[group]
            lines.append(
                f"{group:<12}{'mean':>5}{m['bicubic']:>9.2f}{m['model']:>9.2f}{m['gain']:>+7.2f}"
                f"{m['clean_bicubic']:>16.2f}{m['clean_model']:>8.2f}"
            )
    if "flow" in means:
        flow = means["flow"]
        lines.append(
            f"flow error {flow['error']:.3f} px "
            f"(no motion assumed: {flow['no_motion_error']:.3f} px)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
