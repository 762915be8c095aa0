"""``rbvsr-info``: shows the contents of a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rbvsr_deploy.commands._common import (
    JSON,
    PATH,
    VERBOSE,
    VERSION,
    Command,
    command_errors,
    show,
    show_json,
)

if TYPE_CHECKING:
    from rbvsr_deploy.bundle import Bundle, Manifest
    from rbvsr_deploy.bundle.engine_sets import EngineSet

__all__ = ["info"]


@click.command(cls=Command)
@click.argument("bundle", type=PATH, required=False)
@click.option("--devices", is_flag=True, help="Show what this machine can run bundles on instead.")
@JSON
@VERBOSE
@VERSION
def info(bundle: Path | None, devices: bool, as_json: bool, verbose: bool) -> None:
    """Show what a bundle holds, or the devices of this machine."""
    if devices == (bundle is not None):
        raise click.UsageError("name a bundle to show, or give --devices, and not both")
    with command_errors(verbose=verbose):
        if bundle is None:
            _show_devices(as_json=as_json)
            return
        from rbvsr_deploy.bundle import open_bundle

        opened = open_bundle(bundle)
        if as_json:
            show_json({**dataclasses.asdict(opened.manifest), "sha256": opened.sha256})
            return
        _show_manifest(bundle, opened.manifest, opened.sha256)
        for engine_set in opened.manifest.engine_sets:
            plans = opened.plans(engine_set)
            _show_engine_set(engine_set, {k: len(plan) for k, plan in plans.items()}, verbose)
        _show_placements(opened)


def _show_devices(*, as_json: bool) -> None:
    """Show every device by the name that ``--device`` takes, and why others cannot be used."""
    from rbvsr_deploy.engines.devices import find_devices

    found = find_devices()
    if as_json:
        show_json([dataclasses.asdict(device) for device in found])
        return
    for device in found:
        hardware = f" on {device.hardware}" if device.hardware else ""
        usable = f"{device.software}{hardware}"
        show(f"{device.name:>12}  {f'not usable: {device.missing}' if device.missing else usable}")


def _show_placements(bundle: Bundle) -> None:
    """Show what was measured to be the fastest on this machine."""
    from rbvsr_deploy.engines.placement import kept_placements

    for placement in kept_placements(bundle):
        height, width = placement.size
        show(f"{'placement':>11}  at {width}x{height}: {placement.machine}")
        for graph, name in placement.chosen.items():
            times = ", ".join(f"{n} {ms:.1f} ms" for n, ms in placement.milliseconds[graph].items())
            reasons = "; ".join(f"{n} {why}" for n, why in placement.refused[graph].items())
            why = "; ".join(part for part in (times, reasons) if part) or "as requested"
            show(f"{'':>11}  {graph} on {name} ({why})")


def _show_manifest(path: Path, manifest: Manifest, sha256: str) -> None:
    model, weights = manifest.model, manifest.weights
    network = "RealBasicVSR" if manifest.has_cleaning else "BasicVSR (no cleaning)"
    parts = [f"{network} x{manifest.scale}", f"{model['mid_channels']} channels"]
    parts += [f"{model.get('propagation_blocks', 'unknown')} propagation blocks"]
    parts += [f"{model['cleaning_blocks']} cleaning blocks"] * manifest.has_cleaning
    refinement = f"repeated while the mean change is at least {manifest.refine_threshold:g} of 255"
    rows = {
        "bundle": f"{path}, {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256}",
        "network": ", ".join(parts),
        "weights": f"{weights.file_name}, sha256 {weights.sha256}",
        "licence": weights.license or "not stated in the checkpoint",
        "provenance": weights.provenance or "not stated in the checkpoint",
        "precision": f"{manifest.precision} features, float32 flow and coordinates",
        "opset": str(manifest.opset),
        "refinement": refinement if manifest.has_cleaning else "none",
        "made by": f"rbvsr-deploy {manifest.toolkit_version}",
        "verified": f"against torch under {manifest.verification.get('runtime', 'nothing')}",
    }
    if (on_clip := manifest.verification.get("clip")) is not None:
        errors = on_clip["pictures"]
        rows["on a clip"] = (
            f"PSNR {errors['psnr']:.1f} dB, largest difference {errors['max_difference']:.2g} "
            f"of 1, over {on_clip['frames']} frames of {on_clip['clip']}, sha256 "
            f"{on_clip['sha256']}"
        )
    if manifest.quantisation is not None:
        rows["int8"] = _quantisation(manifest.quantisation)
    for name, value in rows.items():
        show(f"{name:>11}  {' '.join(value.split())}")  # on one line, whatever the file says
    for name, sides in manifest.graphs.items():
        inputs, outputs = (
            ", ".join(
                f"{item['name']} {item['dtype']} {_shape(item['shape'])}" for item in sides[side]
            )
            for side in ("inputs", "outputs")
        )
        show(f"{name:>11}  {inputs} -> {outputs}")
        for output, sizes in manifest.verification.get("outputs", {}).get(name, {}).items():
            worst: Mapping[str, float] = max(
                sizes.values(),
                key=lambda figures: figures.get("max_difference", figures.get("max_levels", 0.0)),
                default={},
            )
            figures = ", ".join(f"{k.replace('_', ' ')} {value:g}" for k, value in worst.items())
            show(f"{'':>11}  {output} against torch: {figures}")


def _show_engine_set(engine_set: EngineSet, sizes: dict[str, int], verbose: bool) -> None:
    smallest, optimal, largest = (
        f"{w}x{h}"
        for h, w in (
            engine_set.profile.min_size,
            engine_set.profile.opt_size,
            engine_set.profile.max_size,
        )
    )
    parts = [f"{sum(sizes.values()) / 1e6:.1f} MB", f"{smallest} to {largest}, tuned for {optimal}"]
    parts += [f"batches up to {engine_set.profile.batch}"]
    parts += ["also for later TensorRT versions"] * engine_set.version_compatible
    parts += ["also for other GPUs from 8.0 up"] * engine_set.hardware_compatible
    show(f"{'engines':>11}  {engine_set.name}: {', '.join(parts)}")
    for line in engine_set.timings():
        show(f"{'':>11}  {line}")
    if verbose:
        for graph, layers in engine_set.layers.items():
            kinds = ", ".join(f"{count} {kind.lower()}" for kind, count in layers.items())
            show(f"{'':>11}  {graph}, {sizes[graph] / 1e6:.1f} MB: {kinds}")


def _quantisation(record: Mapping[str, Any]) -> str:
    """Describe how much is in int8, and what that costs in PSNR."""
    text = ", ".join(
        f"{sum(b['form'] != 'float16' for b in found)} of {len(found)} residual blocks of {graph}"
        for graph, found in record.get("graphs", {}).items()
    )
    if record.get("psnr") is not None:
        clips = ", ".join(f"{c['frames']} frames of {c['name']}" for c in record.get("clips", ()))
        int8, float16 = (record["psnr"][name]["psnr"] for name in ("int8", "float16"))
        text += f"; PSNR against float32 {int8:.1f} dB (float16: {float16:.1f} dB) over {clips}"
    return text


def _shape(shape: list[int | str]) -> str:
    return f"({', '.join(str(size) for size in shape)})"
