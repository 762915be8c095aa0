"""Makes the images of the integrations' pages from tests/data/sample.mp4, with the compact model.

    python integrations/make_images.py

Run it from the checkout. The image of VapourSynth needs vapoursynth, vapoursynth-bestsource and
vsrealbasicvsr; it is left as it is without. ComfyUI and Triton are stand-ins from the tests.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "tests" / "data" / "sample.mp4"
FRAMES = 6
SHOWN = 3

Pixels = NDArray[np.uint8]

INK, PAPER, LINE = "#22313a", "#f4f5f3", "#b9c2c4"
BLUE, ORANGE, GREEN = "#2f6f9f", "#d9722e", "#4c8a4e"


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def read_sample(path: Path = SAMPLE) -> list[Pixels]:
    with av.open(str(path)) as container:
        frames = itertools.islice(container.decode(video=0), FRAMES)
        return [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in frames]


def beside(before: Pixels, after: Pixels, labels: tuple[str, str]) -> Image.Image:
    """Return an enlarged frame and an upscaled one next to each other, the same part of both."""
    height, width, _ = after.shape
    enlarged = Image.fromarray(before).resize((width, height), Image.Resampling.BICUBIC)
    box = (40, height - 410, 520, height - 10)  # letters and trees
    sheet = Image.new("RGB", (968, 432), PAPER)
    draw = ImageDraw.Draw(sheet)
    panels = (enlarged, Image.fromarray(after))
    for x, panel, label in zip((0, 488), panels, labels, strict=True):
        draw.text((x + 2, 6), label, fill=INK, font=font(17))
        sheet.paste(panel.crop(box), (x, 32))
    return sheet


def vapoursynth_image() -> Image.Image:
    import vapoursynth as vs

    from vsrealbasicvsr import realbasicvsr

    source = vs.core.bs.VideoSource(str(SAMPLE))[:FRAMES]
    clip = realbasicvsr(source.resize.Bicubic(format=vs.RGBS), device="cpu")
    images: list[Pixels] = []
    for node in (source, clip):
        with node.resize.Bicubic(format=vs.RGB24).get_frame(SHOWN) as frame:
            images.append(np.stack([np.asarray(frame[i]) for i in range(3)], axis=-1).copy())
    return beside(images[0], images[1], labels=("resize.Bicubic", "realbasicvsr"))


def comfyui_image(folder: Path, patch: pytest.MonkeyPatch) -> Image.Image:
    """Draw the example workflow with the frames that its nodes get and give."""
    from tests.support import comfy_doubles

    comfy_doubles.ComfyUI(folder).install(patch)
    package = ROOT / "integrations" / "comfyui"
    spec = importlib.util.spec_from_file_location("rbvsr_nodes", package / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rbvsr_nodes"] = module
    spec.loader.exec_module(module)

    async def listed() -> list[Any]:
        return list(await (await module.comfy_entrypoint()).get_node_list())

    nodes = {node.define_schema().node_id: node for node in asyncio.run(listed())}
    workflow = json.loads((package / "example_workflows" / "upscale_video.json").read_text())
    values = {n["type"]: n["widgets_values"] for n in workflow["nodes"]}
    video = comfy_doubles.VideoFromFile(str(clip_file(folder)))
    engine = nodes["RBVSR_LoadModel"].execute(*values["RBVSR_LoadModel"][:1], device="cpu")[0]
    node = nodes["RBVSR_UpscaleVideo"]
    names = [i.id for i in node.define_schema().inputs if i.is_widget]
    settings = dict(zip(names, values["RBVSR_UpscaleVideo"], strict=True))
    result = node.execute(model=engine, video=video, **settings)[0]
    frames = {
        "LoadVideo": read_sample(Path(str(video.file)))[SHOWN],
        "SaveVideo": read_sample(Path(str(result.file)))[SHOWN],
    }
    widgets: dict[str, list[str]] = {
        "LoadVideo": ["file"],
        "SaveVideo": ["filename_prefix", "format", "codec"],
    }
    for name, node in nodes.items():
        widgets[name] = [i.id for i in node.define_schema().inputs if i.is_widget]
    return draw_workflow(workflow, frames, widgets)


def clip_file(folder: Path) -> Path:
    """Write the first frames of the sample to a file, without loss."""
    path = folder / "clip.mp4"
    with av.open(str(SAMPLE)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        out = target.add_stream("libx264", rate=stream.average_rate, options={"qp": "0"})
        out.width, out.height, out.pix_fmt = stream.width, stream.height, "yuv420p"
        for frame, _ in zip(source.decode(stream), range(FRAMES), strict=False):
            frame.pict_type = 0
            target.mux(out.encode(frame))
        target.mux(out.encode(None))
    return path


def draw_workflow(
    workflow: dict[str, Any], frames: dict[str, Pixels], widgets: dict[str, list[str]]
) -> Image.Image:
    placed = {node["id"]: node for node in workflow["nodes"]}
    width = max(n["pos"][0] + n["size"][0] for n in placed.values()) + 40
    height = max(n["pos"][1] + n["size"][1] for n in placed.values()) + 40
    sheet = Image.new("RGB", (width, height), "#2b2f33")
    draw = ImageDraw.Draw(sheet)

    def socket(node: dict[str, Any], index: int, *, out: bool) -> tuple[int, int]:
        x, y = node["pos"]
        return (x + node["size"][0] if out else x), y + 46 + 22 * index

    for _, source, output, target, entry, kind in workflow["links"]:
        (x0, y0), (x1, y1) = (
            socket(placed[source], output, out=True),
            socket(placed[target], entry, out=False),
        )
        t = np.linspace(0, 1, 60)
        x, y = x0 + (x1 - x0) * t, y0 + (y1 - y0) * (3 * t**2 - 2 * t**3)
        points = list(zip(x.tolist(), y.tolist(), strict=True))
        draw.line(points, fill=GREEN if kind == "VIDEO" else ORANGE, width=4)
    for node in placed.values():
        (x, y), (w, h) = node["pos"], node["size"]
        draw.rounded_rectangle((x, y, x + w, y + h), 8, fill="#3a4046", outline="#565e65")
        draw.text((x + 12, y + 7), node["type"].replace("_", " "), fill="#ffffff", font=font(15))
        for sockets, out in ((node["inputs"], False), (node["outputs"], True)):
            for index, item in enumerate(sockets):
                sx, sy = socket(node, index, out=out)
                colour = GREEN if item["type"] == "VIDEO" else ORANGE
                draw.ellipse((sx - 6, sy - 6, sx + 6, sy + 6), fill=colour)
                anchor = "rm" if out else "lm"
                position = (sx - 14 if out else sx + 14, sy)
                draw.text(position, item["name"].lower(), "#d7dcdf", font(13), anchor)
        top = y + 46 + 22 * max(len(node["inputs"]), len(node["outputs"]))
        for name, value in zip(widgets[node["type"]], node["widgets_values"], strict=False):
            draw.text((x + 14, top), f"{name}:  {value}", fill="#aeb6ba", font=font(13))
            top += 20
        if node["type"] in frames:
            image = Image.fromarray(frames[node["type"]])
            size = (w - 24, (w - 24) * image.height // image.width)
            sheet.paste(
                image.resize(size, Image.Resampling.LANCZOS), (x + 12, y + h - size[1] - 12)
            )
    return sheet


def triton_image(folder: Path, patch: pytest.MonkeyPatch) -> Image.Image:
    """Draw the requests of one sequence, and which of them bring which upscaled frames."""
    from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
    from rbvsr_deploy.triton.repository import write_repository
    from tests.support.triton_doubles import Server

    frames, lookahead = read_sample(), 2
    write_repository(DEFAULT_BUNDLE, folder, lookahead=lookahead)
    with Server(folder, "rbvsr", patch) as server:
        got = [
            server.send((1, frame, n == 0, n == len(frames) - 1))[0]
            for n, frame in enumerate(frames)
        ]
    column, small, large = 190, (80, 45), (176, 99)
    sheet = Image.new("RGB", (column * len(frames) + 20, 120 + 3 * 124), PAPER)
    draw = ImageDraw.Draw(sheet)
    for n, (frame, responses) in enumerate(zip(frames, got, strict=True)):
        x = 14 + column * n
        flags = "START" if n == 0 else "END" if n == len(frames) - 1 else ""
        draw.text((x, 8), f"request {n}  {flags}", fill=BLUE, font=font(15))
        sheet.paste(Image.fromarray(frame).resize(small), (x, 30))
        if not responses:
            draw.text((x, 96), "no response yet", fill="#8a9498", font=font(14))
        for i, response in enumerate(responses):
            y = 92 + 124 * i
            draw.text((x, y), f"NUMBER {response['NUMBER'][0]}", fill=ORANGE, font=font(15))
            image = Image.fromarray(response["UPSCALED"])
            sheet.paste(image.resize(large, Image.Resampling.LANCZOS), (x, y + 20))
        if n:
            draw.line((x - 7, 8, x - 7, sheet.height - 10), fill=LINE)
    return sheet


def main() -> None:
    sys.path.insert(0, str(ROOT))
    images = ROOT / "docs" / "images"
    try:
        vapoursynth_image().save(images / "vapoursynth.png", optimize=True)
    except ImportError as error:
        print(f"VapourSynth's image is left as it is: {error}")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        comfyui_image(Path(folder), patch).save(images / "comfyui.png", optimize=True)
        triton_image(Path(folder, "models"), patch).save(images / "triton.png", optimize=True)


if __name__ == "__main__":
    main()
