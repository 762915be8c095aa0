"""Runs this project's own parsers on any bytes, for fuzzing.

The seeds are undamaged files: those in ``tests/data/seeds`` (written by ``write_seeds``), and the
bundle and checkpoint of version 0.1.0. ::

    parse = PARSERS["scene-list"]
    parse(data, folder)  # raises only what is a defect
"""

from __future__ import annotations

import contextlib
import json
import random
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from rbvsr_deploy.errors import BundleError, CheckpointError, MediaError
from tests.conftest import DATA
from tests.support import media

__all__ = ["PARSERS", "mutated", "seeds_of", "write_seeds"]

Parser = Callable[[bytes, Path], object]
"""Takes the bytes and a folder that the parser may write one file to."""

_SEEDS = DATA / "seeds"
_EARLIER = DATA / "version_0_1_0"
_EXTREMES = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"-1",
    b"1e999",
    b"NaN",
)


def _placed(data: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _y4m(data: bytes, folder: Path) -> None:
    from rbvsr_deploy.video import open_source

    with contextlib.suppress(MediaError), open_source(_placed(data, folder, "a.y4m")) as source:
        for _ in source:
            pass


def _matroska(data: bytes, folder: Path) -> None:
    from rbvsr_deploy.video.matroska import segment_end, write_sample_aspect

    path = _placed(data, folder, "a.mkv")
    segment_end(path)
    write_sample_aspect(path, Fraction(12, 11))
    assert path.stat().st_size == len(data)


def _bundle(data: bytes, folder: Path) -> None:
    from rbvsr_deploy.bundle import open_bundle

    with contextlib.suppress(BundleError):
        open_bundle(_placed(data, folder, "a.plan"))


def _checkpoint(data: bytes, folder: Path) -> None:
    from rbvsr_deploy.checkpoint import load_checkpoint

    suffix = ".pth" if data.startswith((b"PK", b"\x80")) else ".safetensors"
    with contextlib.suppress(CheckpointError):
        load_checkpoint(_placed(data, folder, f"a{suffix}"))


def _journal(data: bytes, folder: Path) -> None:
    from rbvsr_deploy.video import Job

    place = folder / ".out.mp4.job"
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    _placed(b"", place, "lock")
    _placed(data, place, "job.json")
    _placed(b"{}", place, "part-000001.json")
    with Job(folder / "out.mp4", identity={"input": "a"}) as job:
        job.start({"codec": "c"})
        assert not job.segments


def _part_record(data: bytes, folder: Path) -> None:
    from rbvsr_deploy.video.staging.parts import SegmentRecord

    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, RecursionError):
        SegmentRecord.from_bytes(data)


def _stream_state(data: bytes, folder: Path) -> None:
    from rbvsr_deploy.runtime.stream_state import StreamState

    with contextlib.suppress(ValueError):
        StreamState.from_bytes(data)


def _scene_list(data: bytes, folder: Path) -> None:
    from rbvsr_deploy.runtime.scenes import read_scene_list, write_scene_list

    path = _placed(data, folder, "cuts.txt")
    with contextlib.suppress(MediaError):
        starts = read_scene_list(path)
        write_scene_list(path, starts)
        assert read_scene_list(path) == starts


def _image(data: bytes, folder: Path) -> None:
    from rbvsr_deploy.video.images.decoding import decode_image
    from rbvsr_deploy.video.images.files import encode_image, format_of

    path = Path("a.png")
    if (name := format_of(data, path)) is None:
        return
    with contextlib.suppress(MediaError):
        decoded = decode_image(data, name, path)
        if decoded.image.size < 10_000:
            for suffix in (".png", ".tif", ".webp"):
                encode_image(decoded.image, suffix, metadata=decoded.metadata)


PARSERS: dict[str, Parser] = {
    "y4m": _y4m,
    "matroska": _matroska,
    "bundle": _bundle,
    "checkpoint": _checkpoint,
    "journal": _journal,
    "part-record": _part_record,
    "stream-state": _stream_state,
    "scene-list": _scene_list,
    "image": _image,
}


def seeds_of(name: str) -> list[bytes]:
    """Return the undamaged inputs of a parser."""
    if name == "bundle":
        return [(_EARLIER / "bundle.plan").read_bytes()]
    earlier = [(_EARLIER / "checkpoint.pth").read_bytes()] if name == "checkpoint" else []
    return earlier + [path.read_bytes() for path in sorted((_SEEDS / name).iterdir())]


