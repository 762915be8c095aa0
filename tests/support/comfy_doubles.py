"""Stands in for ComfyUI, which no package registry has.

Names, parameters and types are those of its sources of 2026: ``comfy_api/latest`` (``_io.py``,
``_input/video_types.py``, ``_input_impl/video_types.py``), ``comfy/utils.py``,
``comfy/model_management.py`` and ``folder_paths.py``. A parameter that ComfyUI does not have is a
TypeError here as well.
"""

from __future__ import annotations

import io as bytes_io
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import pytest


class InterruptProcessingException(Exception):  # noqa: N818 - ComfyUI's name
    """Is raised where a node looks whether the user has cancelled."""


class ProgressBar:
    """Records what it shows: (value, total)."""

    shown: list[tuple[int, int]] = []  # noqa: RUF012 - of all bars, for the test

    def __init__(self, total: int, node_id: Any = None) -> None:
        self.total = total
        self.current = 0

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        if total is not None:
            self.total = total
        self.current = min(value, self.total)
        self.shown.append((self.current, self.total))

    def update(self, value: int) -> None:
        self.update_absolute(self.current + value)


class Input:
    """Base of all inputs."""

    io_type = ""
    is_widget = False

    def __init__(
        self,
        id: str,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        lazy: bool | None = None,
        extra_dict: Any = None,
        raw_link: bool | None = None,
    ) -> None:
        self.id = id
        self.optional = optional
        self.default: Any = None


class Widget(Input):
    """Base of the inputs that users type into."""

    is_widget = True

    def __init__(self, id: str, *, default: Any = None, tooltip: str | None = None) -> None:
        super().__init__(id, tooltip=tooltip)
        self.default = default


class Number(Widget):
    def __init__(
        self,
        id: str,
        *,
        default: Any = None,
        min: Any = None,
        max: Any = None,
        step: Any = None,
        tooltip: str | None = None,
    ) -> None:
        super().__init__(id, default=default, tooltip=tooltip)
        self.min, self.max = min, max


class Combo(Widget):
    def __init__(
        self, id: str, options: list[str], *, default: Any = None, tooltip: str | None = None
    ) -> None:
        super().__init__(id, default=options[0] if default is None else default, tooltip=tooltip)
        self.options = options


class Output:
    io_type = ""

    def __init__(
        self,
        id: str | None = None,
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
    ) -> None:
        self.id = id
        self.display_name = display_name


def kind(io_type: str, base: type[Input] = Input) -> Any:
    """Return a type of ComfyUI: its Input and Output."""
    return SimpleNamespace(
        io_type=io_type,
        Input=type(f"{io_type}.Input", (base,), {"io_type": io_type}),
        Output=type(f"{io_type}.Output", (Output,), {"io_type": io_type}),
    )


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)
    description: str = ""
    is_output_node: bool = False
    not_idempotent: bool = False


class ComfyNode:
    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    @classmethod
    def execute(cls, **inputs: Any) -> Any:
        raise NotImplementedError


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None, expand: Any = None) -> None:
        self.args = args

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


class ComfyExtension:
    async def get_node_list(self) -> list[type[ComfyNode]]:
        raise NotImplementedError


