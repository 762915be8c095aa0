"""Makes hostile inputs: small files of many formats with damage of every kind.

The same seed gives the same files. Every case has its own folder, which shows what files a run
leaves there. ::

    for case in cases(folder, seed=0, count=300):
        ...  # upscale case.path, then remove its folder
"""

from __future__ import annotations

import binascii
import itertools
import os
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av

from tests.support import media

FRAMES = 12
"""Frames of every seed that is a video."""

_SIZE = (48, 32)
_STEADY: dict[str, Any] = {
    "rate": Fraction(25),
    "time_base": Fraction(1, 25),
    "stamps": list(range(FRAMES)),
}

_BROADCAST: dict[str, Any] = {
    "rate": Fraction(25),
    "time_base": Fraction(1, 90_000),
    "options": {"mpegts_copyts": "1"},
}
_LATE = {**_BROADCAST, "stamps": [40_000 * 90_000 + 3600 * n for n in range(FRAMES)]}
"""The clock of a transport stream, which has run for half a day."""
_WRAPS = {**_BROADCAST, "stamps": [2**33 + 3600 * (n - FRAMES // 2) for n in range(FRAMES)]}
"""The same, which wraps around in the middle."""

if TYPE_CHECKING:
    _Packet = av.Packet[Any]  # generic in the stubs only


@dataclass(frozen=True)
class Case:
    """An input that is alone in its folder."""

    name: str
    """The seed and what was done to it."""
    path: Path
    frames: int | None
    """Number of frames of the seed; ``None`` if there is no seed or the number does not matter."""


def cases(folder: Path, *, seed: int, count: int) -> Iterator[Case]:
    """Make inputs one at a time: first all handwritten cases, then random damage.

    Args:
        folder: an existing folder; each case gets a folder in it when it is requested.
        seed: seed of the random damage.
        count: number of randomly damaged files, in addition to the handwritten cases.
    """
    seeds = make_seeds(folder / "seeds")
    made = itertools.chain(
        *(kind(seeds) for kind in (places, contents, claims, remuxed)),
        itertools.islice(random_damage(seeds, seed), count),
    )
    for number, case in enumerate(made):
        place = folder / f"{number:04}"
        place.mkdir()
        yield Case(case.name, case.make(place), case.frames)


@dataclass(frozen=True)
class Recipe:
    """A name and a function that makes a case."""

    name: str
    make: Callable[[Path], Path]
    """Takes an empty folder and returns the path of the input in it."""
    frames: int | None = None


# Seeds


def make_seeds(folder: Path) -> dict[str, Path]:
    """Make undamaged files and return them by name, which gives codec and format."""
    folder.mkdir()
    seeds, video = {}, media.make_video
    sized: dict[str, Any] = {"size": _SIZE}
    for name, suffix, options in (
        ("h264", ".mp4", {"audio": "aac", "b_frames": 2, **sized}),
        ("faststart", ".mp4", {"options": {"movflags": "faststart"}, "audio": "aac", **sized}),
        ("fragments", ".mp4", {"options": {"movflags": "frag_keyframe+empty_moov"}, **sized}),
        ("hevc", ".mp4", {"codec": "libx265", "pix_fmt": "yuv420p10le"}),
        ("h264", ".mkv", {"audio": "aac", "subtitles": "subrip", "b_frames": 2, **sized}),
        ("vp9", ".webm", {"codec": "libvpx-vp9", "audio": "libopus", **sized}),
        ("vp8", ".webm", {"codec": "libvpx", **sized}),
        ("ffv1", ".mkv", {"codec": "ffv1", **sized}),
        ("mpeg4", ".avi", {"codec": "mpeg4", "audio": "libmp3lame", **_STEADY, **sized}),
        ("h264", ".ts", {"audio": "aac", "b_frames": 2, **sized}),
        ("h264", ".flv", {"audio": "aac", **sized}),
        ("mpeg2", ".mpg", {"codec": "mpeg2video", "audio": "mp2", **_STEADY, **sized}),
        ("mjpeg", ".mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p", **sized}),
        ("prores", ".mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le", **sized}),
        ("raw", ".h264", {**_STEADY, **sized}),
        ("gif", ".gif", {"codec": "gif", "pix_fmt": "rgb8", **_STEADY, **sized}),
        ("msmpeg4", ".avi", {"codec": "msmpeg4", **_STEADY, **sized}),
        ("h263", ".mov", {"codec": "h263", **_STEADY, "size": (176, 144)}),
        ("wmv2", ".wmv", {"codec": "wmv2", **_STEADY, **sized}),
        ("svq1", ".mov", {"codec": "svq1", "pix_fmt": "yuv410p", **_STEADY, **sized}),
        ("late", ".ts", {"audio": "mp2", **_LATE, **sized}),
        ("wraps", ".ts", {"audio": "mp2", **_WRAPS, **sized}),
    ):
        path = folder / f"{name}{suffix}"
        seeds[path.name] = video(path, **options)
    seeds["y4m.y4m"] = _write_y4m(folder / "y4m.y4m")
    for suffix in ("png", "jpg", "tif", "webp", "bmp"):
        path = folder / f"image.{suffix}"
        _write_image(path, number=0)
        seeds[path.name] = path
    return seeds


def _write_image(path: Path, *, number: int, size: tuple[int, int] = _SIZE) -> None:
    codec, pix_fmt = {
        ".png": ("png", "rgb24"),
        ".jpg": ("mjpeg", "yuvj420p"),
        ".tif": ("tiff", "rgb24"),
        ".webp": ("libwebp", "yuv420p"),
        ".bmp": ("bmp", "bgr24"),
    }[path.suffix]
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = *size, pix_fmt
    context.time_base = Fraction(1, 25)
    image = media.gradient(number, width=size[0], height=size[1])
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
    frame.pts = 0
    packets = [*context.encode(frame), *context.encode(None)]
    path.write_bytes(b"".join(bytes(packet) for packet in packets))


def _write_y4m(path: Path, *, size: tuple[int, int] = _SIZE, frames: int = FRAMES) -> Path:
    """Write frames without colour."""
    width, height = size
    grey = b"\x80" * (width * height // 2)
    data = f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 C420jpeg\n".encode()
    for number in range(frames):
        luma = media.gradient(number, width=width, height=height)[..., 0]
        data += b"FRAME\n" + luma.tobytes() + grey
    path.write_bytes(data)
    return path


def _frames(path: Path) -> int:
    return 1 if path.stem == "image" else FRAMES


# Names and kinds of files


def places(seeds: dict[str, Path]) -> Iterator[Recipe]:
    """Yield undamaged files with unusual names, links, fifos and folders."""
    undamaged = seeds["h264.mp4"]

    def named(name: str) -> Callable[[Path], Path]:
        return lambda place: Path(shutil.copy(undamaged, place / name))

    for what, name in (
        ("space", "a b  c.mp4"),
        ("newline", "a\nb.mp4"),
        ("unicode", "Фильм 映画 🎬.mp4"),
        ("invalid UTF-8", os.fsdecode(b"caf\xe9 \xff.mp4")),
        ("colon", "file:a:b.mp4"),
        ("percent", "100%d %s.mp4"),
        ("quote", 'it\'s "one" `x` $(y).mp4'),
        ("no extension", "video"),
        ("long name", "n" * 240 + ".mp4"),
        ("hidden", ".mp4"),
        ("only dots", "...mp4"),
        ("wrong extension", "h264.avi"),
        ("image extension", "h264.png"),
    ):
        yield Recipe(f"name with {what}", named(name), FRAMES)

    def linked(target: str) -> Callable[[Path], Path]:
        def make(place: Path) -> Path:
            (place / "link.mp4").symlink_to(target)
            return place / "link.mp4"

        return make

    yield Recipe("link to a video", linked(str(undamaged.resolve())), FRAMES)
    yield Recipe("link to itself", linked("link.mp4"))
    yield Recipe("link to nothing", linked("none.mp4"))

    def fifo(place: Path) -> Path:
        os.mkfifo(place / "fifo.mp4")
        return place / "fifo.mp4"

    yield Recipe("fifo without a writer", fifo)

    def in_folder(fill: Callable[[Path], object]) -> Callable[[Path], Path]:
        def make(place: Path) -> Path:
            (place / "folder").mkdir()
            fill(place / "folder")
            return place / "folder"

        return make

    def images(folder: Path) -> None:
        for number in range(FRAMES):
            _write_image(folder / f"{number}.png", number=number)

    def with_other_size(folder: Path) -> None:
        images(folder)
        _write_image(folder / "7.png", number=7, size=(32, 48))

    def with_damage(folder: Path) -> None:
        images(folder)
        data = (folder / "5.png").read_bytes()
        (folder / "5.png").write_bytes(data[: len(data) // 2])

    def with_empty(folder: Path) -> None:
        images(folder)
        (folder / "3.png").write_bytes(b"")

    def with_link_loop(folder: Path) -> None:
        images(folder)
        (folder / "99.png").symlink_to("99.png")

    def with_fifo(folder: Path) -> None:
        images(folder)
        os.mkfifo(folder / "4b.png")

    yield Recipe("folder of images", in_folder(images), FRAMES)
    yield Recipe("folder that is empty", in_folder(lambda folder: None))
    yield Recipe("folder of text files", in_folder(lambda f: (f / "a.png").write_text("no image")))
    yield Recipe("folder of a video", in_folder(lambda f: shutil.copy(undamaged, f)))
    yield Recipe("folder of two sizes", in_folder(with_other_size), FRAMES)
    yield Recipe("folder with a truncated image", in_folder(with_damage), FRAMES)
    yield Recipe("folder with an empty image", in_folder(with_empty), FRAMES)
    yield Recipe("folder with a link to itself", in_folder(with_link_loop), FRAMES)
    yield Recipe("folder with a fifo", in_folder(with_fifo), FRAMES)


# Content that does not match the name


def contents(seeds: dict[str, Path]) -> Iterator[Recipe]:
    """Yield files that are named like a video but are not one, and files with extreme sizes."""

    def written(name: str, data: bytes) -> Callable[[Path], Path]:
        def make(place: Path) -> Path:
            (place / name).write_bytes(data)
            return place / name

        return make

    page = b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>\n"
    noise = random.Random(1).randbytes(50_000)
    for what, data in (
        ("nothing", b""),
        ("one byte", b"\0"),
        ("zeros", bytes(50_000)),
        ("noise", noise),
        ("HTML", page * 20),
        ("a subtitle", b"1\n00:00:00,000 --> 00:00:01,000\nText\n\n" * 20),
        ("a playlist", b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
        ("a list of files", b"ffconcat version 1.0\nfile '/etc/passwd'\n"),
        ("JSON", b'{"frames": []}' * 500),
        ("SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>' * 9),
        ("a PDF", b"%PDF-1.4\n" + noise[:5000]),
    ):
        yield Recipe(f"{what} named .mp4", written("clip.mp4", data))

    def zipped(place: Path) -> Path:
        with zipfile.ZipFile(place / "clip.mkv", "w") as archive:
            archive.write(seeds["h264.mkv"], "clip.mkv")
        return place / "clip.mkv"

    yield Recipe("a zip named .mkv", zipped)
    yield Recipe("noise named .png", written("a.png", b"\x89PNG\r\n\x1a\n" + noise[:2000]))
    yield Recipe("noise named .jpg", written("a.jpg", b"\xff\xd8\xff" + noise[:2000]))

    def sized(suffix: str, size: tuple[int, int], **options: Any) -> Callable[[Path], Path]:
        def make(place: Path) -> Path:
            path = place / f"clip{suffix}"
            if suffix == ".png":
                _write_image(path, number=0, size=size)
                return path
            return media.make_video(path, size=size, stamps=[0, 1001], **options)

        return make

    yield Recipe("an image of 1x1", sized(".png", (1, 1)), 1)
    yield Recipe("a video of 2x2", sized(".mkv", (2, 2), codec="ffv1"), 2)
    yield Recipe("a video of 1x1", sized(".mkv", (1, 1), codec="ffv1"), 2)
    yield Recipe("a video of 16384x16", sized(".mkv", (16384, 16), codec="ffv1"), 2)
    yield Recipe("a video of 16x16384", sized(".mkv", (16, 16384), codec="ffv1"), 2)
    yield Recipe("an image of 16384x16", sized(".png", (16384, 16)), 1)


# Claims


def claims(seeds: dict[str, Path]) -> Iterator[Recipe]:
    """Yield files whose headers claim enormous sizes, durations, counts or times."""

    def changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
        def make(place: Path) -> Path:
            before = seeds[name].read_bytes()
            after = change(before)
            assert after != before, f"nothing was changed in {name}"
            (place / name).write_bytes(after)
            return place / name

        return make

    def at(pattern: bytes, offset: int, value: bytes) -> Callable[[bytes], bytes]:
        """Return a change that writes a value ``offset`` bytes after the start of a pattern."""

        def change(data: bytes) -> bytes:
            place = data.index(pattern) + offset
            return data[:place] + value + data[place + len(value) :]

        return change

    huge = struct.pack(">HH", 60000, 60000)
    for name, what, change in (
        ("h264.mp4", "60000x60000 in the sample entry", at(b"avc1", 28, huge)),
        ("h264.mp4", "0x0 in the sample entry", at(b"avc1", 28, bytes(4))),
        ("hevc.mp4", "60000x60000 in the sample entry", at(b"hev1", 28, huge)),
        ("mjpeg.mov", "60000x60000 in the sample entry", at(b"jpeg", 28, huge)),
        ("mjpeg.mov", "60000x60000 in a frame", at(b"\xff\xc0\0\x11", 5, huge)),
        ("prores.mov", "60000x60000 in a frame", at(b"icpf", 12, huge)),
        ("h264.mp4", "a duration of 2^32 ticks of the movie", at(b"mvhd", 20, b"\xff" * 4)),
        ("h264.mp4", "a duration of 2^32 ticks of the track", at(b"mdhd", 20, b"\xff" * 4)),
        ("h264.mp4", "0 ticks per second", at(b"mdhd", 16, bytes(4))),
        ("h264.mp4", "2^31 - 1 ticks per second", at(b"mdhd", 16, b"\x7f\xff\xff\xff")),
        ("h264.mp4", "2^32 runs of time", at(b"stts", 8, b"\xff" * 4)),
        ("h264.mp4", "2^32 frames in a run of time", at(b"stts", 12, b"\xff" * 4)),
        ("h264.mp4", "2^31 ticks per frame", at(b"stts", 16, b"\x7f\xff\xff\xff")),
        ("h264.mp4", "2^32 sizes", at(b"stsz", 12, b"\xff" * 4)),
        ("h264.mp4", "a frame of 2 GiB", at(b"stsz", 16, b"\x7f\xff\xff\xff")),
        ("h264.mp4", "2^32 chunks", at(b"stco", 8, b"\xff" * 4)),
        ("h264.mp4", "an offset after the end", at(b"stco", 12, b"\xff" * 4)),
        ("h264.mp4", "a shift of 2^31 ticks", at(b"ctts", 16, b"\x7f\xff\xff\xff")),
        ("h264.mp4", "an edit that starts far after the end", at(b"elst", 16, b"\x7f" * 4)),
        ("faststart.mp4", "a box of 4 GiB", at(b"moov", -4, b"\xff" * 4)),
        ("fragments.mp4", "2^32 frames in a fragment", at(b"trun", 8, b"\xff" * 4)),
        (
            "h264.mkv",
            "65535x65535",
            at(b"\xb0\x81\x30\xba\x81\x20", 0, b"\xb0\x82\xff\xff\xba\x80"),
        ),
        ("h264.mkv", "an endless duration", at(b"\x44\x89\x88", 3, struct.pack(">d", 1e300))),
        (
            "h264.mkv",
            "a duration of NaN",
            at(b"\x44\x89\x88", 3, b"\x7f\xf8" + bytes(6)),
        ),
        ("h264.mkv", "ticks of 0 s", at(b"\x2a\xd7\xb1\x83", 4, bytes(3))),
        ("h264.mkv", "ticks of 16 ms", at(b"\x2a\xd7\xb1\x83", 4, b"\xff" * 3)),
        ("vp8.webm", "16383x16383 in a frame", at(b"\x9d\x01\x2a", 3, b"\xff\x3f\xff\x3f")),
        ("mpeg4.avi", "60000x60000", at(b"strf", 12, struct.pack("<ii", 60000, 60000))),
        ("mpeg4.avi", "2^32 frames", at(b"avih", 24, b"\xff" * 4)),
        ("mpeg4.avi", "0 frames", at(b"avih", 24, bytes(4))),
        ("mpeg4.avi", "a rate of 0", at(b"vids", 24, bytes(4))),
        ("mpeg4.avi", "a rate of 2^32", at(b"vids", 24, b"\xff" * 4)),
        ("h264.flv", "a tag of 16 MiB", at(b"FLV", 14, b"\xff" * 3)),
        ("y4m.y4m", "60000x60000", lambda d: d.replace(b"W48 H32", b"W60000 H60000", 1)),
        ("y4m.y4m", "0x0", lambda d: d.replace(b"W48 H32", b"W0 H0", 1)),
        ("y4m.y4m", "a rate of 0", lambda d: d.replace(b"F25:1", b"F0:1", 1)),
        ("y4m.y4m", "a rate of 2^31", lambda d: d.replace(b"F25:1", b"F2147483647:1", 1)),
        ("gif.gif", "65535x65535", at(b"GIF89a", 6, b"\xff" * 4)),
        ("image.jpg", "60000x60000", at(b"\xff\xc0\0\x11", 5, huge)),
        ("image.bmp", "60000x60000", at(b"BM", 18, struct.pack("<ii", 60000, 60000))),
        ("image.bmp", "an offset after the end", at(b"BM", 10, b"\xff" * 4)),
        ("image.png", "60000x60000", _png_claim(60000, 60000)),
        ("image.png", "2^31 - 1 squared", _png_claim(2**31 - 1, 2**31 - 1)),
        ("image.png", "100000x1", _png_claim(100_000, 1)),
        ("image.tif", "60000x60000", _tiff_claim),
        ("image.webp", "16383x16383", at(b"\x9d\x01\x2a", 3, b"\xff\x3f\xff\x3f")),
    ):
        yield Recipe(f"{name} claims {what}", changed(name, change), None)

    def bomb(place: Path) -> Path:
        (place / "bomb.png").write_bytes(black_png(30_000, 30_000))
        return place / "bomb.png"

    yield Recipe("a PNG bomb", bomb)


def black_png(width: int, height: int) -> bytes:
    """Return a black PNG of one bit per pixel, at most a thousandth of its size in memory."""
    packed = zlib.compressobj(9)
    rows = [packed.compress(bytes(1 + -(-width // 8))) for _ in range(height)]
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + _png_chunk(b"IDAT", b"".join(rows) + packed.flush())
        + _png_chunk(b"IEND", b"")
    )


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    check = binascii.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def _png_claim(width: int, height: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        header = struct.pack(">II", width, height) + data[24:29]
        return data[:8] + _png_chunk(b"IHDR", header) + data[33:]

    return change


def _tiff_claim(data: bytes) -> bytes:
    """Set width and length, tags 256 and 257 of a little-endian TIFF, to 60000."""
    (directory,) = struct.unpack_from("<I", data, 4)
    changed = bytearray(data)
    (entries,) = struct.unpack_from("<H", data, directory)
    for at in range(directory + 2, directory + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", data, at)[0] in (256, 257):
            struct.pack_into("<I", changed, at + 8, 60000)
    return bytes(changed)


# Damage to packets and their times


def remuxed(seeds: dict[str, Path]) -> Iterator[Recipe]:
    """Yield valid containers with damaged or missing packets, or with wrong timestamps."""

    def through(
        name: str, change: Callable[[int, _Packet], _Packet | None], *, kind: str = "video"
    ) -> Callable[[Path], Path]:
        return lambda place: _remux(seeds[name], place / name, change, kind=kind)

    def without(numbers: set[int]) -> Callable[[int, _Packet], _Packet | None]:
        return lambda number, packet: None if number in numbers else packet

    def overwritten(numbers: set[int], *, start: int) -> Callable[[int, _Packet], _Packet]:
        def change(number: int, packet: _Packet) -> _Packet:
            if number not in numbers:
                return packet
            data = bytearray(bytes(packet))
            noise = random.Random(number).randbytes(len(data))
            data[start:] = noise[start:]
            return _with_data(packet, bytes(data))

        return change

    def halved(numbers: set[int]) -> Callable[[int, _Packet], _Packet]:
        return lambda number, packet: (
            _with_data(packet, bytes(packet)[: packet.size // 2]) if number in numbers else packet
        )

    videos = ("h264.mp4", "h264.mkv", "vp9.webm", "mpeg4.avi", "h264.ts", "h264.flv", "ffv1.mkv")
    for name in (*videos, "hevc.mp4", "mjpeg.mov", "prores.mov"):
        for what, change in (
            ("two frames missing", without({4, 5})),
            ("noise in three frames", overwritten({3, 4, 8}, start=8)),
            ("noise in a key frame", overwritten({6}, start=8)),
            ("a frame cut in half", halved({5})),
            ("the last frame cut in half", halved({11})),
        ):
            yield Recipe(f"{name}: {what}", through(name, change), FRAMES)
    for name in ("h264.mp4", "h264.ts", "vp9.webm", "mpeg4.avi", "hevc.mp4"):
        change = without({0})
        yield Recipe(f"{name}: the first key frame missing", through(name, change), FRAMES)
    for name in ("h264.mp4", "h264.mkv", "mpeg4.avi", "h264.ts", "vp9.webm", "h264.flv"):
        for what, change in (
            ("noise in the audio", overwritten({2, 3, 4, 9}, start=0)),
            ("audio cut in half", halved(set(range(3, 9)))),
            ("audio missing", without(set(range(2, 12)))),
        ):
            yield Recipe(f"{name}: {what}", through(name, change, kind="audio"), FRAMES)

    def later(number: int, ticks: int) -> Callable[[int, _Packet], _Packet]:
        def change(at: int, packet: _Packet) -> _Packet:
            if at >= number:
                packet.pts += ticks
                packet.dts += ticks
            return packet

        return change

    for name in ("h264.mp4", "h264.mkv", "h264.ts", "h264.flv"):
        yield Recipe(f"{name}: a jump of 2^30 ticks", through(name, later(6, 2**30)), FRAMES)
    yield Recipe("h264.mkv: a jump of 2^50 ticks", through("h264.mkv", later(6, 2**50)), FRAMES)
    yield Recipe("h264.mp4: times from -2^31 on", through("h264.mp4", later(0, -(2**31))), FRAMES)

    def two_sizes(suffix: str, **options: Any) -> Callable[[Path], Path]:
        def make(place: Path) -> Path:
            """Join two elementary streams: they contain their size, which changes in the middle."""
            part, joined = place / f"part{suffix}", b""
            for size in (_SIZE, (64, 48)):
                if suffix == ".y4m":
                    _write_y4m(part, size=size)
                else:
                    media.make_video(part, size=size, **_STEADY, **options)
                joined += part.read_bytes()
            part.unlink()
            (place / f"sizes{suffix}").write_bytes(joined)
            return place / f"sizes{suffix}"

        return make

    for suffix, options in (
        (".h264", {}),
        (".ts", {}),
        (".m2v", {"codec": "mpeg2video"}),
        (".mjpeg", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        (".y4m", {}),
    ):
        yield Recipe(f"{suffix}: another size in the middle", two_sizes(suffix, **options))


def _remux(
    source: Path,
    target: Path,
    change: Callable[[int, _Packet], _Packet | None],
    *,
    kind: str,
) -> Path:
    """Copy all packets; those of a kind are changed, or left out, by their number."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        streams = {s.index: after.add_stream_from_template(s) for s in before.streams}
        number = itertools.count()
        for packet in before.demux():
            if packet.size == 0:
                continue
            index, changed = packet.stream.index, packet
            if packet.stream.type == kind:
                kept = change(next(number), packet)
                if kept is None:
                    continue
                changed = kept
            changed.stream = streams[index]
            after.mux(changed)
    return target


def _with_data(packet: _Packet, data: bytes) -> _Packet:
    copy = av.Packet(data)
    copy.stream, copy.time_base = packet.stream, packet.time_base
    copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
    copy.is_keyframe = packet.is_keyframe
    return copy


# Random damage


def random_damage(seeds: dict[str, Path], seed: int) -> Iterator[Recipe]:
    """Yield every seed in turn, endlessly, with random damage in a random place."""
    rng = random.Random(seed)
    for name in itertools.cycle(seeds):
        damage = rng.choice(_DAMAGES)
        own = random.Random(rng.random())

        def make(
            place: Path,
            name: str = name,
            damage: Callable[[bytes, random.Random], bytes] = damage,
            own: random.Random = own,
        ) -> Path:
            data = seeds[name].read_bytes()
            if damage is _truncated_at_packet:
                damaged = _truncated_at_packet(data, own, path=seeds[name])
            else:
                damaged = damage(data, own)
            (place / name).write_bytes(damaged)
            return place / name

        what = damage.__name__.strip("_").replace("_", " ")
        yield Recipe(f"{name}: {what}", make, _frames(seeds[name]))


def _truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(1, len(data))]


def _truncated_at_packet(data: bytes, rng: random.Random, *, path: Path | None = None) -> bytes:
    """Truncate the data where a packet begins or ends, give or take a byte."""
    assert path is not None
    with av.open(str(path)) as container:
        packets = [p for p in container.demux() if p.pos is not None and p.size]
    ends = [p.pos for p in packets] + [p.pos + p.size for p in packets]
    return data[: max(1, rng.choice(ends) + rng.choice((-1, 0, 0, 1)))]


def _last_bytes_missing(data: bytes, rng: random.Random) -> bytes:
    return data[: -rng.randrange(1, 64)]


def _one_bit_flipped(data: bytes, rng: random.Random) -> bytes:
    return _flipped(data, rng, start=0, stop=len(data), times=1)


def _bytes_flipped(data: bytes, rng: random.Random) -> bytes:
    return _flipped(data, rng, start=0, stop=len(data), times=rng.randrange(2, 200))


def _header_flipped(data: bytes, rng: random.Random) -> bytes:
    return _flipped(data, rng, start=0, stop=min(len(data), 512), times=rng.randrange(1, 20))


def _end_flipped(data: bytes, rng: random.Random) -> bytes:
    """Flip bits at the end, where many formats have their index."""
    return _flipped(data, rng, start=max(0, len(data) - 1024), stop=len(data), times=10)


def _flipped(data: bytes, rng: random.Random, *, start: int, stop: int, times: int) -> bytes:
    changed = bytearray(data)
    for _ in range(times):
        changed[rng.randrange(start, stop)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _number_made_extreme(data: bytes, rng: random.Random) -> bytes:
    """Overwrite four bytes of the header or the end, the size of most formats' numbers."""
    near_start = rng.random() < 0.7 or len(data) < 2000
    at = rng.randrange(min(len(data), 1500)) if near_start else rng.randrange(-1500, -4)
    at %= len(data)
    value = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", bytes(4)))
    return data[:at] + value + data[at + 4 :]


def _block_of(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.randrange(1, 2000))


def _block_zeroed(data: bytes, rng: random.Random) -> bytes:
    start, stop = _block_of(data, rng)
    return data[:start] + bytes(stop - start) + data[stop:]


def _block_of_noise(data: bytes, rng: random.Random) -> bytes:
    start, stop = _block_of(data, rng)
    return data[:start] + rng.randbytes(stop - start) + data[stop:]


def _block_missing(data: bytes, rng: random.Random) -> bytes:
    start, stop = _block_of(data, rng)
    return data[:start] + data[stop:] or b"\0"


def _block_twice(data: bytes, rng: random.Random) -> bytes:
    start, stop = _block_of(data, rng)
    return data[:stop] + data[start:]


def _blocks_swapped(data: bytes, rng: random.Random) -> bytes:
    a, b, c = sorted(rng.randrange(len(data)) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _junk_inserted(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randrange(1, 500)) + data[at:]


def _junk_before(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 500)) + data


def _junk_after(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.randrange(1, 5000))


def _file_twice(data: bytes, rng: random.Random) -> bytes:
    return data + data


_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _truncated,
    _truncated,
    _truncated_at_packet,
    _last_bytes_missing,
    _one_bit_flipped,
    _bytes_flipped,
    _header_flipped,
    _end_flipped,
    _number_made_extreme,
    _number_made_extreme,
    _block_zeroed,
    _block_of_noise,
    _block_missing,
    _block_twice,
    _blocks_swapped,
    _junk_inserted,
    _junk_before,
    _junk_after,
    _file_twice,
)
