"""Tests that each TensorRT flavour and version is called by its own API."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.engines.tensorrt import flavours
from rbvsr_deploy.engines.tensorrt.flavours import (
    KernelCache,
    TensorRT,
    checked,
    installed_flavours,
    load_flavour,
)
from rbvsr_deploy.errors import DeviceMemoryError, EngineError, MissingDependencyError
from rbvsr_deploy.graphs import Precision
from tests.support.tensorrt_bindings import bindings


class Context:
    """An execution context that records its arguments and needs scratch memory."""

    def __init__(self, how: Any) -> None:
        self.how = how
        self.device_memory = 0
        self.memory: tuple[int, int] | None = None

    def update_device_memory_size_for_shapes(self) -> int:
        return 300

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = address, size


class Engine8:
    """An engine of 8.6."""

    device_memory_size = 900

    def create_execution_context_without_device_memory(self) -> Context:
        return Context("without device memory")


class Engine10:
    """An engine of 10 and 11."""

    def create_execution_context(self, strategy: Any) -> Context:
        return Context(strategy)


def test_installed_flavours_are_found_without_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flavours are listed in order of preference; the error for a missing one names the extra."""
    installed = {"tensorrt", "tensorrt_rtx"}
    monkeypatch.setattr(flavours, "find_spec", lambda name: name in installed or None)
    assert installed_flavours() == ("tensorrt", "tensorrt-rtx")
    installed.clear()
    assert installed_flavours() == ()
    with pytest.raises(MissingDependencyError, match=r"rbvsr-deploy\[tensorrt\]"):
        load_flavour("tensorrt")


def test_a_broken_installation_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bindings without their libraries give a message that includes the loader's own."""

    def broken(name: str) -> Any:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(flavours, "find_spec", lambda name: True)
    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(EngineError, match=r"'tensorrt' is installed but does not load \(libnvinf"):
        load_flavour("tensorrt")


def test_old_versions_are_rejected() -> None:
    """Versions before 8.6 cannot launch with named tensors."""
    with pytest.raises(EngineError, match=r"TensorRT 8\.5\.2 is too old: 8\.6 or newer"):
        TensorRT("tensorrt", bindings("8.5.2"))


def constrained(
    version: str, model: bytes, *, precision: Precision = "float16", quantised: bool = False
) -> tuple[Any, Any]:
    """Return the network and the configuration that the builder of a version gets."""
    tensorrt = TensorRT("tensorrt", bindings(version))
    builder = tensorrt.module.Builder(tensorrt.logger)
    network, config = tensorrt.create_network(builder), builder.create_builder_config()
    assert tensorrt.module.OnnxParser(network, tensorrt.logger).parse(model), tensorrt.logger.errors
    types = tensorrt.tensor_types(network, model)
    tensorrt.set_precision(config, network, types=types, precision=precision, quantised=quantised)
    return network, config


def constraints(network: Any) -> dict[str, set[str]]:
    """Return the types that layers are constrained to, by the names of the layers."""
    found = {}
    for layer in network.layers:
        types = {layer.precision, *layer.output_types.values()} - {None}
        found[layer.name] = {dtype.name for dtype in types}
        assert len(layer.output_types) in (0, layer.num_outputs)
        assert (layer.precision is None) == (not layer.output_types)
    return found


@pytest.mark.parametrize(
    ("version", "network_flags", "config_flags"),
    [
        ("8.6.1", 1, {"FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS"}),
        ("10.3.0", 2, set()),
        ("11.4.0.106", 0, set()),
    ],
)
def test_precision_is_requested_by_each_versions_own_api(
    version: str, network_flags: int, config_flags: set[str], tiny_bundle_float16: Path
) -> None:
    """Before 10 flags are set and layers constrained; 10 uses a strongly typed network.

    Later versions need no request. TF32 is always off.
    """
    model = open_bundle(tiny_bundle_float16).graph("clean")
    network, config = constrained(version, model, quantised=True)
    assert network.flags == network_flags
    assert config.flags == config_flags
    assert any(constraints(network).values()) == version.startswith("8")


def test_a_float32_bundle_does_not_allow_float16_in_8_6(tiny_bundle: Path) -> None:
    """The builder may choose only from the types of the bundle."""
    model = open_bundle(tiny_bundle).graph("backward")
    network, config = constrained("8.6.1", model, precision="float32")
    assert config.flags == {"PREFER_PRECISION_CONSTRAINTS"}
    assert set().union(*constraints(network).values()) == {"FLOAT"}


