"""Quantises float16 graphs to int8: calibrates on real footage, compares whole sequences with the
float32 model, and keeps blocks in float16 where int8 would fall below a PSNR gate.

The gate measures the final upscaled images rather than the outputs of single graphs, because errors
in a recurrent state accumulate over frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from rbvsr_deploy.bundle import Manifest, bundle_in_memory
from rbvsr_deploy.engines.onnx_runtime import OnnxRuntimeEngine, import_onnxruntime
from rbvsr_deploy.engines.pytorch import TorchEngine
from rbvsr_deploy.errors import ExportError
from rbvsr_deploy.export.calibration import SAMPLES, Clip, record_inputs, upscale_clip
from rbvsr_deploy.export.quantise import (
    Calibrator,
    ResidualBlock,
    activation_scales,
    quantise,
    residual_blocks,
)
from rbvsr_deploy.graphs import GRAPHS
from rbvsr_deploy.model import RealBasicVSR
from rbvsr_deploy.pixels import psnr_of

__all__ = ["DEFAULT_MIN_PSNR", "quantise_network"]

DEFAULT_MIN_PSNR = 40.0
"""Minimum PSNR in dB against the float32 model, over the upscaled images in 8-bit RGB."""

EXCERPT_FRAMES, EXCERPT_WINDOW = 10, (96, 96)
"""Excerpt for measuring the sensitivity of single blocks; it ends at the gate's worst frame."""

_BEST = 100.0
"""PSNR in dB reported for identical images."""

Images = NDArray[np.uint8]
Key = tuple[str, int]
"""Graph name and number of a residual block."""
Form = Literal["int8", "int8, float16 sum", "float16"]
"""Precision of a block: convolutions and sum in int8, only the convolutions in int8, or float16."""
Forms = Mapping[Key, Form]
"""Form of each block; unlisted blocks are float16."""


