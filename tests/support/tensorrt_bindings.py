"""Simulates TensorRT's Python bindings, with exactly the names of each version.

The names were taken from the bindings of 8.6.1, 10.3.0 and 11.4.0 themselves, which cannot be
imported without TensorRT's libraries. As there, a name that a version lacks raises
``AttributeError``.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    INT64 = 8
    UINT8 = 5


class LayerType(Enum):
    CONVOLUTION = 0
    ELEMENTWISE = 1


class Layer:
    """A layer with one output."""

    def __init__(self, name: str, kind: LayerType, output: Any, inputs: list[Any]) -> None:
        self.name, self.type = name, kind
        self.num_inputs, self.num_outputs = len(inputs), 1
        self._inputs, self._output = inputs, output
        self.output_types: dict[int, DataType] = {}
        self.precision: DataType | None = None

    def get_input(self, i: int) -> Any:
        return self._inputs[i]

    def get_output(self, i: int) -> Any:
        return self._output

    def set_output_type(self, i: int, dtype: DataType) -> None:
        self.output_types[i] = dtype


class Network:
    """A parsed network: a float32 sum with a float32 output, and a float16 convolution."""

    def __init__(self, flags: int) -> None:
        self.flags = flags
        frame = SimpleNamespace(name="frame", dtype=DataType.HALF)
        flow = SimpleNamespace(name="flow", dtype=DataType.FLOAT)
        moved = SimpleNamespace(name="moved", dtype=DataType.FLOAT)
        features = SimpleNamespace(name="features", dtype=DataType.HALF)
        self.inputs, self.outputs = [frame, flow], [moved, features]
        self.layers = [
            Layer("sum", LayerType.ELEMENTWISE, moved, [flow]),
            Layer("convolution", LayerType.CONVOLUTION, features, [frame]),
        ]
        self.num_layers, self.num_inputs, self.num_outputs = 2, 2, 2

    def get_layer(self, i: int) -> Layer:
        return self.layers[i]

    def get_input(self, i: int) -> Any:
        return self.inputs[i]

    def get_output(self, i: int) -> Any:
        return self.outputs[i]


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
    before_11 = ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"]
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
            return Network(flags)

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
            self.logger = logger

        def parse(self, model: bytes) -> bool:
            if model == b"junk":
                self.logger.log(ILogger.ERROR, "[parser.cpp::parse::7] no such operator")
                return False
            return True

    module = SimpleNamespace(
        __version__=version,
        builds=builds,
        float32=DataType.FLOAT,
        ILogger=ILogger,
        Builder=Builder,
        OnnxParser=OnnxParser,
        BuilderFlag=IntEnum("BuilderFlag", common + (before_11 if major < 11 else [])),
        NetworkDefinitionCreationFlag=IntEnum(
            "NetworkDefinitionCreationFlag", kinds.get(major, ["STRONGLY_TYPED"]), start=0
        ),
        MemoryPoolType=IntEnum("MemoryPoolType", ["WORKSPACE"]),
        HardwareCompatibilityLevel=IntEnum("HardwareCompatibilityLevel", ["NONE", "AMPERE_PLUS"]),
    )
    if major >= 10:
        module.IProgressMonitor = IProgressMonitor
        module.ExecutionContextAllocationStrategy = Enum(  # type: ignore[misc]
            "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
        )
    return module