def test_8_6_samples_in_float32_and_convolves_in_float16(tiny_bundle_float16: Path) -> None:
    """Its networks hide their types, so that each layer is constrained to the graph's own.

    Coordinates and samplers are float32, everything else is float16. Casts, constants and integers
    have types of their own, and 8.6 rejects a constraint on integers.
    """
    network, _ = constrained("8.6.1", open_bundle(tiny_bundle_float16).graph("backward"))
    hidden = [layer for layer in network.layers if layer.type.name == "CONVOLUTION"]
    assert [layer.get_output(0).dtype.name for layer in hidden] == ["FLOAT"] * len(hidden)

    found = constraints(network)
    by_kind: dict[str, set[str]] = {}
    for layer in network.layers:
        by_kind.setdefault(layer.type.name, set()).update(found[layer.name])
    assert {kind: types for kind, types in by_kind.items() if len(types) == 1} == {
        "CONVOLUTION": {"HALF"},
        "ACTIVATION": {"HALF"},
        "GRID_SAMPLE": {"FLOAT"},
        "FILL": {"FLOAT"},
        "CONCATENATION": {"FLOAT"},
        "GATHER": {"FLOAT"},
        "SHUFFLE": {"FLOAT"},
        "UNSQUEEZE": {"FLOAT"},
    }
    assert by_kind["ELEMENTWISE"] == {"FLOAT", "HALF"}
    free = {kind for kind, types in by_kind.items() if not types}
    assert free == {"CAST", "CONSTANT", "SHAPE", "SQUEEZE"}

    # The last sum is of features, all others compute coordinates.
    (last,) = (layer for layer in network.layers if layer.get_output(0) is network.outputs[0])
    sums = [layer for layer in network.layers if layer.type.name == "ELEMENTWISE"]
    assert [layer for layer in sums if found[layer.name] == {"HALF"}] == [last]
    (sampler,) = (layer for layer in network.layers if layer.type.name == "GRID_SAMPLE")
    assert found["node_grid_sampler"] == found["node_stack"] == {"FLOAT"}
    assert sampler.get_input(1).name == "stack"
    integers = [layer for layer in sums if layer.get_output(0).dtype.name == "INT32"]
    assert integers
    assert not any(found[layer.name] for layer in integers)


def test_every_layer_of_8_6_is_constrained_to_its_own_type(tiny_bundle_float16: Path) -> None:
    """The types are those that a strongly typed network of the same graph has, in every graph."""
    bundle = open_bundle(tiny_bundle_float16)
    for model in bundle.graphs().values():
        network, _ = constrained("8.6.1", model)
        for layer in network.layers:
            for i, dtype in layer.output_types.items():
                assert dtype.name == layer.real.get_output(i).dtype.name, layer.name


