"""Upscales video streams in NVIDIA's Triton Inference Server: the ``model.py`` of a model
repository, which :mod:`rbvsr_deploy.triton.repository` writes.

Every sequence is a stream of frames: its start opens a stream, its end flushes it. A frame is
upscaled once ``lookahead`` more have come, so a response belongs to an earlier request; ``NUMBER``
says which frame it is. The first requests get no response, the last one several.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from rbvsr_deploy import RbvsrError, Upscaler, open_engine


class TritonPythonModel:
    """Implements the interface of Triton's Python backend, for a decoupled model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open ``model.plan`` in the folder of this version."""
        config = json.loads(args["model_config"])
        options = {k: v["string_value"] for k, v in config["parameters"].items()}
        bundle = Path(args["model_repository"], args["model_version"], "model.plan")
        self._engine = open_engine(bundle, device=options["device"])
        self._lookahead = int(options["lookahead"])
        self._most = int(config["sequence_batching"]["oldest"]["max_candidate_sequences"])
        self._streams: dict[int, _Stream] = {}  # the one that was used last is last

    def execute(self, requests: list[Any]) -> None:
        """Answer every request with the frames that are ready, or with an error."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                for number, image in self._upscaled(request):
                    tensors = [
                        pb_utils.Tensor("UPSCALED", image),
                        pb_utils.Tensor("NUMBER", np.array([number], np.int64)),
                    ]
                    sender.send(pb_utils.InferenceResponse(output_tensors=tensors))
            except (RbvsrError, ValueError) as error:
                response = pb_utils.InferenceResponse(
                    output_tensors=[], error=pb_utils.TritonError(str(error))
                )
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self) -> None:
        """Close all streams and free the device."""
        for stream in self._streams.values():
            stream.close()
        self._engine.close()

    def _upscaled(self, request: Any) -> list[tuple[int, Any]]:
        """Pass a request's frame to its stream and return the numbered frames that are ready."""

        def tensor(name: str) -> Any:
            return pb_utils.get_input_tensor_by_name(request, name).as_numpy()

        sequence = int(tensor("CORRID").flat[0])
        starts, ends = (bool(tensor(name).flat[0]) for name in ("START", "END"))
        stream = self._streams.pop(sequence, None)
        if starts:
            if stream is not None:  # was abandoned
                stream.close()
            while len(self._streams) >= self._most:  # so was the one that has waited longest
                self._streams.pop(next(iter(self._streams))).close()
            stream = _Stream(Upscaler(self._engine, lookahead=self._lookahead))
        elif stream is None:
            raise ValueError(f"sequence {sequence} is not open: mark its first frame as its start")
        try:
            ready = stream.take(tensor("FRAME"), ends=ends)
        except ValueError:  # the frame was refused, the stream can continue
            if not ends:
                self._streams[sequence] = stream
            raise
        if ends:
            stream.close()
        else:
            self._streams[sequence] = stream
        return ready


class _Stream:
    """Numbers the frames of one sequence."""

    def __init__(self, upscaler: Upscaler) -> None:
        self._upscaler = upscaler
        self._done = 0

    def take(self, frame: Any, *, ends: bool) -> list[tuple[int, Any]]:
        """Take a frame, or none if it has no pixels, and return those that are ready."""
        ready = self._upscaler.push(frame) if frame.size or not ends else []
        if ends:
            ready += self._upscaler.flush()
        first, self._done = self._done, self._done + len(ready)
        return list(enumerate(ready, first))

    def close(self) -> None:
        self._upscaler.close()
