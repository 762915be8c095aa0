"""Tests ComfyUI's nodes in stand-ins for it (``comfy_doubles``): ComfyUI itself was not run."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rbvsr_deploy import Upscaler, WriteOptions
from rbvsr_deploy.engines import Engine, open_engine
from tests.conftest import moving_clip, short_clip
from tests.support import comfy_doubles as doubles

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"


def load(name: str, folder: Path) -> ModuleType:
    """Load a custom node as ComfyUI does, under a name of its own."""
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    application = doubles.ComfyUI(tmp_path)
    application.install(monkeypatch)
    return application


@pytest.fixture
def nodes(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Load the folder as ComfyUI loads a custom node, and return the nodes by their ids."""
    name = "custom_nodes_rbvsr"
    for module in (name, f"{name}.nodes"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    package = load(name, FOLDER)

    async def listed() -> list[Any]:
        extension = await package.comfy_entrypoint()
        assert isinstance(extension, doubles.ComfyExtension)
        return list(await extension.get_node_list())

    return {node.define_schema().node_id: node for node in asyncio.run(listed())}


@pytest.fixture
def engine(tiny_bundle: Path) -> Iterator[Engine]:
    with open_engine(tiny_bundle, device="cpu") as engine:
        yield engine


def defaults(node: Any) -> dict[str, Any]:
    """Return the values that a new node has in its widgets."""
    return {i.id: i.default for i in node.define_schema().inputs if i.is_widget}


def decoded(path: Path | str) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_schemas_fit_the_functions(nodes: dict[str, Any]) -> None:
    """Each node takes exactly the inputs that it declares, and every widget has a default within
    its limits.
    """
    assert set(nodes) == {"RBVSR_LoadModel", "RBVSR_UpscaleImages", "RBVSR_UpscaleVideo"}
    for node in nodes.values():
        schema = node.define_schema()
        names = [i.id for i in schema.inputs]
        assert len(set(names)) == len(names)
        inspect.signature(node.execute).bind(**dict.fromkeys(names))
        assert schema.description
        assert schema.display_name
        for widget in (i for i in schema.inputs if i.is_widget):
            if isinstance(widget, doubles.Number):
                assert widget.min <= widget.default <= widget.max
            else:
                assert widget.default is not None


def test_the_loader_opens_included_and_own_models(
    nodes: dict[str, Any], comfy: Any, tiny_bundle: Path
) -> None:
    """It lists the bundles and checkpoints of models/rbvsr next to the included one."""
    folder = comfy.folder / "models" / "rbvsr"
    shutil.copy(tiny_bundle, folder / "mine.plan")
    (folder / "notes.txt").write_text("not a model")
    node = nodes["RBVSR_LoadModel"]
    model = node.define_schema().inputs[0]
    assert model.options == ["compact (included)", "mine.plan"]
    for name, file in (("compact (included)", "compact.plan"), ("mine.plan", "mine.plan")):
        with node.execute(model=name, device="cpu")[0] as engine:
            assert engine.describe().model == file
            assert engine.describe().device == "cpu"


def test_images(nodes: dict[str, Any], engine: Engine) -> None:
    """A batch gives what the Python API gives for its 16-bit frames; opacity is dropped."""
    clip = moving_clip(7, 16, 20)
    images = torch.from_numpy(clip.astype(np.float32) / 255)
    with Upscaler(engine) as upscaler:
        want = np.stack(list(upscaler.frames(clip.astype(np.uint16) * 257)))
    node = nodes["RBVSR_UpscaleImages"]
    for batch in (images, torch.cat([images, torch.ones(7, 16, 20, 1)], dim=-1)):
        (got,) = node.execute(model=engine, images=batch, **defaults(node)).args
        assert got.shape == (7, 64, 80, 3)
        assert got.dtype == torch.float32
        np.testing.assert_array_equal(got.numpy(), want / np.float32(65535))
    assert doubles.ProgressBar.shown[-1] == (14, 14)


def test_images_with_other_settings(nodes: dict[str, Any], engine: Engine) -> None:
    clip = moving_clip(5, 16, 16).astype(np.uint16) * 257
    images = torch.from_numpy(clip / np.float32(65535))
    given = {"lookahead": 1, "cleanings": 2, "scene_cuts": False, "scale": "2", "strength": 0.5}
    with Upscaler(
        engine, lookahead=1, cleanings=2, scene_cuts=False, scale=2, strength=0.5
    ) as upscaler:
        want = np.stack(list(upscaler.frames(clip)))
    node = nodes["RBVSR_UpscaleImages"]
    (got,) = node.execute(model=engine, images=images, **{**defaults(node), **given}).args
    np.testing.assert_array_equal(got.numpy(), want / np.float32(65535))


def test_images_can_be_cancelled(nodes: dict[str, Any], comfy: Any, engine: Engine) -> None:
    """Also before the first upscaled frame; the model can be used again at once."""
    images = torch.rand(6, 16, 16, 3)
    node = nodes["RBVSR_UpscaleImages"]
    for after in (0, 3, 20):
        comfy.cancel(after=after)
        with pytest.raises(doubles.InterruptProcessingException):
            node.execute(model=engine, images=images, **defaults(node))
    assert node.execute(model=engine, images=images, **defaults(node))[0].shape == (6, 64, 64, 3)


@pytest.mark.slow
def test_video(nodes: dict[str, Any], comfy: Any, engine: Engine, sample: Path) -> None:
    """A file gives the file that the Python API writes, in the temporary folder, with its sound."""
    path = short_clip(sample, comfy.folder / "clip.mp4")
    want = comfy.folder / "want.mp4"
    with Upscaler(engine) as upscaler:
        upscaler.video(path, want, writing=WriteOptions(codec="libx264", crf=18))
    node = nodes["RBVSR_UpscaleVideo"]
    video = doubles.VideoFromFile(str(path))
    (result,) = node.execute(model=engine, video=video, **defaults(node)).args
    output = Path(result.get_stream_source())
    assert output.parent == comfy.folder / "temp"
    assert result.get_dimensions() == (384, 216)
    np.testing.assert_array_equal(decoded(output), decoded(want))
    with av.open(str(output)) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]
    shown = doubles.ProgressBar.shown
    assert shown[-1] == (18, 18)
    assert shown == sorted(shown)
    assert [p.name for p in (comfy.folder / "temp").iterdir()] == [output.name]


