"""Tests small files that claim or expand to huge ones: each is read, or refused in one sentence,
within 1 GiB of memory and 10 seconds.

All files are read by one process, which measures the time and the peak of its memory for each.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are measured on Linux"
    ),
]

READER = """
import ctypes, gc, json, sys, time
from pathlib import Path
from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.video import open_source

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024

for path in sys.argv[1:]:
    source = frame = None  # of the file before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    start, sentence = time.process_time(), ""
    try:
        with open_source(Path(path)) as source:
            for number, frame in enumerate(source):
                if number:
                    break
    except RbvsrError as error:
        sentence = str(error)
    except Exception as error:
        sentence = f"TRACEBACK {error!r}"
    print(json.dumps([path, sentence, time.process_time() - start, peak()]), flush=True)
"""


def zeros(count: int) -> bytes:
    """Return so many mebibytes of zeros, compressed to a thousandth."""
    stream = zlib.compressobj(9, wbits=-15)
    block = stream.compress(bytes(2**20)) + stream.flush(zlib.Z_FULL_FLUSH)
    checksum = count * 2**20 % 65521 << 16 | 1
    return b"\x78\xda" + block * count + b"\x03\0" + struct.pack(">I", checksum)


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png(
    width: int = 8,
    height: int = 8,
    *,
    extra: bytes = b"",
    pixels: bytes | None = None,
    depth: int = 8,
    kind: int = 2,
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    if pixels is None:
        pixels = zlib.compress(bytes(8 * 25))
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP"
    for name, content in chunks:
        body += name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp(width: int, height: int, *, frames: int, left: int = 0) -> bytes:
    """Return an animation whose frames are 16x16 on a larger canvas."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), 5).save(file, "WEBP", lossless=True)
    still = file.getvalue()[12:]

    def small(*numbers: int) -> bytes:
        return b"".join(number.to_bytes(3, "little") for number in numbers)

    frame = (b"ANMF", small(left // 2, 0, 15, 15, 40) + b"\0" + still)
    header = (b"VP8X", b"\2\0\0\0" + small(width - 1, height - 1))
    return riff(header, (b"ANIM", bytes(6)), *[frame] * frames)


def tiff(width: int, height: int, *, pages: int = 1) -> bytes:
    data = bytearray(b"II*\0\x08\0\0\0")
    values = (width, height, 8, 1, 2, 8, 3, height, 192)
    tags = zip((256, 257, 258, 259, 262, 273, 277, 278, 279), values, strict=True)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    for page in range(pages):
        data += struct.pack("<H", len(values)) + entries
        data += struct.pack("<I", len(data) + 4 if page < pages - 1 else 0)
    return bytes(data) + bytes(200)


def jpeg(width: int = 16, height: int = 16, *, scans: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", progressive=bool(scans))
    data = file.getvalue()
    frame = data.index(b"\xff\xc2" if scans else b"\xff\xc0") + 5
    data = data[:frame] + struct.pack(">HH", height, width) + data[frame + 4 :]
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + data[-2:]


def gif(width: int, height: int) -> bytes:
    image = b"\x2c" + struct.pack("<4H", 0, 0, 1, 1) + b"\0\x02\x02\x4c\x01\0"
    screen = struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff"
    return b"GIF89a" + screen + image * 3 + b";"


def jpeg2000(width: int, height: int) -> bytes:
    sizes = struct.pack(">HHIIIIIIII", 47, 0, width, height, 0, 0, 1, 1, 0, 0)
    parts = struct.pack(">H", 3) + b"\x07\x01\x01" * 3
    return b"\xff\x4f\xff\x51" + sizes + parts + bytes(100)


def avif(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), 5).save(file, "AVIF")
    head, name, rest = file.getvalue().partition(b"ispe\0\0\0\0")
    return head + name + struct.pack(">II", width, height) + rest[8:]


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 154, 0, 0, 54) + header + bytes(100)


def y4m(header: str) -> bytes:
    return f"YUV4MPEG2 {header} Ip C444\n".encode() + (b"FRAME\n" + bytes(768)) * 2


READ: dict[str, Callable[[], bytes]] = {
    "text.png": lambda: png(extra=chunk(b"zTXt", b"Comment\0\0" + zeros(1000))),
    "utf8.png": lambda: png(extra=chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros(1000))),
    "xmp.png": lambda: png(extra=chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros(1000))),
    "profile.png": lambda: png(extra=chunk(b"iCCP", b"x\0\0" + zeros(1000))),
    "profiles.png": lambda: png(extra=chunk(b"iCCP", b"x\0\0" + zeros(100)) * 20),
    "texts.png": lambda: png(extra=chunk(b"tEXt", b"a\0b") * 50_000),
    "surplus.png": lambda: png(pixels=zeros(100)),
    "frames.webp": lambda: webp(3000, 3000, frames=40),
    "loop.tif": lambda: tiff(8, 8).replace(struct.pack("<I", 0) + bytes(200), b"\x08" + bytes(203)),
    "strip.tif": lambda: tiff(8, 8).replace(struct.pack("<I", 192), b"\xff" * 4),
    "aspect.y4m": lambda: y4m("W16 H16 F25:1 A2147483647:1"),
    "aspect-0.y4m": lambda: y4m("W16 H16 F25:1 A0:-1"),
    "rate.y4m": lambda: y4m("W16 H16 F2147483647:1"),
    "rate-0.y4m": lambda: y4m("W16 H16 F0:0"),
    "slow.y4m": lambda: y4m("W16 H16 F1:2147483647"),
}
"""Files that are read."""