def quantise_network(
    model: RealBasicVSR,
    manifest: Manifest,
    graphs: Mapping[str, bytes],
    clips: Sequence[Clip],
    *,
    min_psnr: float = DEFAULT_MIN_PSNR,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Quantise as many residual blocks of a network to int8 as the PSNR gate allows.

    First, all blocks run in int8. If the PSNR against the float32 model is too low, the most
    sensitive sums return to float16; if returning all sums is not enough, so do the most sensitive
    blocks. The sensitivity of a block is measured on an excerpt with only this block in int8. A
    binary search finds how few blocks must return to float16 to pass the gate.

    Args:
        model: the float32 model.
        manifest: manifest of the float16 bundle.
        graphs: the bundle's graphs, of opset 19.
        clips: footage for the calibration and for the gate.
        min_psnr: minimum PSNR in dB against the float32 model, over the upscaled images of all
            clips in 8-bit RGB.
        report: called with one line per step and graph.

    Returns:
        The graphs, and the record for the manifest: clips, scales of every block, sensitivities,
        and PSNR before and after with the worst frame.

    Raises:
        ExportError: the PSNR is too low even in float16, or with any block in int8.
    """
    network = _QuantisedNetwork(manifest, graphs)
    gate = _Gate(clips, network.calibrate(model, clips))
    report(f"calibrated on {len(clips)} clip{'s' * (len(clips) != 1)}, {gate.frames} frames")

    scores = {"float16": gate.score(network, {})}
    report(f"float16 against float32: {scores['float16']}")
    if scores["float16"].psnr < min_psnr:
        raise ExportError(
            f"float16 already reaches only {scores['float16']} against the float32 model, less "
            f"than the required {min_psnr:g} dB, and int8 cannot be better: require a lower PSNR",
            parameters=("min_psnr",),
        )
    forms: dict[Key, Form] = dict.fromkeys(network.blocks, "int8")
    scores["all int8"] = scores["int8"] = gate.score(network, forms)
    report(f"int8 against float32: {scores['int8']}")

    alone: dict[Key, float] = {}
    steps: tuple[Form, ...] = ("int8, float16 sum", "float16")
    for easier in steps:
        if scores["int8"].psnr >= min_psnr:
            break
        enough = dict.fromkeys(network.blocks, easier)
        score = scores["float16"] if easier == "float16" else gate.score(network, enough)
        report(f"below {min_psnr:g} dB; with every block in {easier}: {score}")
        if score.psnr < min_psnr:
            forms, scores["int8"] = enough, score
            continue
        alone = _sensitivities(network, forms, gate.excerpt(scores["int8"]))
        order = sorted(network.blocks, key=lambda key: alone[key])
        least, most = 0, len(order)  # too few blocks, enough blocks
        while most - least > 1:
            tried = (least + most) // 2
            trial = {**forms, **dict.fromkeys(order[:tried], easier)}
            trial_score = gate.score(network, trial)
            report(f"with {tried} of {len(order)} blocks in {easier}: {trial_score}")
            if trial_score.psnr >= min_psnr:
                most, score = tried, trial_score
            else:
                least = tried
        forms, scores["int8"] = {**forms, **dict.fromkeys(order[:most], easier)}, score
    if set(forms.values()) == {"float16"}:
        raise ExportError(
            f"the required {min_psnr:g} dB are reached only with every residual block in float16 "
            f"(all in int8: {scores['all int8']}): export in float16, or require a lower PSNR",
            parameters=("min_psnr",),
        )
    quantised = network.graphs(forms)
    table = network.table(forms, alone)
    for graph, rows in table.items():
        report(_row(graph, rows))
    return quantised, {
        "method": "min-max of inputs recorded on propagated states",
        "activations": "int8, symmetric, one scale each",
        "weights": "int8, symmetric, one scale each",
        "runtime": f"onnxruntime {import_onnxruntime().__version__} CPU",
        "clips": [
            {
                "name": clip.name,
                "sha256": clip.sha256,
                "frames": len(clip.images),
                "size": list(clip.size),
                "window": list(clip.images.shape[1:3]),
            }
            for clip in clips
        ],
        "min_psnr": min_psnr,
        "psnr": {name: score.as_dict() for name, score in scores.items()},
        "graphs": table,
    }


class _QuantisedNetwork:
    """Builds and runs variants of a float16 network with residual blocks in any form."""

    def __init__(self, manifest: Manifest, graphs: Mapping[str, bytes]) -> None:
        self._manifest = manifest
        self._float16 = dict(graphs)
        loaded = {name: onnx.load_from_string(data) for name, data in graphs.items()}
        self.blocks: dict[Key, ResidualBlock] = {
            (name, block.number): block
            for name, proto in loaded.items()
            for block in residual_blocks(proto)
        }
        self._loaded = {name: loaded[name] for name, _ in self.blocks}
        self._ranges: dict[str, Any] = {}

    def calibrate(self, model: RealBasicVSR, clips: Sequence[Clip]) -> list[Images]:
        """Calibrate the activation ranges on the graphs' inputs in runs of the float32 model.

        Returns:
            The float32 model's upscaled images of each clip.
        """
        references = []
        with contextlib.ExitStack() as stack:
            calibrators = {
                name: stack.enter_context(Calibrator(proto)) for name, proto in self._loaded.items()
            }
            engine = TorchEngine(
                model,
                name="the float32 model",
                device="cpu",
                refine_threshold=self._manifest.refine_threshold,
            )
            stack.enter_context(engine)
            for clip in clips:  # one at a time: states are large
                every = max(1, len(clip.images) // SAMPLES)
                images, samples = record_inputs(engine, clip, tuple(calibrators), every=every)
                references.append(images)
                for name, calibrator in calibrators.items():
                    calibrator.add(_typed(name, sample) for sample in samples[name])
            self._ranges = {name: item.ranges() for name, item in calibrators.items()}
        return references

    def graphs(self, forms: Forms) -> dict[str, bytes]:
        """Return all graphs with the blocks in the given forms."""
        graphs = dict(self._float16)
        for name, proto in self._loaded.items():
            own = {k: forms[k] for k in self.blocks if k[0] == name and k in forms}
            blocks = [self.blocks[key] for key, form in own.items() if form != "float16"]
            unfused = [self.blocks[key] for key, form in own.items() if form.endswith("sum")]
            if blocks:
                quantised = quantise(proto, blocks, self._ranges[name], unfused=unfused)
                graphs[name] = quantised.SerializeToString()
        return graphs

    def upscale(self, forms: Forms, clip: Clip) -> Images:
        """Upscale a clip with the blocks in the given forms."""
        bundle = bundle_in_memory("the int8 network", self._manifest, self.graphs(forms))
        with OnnxRuntimeEngine(bundle, device="cpu") as engine:
            return upscale_clip(engine, clip)

    def table(self, forms: Forms, alone: Mapping[Key, float]) -> dict[str, list[dict[str, Any]]]:
        """Return the form, scales and, if measured, sensitivity of each block, per graph."""
        table: dict[str, list[dict[str, Any]]] = {name: [] for name in self._loaded}
        graphs = self.graphs(forms)
        quantised = {name: onnx.load_from_string(graphs[name]) for name in table}
        for key, block in self.blocks.items():
            graph, number = key
            entry: dict[str, Any] = {"block": number, "form": forms[key]}
            if forms[key] != "float16":
                entry["scales"] = activation_scales(quantised[graph], block)
            if key in alone:
                entry["psnr_alone"] = round(alone[key], 2)
            table[graph].append(entry)
        return table


def _typed(graph: str, sample: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Convert a float32 sample to the input types of the float16 graph."""
    return {
        item.name: sample[item.name].astype(item.numpy_dtype("float16"))
        for item in GRAPHS[graph].inputs
    }


@dataclass(frozen=True)
class _Score:
    """Summarises the difference to the float32 model over all frames of all clips."""

    psnr: float
    """PSNR in dB of 8-bit RGB, over all frames."""
    worst_psnr: float
    """PSNR in dB of the worst frame."""
    worst_clip: int
    worst_frame: int
    clip_name: str

    def __str__(self) -> str:
        return (
            f"{self.psnr:.1f} dB (worst: frame {self.worst_frame} of {self.clip_name}, "
            f"{self.worst_psnr:.1f} dB)"
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "psnr": round(self.psnr, 2),
            "worst_psnr": round(self.worst_psnr, 2),
            "worst_clip": self.clip_name,
            "worst_frame": self.worst_frame,
        }


class _Gate:
    """Compares the upscaled clips with those of the float32 model."""

    def __init__(self, clips: Sequence[Clip], references: Sequence[Images]) -> None:
        self._clips = clips
        self._references = references
        self.frames = sum(len(clip.images) for clip in clips)

    def score(self, network: _QuantisedNetwork, forms: Forms) -> _Score:
        errors = [
            _squared_errors(network.upscale(forms, clip), reference)
            for clip, reference in zip(self._clips, self._references, strict=True)
        ]
        clip = max(range(len(errors)), key=lambda i: errors[i].max())
        return _Score(
            psnr=_psnr(float(np.concatenate(errors).mean())),
            worst_psnr=_psnr(float(errors[clip].max())),
            worst_clip=clip,
            worst_frame=int(errors[clip].argmax()),
            clip_name=self._clips[clip].name,
        )

    def excerpt(self, score: _Score) -> Clip:
        """Return a small excerpt of the worst clip, which ends at its worst frame if possible."""
        clip = self._clips[score.worst_clip]
        start = max(0, score.worst_frame + 1 - EXCERPT_FRAMES)
        return clip.excerpt(start, start + EXCERPT_FRAMES, window=EXCERPT_WINDOW)


def _squared_errors(got: Images, want: Images) -> NDArray[np.float64]:
    """Return the mean squared difference of each frame, for 8-bit levels."""
    return np.array(
        [
            ((one.astype(np.float32) - other.astype(np.float32)) ** 2).mean(dtype=np.float64)
            for one, other in zip(got, want, strict=True)
        ]
    )


def _psnr(mse: float) -> float:
    return psnr_of(mse, peak=255.0, most=_BEST)


def _sensitivities(network: _QuantisedNetwork, forms: Forms, excerpt: Clip) -> dict[Key, float]:
    """Return the PSNR in dB against float16 with each block alone in its form."""
    reference = network.upscale({}, excerpt)
    return {
        key: _psnr(float(_squared_errors(network.upscale({key: form}, excerpt), reference).mean()))
        for key, form in forms.items()
    }


def _row(graph: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """Format a graph's line of the report."""
    forms = [entry["form"] for entry in entries]
    row = f"{graph}: {len(forms) - forms.count('float16')} of {len(forms)} residual blocks in int8"
    for form in ("int8, float16 sum", "float16"):
        if form in forms:
            listed = (
                f"{entry['block']}" + f" ({entry['psnr_alone']:.1f} dB)" * ("psnr_alone" in entry)
                for entry in entries
                if entry["form"] == form
            )
            row += f"; in {form}, alone: {', '.join(listed)}"
    return row
