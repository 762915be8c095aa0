"""Tests the export: graph contracts, verification, and that a failed export leaves no files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.checkpoint import load_checkpoint
from rbvsr_deploy.errors import BundleError, ExportError
from rbvsr_deploy.export import to_bundle as export_module
from rbvsr_deploy.export.checks import check_graph
from rbvsr_deploy.export.onnx_export import convert_opset, export_graph
from rbvsr_deploy.export.to_bundle import export_bundle
from rbvsr_deploy.export.verify import SIZES, verify_graphs
from rbvsr_deploy.graph_modules import graph_modules
from rbvsr_deploy.graphs import GRAPHS, GraphSpec, Precision
from rbvsr_deploy.model import RealBasicVSRConfig
from tests.conftest import TINY, tiny_model


def graph(bundle: Path, name: str) -> onnx.ModelProto:
    return onnx.load_from_string(open_bundle(bundle).graph(name))


def test_manifest_records_the_origin_of_the_weights(tiny_bundle: Path) -> None:
    """Licence, provenance and threshold of the checkpoint are recorded in the manifest."""
    manifest = open_bundle(tiny_bundle).manifest
    assert manifest.weights.license == "CC0-1.0"
    assert manifest.weights.provenance == "random weights"
    assert manifest.refine_threshold == 5.0
    assert RealBasicVSRConfig.from_dict(manifest.model).mid_channels == 8


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_every_graph_keeps_its_contract(
    precision: Precision, tiny_bundle: Path, tiny_bundle_float16: Path
) -> None:
    """All seven graphs exist, have the contract's types, are dynamic in N, H and W, and pass the
    checks.
    """
    bundle = open_bundle(tiny_bundle if precision == "float32" else tiny_bundle_float16)
    assert list(bundle.manifest.graphs) == sorted(GRAPHS)
    for name, spec in GRAPHS.items():
        model = onnx.load_from_string(bundle.graph(name))
        check_graph(model, spec, precision=precision, opset=18)
        for value, item in zip(model.graph.input, spec.inputs, strict=True):
            sizes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            assert sizes == [8 if s == "C" else s for s in item.shape]


def test_flow_and_sampling_stay_float32_in_a_float16_bundle(tiny_bundle_float16: Path) -> None:
    """Every GridSample takes float32 inputs; the weights of the same graph are float16."""
    model = onnx.shape_inference.infer_shapes(graph(tiny_bundle_float16, "backward"))
    dtypes = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    samples = [n for n in model.graph.node if n.op_type == "GridSample"]
    assert len(samples) == 1
    assert {dtypes[name] for name in samples[0].input} == {onnx.TensorProto.FLOAT}
    weights = [t for t in model.graph.initializer if t.name.endswith("conv1.weight")]
    assert weights
    assert {t.data_type for t in weights} == {onnx.TensorProto.FLOAT16}


def test_graphs_contain_no_paths_of_the_exporting_machine(tiny_bundle: Path) -> None:
    """The exporter's source locations are removed."""
    bundle = open_bundle(tiny_bundle)
    for name in GRAPHS:
        assert b".py" not in bundle.graph(name)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [17, 19])