REFUSED: dict[str, Callable[[], bytes]] = {
    "size.png": lambda: png(2**31 - 1, 2**31 - 1, depth=16, kind=6),
    "nothing.png": lambda: png(0, 0),
    "pixels.png": lambda: png(pixels=zeros(600)),
    "animation.png": lambda: png(extra=chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    "size.webp": lambda: webp(2**24, 2**24, frames=1),
    "large.webp": lambda: webp(7000, 7000, frames=2),
    "nothing.webp": lambda: webp(100, 100, frames=0),
    "outside.webp": lambda: webp(16, 16, frames=1, left=2**20),
    "size.tif": lambda: tiff(2**31 - 1, 2**31 - 1),
    "long.tif": lambda: tiff(44_000_000, 1),
    "pages.tif": lambda: tiff(8, 8, pages=6000),
    "scans.jpg": lambda: jpeg(scans=600),
    "size.jpg": lambda: jpeg(65_500, 65_500),
    "size.gif": lambda: gif(65_535, 65_535),
    "size.jp2": lambda: jpeg2000(2**31 - 1, 2**31 - 1),
    "tiles.jp2": lambda: jpeg2000(6600, 6600),
    "size.avif": lambda: avif(65_535, 65_535),
    "size.bmp": lambda: bmp(2**31 - 1, 2),
    "negative.bmp": lambda: bmp(8, -(2**31)),
    "size.ppm": lambda: b"P6 999999999 999999999 255\n" + bytes(100),
    "digits.ppm": lambda: b"P6 " + b"9" * 10**6 + b" 1 255\n",
    "size.tga": lambda: b"\0\0\x0a" + bytes(9) + b"\xff\xff\xff\xff\x18\0" + bytes(100),
    "size.y4m": lambda: y4m("W99999999 H99999999 F25:1"),
    "negative.y4m": lambda: y4m("W-16 H16 F25:1"),
}
"""Files that are refused."""

LARGE: dict[str, Callable[[], bytes]] = {
    "deep.png": lambda: png(6600, 6600, depth=16, kind=6, pixels=zeros(333)),
    "frame.webp": lambda: webp(6600, 6600, frames=2),
}
"""Images of the largest size that is read."""


def outcomes(files: dict[str, Callable[[], bytes]], folder: Path) -> dict[str, Any]:
    """Return sentence, seconds and peak in MiB of each file, alone and in a folder."""
    paths = []
    for name, make in files.items():
        path = folder / name
        path.write_bytes(make())
        paths.append(path)
        if path.suffix != ".y4m":
            inner = folder / f"folder of {name}" / name
            inner.parent.mkdir()
            inner.hardlink_to(path)
            paths.append(inner.parent)
    done = subprocess.run(
        [sys.executable, "-c", READER, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (lines[-1:], done.stderr)
    return {Path(path).name: rest for path, *rest in lines}


def check_costs(found: dict[str, Any], *, peak: float) -> None:
    for name, (sentence, seconds, mebibytes) in found.items():
        assert not sentence.startswith("TRACEBACK"), (name, sentence)
        assert "\n" not in sentence
        assert seconds < 10, name
        assert mebibytes < peak, name


def test_they_are_read(tmp_path: Path) -> None:
    """What is not needed is neither inflated nor held in memory."""
    found = outcomes(READ, tmp_path)
    check_costs(found, peak=400)
    assert {name for name, (sentence, *_) in found.items() if sentence} == set()


def test_they_are_refused(tmp_path: Path) -> None:
    """Alone, and in a folder, where a file that only claims an animation is a still image."""
    found = outcomes(REFUSED, tmp_path)
    check_costs(found, peak=300)
    read = {name for name, (sentence, *_) in found.items() if not sentence}
    assert read == {"folder of animation.png"}


def test_the_largest_images_take_less_than_a_gibibyte(tmp_path: Path) -> None:
    """They are decoded before the plan for the memory can refuse them."""
    found = outcomes(LARGE, tmp_path)
    check_costs(found, peak=1000)
    assert all(sentence == "" for sentence, *_ in found.values())
