"""Replaces TensorRT with ONNX Runtime, and makes networks so small that a scene takes milliseconds.

A compiled engine is the ONNX model itself. It runs on the content of the simulated GPU's memory at
the time of execution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from rbvsr_deploy.bundle import Bundle, Manifest, Weights, graph_io, open_bundle, write_bundle
from rbvsr_deploy.bundle.engine_sets import EngineSet, Flavour, ShapeProfile
from rbvsr_deploy.engines.base import Network
from rbvsr_deploy.engines.onnx_runtime import import_onnxruntime
from rbvsr_deploy.engines.tensorrt.base import Candidate, states_are_channels_last
from rbvsr_deploy.engines.tensorrt.engine import TensorRTEngine
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.export.resize_graph import resize_graph
from rbvsr_deploy.graphs import GRAPHS, STATES, Precision
from tests.support.cuda_double import DriverDouble, GpuMisuseError

ENGINE_SET = EngineSet(
    flavour="tensorrt",
    version="10.0.0",
    compute_capability="8.9",
    platform="linux-x86_64",
    profile=ShapeProfile((1, 1), (16, 16), (64, 64), batch=4),
)


@functools.cache
def session(model: bytes) -> Any:
    """Return a model's ONNX Runtime session, which is opened once for all tests."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class ExecutableDouble:
    """Implements :class:`~rbvsr_deploy.engines.tensorrt.base.Executable` for tests."""

    def __init__(self, runtime: RuntimeDouble, graph: str, model: bytes) -> None:
        self._runtime = runtime
        self._driver = runtime.driver
        self._graph = graph
        self._session = session(model)
        self._seconds = runtime.seconds_of(graph, model)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._launched: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self._driver._call("set_shape")
        self._shapes[name] = shape

    def scratch_bytes(self) -> int:
        return 3 * math.prod(self._shapes[GRAPHS[self._graph].inputs[0].name])

    def set_scratch(self, address: int, size: int) -> None:
        assert address % 256 == 0
        self._scratch = address, size

    def set_address(self, name: str, address: int) -> None:
        assert address % 256 == 0, f"'{name}' of '{self._graph}' is not aligned"
        self._addresses[name] = address

    def enqueue(self, stream: int) -> None:
        spec, precision = GRAPHS[self._graph], self._runtime.precision
        is_captured = self._driver._live(stream).captured is not None
        if is_captured and self._launched != self._shapes:
            raise GpuMisuseError(f"'{self._graph}' is captured without a launch of these shapes")
        self._launched = dict(self._shapes)
        shapes = dict(self._shapes)
        outputs = spec.output_shapes(shapes, channels=self._runtime.channels)
        shapes |= {item.name: shape for item, shape in zip(spec.outputs, outputs, strict=True)}
        dtypes = {
            item.name: np.dtype(item.numpy_dtype(precision))
            for item in (*spec.inputs, *spec.outputs)
        }
        addresses = dict(self._addresses)
        sizes = {name: math.prod(shapes[name]) * dtypes[name].itemsize for name in dtypes}
        address, size = self._scratch
        assert size >= self.scratch_bytes()

        def array(name: str) -> Any:
            content = self._driver.bytes_at(addresses[name], sizes[name]).view(dtypes[name])
            if name in STATES and states_are_channels_last(precision, self._runtime.channels):
                n, channels, height, width = shapes[name]
                return content.reshape(n, height, width, channels).transpose(0, 3, 1, 2)
            return content.reshape(shapes[name])

        def work() -> None:
            self._driver.seconds += self._seconds
            self._driver.bytes_at(address, size)[:] = 0xAA
            inputs = {item.name: array(item.name).copy() for item in spec.inputs}
            values = self._session.run([item.name for item in spec.outputs], inputs)
            for item, value in zip(spec.outputs, values, strict=True):
                array(item.name)[...] = value

        def ranges(items: Any) -> list[tuple[int, int]]:
            return [(addresses[i.name], addresses[i.name] + sizes[i.name]) for i in items]

        self._driver.give(
            self._graph,
            stream,
            work,
            reads=ranges(spec.inputs),
            writes=[*ranges(spec.outputs), (address, address + size)],
        )

    def is_capturable(self, stream: int) -> bool:
        return self._runtime.capturable

    def close(self) -> None:
        self._runtime.open.remove(self)


class RuntimeDouble:
    """Implements :class:`~rbvsr_deploy.engines.tensorrt.base.Runtime` for tests.

    Engine files that start with ``b"bad"`` fail to load. Running one takes ``seconds_of`` its graph
    and file on the driver's clock.
    """

    flavour: Flavour = "tensorrt"
    version = "10.0.0"

    def __init__(
        self,
        driver: DriverDouble,
        network: Network,
        *,
        capturable: bool = True,
        seconds_of: Callable[[str, bytes], float] = lambda graph, plan: 0.0,
    ) -> None:
        self.driver = driver
        self.seconds_of = seconds_of
        self.precision: Precision = network.precision
        self.channels = network.channels
        self.capturable = capturable
        self.open: list[ExecutableDouble] = []
        self.closed = 0

    def load(self, graph: str, plan: bytes) -> ExecutableDouble:
        self.driver._call("load")
        if plan.startswith(b"bad"):
            raise EngineError(f"the engine of graph '{graph}' is for another version")
        executable = ExecutableDouble(self, graph, plan)
        self.open.append(executable)
        return executable

    def close(self) -> None:
        self.closed += 1


