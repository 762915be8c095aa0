"""Defines the nodes, in the V3 schema of ComfyUI."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import ComfyExtension, InputImpl, io

from rbvsr_deploy import ReadOptions, Upscaler, WriteOptions, __version__, open_engine
from rbvsr_deploy.engines import CHECKPOINT_SUFFIXES, Engine
from rbvsr_deploy.engines.tap import TappedEngine
from rbvsr_deploy.files import sha256
from rbvsr_deploy.pixels import WHITE, Image
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE

if TYPE_CHECKING:
    from comfy_api.latest import Input

    from rbvsr_deploy.runtime.context import Stage

__all__ = ["comfy_entrypoint"]

INCLUDED = "compact (included)"
FOLDER = "rbvsr"  # in ComfyUI's models folder

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))

Model = io.Custom("RBVSR_MODEL")


def _settings() -> list[io.Input]:
    """Return the inputs that both upscaling nodes have."""
    return [
        io.Boolean.Input(
            "scene_cuts",
            default=True,
            tooltip="Detect scene cuts; nothing is carried from one scene to the next.",
        ),
        io.Int.Input(
            "lookahead",
            default=-1,
            min=-1,
            max=1000,
            tooltip="Number of future frames each frame draws on; -1: all of its scene.",
        ),
        io.Int.Input(
            "cleanings",
            default=-1,
            min=-1,
            max=10,
            tooltip="Number of cleaning passes; -1: decided for each scene.",
        ),
    ]


class LoadModel(io.ComfyNode):
    """Opens a model on a device."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        suffixes = (".plan", *CHECKPOINT_SUFFIXES)
        names = [n for n in folder_paths.get_filename_list(FOLDER) if n.endswith(suffixes)]
        return io.Schema(
            node_id="RBVSR_LoadModel",
            display_name="Load RealBasicVSR Model",
            category="video/RealBasicVSR",
            description="Opens a bundle (model.plan) or checkpoint from models/rbvsr, or the "
            "compact model for CPUs.",
            inputs=[
                io.Combo.Input("model", options=[INCLUDED, *names]),
                io.Combo.Input(
                    "device",
                    options=["auto", "tensorrt", "cuda", "cpu"],
                    tooltip="auto: TensorRT, else CUDA, else the CPU.",
                ),
            ],
            outputs=[Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: str, device: str) -> io.NodeOutput:
        """Return the open engine; it is freed when ComfyUI forgets this output."""
        path = (
            DEFAULT_BUNDLE
            if model == INCLUDED
            else Path(folder_paths.get_full_path_or_raise(FOLDER, model))
        )
        return io.NodeOutput(open_engine(path, device=device))


class UpscaleImages(io.ComfyNode):
    """Upscales a batch of images that are consecutive frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RBVSR_UpscaleImages",
            display_name="Upscale Frames (RealBasicVSR)",
            category="video/RealBasicVSR",
            description="Upscales a batch of frames, in memory. For more than a few seconds use "
            "Upscale Video, whose memory does not grow with the length.",
            inputs=[Model.Input("model"), io.Image.Input("images"), *_settings()],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, model: Engine, images: torch.Tensor, **settings: Any) -> io.NodeOutput:
        """Return the upscaled batch, (B, H, W, 3) float32 in [0, 1]; alpha is dropped."""
        bar = comfy.utils.ProgressBar(2 * len(images))

        def frames() -> Iterator[Image]:
            for image in images:
                bar.update(1)
                levels = image[..., :3].cpu().float().clamp(0, 1).numpy() * np.float32(WHITE)
                yield np.rint(levels).astype(np.uint16)

        upscaled: torch.Tensor | None = None
        with _upscaler(model, settings) as upscaler:
            for number, frame in enumerate(upscaler.frames(frames())):
                if upscaled is None:
                    upscaled = torch.empty((len(images), *frame.shape), dtype=torch.float32)
                np.divide(frame, np.float32(WHITE), out=upscaled[number].numpy())
                bar.update(1)
        return io.NodeOutput(upscaled)


class UpscaleVideo(io.ComfyNode):
    """Upscales a video from file to file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RBVSR_UpscaleVideo",
            display_name="Upscale Video (RealBasicVSR)",
            category="video/RealBasicVSR",
            description="Upscales a video of any length in constant memory; sound and timestamps "
            "are kept. After a cancel, the same node resumes where it left off.",
            inputs=[
                Model.Input("model"),
                io.Video.Input("video"),
                *_settings(),
                io.Float.Input(
                    "crf",
                    default=18.0,
                    min=0.0,
                    max=51.0,
                    step=0.5,
                    tooltip="Quality of the H.264 video, lower is better.",
                ),
            ],
            outputs=[io.Video.Output(display_name="video")],
        )

    @classmethod
    def execute(
        cls, model: Engine, video: Input.Video, crf: float, **settings: Any
    ) -> io.NodeOutput:
        """Return the upscaled video, a file in ComfyUI's temporary folder."""
        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        source, reading = _as_file(video, folder)
        what = (model.describe(), settings, reading, crf)
        output = folder / f"rbvsr_{_key(source, what)}.mp4"
        with _upscaler(model, settings) as upscaler:
            upscaler.video(
                source,
                output,
                reading=reading,
                writing=WriteOptions(codec="libx264", crf=crf),
                overwrite=True,
                progress=_Progress(),
            )
        return io.NodeOutput(InputImpl.VideoFromFile(str(output)))


