"""Stands in for Triton Inference Server, whose Python backend runs in the server only.

:data:`pb_utils` has the names that a model imports as ``triton_python_backend_utils``
(``python_backend/README.md``). :class:`Server` loads a model repository, sends requests as the
sequence batcher does, and checks the contract of decoupled models.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

FINAL = 1
DTYPES = {"TYPE_UINT8": np.uint8, "TYPE_UINT16": np.uint16, "TYPE_INT64": np.int64}


class Tensor:
    def __init__(self, name: str, array: NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        self._name = name
        self._array = array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._array


class TritonError:
    def __init__(self, message: str) -> None:
        self._message = message

    def message(self) -> str:
        return self._message


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self.tensors = output_tensors
        self.error = error


class Sender:
    """Collects the responses to a request, which end with the final flag."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.is_complete = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.is_complete, "a response after the final one"
        assert response is not None or flags == FINAL, "neither a response nor the end"
        if response is not None:
            self.responses.append(response)
        self.is_complete = flags == FINAL


class Request:
    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self.sender = Sender()

    def get_response_sender(self) -> Sender:
        return self.sender


def _tensor_by_name(request: Request, name: str) -> Tensor | None:
    return next((tensor for tensor in request.tensors if tensor.name() == name), None)


pb_utils = SimpleNamespace(
    Tensor=Tensor,
    TritonError=TritonError,
    InferenceResponse=InferenceResponse,
    TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    get_input_tensor_by_name=_tensor_by_name,
)


class Server:
    """Serves one model of a repository, in this process; a context manager."""

    def __init__(self, repository: Path, name: str, patch: pytest.MonkeyPatch) -> None:
        patch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
        self.config = parse_config((repository / name / "config.pbtxt").read_text())
        assert self.config["name"] == name
        assert self.config["backend"] == "python"
        assert self.config["model_transaction_policy"] == {"decoupled": True}
        path = repository / name / "1" / "model.py"
        spec = importlib.util.spec_from_file_location("triton_model", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.model = module.TritonPythonModel()
        args = {
            "model_config": json.dumps(self.config),
            "model_instance_kind": "MODEL",
            "model_instance_device_id": "0",
            "model_repository": str(repository / name),
            "model_version": "1",
            "model_name": name,
        }
        self.model.initialize(args)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.model.finalize()

    def send(self, *frames: tuple[int, NDArray[Any], bool, bool]) -> list[list[Any]]:
        """Send requests in one batch: sequence, frame, whether it starts and ends the sequence.

        Returns:
            What each request gets: messages of errors, and tensors by name.
        """
        requests = [self._request(*frame) for frame in frames]
        assert self.model.execute(requests) is None
        results = []
        for request in requests:
            assert request.sender.is_complete
            for tensor in request.tensors:  # their memory is used again
                tensor.as_numpy().fill(77)
            results.append([self._checked(r) for r in request.sender.responses])
        return results

    def _request(self, sequence: int, frame: NDArray[Any], starts: bool, ends: bool) -> Request:
        (declared,) = self.config["input"]
        assert frame.dtype == DTYPES[declared["data_type"]]
        values: dict[str, NDArray[Any]] = {
            "CONTROL_SEQUENCE_START": np.array([starts], np.int32),
            "CONTROL_SEQUENCE_END": np.array([ends], np.int32),
            "CONTROL_SEQUENCE_CORRID": np.array([sequence], np.uint64),
        }
        tensors = [Tensor(declared["name"], np.array(frame))]
        for control in self.config["sequence_batching"]["control_input"]:
            (kind,) = control["control"]
            tensors.append(Tensor(control["name"], values[kind["kind"]]))
        return Request(tensors)

    def _checked(self, response: InferenceResponse) -> Any:
        if response.error is not None:
            assert response.tensors == []
            return response.error.message()
        arrays = {tensor.name(): tensor.as_numpy() for tensor in response.tensors}
        assert list(arrays) == [output["name"] for output in self.config["output"]]
        for output, array in zip(self.config["output"], arrays.values(), strict=True):
            assert array.dtype == DTYPES[output["data_type"]]
            assert len(array.shape) == len(output["dims"])
            assert all(d in (-1, n) for d, n in zip(output["dims"], array.shape, strict=True))
        return arrays


_REPEATED = {"input", "output", "control_input", "control", "dims", "instance_group"}


def parse_config(text: str) -> dict[str, Any]:
    """Return a ``config.pbtxt`` as the JSON object that the server gives a model."""
    without_comments = re.sub(r"#.*", "", text)
    tokens = iter(re.findall(r'"[^"]*"|[\w.-]+|[{}\[\]:,]', without_comments))
    return _message(tokens, end=None)


def _message(tokens: Iterator[str], *, end: str | None) -> dict[str, Any]:
    message: dict[str, Any] = {}
    for name in tokens:
        if name == end:
            return message
        value = _value(tokens, next(tokens))
        if name == "parameters":  # a map
            message.setdefault(name, {})[value["key"]] = value["value"]
        elif name in _REPEATED:
            message.setdefault(name, []).extend(value if isinstance(value, list) else [value])
        else:
            assert name not in message, f"{name} is given twice"
            message[name] = value
    assert end is None
    return message


def _value(tokens: Iterator[str], token: str) -> Any:
    if token == ":":
        return _value(tokens, next(tokens))
    if token == "{":
        return _message(tokens, end="}")
    if token == "[":
        values = []
        while (token := next(tokens)) != "]":
            if token != ",":
                values.append(_value(tokens, token))
        return values
    if token.startswith('"'):
        return token[1:-1]
    if token in ("true", "false"):
        return token == "true"
    return int(token) if re.fullmatch(r"-?\d+", token) else token
