"""Exports a checkpoint as a verified bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch

from rbvsr_deploy.bundle import Manifest, Weights, check_bundle_path, graph_io, write_bundle
from rbvsr_deploy.bundle.graph_check import check_graph_bytes
from rbvsr_deploy.bundle.onnx_fields import GraphFormatError
from rbvsr_deploy.checkpoint import load_checkpoint
from rbvsr_deploy.errors import ExportError
from rbvsr_deploy.export.calibration import read_clip
from rbvsr_deploy.export.checks import check_graph, check_quantisation
from rbvsr_deploy.export.int8 import DEFAULT_MIN_PSNR, quantise_network
from rbvsr_deploy.export.onnx_export import DEFAULT_OPSET, export_graph
from rbvsr_deploy.export.quantise import QUANTISED_OPSET
from rbvsr_deploy.export.verify import verify_graphs
from rbvsr_deploy.graph_modules import graph_modules
from rbvsr_deploy.graphs import GRAPHS, Precision
from rbvsr_deploy.version import __version__

__all__ = ["export_bundle"]


def export_bundle(
    checkpoint: Path,
    output: Path,
    *,
    precision: Precision = "float32",
    opset: int = DEFAULT_OPSET,
    refine_threshold: float | None = None,
    calibrate: Sequence[Path] = (),
    min_psnr: float = DEFAULT_MIN_PSNR,
    verify: Callable[[Path], dict[str, Any]] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Export a checkpoint to a bundle and verify it against the torch model.

    Args:
        checkpoint: a checkpoint in any layout that :mod:`rbvsr_deploy.checkpoint` accepts.
        output: the ``model.plan`` to write; an existing file is replaced only after all checks have
            passed.
        precision: float type of features and convolutions; flow and coordinates are always
            float32.
        opset: 17, 18 or 19.
        refine_threshold: default threshold of dynamic refinement to record, on the 0-255 scale;
            ``None`` keeps the checkpoint's.
        calibrate: videos or image folders for calibration; if given, residual blocks are quantised
            to int8 by :func:`rbvsr_deploy.export.int8.quantise_network`, which requires
            ``precision`` float16 and ``opset`` 19.
        min_psnr: minimum PSNR in dB of the int8 bundle against the float32 model on these clips.
        verify: called with the path of the complete bundle before it is moved to ``output``, such
            as :func:`rbvsr_deploy.parity.compare.verify_bundle`. Its result is recorded as the
            verification's ``clip``; an exception ends the export.
        report: called with one line per step.

    Returns:
        The manifest of the bundle.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ExportError: a graph cannot be exported, breaks its contract or differs from the model; a
            calibration clip is too short, or int8 does not reach ``min_psnr``.
        MediaError: a calibration clip is missing or cannot be read.
        BundleError: the output cannot be written.
        ValueError: ``calibrate`` is given with another precision or opset.
    """
    if calibrate and (precision, opset) != ("float16", QUANTISED_OPSET):
        raise ValueError(
            f"int8 requires float16 and opset {QUANTISED_OPSET}, got {precision} and {opset}"
        )
    check_bundle_path(output)
    clips = [read_clip(path) for path in calibrate]
    loaded = load_checkpoint(checkpoint)
    model = loaded.model
    config = model.config
    report(f"loaded {checkpoint.name} ({loaded.layout}): {config.mid_channels} channels")

    graphs = {}
    for name, module in graph_modules(model, precision=precision).items():
        spec = GRAPHS[name]
        proto = export_graph(
            module, spec, channels=config.mid_channels, precision=precision, opset=opset
        )
        check_graph(proto, spec, precision=precision, opset=opset)
        graphs[name] = proto.SerializeToString()
        report(f"exported {name}: {len(proto.graph.node)} nodes, {len(graphs[name]) / 1e6:.2f} MB")

    verification = verify_graphs(
        graphs, graph_modules(model, precision="float32"), precision=precision
    )
    report(f"verified every output against torch under {verification['runtime']}")

    manifest = Manifest(
        model=config.as_dict(),
        weights=Weights(
            file_name=loaded.file_name,
            sha256=loaded.sha256,
            license=loaded.license,
            provenance=loaded.provenance,
        ),
        precision=precision,
        opset=opset,
        refine_threshold=loaded.refine_threshold if refine_threshold is None else refine_threshold,
        graphs=graph_io(
            has_cleaning=model.has_cleaning, channels=config.mid_channels, precision=precision
        ),
        verification=verification,
        toolkit_version=__version__,
    )
    if clips:
        graphs, record = quantise_network(
            model, manifest, graphs, clips, min_psnr=min_psnr, report=report
        )
        for name in record["graphs"]:
            proto = onnx.load_from_string(graphs[name])
            check_graph(proto, GRAPHS[name], precision=precision, opset=opset)
            check_quantisation(proto, GRAPHS[name])
        # The verification of these graphs applies to their float16 forms only.
        floats = {n: v for n, v in verification["outputs"].items() if n not in record["graphs"]}
        manifest = replace(
            manifest, quantisation=record, verification={**verification, "outputs": floats}
        )
    _check_opens(graphs, manifest)
    if verify is not None:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            trial = Path(folder, output.name)
            write_bundle(trial, manifest, graphs)
            record = verify(trial)
        manifest = replace(manifest, verification={**manifest.verification, "clip": record})
    write_bundle(output, manifest, graphs)
    return manifest


def _check_opens(graphs: Mapping[str, bytes], manifest: Manifest) -> None:
    """Raises ExportError if a graph would be refused when the bundle is opened, as one written by
    another version of torch's exporter may be.
    """
    for name, data in graphs.items():
        try:
            check_graph_bytes(
                data, GRAPHS[name], precision=manifest.precision, channels=manifest.channels
            )
        except GraphFormatError as error:
            raise ExportError(
                f"graph '{name}' as torch {torch.__version__} writes it {error}: its bundle would "
                "not be opened; use a version of torch that this toolkit is tested with"
            ) from None