def mutated(data: bytes, random: random.Random) -> bytes:
    """Return the data with a few bytes changed, inserted, removed or repeated."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(changed) + 1)
        length = random.choice((1, 1, 2, 4, 16, 200))
        match random.randrange(6):
            case 0:
                changed[at : at + 1] = random.randbytes(1)
            case 1:
                changed[at:at] = random.randbytes(length)
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length]
            case 4:
                value = random.choice(_EXTREMES)
                changed[at : at + len(value)] = value
            case 5:
                del changed[at:]
    return bytes(changed)


def write_seeds() -> None:
    """Write the seeds in ``tests/data/seeds`` again."""
    for name in PARSERS:
        for stem, data in _made(name):
            (_SEEDS / name).mkdir(parents=True, exist_ok=True)
            (_SEEDS / name / stem).write_bytes(data)


def _made(name: str) -> Iterator[tuple[str, bytes]]:
    """Yield file names and contents of a parser's seeds."""
    match name:
        case "y4m":
            for tag, count in (("420jpeg", 12), ("444", 24), ("mono", 8), ("420p10", 24)):
                header = f"YUV4MPEG2 W4 H2 F30000:1001 Ip A12:11 C{tag} XCOLORRANGE=LIMITED\n"
                yield f"{tag}.y4m", header.encode() + (b"FRAME\n" + bytes(range(count))) * 3
        case "matroska":
            import tempfile

            for suffix, codec in ((".mkv", "ffv1"), (".webm", "libvpx")):
                with tempfile.TemporaryDirectory() as folder:
                    path = media.make_video(
                        Path(folder) / f"a{suffix}", codec=codec, size=(16, 16), stamps=[0, 1001]
                    )
                    yield f"{codec}{suffix}", path.read_bytes()
        case "checkpoint":
            head = {
                "__metadata__": {"refine_threshold": "5", "license": "x"},
                "fusion.weight": {"dtype": "F32", "shape": [2, 4, 1, 1], "data_offsets": [0, 32]},
            }
            text = json.dumps(head).encode()
            yield "little.safetensors", struct.pack("<Q", len(text)) + text + bytes(32)
        case "journal":
            identity = {"input": "a", "codec": "c"}
            journal = {"schema": 1, "identity": identity, "published": [1, 2]}
            yield "job.json", json.dumps(journal, indent=1).encode()
        case "part-record":
            from rbvsr_deploy.video.staging.parts import SegmentRecord, StoredFile

            files = (StoredFile("part-000001.packets", 10, "0" * 64),)
            note = {"scenes": [{"first_frame": 0, "frames": 5, "cleanings": 1, "residues": [0.5]}]}
            state = StoredFile("part-000001.state", 5, "1" * 64)
            yield "part.json", SegmentRecord(5, note, {"delay": 2}, files, state).to_bytes()
        case "stream-state":
            from rbvsr_deploy.runtime.refinement import Refinement
            from rbvsr_deploy.runtime.stream_state import StreamState

            arrays = {"forward_state": np.zeros((1, 1, 1, 1), np.float32)}
            yield "scene.state", StreamState(60, 50, 50, Refinement(1, [0.5]), arrays).to_bytes()
            yield "cut.state", StreamState.between_scenes(60).to_bytes()
        case "scene-list":
            yield "cuts.txt", b"# First frame of each scene.\n0\n60\n125 # x\n"
            yield "bom.txt", "\ufeff7\r\n8\r\n".encode()
        case "image":
            yield from _made_images()


def _made_images() -> Iterator[tuple[str, bytes]]:
    import io

    from PIL import Image, ImageCms, PngImagePlugin

    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    image = Image.fromarray(media.gradient(0, width=8, height=6))
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "text", zip=True)
    texts.add_itxt("XML:com.adobe.xmp", "<x/>")
    texts.add(b"gAMA", struct.pack(">I", 45455))
    texts.add(b"cICP", bytes([9, 16, 0, 1]))
    common = {"icc_profile": icc, "exif": exif}
    for suffix, name, options in (
        ("png", "PNG", {**common, "dpi": (72, 72), "pnginfo": texts}),
        ("jpg", "JPEG", {**common, "dpi": (72, 72), "xmp": b"<x/>"}),
        ("tif", "TIFF", {**common, "save_all": True, "append_images": [image]}),
        ("webp", "WEBP", {**common, "xmp": b"<x/>"}),
        ("bmp", "BMP", {}),
    ):
        file = io.BytesIO()
        image.save(file, name, **options)
        yield f"image.{suffix}", file.getvalue()
    deep = np.zeros((2, 2, 3), np.uint16)
    from rbvsr_deploy.video.images.files import encode_image

    yield "deep.tif", encode_image(deep, ".tif")
    file = io.BytesIO()
    image.quantize(4).save(file, "PNG", transparency=1)
    yield "palette.png", file.getvalue()