class Extension(ComfyExtension):
    """Lists the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadModel, UpscaleImages, UpscaleVideo]


async def comfy_entrypoint() -> Extension:
    """Return the extension; ComfyUI calls this when it loads the folder."""
    return Extension()


class _Progress:
    """Shows the progress of a video: the frames that each of three stages has done."""

    def __init__(self) -> None:
        self._bar = comfy.utils.ProgressBar(1)
        self._done: dict[Stage, int] = {}

    def __call__(self, stage: Stage, done: int, total: int | None) -> None:
        self._done[stage] = done
        if total is not None:
            self._bar.update_absolute(sum(self._done.values()), 3 * total)


def _upscaler(engine: Engine, settings: Mapping[str, Any]) -> Upscaler:
    """Return an upscaler with the settings of a node. ComfyUI's cancel ends it within one run of a
    graph; the engine stays open.
    """

    def check(graph: str, inputs: Mapping[str, Any], outputs: Sequence[Any]) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    given: dict[str, Any] = {
        name: None if value == -1 else value for name, value in settings.items()
    }
    return Upscaler(TappedEngine(engine, check), **given)


def _as_file(video: Input.Video, folder: Path) -> tuple[Path, ReadOptions]:
    """Return a file with a video, and the excerpt of it that is meant."""
    source = video.get_stream_source()
    if isinstance(source, str):
        path = Path(source)
    else:  # in memory, a BytesIO
        path = _saved(folder, lambda path: path.write_bytes(source.getbuffer()))
    with av.open(path) as container:
        stream = container.streams.video[0]
        size = (stream.width, stream.height)
        tick, first = Fraction(stream.time_base or 1), stream.start_time or 0
    if video.get_dimensions() != size or not hasattr(video, "get_active_trim_window"):
        # Cropped, or in a version of ComfyUI that does not say what is trimmed.
        return _saved(folder, lambda path: video.save_to(str(path))), ReadOptions()
    # ComfyUI counts from time 0 in whole ticks, rounded down; ReadOptions from the first frame.
    start, duration = video.get_active_trim_window()
    begin, end = (int(time / tick) - first for time in (start, start + duration))
    return path, ReadOptions(
        start=begin * tick if start and begin > 0 else None, end=end * tick if duration else None
    )


def _saved(folder: Path, save: Callable[[Path], object]) -> Path:
    """Save a video and return its path, which is the same for the same video."""
    part = folder / "rbvsr_input.mp4"
    save(part)
    path = folder / f"rbvsr_input_{sha256(part)[:16]}.mp4"
    if path.exists():
        part.unlink()
    else:
        part.rename(path)
    return path


def _key(path: Path, what: object) -> str:
    """Return a name for what is made of a file: the same after a cancel, another for a change."""
    status = path.stat()
    text = f"{__version__} {path} {status.st_size} {status.st_mtime_ns} {what}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