def test_layers_that_read_rounded_values_are_free_in_8_6() -> None:
    """Held to float16, a convolution between roundings could not be fused into int8."""
    weights: dict[str, Any] = {
        "s": np.array(0.1, np.float16),
        "z": np.array(0, np.int8),
        "k": np.ones((2, 2, 3, 3), np.int8),
        "w": np.ones((2, 2, 3, 3), np.float16),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["frame", "s", "z"], ["q"], name="round"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="frame_again"),
        helper.make_node("DequantizeLinear", ["k", "s", "z"], ["dk"], name="kernel_again"),
        helper.make_node("Conv", ["d", "dk"], ["features"], name="int8", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["features", "w"], ["out"], name="half", pads=[1, 1, 1, 1]),
    ]
    read, made = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 2, 8, 8])]
        for name in ("frame", "out")
    )
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "made_up", read, made, initializers)
    opsets = [helper.make_opsetid("", 19)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    network, config = constrained("8.6.1", model.SerializeToString(), quantised=True)
    found = constraints(network)
    assert {layer for layer, types in found.items() if types} == {"half"}
    assert found["half"] == {"HALF"}
    assert "INT8" in config.flags


def test_scratch_memory_is_provided_by_the_caller() -> None:
    """8.6 needs memory for the largest shapes, later versions for the current ones."""
    old = TensorRT("tensorrt", bindings("8.6.1"))
    context = old.create_context(Engine8(), KernelCache(None))
    assert context.how == "without device memory"
    assert old.scratch_bytes(Engine8(), context) == 900
    old.set_scratch(context, 4096, 900)
    assert (context.device_memory, context.memory) == (4096, None)

    for version in ("10.3.0", "11.4.0.106"):
        new = TensorRT("tensorrt", bindings(version))
        context = new.create_context(Engine10(), KernelCache(None))
        assert context.how.name == "USER_MANAGED"
        assert new.scratch_bytes(Engine10(), context) == 300
        new.set_scratch(context, 4096, 300)
        assert (context.device_memory, context.memory) == (0, (4096, 300))
        assert new.is_capturable(context, 1)


def test_an_error_is_not_taken_for_no_scratch_memory() -> None:
    """The call returns 0 for both; only the log distinguishes them."""
    new = TensorRT("tensorrt", bindings("10.3.0"))

    class Context0(Context):
        error = ""

        def update_device_memory_size_for_shapes(self) -> int:
            if self.error:
                new.logger.log(1, self.error)
            return 0

    context = Context0("")
    new.logger.log(1, "of an earlier call")
    assert new.scratch_bytes(None, context) == 0
    context.error = "[a.cpp::f::7] Error Code 3: not all input dimensions are specified"
    with pytest.raises(EngineError, match=r"memory for these shapes: Error Code 3: not all"):
        new.scratch_bytes(None, context)


class RuntimeCache:
    """A runtime cache of TensorRT-RTX that rejects content not starting with "mine"."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return content.startswith(b"mine")

    def reset(self) -> None:
        self.content = b""

    def serialize(self) -> bytes:
        return self.content


class RuntimeConfig:
    """A runtime configuration of TensorRT-RTX."""

    def __init__(self) -> None:
        self.cuda_graph_strategy: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self.strategy: Any = None
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RtxEngine:
    """An engine of TensorRT-RTX."""

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: RuntimeConfig) -> Context:
        return Context(config)


def test_rtx_contexts_share_kernels_and_do_not_capture() -> None:
    """All contexts fill one runtime cache, and TensorRT-RTX's own CUDA graphs are off.

    The caller owns the scratch memory.
    """
    rtx = load_flavour("tensorrt-rtx")
    kernels = KernelCache(b"mine, of an earlier run")
    first, second = (rtx.create_context(RtxEngine(), kernels).how for _ in range(2))
    assert first.cache is second.cache
    assert first.cache.content == b"mine, of an earlier run"
    assert first.cuda_graph_strategy.name == "DISABLED"
    assert first.strategy.name == "USER_MANAGED"
    assert first.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    assert kernels.serialize() is None  # nothing new to keep
    first.cache.content += b" and more"
    assert kernels.serialize() == b"mine, of an earlier run and more"


def test_kernels_of_another_driver_are_recompiled() -> None:
    """A cache that TensorRT-RTX rejects is emptied, not used."""
    kernels = KernelCache(b"theirs")
    config = RuntimeConfig()
    kernels.attach(config)
    assert config.cache is not None
    assert config.cache.content == b""


def test_rtx_has_every_name_that_is_used() -> None:
    """The names in the doubles above exist in the installed TensorRT-RTX."""
    module = load_flavour("tensorrt-rtx").module
    names = {
        "ICudaEngine": ["create_runtime_config", "create_execution_context"],
        "IRuntimeConfig": [
            "create_runtime_cache",
            "set_runtime_cache",
            "set_execution_context_allocation_strategy",
            "cuda_graph_strategy",
            "dynamic_shapes_kernel_specialization_strategy",
        ],
        "IRuntimeCache": ["serialize", "deserialize", "reset"],
        "IExecutionContext": [
            "is_stream_capturable",
            "update_device_memory_size_for_shapes",
            "set_device_memory",
            "set_input_shape",
            "set_tensor_address",
            "execute_async_v3",
        ],
        "Runtime": ["deserialize_cuda_engine", "engine_host_code_allowed"],
        "ICudaEngine.get_tensor_profile_shape": [],
    }
    for owner, attributes in names.items():
        kind = module
        for part in owner.split("."):
            kind = getattr(kind, part)
        assert [name for name in attributes if not hasattr(kind, name)] == []


def test_compute_capabilities() -> None:
    """TensorRT-RTX has a list; plain TensorRT compiles for its own GPU."""
    offered = load_flavour("tensorrt-rtx").compute_capabilities()
    assert offered is not None
    assert {"7.5", "8.6", "8.9", "12.0"} <= set(offered)
    assert TensorRT("tensorrt", bindings("10.3.0")).compute_capabilities() is None


def failing(tensorrt: TensorRT, what: str, *errors: str) -> None:
    """Log errors as TensorRT does, and then fail without a result."""
    with tensorrt.attempt(what):
        tensorrt.logger.log(2, "a warning")
        for error in errors:
            tensorrt.logger.log(1, error)
        checked(None)


def test_messages_include_tensorrts_own() -> None:
    """Its first error is included without source position; the next attempt starts afresh."""
    tensorrt = TensorRT("tensorrt", bindings("10.3.0"))
    first = "[a.cpp::f::7] Error Code 2 (first\nIn g at /_src/a.cpp:7)"
    with pytest.raises(EngineError) as caught:
        failing(tensorrt, "graph 'flow' is refused", first, "what follows from it")
    assert str(caught.value) == "graph 'flow' is refused: Error Code 2 (first)"
    with pytest.raises(EngineError, match="again: TensorRT failed without an error message"):
        failing(tensorrt, "again")


def test_out_of_memory_has_its_own_error() -> None:
    """The runtime responds to this error with smaller batches."""
    tensorrt = TensorRT("tensorrt", bindings("10.3.0"))
    with pytest.raises(DeviceMemoryError):
        failing(tensorrt, "launching", "Error Code 2: OutOfMemory (Requested size was 9 bytes.)")


def test_host_code_in_engines_is_not_trusted_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version-compatible engine contains host code, which runs only if the user allows it."""
    rtx = load_flavour("tensorrt-rtx")
    monkeypatch.delenv("RBVSR_TRUST_ENGINES", raising=False)
    double = SimpleNamespace(module=SimpleNamespace(Runtime=lambda logger: SimpleNamespace()))
    double.logger = rtx.logger
    assert TensorRT.create_runtime(double).engine_host_code_allowed is False  # type: ignore[arg-type]
    monkeypatch.setenv("RBVSR_TRUST_ENGINES", "1")
    assert TensorRT.create_runtime(double).engine_host_code_allowed is True  # type: ignore[arg-type]
