"""Has NVIDIA's Polygraphy compare compiled engines with the graphs they were compiled from.

The project's own code for TensorRT takes no part in it, so that a fault of that code cannot hide
itself. The inputs are recorded while a clip runs through the graphs on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rbvsr_deploy.bundle import Bundle, open_bundle
from rbvsr_deploy.bundle.engine_sets import EngineSet
from rbvsr_deploy.engines.base import Array, Engine
from rbvsr_deploy.engines.onnx_runtime import OnnxRuntimeEngine
from rbvsr_deploy.engines.tap import TappedEngine
from rbvsr_deploy.engines.tensorrt.signing import compiled_by_this_user
from rbvsr_deploy.engines.tensorrt.unquantised import as_compiled
from rbvsr_deploy.errors import EngineError, MissingDependencyError, first_line
from rbvsr_deploy.runtime.stream import Settings, Stream
from rbvsr_deploy.video import Source

__all__ = ["Verdict", "judge"]

_CALLS = 2
"""Runs of each graph that are repeated, the latest ones: states have built up by then."""


@dataclass(frozen=True)
class Verdict:
    """Says how far the results of one engine set, or of graphs, are from a bundle's graphs."""

    name: str
    """Name of the engine set; of the other bundle if its graphs were compared."""
    graphs: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """By graph and output: ``calls``, ``peak``, ``max_difference``, ``mean_difference`` (absolute)
    and ``passed``."""

    @property
    def failures(self) -> list[str]:
        """The outputs that differ too much."""
        return [
            f"'{output}' of graph '{graph}' differs by {figures['mean_difference']:.3g} on average"
            for graph, outputs in self.graphs.items()
            for output, figures in outputs.items()
            if not figures["passed"]
        ]


def judge(
    reference: Path, other: Path, source: Source, *, frames: int, trust_engines: bool = False
) -> list[Verdict]:
    """Compare every engine set of a bundle with another bundle's graphs.

    Args:
        reference: the bundle whose graphs ONNX Runtime runs on the CPU.
        other: the bundle whose engines are loaded; its graphs are compared where it has none.
        source: the clip that inputs are recorded from.
        frames: number of its frames to run.
        trust_engines: load engines whoever compiled them: they are machine code.

    Raises:
        MissingDependencyError: Polygraphy is not installed.
        EngineError: engines are not this user's, or Polygraphy failed, for example because an
            engine is for another machine.
    """
    if find_spec("polygraphy") is None:
        raise MissingDependencyError("polygraphy", extra="debug", purpose="the referee")
    wanted, judged = open_bundle(reference), open_bundle(other)
    sets = judged.manifest.engine_sets
    for engine_set in sets:
        if not (trust_engines or compiled_by_this_user(judged, engine_set)):
            raise EngineError(
                f"the engines {engine_set.name} in '{other.name}' are machine code that this user "
                "has not compiled: compile them here, or trust the bundle"
            )
    with tempfile.TemporaryDirectory(prefix="rbvsr-referee-") as name:
        folder = Path(name)
        calls = _record(wanted, source, folder, frames=frames)
        precision = judged.manifest.precision
        request = {"precision": precision, "calls": calls}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        return [
            Verdict(
                other.name if engine_set is None else engine_set.name,
                _run(folder, _models(wanted, judged, engine_set, calls), engine_set),
            )
            for engine_set in (sets or (None,))
        ]


def _models(
    wanted: Bundle, judged: Bundle, engine_set: EngineSet | None, calls: Mapping[str, int]
) -> dict[str, bytes]:
    """Return the files to compare, by name."""
    if engine_set is None:
        kind, models, graphs = "other.onnx", judged.graphs(), wanted.graphs()
    else:
        kind, models = "engine", judged.plans(engine_set)
        graphs = as_compiled(wanted, engine_set).graphs()
    files = {f"{graph}.onnx": graphs[graph] for graph in calls}
    return files | {f"{graph}.{kind}": models[graph] for graph in calls}


def _record(bundle: Bundle, source: Source, folder: Path, *, frames: int) -> dict[str, int]:
    """Run a clip on the CPU, and write the inputs of the last runs of each graph."""
    seen: Counter[str] = Counter()

    def write(graph: str, arrays: Mapping[str, Array], outputs: Sequence[Array]) -> None:
        call = seen[graph] % _CALLS
        seen[graph] += 1
        values: dict[str, Any] = {name: engine.download(array) for name, array in arrays.items()}
        np.savez(folder / f"{graph}.{call}.npz", **values)

    engine: Engine
    with OnnxRuntimeEngine(bundle, device="cpu") as engine:
        tapped = TappedEngine(engine, write)
        with Stream(tapped, Settings(), size=(source.height, source.width)) as stream:
            for frame, _ in zip(source, range(frames), strict=False):
                for _ in stream.push(frame.image):
                    pass
            for _ in stream.flush():
                pass
    return {graph: min(_CALLS, count) for graph, count in seen.items()}


def _run(folder: Path, models: Mapping[str, bytes], engine_set: EngineSet | None) -> Any:
    """Run Polygraphy in a process of its own, and return its figures."""
    for name, content in models.items():
        (folder / name).write_bytes(content)
    is_rtx = engine_set is not None and engine_set.flavour == "tensorrt-rtx"
    done = subprocess.run(
        [sys.executable, "-m", "rbvsr_deploy.parity.referee_process", str(folder)],
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1" if is_rtx else "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise EngineError(
                f"Polygraphy did not run {engine_set.name if engine_set else 'the graphs'}: "
                f"{first_line(RuntimeError(lines[-1] if lines else f'exit {done.returncode}'))}"
            )
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    finally:
        for name in models:
            (folder / name).unlink()