class VideoFromFile:
    """A video in a file or in memory, of which a time and a rectangle may be chosen."""

    def __init__(
        self,
        file: str | bytes_io.BytesIO,
        *,
        start_time: float = 0,
        duration: float = 0,
        crop: tuple[int, int, int, int] | None = None,
    ) -> None:
        self.file = file
        self.window = (float(start_time), float(duration))
        self.crop = crop

    def get_stream_source(self) -> str | bytes_io.BytesIO:
        if isinstance(self.file, bytes_io.BytesIO):
            self.file.seek(0)
        return self.file

    def get_active_trim_window(self) -> tuple[float, float]:
        return self.window

    def get_dimensions(self) -> tuple[int, int]:
        if self.crop is not None:
            return self.crop[2:]
        with av.open(self.get_stream_source()) as container:
            stream = container.streams.video[0]
            return stream.width, stream.height

    def save_to(
        self,
        path: str,
        format: Any = "auto",
        codec: Any = "auto",
        metadata: Any = None,
        bit_depth: int | None = None,
    ) -> None:
        """Encode what is chosen, as ComfyUI does; here without sound, and by frames."""
        with av.open(self.get_stream_source(), "r") as source, av.open(path, "w") as target:
            stream = source.streams.video[0]
            width, height = self.get_dimensions()
            out = target.add_stream("libx264", rate=stream.average_rate, options={"qp": "0"})
            out.width, out.height, out.pix_fmt = width, height, "yuv444p"
            x, y = self.crop[:2] if self.crop is not None else (0, 0)
            for frame in source.decode(stream):
                picture = frame.to_ndarray(format="rgb24")[y : y + height, x : x + width]
                cropped = av.VideoFrame.from_ndarray(picture.copy(), format="rgb24")
                target.mux(out.encode(cropped.reformat(format="yuv444p")))
            target.mux(out.encode(None))


class ComfyUI:
    """The application: its folders, and the button that cancels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models: dict[str, list[Path]] = {}
        self.checks_until_cancel: int | None = None

    def cancel(self, *, after: int) -> None:
        """Press cancel after so many times that a node looks."""
        self.checks_until_cancel = after

    def check(self) -> None:
        if self.checks_until_cancel is None:
            return
        self.checks_until_cancel -= 1
        if self.checks_until_cancel < 0:
            self.checks_until_cancel = None
            raise InterruptProcessingException

    def add_model_folder_path(self, name: str, path: str, is_default: bool = False) -> None:
        self.models.setdefault(name, []).append(Path(path))

    def get_filename_list(self, name: str) -> list[str]:
        return sorted(p.name for folder in self.models[name] for p in folder.glob("*.*"))

    def get_full_path_or_raise(self, name: str, file: str) -> str:
        for folder in self.models[name]:
            if (folder / file).is_file():
                return str(folder / file)
        raise FileNotFoundError(f"Model in folder '{name}' with filename '{file}' not found.")

    def modules(self) -> dict[str, ModuleType]:
        """Return the modules that a custom node imports."""
        contents: dict[str, dict[str, Any]] = {
            "comfy": {},
            "comfy.utils": {"ProgressBar": ProgressBar},
            "comfy.model_management": {
                "throw_exception_if_processing_interrupted": self.check,
                "InterruptProcessingException": InterruptProcessingException,
            },
            "folder_paths": {
                "models_dir": str(self.folder / "models"),
                "add_model_folder_path": self.add_model_folder_path,
                "get_filename_list": self.get_filename_list,
                "get_full_path_or_raise": self.get_full_path_or_raise,
                "get_temp_directory": lambda: str(self.folder / "temp"),
            },
            "comfy_api": {},
            "comfy_api.latest": {
                "ComfyExtension": ComfyExtension,
                "Input": SimpleNamespace(Video=VideoFromFile),
                "InputImpl": SimpleNamespace(VideoFromFile=VideoFromFile),
                "io": SimpleNamespace(
                    Schema=Schema,
                    ComfyNode=ComfyNode,
                    NodeOutput=NodeOutput,
                    Input=Input,
                    Output=Output,
                    Custom=kind,
                    Image=kind("IMAGE"),
                    Video=kind("VIDEO"),
                    Boolean=kind("BOOLEAN", Widget),
                    Int=kind("INT", Number),
                    Float=kind("FLOAT", Number),
                    Combo=kind("COMBO", Combo),
                ),
            },
        }
        modules = {}
        for name, members in contents.items():
            modules[name] = ModuleType(name)
            vars(modules[name]).update(members)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(modules[parent], child, modules[name])
        return modules

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("models", "temp"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "models" / "rbvsr").mkdir(parents=True)
        for name, module in self.modules().items():
            patch.setitem(sys.modules, name, module)
        ProgressBar.shown.clear()
