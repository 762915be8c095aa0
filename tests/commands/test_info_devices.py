"""Tests what ``rbvsr-info`` shows about the machine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from rbvsr_deploy.commands.info import info
from rbvsr_deploy.engines import devices
from rbvsr_deploy.engines.providers import Provider

CPU = Provider("cpu", "CPUExecutionProvider", "1.32.0", "x86_64", on_cpu=True)
WEBGPU = Provider(
    "webgpu", "WebGpuExecutionProvider", "0.4", "AMD", whole=True, devices=(object(),)
)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"cpu": CPU, "webgpu": WEBGPU}, {"openvino": "not installed (pip …)"}
    monkeypatch.setattr(devices, "find_providers", lambda: found)


def shown(*arguments: str) -> Any:
    return CliRunner().invoke(info, arguments)


def test_devices() -> None:
    """Each device has a line, with its hardware or the reason why it cannot be used."""
    done = shown("--devices")
    assert done.exit_code == 0
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert ["cpu", "ONNX Runtime's CPUExecutionProvider 1.32.0 on x86_64"] in lines
    assert ["webgpu", "plug-in WebGpuExecutionProvider 0.4 on AMD"] in lines
    assert ["openvino", "not usable: not installed (pip …)"] in lines
    assert ["cuda", "not usable: this ONNX Runtime has no CUDA"] in lines
    assert lines[0][0] == "tensorrt"


def test_devices_as_json() -> None:
    listed = {item["name"]: item for item in json.loads(shown("--devices", "--json").stdout)}
    assert listed["webgpu"]["missing"] == ""
    assert listed["openvino"]["missing"]


@pytest.mark.parametrize("arguments", [(), ("--devices", "model.plan")])
def test_either_a_bundle_or_the_devices(arguments: tuple[str, ...]) -> None:
    done = shown(*arguments)
    assert done.exit_code == 2
    assert "name a bundle to show, or give --devices" in done.output
