"""Tests the single ONNX file for windows of frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from rbvsr_deploy.checkpoint import load_checkpoint
from rbvsr_deploy.commands.export import export
from rbvsr_deploy.engines.onnx_runtime import import_onnxruntime
from rbvsr_deploy.export.window import export_window
from tests.conftest import TINY, moving_clip, tiny_model


@pytest.mark.slow
def test_a_window_is_the_network_on_its_frames(tmp_path: Path) -> None:
    """The file takes frames as channels, in the order of time, at any size, and gives the middle
    frame of the network that sees nothing else; the measured difference is that from the whole
    clip.
    """
    path, checkpoint = tmp_path / "window.onnx", tmp_path / "checkpoint.safetensors"
    # Flow of one level, which a window needs four times, is the fastest to export.
    save_file(tiny_model(replace(TINY, flow_levels=1)).state_dict(), checkpoint)
    lines: list[str] = []
    found = export_window(checkpoint, path, frames=5, opset=17, report=lines.append)
    model = onnx.load(path)
    assert [item.version for item in model.opset_import] == [17]
    (given,), (made,) = model.graph.input, model.graph.output
    shapes = [
        [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in (given, made)
    ]
    assert shapes == [[1, 15, "H", "W"], [1, 3, "4H", "4W"]]
    network = load_checkpoint(checkpoint).model
    frames = torch.from_numpy(moving_clip(5, 21, 34)).permute(0, 3, 1, 2)[None].float() / 255
    with torch.no_grad():
        want = network.propagate(network.refine(frames, cleanings=1))[0, 2].clamp(0, 1).numpy()
    session = import_onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {given.name: frames.reshape(1, 15, 21, 34).numpy()})
    assert np.abs(got[0] - want).max() < 1e-4
    assert found.frames == 15
    assert found.worst_psnr <= found.psnr < 100  # windows are not the whole clip
    assert found.psnr > 25
    assert 0 < found.max_levels < 255


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fp16"], "--window cannot be combined with --fp16"),
        (["--target", "auto"], "--window cannot be combined with --target"),
        (["--refine-threshold", "3"], "--window cannot be combined with --refine-threshold"),
        (["-o", "window.plan"], "--window writes an ONNX file"),
        (["--window", "6"], "'6' is not one of '5', '7'"),
    ],
)
def test_options_that_do_not_belong_to_windows(options: list[str], message: str) -> None:
    done = CliRunner().invoke(export, ["--window", "5", *options])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_other_windows_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 or 7 frames, not 3"):
        export_window(tiny_checkpoint, tmp_path / "w.onnx", frames=3)
