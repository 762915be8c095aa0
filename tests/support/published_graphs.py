"""Exports graphs of the published size with random weights, once for all tests."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch

from rbvsr_deploy.bundle import Manifest, Weights, graph_io
from rbvsr_deploy.export.checks import check_graph
from rbvsr_deploy.export.onnx_export import export_graph
from rbvsr_deploy.graph_modules import graph_modules
from rbvsr_deploy.graphs import GRAPHS
from rbvsr_deploy.model import PUBLISHED, RealBasicVSR
from tests.support.kept_exports import kept_export

__all__ = ["published_graph", "published_manifest"]


@functools.cache
def _modules() -> Mapping[str, torch.nn.Module]:
    torch.manual_seed(3)
    return graph_modules(RealBasicVSR(PUBLISHED).eval(), precision="float16")


@functools.cache
def published_graph(name: str, *, opset: int = 18) -> onnx.ModelProto:
    """Return a float16 graph that has passed the export's check."""
    spec, channels = GRAPHS[name], PUBLISHED.mid_channels

    def make(path: Path) -> None:
        model = export_graph(
            _modules()[name], spec, channels=channels, precision="float16", opset=opset
        )
        check_graph(model, spec, precision="float16", opset=opset)
        onnx.save(model, path)

    return onnx.load(kept_export(f"published-{name}-{opset}.onnx", make))


def published_manifest() -> Manifest:
    """Return the manifest that a bundle of these graphs would have."""
    return Manifest(
        model=PUBLISHED.as_dict(),
        weights=Weights("random", "0"),
        precision="float16",
        opset=18,
        refine_threshold=255.0,
        graphs=graph_io(has_cleaning=True, channels=64, precision="float16"),
        verification={},
        toolkit_version="0",
    )
