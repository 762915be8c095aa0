"""Runs graphs with NVIDIA's Polygraphy, in a process of its own: ``python -m ... FOLDER``.

Polygraphy chooses between TensorRT and TensorRT-RTX by an environment variable, once per process.
The folder holds ``request.json``, for each graph the models ``GRAPH.onnx`` and ``GRAPH.engine`` or
``GRAPH.other.onnx``, and the inputs ``GRAPH.CALL.npz``; ``result.json`` is added to it.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["compare_folder"]

_ALLOWED_MEAN = {"float32": 1e-5, "float16": 2e-3}
"""Mean absolute difference of an output relative to its largest value, at least 1."""


def compare_folder(folder: Path) -> dict[str, Any]:
    """Compare the graphs of a folder on their inputs.

    Returns:
        For each graph and output the number of calls, the largest value, Polygraphy's largest and
        mean absolute difference, and whether it passed.
    """
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    return {
        graph: _compare(folder, graph, calls=calls, allowed=_ALLOWED_MEAN[request["precision"]])
        for graph, calls in request["calls"].items()
    }


def _compare(folder: Path, graph: str, *, calls: int, allowed: float) -> dict[str, Any]:
    from polygraphy.comparator import Comparator, CompareFunc

    inputs = []
    for call in range(calls):
        with np.load(folder / f"{graph}.{call}.npz") as arrays:
            inputs.append(dict(arrays))
    reference = _onnx_runner(folder / f"{graph}.onnx", name="reference")
    engine = folder / f"{graph}.engine"
    other = (
        _engine_runner(engine.read_bytes())
        if engine.exists()
        else _onnx_runner(folder / f"{graph}.other.onnx", name="other")
    )
    results = Comparator.run([reference, other], data_loader=inputs)
    wanted = results[0][1]
    peaks = {
        name: max(1.0, *(float(np.abs(values[name].astype(np.float64)).max()) for values in wanted))
        for name in wanted[0]
    }
    compared = Comparator.compare_accuracy(
        results,
        compare_func=CompareFunc.simple(
            atol={name: allowed * peak for name, peak in peaks.items()},
            rtol=0.0,
            check_error_stat="mean",
        ),
    )
    ((_, iterations),) = compared[0].items()
    return {
        name: {
            "calls": calls,
            "peak": peaks[name],
            "max_difference": max(float(iteration[name].max_absdiff) for iteration in iterations),
            "mean_difference": max(float(iteration[name].mean_absdiff) for iteration in iterations),
            "passed": all(bool(iteration[name]) for iteration in iterations),
        }
        for name in peaks
    }


def _onnx_runner(path: Path, *, name: str) -> Any:
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    return OnnxrtRunner(SessionFromOnnx(str(path), providers=["cpu"]), name=name)


def _engine_runner(plan: bytes) -> Any:
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    from polygraphy.common import FormattedArray
    from polygraphy.mod.trt_importer import lazy_import_trt

    trt = lazy_import_trt()

    class EngineRunner(TrtRunner):  # type: ignore[misc]
        """Passes states channels last where the engine takes and gives them so.

        Polygraphy itself would pass bytes in the wrong order.
        """

        def _infer_impl(self, feed_dict: Any, *arguments: Any) -> Any:
            feed = {
                name: FormattedArray(
                    np.ascontiguousarray(array.transpose(0, 2, 3, 1)), shape=array.shape
                )
                if self._is_channels_last(name)
                else array
                for name, array in feed_dict.items()
            }
            return OrderedDict(
                (name, self._channels_first(name, array))
                for name, array in super()._infer_impl(feed, *arguments).items()
            )

        def _is_channels_last(self, name: str) -> bool:
            return bool(self.engine.get_tensor_format(name) == trt.TensorFormat.HWC8)

        def _channels_first(self, name: str, array: Any) -> Any:
            if not self._is_channels_last(name):
                return array
            n, channels, height, width = array.shape
            values = np.asarray(array.array).view(np.float16).reshape(n, height, width, channels)
            return values.transpose(0, 3, 1, 2)

    return EngineRunner(EngineFromBytes(plan), name="engine")


def main() -> None:
    """Compare the graphs of the folder that the command line names."""
    folder = Path(sys.argv[1])
    result = compare_folder(folder)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