@pytest.mark.slow
def test_other_settings_give_another_file(
    nodes: dict[str, Any], comfy: Any, engine: Engine, sample: Path
) -> None:
    """Two nodes in one graph do not overwrite each other's output; the same one twice does."""
    path = short_clip(sample, comfy.folder / "clip.mp4", frames=2)
    node, video = nodes["RBVSR_UpscaleVideo"], doubles.VideoFromFile(str(path))
    outputs = [
        node.execute(model=engine, video=video, **{**defaults(node), **change})[0].file
        for change in ({}, {"crf": 20.0}, {"cleanings": 1}, {"scale": "2"}, {})
    ]
    assert len(set(outputs)) == 4
    assert outputs[0] == outputs[4]
    assert decoded(outputs[3]).shape == (2, 108, 192, 3)
    assert all(Path(output).is_file() for output in outputs)


@pytest.mark.slow
def test_a_cancelled_video_is_resumed(
    nodes: dict[str, Any], comfy: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished scenes are not upscaled again by the next run of the node, which gives the output of
    an undisturbed one.
    """
    monkeypatch.setattr("rbvsr_deploy.jobs.segments.SHORTEST", 4)
    images = np.concatenate([moving_clip(6, 32, 48), 255 - moving_clip(6, 32, 48)] * 2)
    path = comfy.folder / "cuts.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv444p"
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv444p")))
        container.mux(stream.encode(None))
    runs = {"n": 0}
    run = type(engine).run

    def counted(self: Engine, graph: str, **arrays: Any) -> Any:
        runs["n"] += 1
        return run(self, graph, **arrays)

    monkeypatch.setattr(type(engine), "run", counted)
    node, video = nodes["RBVSR_UpscaleVideo"], doubles.VideoFromFile(str(path))
    whole = decoded(node.execute(model=engine, video=video, **defaults(node))[0].file)
    all_runs = runs["n"]
    shutil.rmtree(comfy.folder / "temp")

    comfy.cancel(after=all_runs * 3 // 4)
    with pytest.raises(doubles.InterruptProcessingException):
        node.execute(model=engine, video=video, **defaults(node))
    runs["n"] = 0
    output = node.execute(model=engine, video=video, **defaults(node))[0].file
    assert 0 < runs["n"] < all_runs * 3 // 4
    np.testing.assert_array_equal(decoded(output), whole)


@pytest.mark.slow
def test_parts_of_a_video(nodes: dict[str, Any], comfy: Any, engine: Engine, sample: Path) -> None:
    """Trimmed, cropped and in-memory videos are upscaled as they would be shown."""
    path = short_clip(sample, comfy.folder / "clip.mp4", frames=6)
    node = nodes["RBVSR_UpscaleVideo"]
    rate = 30000 / 1001
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate or 0)

    def upscaled(video: Any) -> tuple[int, ...]:
        return decoded(node.execute(model=engine, video=video, **defaults(node))[0].file).shape

    trimmed = doubles.VideoFromFile(str(path), start_time=2 / rate, duration=3 / rate)
    assert upscaled(trimmed) == (3, 216, 384, 3)
    cropped = doubles.VideoFromFile(str(path), crop=(8, 4, 40, 32))
    assert upscaled(cropped) == (6, 128, 160, 3)
    memory = io.BytesIO(path.read_bytes())
    assert upscaled(doubles.VideoFromFile(memory)) == (6, 216, 384, 3)
    assert upscaled(doubles.VideoFromFile(memory, duration=2 / rate)) == (2, 216, 384, 3)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("example_workflows/*.json")))
def test_example_workflows(path: Path, nodes: dict[str, Any]) -> None:
    """Their links join outputs and inputs of one type, and widgets have a value each."""
    core = {
        "LoadVideo": ([], ["VIDEO"], 2),
        "SaveVideo": (["VIDEO"], [], 3),
    }
    known = dict(core)
    for name, node in nodes.items():
        schema = node.define_schema()
        sockets = [i.io_type for i in schema.inputs if not i.is_widget]
        widgets = sum(i.is_widget for i in schema.inputs)
        known[name] = (sockets, [o.io_type for o in schema.outputs], widgets)
    workflow = json.loads(path.read_text())
    placed = {node["id"]: node for node in workflow["nodes"]}
    assert {"RBVSR_LoadModel", "RBVSR_UpscaleVideo"} <= {n["type"] for n in placed.values()}
    for node in placed.values():
        inputs, outputs, widgets = known[node["type"]]
        assert [i["type"] for i in node["inputs"]] == inputs
        assert [o["type"] for o in node["outputs"]] == outputs
        assert len(node["widgets_values"]) == widgets
    for link, source, out, target, into, kind in workflow["links"]:
        assert placed[source]["outputs"][out]["type"] == kind
        assert link in placed[source]["outputs"][out]["links"]
        assert placed[target]["inputs"][into] == {
            **placed[target]["inputs"][into],
            "type": kind,
            "link": link,
        }
    for name, node in nodes.items():
        for placed_node in placed.values():
            if placed_node["type"] == name:
                assert placed_node["widgets_values"] == list(defaults(node).values())
