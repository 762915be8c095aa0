"""Defines the result of a benchmark run, which is also its JSON file.

:func:`json_schema` describes the file; the committed copy is ``result.schema.json``. A figure that
cannot be measured is ``null``, and ``missing`` says why.
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
from msgspec import Struct

__all__ = [
    "SCHEMA_VERSION",
    "Attained",
    "BenchResult",
    "Calm",
    "Ceilings",
    "Counted",
    "GraphResult",
    "LatencyResult",
    "Machine",
    "PeerResult",
    "Protocol",
    "Quality",
    "SensorSummary",
    "ThroughputResult",
    "Times",
    "json_schema",
]

SCHEMA_VERSION = 1
"""Raised when a field changes its meaning or disappears."""


class _Record(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all records: unknown fields are refused, when read as well."""


class Times(_Record, frozen=True):
    """Summarises repeated measurements, in milliseconds."""

    count: int
    p50: float
    p90: float
    p99: float | None
    """``null`` for fewer than 100 measurements."""
    minimum: float
    maximum: float


class Machine(_Record, frozen=True):
    """Describes the machine and its software."""

    name: str
    """The processor, the Jetson board or the GPU that ran the network."""
    cpu: str
    cores: int
    """Number of cores this process may use."""
    memory_bytes: int | None
    os: str
    accelerator: str | None
    """Name of the GPU or board."""
    driver: str | None
    """Version of the GPU's driver, or the L4T release of a Jetson."""
    versions: dict[str, str]
    """Versions of Python and of the packages that took part."""


class Calm(_Record, frozen=True):
    """Says whether the machine was calm enough for its figures to be compared."""

    calm: bool
    reasons: list[str]
    """Reasons why the machine was not calm, one clause each."""
    load_before: float | None
    """Load average of one minute before the run, per core."""
    others_share: float | None
    """Share of all cores that other processes used during the run, 0 to 1."""
    spread: float
    """Largest minus smallest network time per frame over the clips, relative to the median."""


class Protocol(_Record, frozen=True):
    """Says how it was measured."""

    comparable: bool
    """False for a quick run, whose figures must not be compared."""
    width: int
    height: int
    clip: str
    """"synthetic" or the file name of a video."""
    scene_frames: int
    """Frames per clip, each a single scene."""
    least_seconds: float
    """Least duration of the latency run and of the throughput run."""
    least_queries: int
    """Least number of frames of the latency run: MLPerf's for a 90th percentile with 99 %
    confidence."""
    cleanings: int
    """Cleaning passes per frame; fixed, as a decision would depend on the clip."""


class Counted(_Record, frozen=True):
    """Holds what was counted, per run of a graph or per frame."""

    flops: float
    bytes: float
    """Bytes moved if every node of the graph reads its inputs and writes its output once."""
    least_bytes: float
    """Bytes of inputs, outputs and weights."""
    nodes: float


class Attained(_Record, frozen=True):
    """Compares a measured time with the machine's measured ceilings."""

    flops_per_second: float
    bytes_per_second: float
    """Share of the counted bytes, which a runtime that fuses nodes does not all move."""
    matrix_share: float | None
    """Share of the matrix ceiling, 0 to 1."""
    copy_share: float | None
    """Share of the copy ceiling; can exceed 1, as caches and fusion avoid traffic."""
    floor_ms: float | None
    """The time both ceilings allow for this work at least. A floor, not a measurement."""


class GraphResult(_Record, frozen=True):
    """Reports one graph by itself."""

    runs_per_frame: int
    latency_ms: Times
    """From the call until the result is complete on the device."""
    enqueue_ms: Times | None
    """Until the call returns; ``null`` where calls return only when the result is complete."""
    counted: Counted
    attained: Attained


class LatencyResult(_Record, frozen=True):
    """Reports the single-stream run: one frame at a time, the next only when the last is done, each
    with a lookahead of 0, through the whole pipeline from RGB array to RGB array.
    """

    queries: int
    seconds: float
    latency_ms: Times


