"""Simulates TensorRT's Python bindings, with exactly the names of each version.

Networks are parsed by TensorRT-RTX, so that they have the layers of a real one.

The names were taken from the bindings of 8.6.1, 10.3.0 and 11.4.0 themselves, which cannot be
imported without TensorRT's libraries. As there, a name that a version lacks raises
``AttributeError``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

from rbvsr_deploy.engines.tensorrt.flavours import TensorRT, load_flavour


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    INT64 = 8


class InterpolationMode(Enum):
    NEAREST = 0
    LINEAR = 1
    CUBIC = 2


class Tensor:
    """A tensor of a parsed network, which in 8.6 hides its type until the network is built.

    There every tensor between layers is float32, except integers and the results of casts, as a
    listing of networks parsed by 8.6.0 showed. 8.6 has no 64-bit integers.
    """

    def __init__(self, real: Any, instead: Mapping[str, str]) -> None:
        self.real, self.name = real, real.name
        kind = real.dtype.name
        self.dtype = DataType[instead.get(kind, kind)]
        self.allowed_formats = 0


class Layer:
    """A layer of a parsed network, which records constraints."""

    def __init__(self, real: Any, inputs: list[Any], outputs: list[Tensor], *, typed: bool) -> None:
        self.real, self.name, self.type = real, real.name, real.type
        self.num_inputs, self.num_outputs = len(inputs), len(outputs)
        self._inputs, self._outputs, self._typed = inputs, outputs, typed
        self.output_types: dict[int, DataType] = {}
        self._precision: DataType | None = None

    def get_input(self, i: int) -> Any:
        return self._inputs[i]

    def get_output(self, i: int) -> Tensor:
        return self._outputs[i]

    @property
    def precision(self) -> DataType | None:
        return self._precision

    @precision.setter
    def precision(self, dtype: DataType) -> None:
        assert not self._typed, "precision cannot be set in a strongly typed network"
        self._precision = dtype

    def set_output_type(self, i: int, dtype: DataType) -> None:
        assert not self._typed, "output types cannot be set in a strongly typed network"
        floats = (DataType.FLOAT, DataType.HALF)
        assert self._outputs[i].dtype in floats, f"{self.name} has an output of integers"
        self.output_types[i] = dtype


class GridSampleLayer(Layer):
    """A sampling layer, once its class is set: the bindings return only the base class."""

    def _parsed(self) -> Any:
        self.real.__class__ = _rtx().module.IGridSampleLayer
        return self.real

    @property
    def interpolation_mode(self) -> InterpolationMode:
        return InterpolationMode[self._parsed().interpolation_mode.name]

    @property
    def sample_mode(self) -> Any:
        return self._parsed().sample_mode

    @property
    def align_corners(self) -> bool:
        return bool(self._parsed().align_corners)


class Network:
    """A network that TensorRT-RTX has parsed, as another version reports it."""

    def __init__(self, flags: int, *, hides: bool) -> None:
        self.flags = flags
        self.layers: list[Layer] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self._hides = hides
        rtx = _rtx()
        self._builder = rtx.module.Builder(rtx.logger)
        self._real = rtx.create_network(self._builder)

    def parse(self, model: bytes) -> str | None:
        """Parse a model and return the first error, if there is one."""
        rtx = _rtx()
        rtx.logger.errors.clear()
        parser = rtx.module.OnnxParser(self._real, rtx.logger)
        if not parser.parse(model):
            return f"[parser.cpp::parse::7] {rtx.logger.errors[0]}"
        real = self._real
        narrow = {"INT64": "INT32"} if self._hides else {}
        hidden = {"HALF": "FLOAT"} if self._hides else {}
        self.inputs = [Tensor(real.get_input(i), narrow) for i in range(real.num_inputs)]
        self.outputs = [Tensor(real.get_output(i), narrow) for i in range(real.num_outputs)]
        tensors = {tensor.name: tensor for tensor in (*self.inputs, *self.outputs)}
        layers = [real.get_layer(i) for i in range(real.num_layers)]
        for layer in layers:
            instead = narrow if layer.type.name == "CAST" else narrow | hidden
            for i in range(layer.num_outputs):
                output = layer.get_output(i)
                tensors.setdefault(output.name, Tensor(output, instead))
        for layer in layers:
            inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
            self.layers.append(
                Layer(
                    layer,
                    [tensor and tensors[tensor.name] for tensor in inputs],
                    [tensors[layer.get_output(i).name] for i in range(layer.num_outputs)],
                    typed=not self._hides,
                )
            )
        return None

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_layer(self, i: int) -> Layer:
        return self.layers[i]

    def get_input(self, i: int) -> Tensor:
        return self.inputs[i]

    def get_output(self, i: int) -> Tensor:
        return self.outputs[i]


def _rtx() -> TensorRT:
    return load_flavour("tensorrt-rtx")


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = shapes


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class _Config:
    """The builder configuration, with the attributes that all versions have."""

    __slots__ = (
        "builder_optimization_level",
        "flags",
        "hardware_compatibility_level",
        "profiles",
        "timing_cache",
        "workspace",
    )

    def __init__(self) -> None:
        self.flags: set[Any] = {"TF32"}
        self.profiles: list[Profile] = []
        self.timing_cache: TimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.workspace = pool.name, size

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> TimingCache:
        return TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        # TensorRT rejects the cache of another GPU.
        if cache.content.startswith(b"foreign"):
            return False
        self.timing_cache = cache
        return True

    def get_timing_cache(self) -> TimingCache:
        assert self.timing_cache is not None
        return self.timing_cache


class _ConfigFrom10(_Config):
    __slots__ = ("progress_monitor",)


def bindings(version: str) -> Any:
    """Return the module ``tensorrt`` of 8.6, 10.3 or 11.4; its ``builds`` lists all builds."""
    major = int(version.split(".")[0])
    common = ["TF32", "VERSION_COMPATIBLE"]
    before_11 = ["FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS"]
    kinds = {8: ["EXPLICIT_BATCH"], 10: ["EXPLICIT_BATCH", "STRONGLY_TYPED"]}
    builds: list[SimpleNamespace] = []

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    class IProgressMonitor:
        pass

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> Network:
            return Network(flags, hides=major < 10)

        def create_builder_config(self) -> _Config:
            return _Config() if major < 10 else _ConfigFrom10()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: _Config) -> bytes:
            monitor = getattr(config, "progress_monitor", None)
            if monitor is not None:
                monitor.phase_start("Timing", None, 2)
                assert monitor.step_complete("Timing", 0)
                monitor.phase_finish("Timing")
            if config.timing_cache is not None:
                config.timing_cache.content += b"timed"
            builds.append(SimpleNamespace(network=network, config=config))
            return b"ftrt" + bytes([len(builds)])

    class OnnxParser:
        def __init__(self, network: Network, logger: Any) -> None:
            self.network, self.logger = network, logger

        def parse(self, model: bytes) -> bool:
            error = self.network.parse(model)
            if error is not None:
                self.logger.log(ILogger.ERROR, error)
            return error is None

    module = SimpleNamespace(
        __version__=version,
        builds=builds,
        float16=DataType.HALF,
        float32=DataType.FLOAT,
        IGridSampleLayer=GridSampleLayer,
        InterpolationMode=InterpolationMode,
        ILogger=ILogger,
        Builder=Builder,
        OnnxParser=OnnxParser,
        BuilderFlag=IntEnum("BuilderFlag", common + (before_11 if major < 11 else [])),
        NetworkDefinitionCreationFlag=IntEnum(
            "NetworkDefinitionCreationFlag", kinds.get(major, ["STRONGLY_TYPED"]), start=0
        ),
        TensorFormat=IntEnum("TensorFormat", ["LINEAR", "CHW2", "HWC8"], start=0),
        MemoryPoolType=IntEnum("MemoryPoolType", ["WORKSPACE"]),
        HardwareCompatibilityLevel=IntEnum("HardwareCompatibilityLevel", ["NONE", "AMPERE_PLUS"]),
    )
    if major >= 10:
        module.IProgressMonitor = IProgressMonitor
        module.ExecutionContextAllocationStrategy = Enum(  # type: ignore[misc]
            "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
        )
    return module