def test_other_opsets(opset: int, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """Graphs converted to opsets 17 and 19 satisfy the contract and compute the same."""
    graphs = {}
    for name, spec in GRAPHS.items():
        converted = convert_opset(graph(tiny_bundle, name), opset)
        check_graph(converted, spec, precision="float32", opset=opset)
        graphs[name] = converted.SerializeToString()
    modules = graph_modules(load_checkpoint(tiny_checkpoint).model, precision="float32")
    record = verify_graphs(graphs, modules, precision="float32")
    assert set(record["outputs"]) == set(GRAPHS)
    assert set(record["outputs"]["flow"]["flow"]) == {"x".join(map(str, s)) for s in SIZES}


@pytest.mark.slow
@pytest.mark.usefixtures("quick_export")
def test_basicvsr_has_no_clean_graph(tmp_path: Path) -> None:
    """A network without a cleaning module lacks its two graphs; a head of one step is exported."""
    config = replace(TINY, cleaning_blocks=None, single_shuffle=True)
    torch.save(tiny_model(config).state_dict(), tmp_path / "basicvsr.pth")
    manifest = export_bundle(tmp_path / "basicvsr.pth", tmp_path / "model.plan")
    assert not manifest.has_cleaning
    assert set(manifest.graphs) == set(GRAPHS) - {"clean", "mix"}


@pytest.mark.slow
def test_verification_fails_for_a_nearest_sampler(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """Nearest sampling, as opset 20 would cause in TensorRT, is detected."""
    model = graph(tiny_bundle, "backward")
    for node in model.graph.node:
        if node.op_type == "GridSample":
            for attribute in node.attribute:
                if attribute.name == "mode":
                    attribute.s = b"nearest"
    with pytest.raises(ExportError, match="nearest"):
        check_graph(model, GRAPHS["backward"], precision="float32", opset=18)
    bundle = open_bundle(tiny_bundle)
    graphs = {name: bundle.graph(name) for name in GRAPHS}
    modules = graph_modules(load_checkpoint(tiny_checkpoint).model, precision="float32")
    verify_graphs(graphs, modules, precision="float32")
    with pytest.raises(ExportError, match=r"backward\.new_state at 1x45x70"):
        verify_graphs(
            {**graphs, "backward": model.SerializeToString()}, modules, precision="float32"
        )


def test_values_that_are_not_finite_fail(tiny_bundle_float16: Path, tiny_checkpoint: Path) -> None:
    """NaN in an output fails the verification."""
    model = graph(tiny_bundle_float16, "reconstruct")
    for tensor in model.graph.initializer:
        if tensor.name.endswith("conv_last.bias"):
            values = onnx.numpy_helper.to_array(tensor) + np.float16(np.nan)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    modules = graph_modules(load_checkpoint(tiny_checkpoint).model, precision="float32")
    with pytest.raises(ExportError, match=r"reconstruct\.picture"):
        verify_graphs({"reconstruct": model.SerializeToString()}, modules, precision="float16")


def test_failed_verification_leaves_no_file(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wrong weight in one graph stops the export; an existing bundle is unchanged."""

    def with_a_wrong_weight(module: object, spec: GraphSpec, **options: object) -> onnx.ModelProto:
        model = graph(tiny_bundle, spec.name)
        for tensor in model.graph.initializer:
            if tensor.name.endswith("conv_last.bias"):
                wrong = onnx.numpy_helper.to_array(tensor) + np.float32(0.001)
                tensor.CopyFrom(onnx.numpy_helper.from_array(wrong, tensor.name))
        return model

    monkeypatch.setattr(export_module, "export_graph", with_a_wrong_weight)
    output = tmp_path / "model.plan"
    output.write_bytes(b"older")
    with pytest.raises(ExportError, match=r"reconstruct\.picture") as caught:
        export_bundle(tiny_checkpoint, output)
    assert "backward" not in str(caught.value)
    assert output.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.slow
def test_a_graph_that_would_not_be_opened_is_not_written(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator that another version of torch's exporter may write, if a harmless one."""

    def with_an_identity(module: object, spec: GraphSpec, **options: object) -> onnx.ModelProto:
        model = graph(tiny_bundle, spec.name)
        if spec.name == "emit":
            for node in model.graph.node:
                if node.output[0] == "image":
                    node.output[0] = "almost"
            model.graph.node.append(onnx.helper.make_node("Identity", ["almost"], ["image"]))
        return model

    monkeypatch.setattr(export_module, "export_graph", with_an_identity)
    with pytest.raises(
        ExportError, match=r"'emit' as torch .* 'Identity', .*: its bundle would not be opened"
    ):
        export_bundle(tiny_checkpoint, tmp_path / "model.plan")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", ["nowhere/model.plan", "."])
def test_unwritable_output_is_detected_first(
    output: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A missing output folder is detected before anything is exported."""
    steps: list[str] = []
    with pytest.raises(BundleError, match="cannot be written"):
        export_bundle(tiny_checkpoint, tmp_path / output, report=steps.append)
    assert steps == []


def test_opset_20_is_refused() -> None:
    """Opset 20 is refused: TensorRT before 2026 reads its GridSample as nearest."""
    with pytest.raises(ValueError, match="opset must be one of"):
        export_graph(torch.nn.Identity(), GRAPHS["emit"], channels=8, precision="float32", opset=20)