@dataclass
class PlansDouble:
    """Implements :class:`~rbvsr_deploy.engines.tensorrt.base.Plans`, yielding given candidates."""

    offer: Callable[[int, int, int], list[Candidate]]
    asked: list[tuple[int, int, int]] = field(default_factory=list)

    def candidates(self, height: int, width: int, *, batch: int) -> Iterator[Candidate]:
        self.asked.append((height, width, batch))
        yield from self.offer(height, width, batch)


def candidate(
    bundle: Bundle,
    *,
    profile: ShapeProfile = ENGINE_SET.profile,
    plans: Mapping[str, bytes] | None = None,
    reason: str = "from the bundle",
) -> Candidate:
    """Return a candidate with the graphs of a bundle; ``plans`` replaces some of them."""
    return Candidate(
        replace(ENGINE_SET, profile=profile), {**bundle.graphs(), **(plans or {})}, reason
    )


def open_double(
    bundle: Bundle,
    driver: DriverDouble,
    *,
    size: tuple[int, int] | None = None,
    capturable: bool = True,
    plans: PlansDouble | None = None,
) -> TensorRTEngine:
    """Open a TensorRT engine on the doubles."""
    network = Network.of(bundle.manifest)
    return TensorRTEngine(
        network,
        plans or PlansDouble(lambda height, width, batch: [candidate(bundle)]),
        RuntimeDouble(driver, network, capturable=capturable),
        driver,
        model=bundle.path.name,
        weights=bundle.sha256,
        reason="a test",
        size=size,
    )


def small_bundle(path: Path, *, precision: Precision = "float32", cleans: bool = True) -> Bundle:
    """Write a bundle of two-channel networks of a few operations each.

    Their output images depend on every frame, state and flow of the input.
    """
    io = graph_io(has_cleaning=cleans, channels=2, precision=precision)
    features = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[precision]
    manifest = Manifest(
        model={"mid_channels": 2, "single_shuffle": True, "cleaning_blocks": 1 if cleans else None},
        weights=Weights("small", "0"),
        precision=precision,
        opset=17,
        refine_threshold=5.0,
        graphs=io,
        verification={},
        toolkit_version="0",
    )
    write_bundle(path, manifest, {name: _small_graph(name, io[name], features) for name in io})
    return open_bundle(path)


def _small_graph(name: str, io: Any, features: int) -> bytes:
    if name == "resize":
        precision: Precision = "float32" if features == TensorProto.FLOAT else "float16"
        return bytes(resize_graph(precision, opset=17).SerializeToString())
    nodes: list[Any] = []
    constants: list[Any] = []

    def add(kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"value{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(values: Any, kind: int = features, shape: tuple[int, ...] = ()) -> str:
        constants.append(
            helper.make_tensor(f"constant{len(constants)}", kind, shape, np.ravel(values).tolist())
        )
        return str(constants[-1].name)

    def mean(value: str) -> str:
        return add("ReduceMean", value, axes=[1], keepdims=1)

    def times(value: str, factor: float) -> str:
        return add("Mul", value, constant(factor))

    match name:
        case "ingest":
            numbers = add("Transpose", add("Cast", "image", to=features), perm=[0, 3, 1, 2])
            add("Div", numbers, constant(255.0), output="frame")
        case "clean":
            add("Add", times("frame", 0.9), constant(0.01), output="cleaned")
            change = add("Abs", add("Sub", "cleaned", "frame"))
            residue = add("ReduceMean", change, axes=[1, 2, 3], keepdims=0)
            add("Cast", residue, to=TensorProto.FLOAT, output="residue")
        case "flow":
            change = add("Sub", "neighbour", "reference")
            start, stop, axis = (constant([v], TensorProto.INT64, (1,)) for v in (0, 2, 1))
            two = add("Slice", change, start, stop, axis)
            add("Cast", two, to=TensorProto.FLOAT, output="flow")
        case "backward" | "forward":
            carried = times("state", 0.5 if name == "backward" else 0.75)
            moved = times(add("Cast", "flow", to=features), 0.25)
            add("Add", add("Add", carried, mean("frame")), moved, output="new_state")
        case "reconstruct":
            states = add(
                "Add", times(mean("backward_state"), 0.2), times(mean("forward_state"), 0.1)
            )
            both = add("Add", "frame", states)
            scales = constant([1.0, 1.0, 4.0, 4.0], TensorProto.FLOAT, (4,))
            add("Resize", both, "", scales, mode="nearest", output="picture")
        case "mix" | "blend":
            base, other, output = "frame", "cleaned", "mixed"
            if name == "blend":
                scales = constant([1.0, 1.0, 4.0, 4.0], TensorProto.FLOAT, (4,))
                base, other = add("Resize", "frame", "", scales, mode="linear"), "picture"
                output = "blended"
            amount = add("Cast", "amount", to=features)
            add("Add", base, add("Mul", amount, add("Sub", other, base)), output=output)
        case "emit":
            clipped = add("Clip", "picture", constant(0.0), constant(1.0))
            rounded = add("Floor", add("Add", times(clipped, 255.0), constant(0.5)))
            image = add("Cast", rounded, to=TensorProto.UINT8)
            add("Transpose", image, perm=[0, 2, 3, 1], output="image")
    inputs, outputs = (
        [
            helper.make_tensor_value_info(
                item["name"],
                helper.np_dtype_to_tensor_dtype(np.dtype(item["dtype"])),
                item["shape"],
            )
            for item in io[side]
        ]
        for side in ("inputs", "outputs")
    )
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
