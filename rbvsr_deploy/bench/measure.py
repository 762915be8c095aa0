"""Runs a benchmark: graphs by themselves, one frame at a time, whole scenes, and peers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.bench.ceilings import measure_ceilings
from rbvsr_deploy.bench.costs import GraphCosts
from rbvsr_deploy.bench.counting import CountingEngine
from rbvsr_deploy.bench.graph_timing import time_graphs
from rbvsr_deploy.bench.machine import Load, describe_machine
from rbvsr_deploy.bench.missing import explain_missing
from rbvsr_deploy.bench.peers import measure_peer
from rbvsr_deploy.bench.pipeline import CLEANINGS, Pipeline
from rbvsr_deploy.bench.quality import compare_with_reference
from rbvsr_deploy.bench.result import SCHEMA_VERSION, BenchResult, Protocol
from rbvsr_deploy.bench.sensors.find import find_sensors
from rbvsr_deploy.bench.timing import FULL, Effort
from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.engines import CHECKPOINT_SUFFIXES, open_engine
from rbvsr_deploy.errors import BundleError
from rbvsr_deploy.version import __version__

__all__ = ["run_benchmark"]


def run_benchmark(
    model: Path,
    clip: NDArray[np.uint8],
    *,
    clip_name: str = "synthetic",
    device: str = "auto",
    trust_engines: bool = False,
    memory: int | None = None,
    effort: Effort = FULL,
    reference: Path | None = None,
    peers: Sequence[Path] = (),
    command: str = "",
    report: Callable[[str], None] = lambda line: None,
) -> BenchResult:
    """Measure a bundle on this machine.

    Args:
        model: the bundle.
        clip: (T, H, W, 3) RGB, the scene that is upscaled again and again.
        clip_name: its name.
        device, trust_engines: as for :func:`rbvsr_deploy.engines.open_engine`.
        memory: bytes to use on the device; half of the free memory if ``None``.
        effort: how long to measure.
        reference: bundle or checkpoint of the same network in float32, to compare the images with;
            the bundle itself on the CPU if ``None`` and it is float32.
        peers: other implementations to measure: checkpoints of the same network, run by torch, and
            ONNX files of networks that upscale frame by frame.
        command: to put on record.
        report: called with a line about each step.

    Raises:
        BundleError: the model is not a bundle.
        EngineError: the device is not available, or failed.
        RbvsrError: the reference does not fit, or the memory is not enough.
    """
    if model.suffix in CHECKPOINT_SUFFIXES:
        raise BundleError(
            f"'{model}' is a checkpoint, and only bundles can be measured: export it first, or "
            "measure it as a peer"
        )
    costs, size, load = GraphCosts(open_bundle(model)), clip.shape[1:3], Load()
    began = time.perf_counter()
    opened = open_engine(
        model, device=device, trust_engines=trust_engines, size=lambda: size, report=report
    )
    open_seconds = time.perf_counter() - began
    with CountingEngine(opened) as engine:
        described = engine.describe()
        report(f"Engine: {described}")
        readers, missing = find_sensors(described.device)
        pipeline = Pipeline(engine, clip, effort, memory)
        pipeline.first_image()
        first_image_seconds = time.perf_counter() - began
        report("Measuring the ceilings of the machine and each graph ...")
        ceilings, missing["ceilings"] = measure_ceilings(
            described.device, described.precision, seconds=effort.graph_seconds
        )
        graphs = time_graphs(engine, size=size, costs=costs, ceilings=ceilings, effort=effort)
        graphs_ms = sum(g.runs_per_frame * g.latency_ms.p50 for g in graphs.values())
        report("Measuring one frame at a time ...")
        latency = pipeline.measure_latency()
        report("Measuring whole scenes ...")
        throughput, sensors = pipeline.measure_throughput(
            costs=costs, ceilings=ceilings, graphs_ms=graphs_ms, readers=readers
        )
        calm = load.judge(spread=throughput.network_spread)
        report("Comparing the images with the reference ...")
        quality, missing["quality"] = compare_with_reference(
            engine, model, clip, reference=reference, cleanings=CLEANINGS
        )
    measured_peers = []
    for peer in peers:
        report(f"Measuring {peer.name} ...")
        on_gpu = described.device.startswith("cuda")
        measured_peers += measure_peer(peer, clip, on_gpu=on_gpu, effort=effort)
    protocol = Protocol(
        comparable=effort.comparable,
        width=size[1],
        height=size[0],
        clip=clip_name,
        scene_frames=len(clip),
        least_seconds=effort.seconds,
        least_queries=effort.queries,
        cleanings=CLEANINGS,
    )
    result = BenchResult(
        schema_version=SCHEMA_VERSION,
        date=time.strftime("%Y-%m-%d"),
        rbvsr_deploy=__version__,
        command=command,
        machine=describe_machine(readers),
        calm=calm,
        protocol=protocol,
        engine=f"{described.engine} {described.version}",
        device=described.device,
        precision=described.precision,
        bundle=described.model,
        bundle_sha256=described.weights,
        open_seconds=open_seconds,
        first_image_seconds=first_image_seconds,
        graphs=graphs,
        graphs_ms=graphs_ms,
        latency=latency,
        throughput=throughput,
        quality=quality,
        sensors=sensors,
        ceilings=ceilings,
        peers=measured_peers,
        missing={},
    )
    return msgspec.structs.replace(result, missing=explain_missing(result, missing))