class ThroughputResult(_Record, frozen=True):
    """Reports the throughput run: whole scenes, from RGB arrays to RGB arrays."""

    clips: int
    frames_per_second: float
    """Median over the clips."""
    total_ms: Times
    """Milliseconds per frame in total, by clip."""
    network_ms: Times
    """Milliseconds per frame inside the engine, by clip."""
    first_image_of_scene_seconds: float
    """Median time from the first frame of a scene to its first image: exact propagation needs the
    whole scene before."""
    network_spread: float
    """Largest minus smallest network time over the clips, relative to the median."""
    network_over_graphs: float
    """Median network time per frame, relative to the sum of the graphs by themselves."""
    peak_host_bytes: int | None
    """Most resident memory of the process, Python and libraries included."""
    peak_device_bytes: int | None
    """Most memory of the process on the GPU."""
    bytes_to_device: float
    """Per frame; a CPU uses these arrays in place."""
    bytes_from_device: float
    """Per frame."""
    launches: float
    """Runs of graphs per frame."""
    allocations: float
    """Arrays made on the device per frame."""
    device_copies: float
    """Copies of rows on the device per frame."""
    counted: Counted
    attained: Attained


class Quality(_Record, frozen=True):
    """Compares the images with those of a float32 reference in the same run."""

    reference: str
    frames: int
    psnr: float | None
    """In dB, of uint8 images; ``null`` if they are equal."""
    max_levels: int
    """Largest difference, in levels of 255."""


class SensorSummary(_Record, frozen=True):
    """Reports what the machine's sensors said during the throughput run."""

    sources: list[str]
    samples: int
    watts: dict[str, float]
    """Mean power by rail."""
    total_watts: float | None
    """Mean power of the board or GPU, from the rails that make it up."""
    joules_per_frame: float | None
    power_mode: str | None
    power_limit_watts: float | None
    clocks_mhz: dict[str, list[float]]
    """Lowest and highest frequency by clock."""
    temperatures: dict[str, float]
    """Highest temperature in °C by sensor."""
    throttling: list[str] | None
    """Reasons for which clocks were lowered; ``null`` if unknown."""


class Ceilings(_Record, frozen=True):
    """Holds what this machine was measured to do at most."""

    matrix_flops: float | None
    """Floating-point operations per second of large matrix products."""
    copy_bytes: float | None
    """Bytes per second that a large copy reads and writes."""
    method: str


class PeerResult(_Record, frozen=True):
    """Reports another implementation, measured in the same run in a process of its own."""

    name: str
    frames_per_second: float | None
    frame_ms: Times | None
    peak_host_bytes: int | None
    scale: float | None
    unavailable: str | None
    """Why it was not measured."""


class BenchResult(_Record, frozen=True):
    """Holds everything that ``rbvsr-bench`` measured."""

    schema_version: int
    date: str
    rbvsr_deploy: str
    command: str
    machine: Machine
    calm: Calm
    protocol: Protocol
    engine: str
    device: str
    precision: str
    bundle: str
    bundle_sha256: str
    open_seconds: float
    """Time to open the engine, with the import of its libraries."""
    first_image_seconds: float
    """Time from opening the engine to the first image of a live stream."""
    graphs: dict[str, GraphResult]
    graphs_ms: float
    """Sum of the graphs' medians over one frame."""
    latency: LatencyResult
    throughput: ThroughputResult
    quality: Quality | None
    sensors: SensorSummary
    ceilings: Ceilings
    peers: list[PeerResult]
    missing: dict[str, str]
    """Reason by figure, for those that are ``null``."""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a result."""
    schema = msgspec.json.schema(BenchResult)
    for definition in schema["$defs"].values():
        # Docstrings, which only Python 3.13 and later unindent by themselves.
        definition["description"] = inspect.cleandoc(definition["description"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
