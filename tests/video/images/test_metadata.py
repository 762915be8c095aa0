"""Tests what image files hold besides pixels: kept in the upscaled image, or reported."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.jobs.summary import Summary
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.video import ReadOptions, open_source
from rbvsr_deploy.video.image_metadata import png_without_profile
from rbvsr_deploy.video.images import read_image, write_image
from tests.support import media
from tests.support.engine_doubles import BicubicEngine

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PICTURE = Image.fromarray(media.gradient(0, width=24, height=16))
HOLDS = {
    ".png": {"icc", "exif", "xmp", "dpi"},
    ".jpg": {"icc", "exif", "xmp", "dpi"},
    ".tif": {"icc", "exif", "xmp", "dpi"},
    ".webp": {"icc", "exif", "xmp"},
    ".bmp": {"dpi"},
}
KINDS = {
    "icc": "colour profile (ICC)",
    "exif": "EXIF data",
    "xmp": "XMP data",
    "dpi": "resolution",
}


def exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0132], exif[0x0112] = "Maker", "2020:01:02 03:04:05", 6
    exif[0x8769] = {0x9003: "2020:01:02 03:04:05", 0xA002: 24, 0xA003: 16}
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 15.0)}
    return exif


def save(path: Path, **options: Any) -> Path:
    PICTURE.save(path, **options)
    return path


def full(path: Path) -> Path:
    """Save an image with everything that its format can hold."""
    if path.suffix == ".bmp":
        return save(path, dpi=(300, 300))
    if path.suffix == ".png":
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", "<x/>")
        return save(path, icc_profile=ICC, exif=exif(), dpi=(300, 300), pnginfo=texts)
    if path.suffix == ".tif":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in (*exif().items(), (700, b"<x/>")):
            tags[tag] = value
        return save(path, icc_profile=ICC, tiffinfo=tags, dpi=(300, 300))
    return save(path, icc_profile=ICC, exif=exif(), dpi=(300, 300), xmp=b"<x/>")


def upscaled(path: Path, output: Path, **options: Any) -> Summary:
    return upscale_file(path, output, engine=BicubicEngine(), **options)


def found(path: Path) -> set[str]:
    """Return what an image holds, as Pillow reads it, with the right values."""
    with Image.open(path) as image:
        kinds = set()
        if "icc_profile" in image.info:
            assert image.info["icc_profile"] == ICC
            kinds.add("icc")
        xmp = image.info.get("xmp", image.info.get("XML:com.adobe.xmp"))
        if xmp:
            assert (xmp if isinstance(xmp, bytes) else xmp.encode()) == b"<x/>"
            kinds.add("xmp")
        tags = image.getexif()
        if 0x010F in tags:
            assert (tags[0x010F], tags[0x0132]) == ("Maker", "2020:01:02 03:04:05")
            assert tags.get(0x0112, 1) == 1  # the pixels are upright
            details = tags.get_ifd(0x8769)
            assert details[0x9003] == "2020:01:02 03:04:05"
            assert (details[0xA002], details[0xA003]) == image.size
            assert tags.get_ifd(0x8825)[1] == "N"
            kinds.add("exif")
        if image.info.get("dpi") == pytest.approx((300, 300), abs=0.01):
            kinds.add("dpi")
        return kinds


@pytest.mark.parametrize("target", HOLDS)
@pytest.mark.parametrize("source", HOLDS)
def test_kept_or_reported(tmp_path: Path, source: str, target: str) -> None:
    """Metadata that the output's format can hold is kept, and the rest is reported, once each."""
    path = full(tmp_path / f"in{source}")
    assert found_in_input(path) == HOLDS[source]
    summary = upscaled(path, tmp_path / f"out{target}")
    kept = HOLDS[source] & HOLDS[target]
    assert found(tmp_path / f"out{target}") == kept
    assert {change.what for change in summary.kept} >= {KINDS[kind] for kind in kept}
    lost = {KINDS[kind] for kind in HOLDS[source] - kept}
    assert {change.what for change in summary.dropped} == lost


def found_in_input(path: Path) -> set[str]:
    with Image.open(path) as image:
        info, tags = image.info, image.getexif()
        present = {
            "icc": "icc_profile" in info,
            "exif": 0x010F in tags,
            "xmp": bool({"xmp", "XML:com.adobe.xmp"} & set(info)) or 700 in tags,
            "dpi": info.get("dpi", (0, 0))[0] > 1,
        }
    return {kind for kind, there in present.items() if there}


def test_a_video_holds_none(tmp_path: Path) -> None:
    """A folder of images made into a video: one line for each kind, whatever the number."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        full(tmp_path / "in" / f"{number}.jpg")
    summary = upscaled(tmp_path / "in", tmp_path / "out.mkv")
    assert [change.what for change in summary.dropped] == list(KINDS.values())


def test_an_image_without_metadata(tmp_path: Path) -> None:
    """Nothing is added, such as a gamma that would change how viewers show it."""
    for suffix in (".png", ".jpg", ".tif", ".webp"):
        path = save(tmp_path / f"in{suffix}")
        summary = upscaled(path, tmp_path / f"out{suffix}")
        assert not (*summary.kept, *summary.converted, *summary.dropped)
        assert found(tmp_path / f"out{suffix}") == set()
        with Image.open(tmp_path / f"out{suffix}") as image:
            assert not {"gamma", "chromaticity", "srgb"} & set(image.info)


def with_chunk(data: bytes, name: bytes, content: bytes) -> bytes:
    """Insert a chunk into a PNG."""
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return data[:33] + struct.pack(">I", len(content)) + name + content + checksum + data[33:]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        (b"gAMA", struct.pack(">I", 100000), "gamma (gAMA)"),
        (b"cICP", bytes([12, 13, 0, 1]), "colour coding (cICP)"),
        (b"cHRM", struct.pack(">8I", *range(1, 9)), "primaries (cHRM)"),
        (b"sRGB", b"\1", "sRGB tag"),
        (b"tEXt", b"Comment\0hello", "text"),
        (b"mDCV", bytes(24), "mastering display (mDCV)"),
        (b"pHYs", struct.pack(">IIB", 2, 1, 0), "shape of pixels (pHYs)"),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_chunks_of_png(tmp_path: Path, name: bytes, content: bytes, kind: str, deep: bool) -> None:
    """They are copied to a PNG of 8 or 16 bits, byte for byte, and reported for a JPEG."""
    path = tmp_path / "in.png"
    pixels = media.gradient(0, width=24, height=16)
    write_image(path, image=pixels.astype(np.uint16) * 257 if deep else pixels)
    path.write_bytes(with_chunk(path.read_bytes(), name, content))
    assert [c.what for c in upscaled(path, tmp_path / "out.png").kept] == [kind]
    data = (tmp_path / "out.png").read_bytes()
    assert data.count(name) == 1
    assert name + content + struct.pack(">I", zlib.crc32(name + content)) in data
    assert read_image(tmp_path / "out.png").dtype == (np.uint16 if deep else np.uint8)
    assert [c.what for c in upscaled(path, tmp_path / "out.jpg").dropped] == [kind]


def lost_of(path: Path) -> dict[str, str]:
    """Return what opening an image reports as dropped, and why."""
    with open_source(path) as source:
        return {change.what: change.reason for change in source.changes.dropped}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_data_after_the_image_is_named(tmp_path: Path, suffix: str) -> None:
    """Phones append a video to a photograph; others append whatever they like."""
    options: dict[str, dict[str, Any]] = {
        ".jpg": {"progressive": True, "exif": exif()},
        ".webp": {"lossless": True},
    }
    path = save(tmp_path / f"a{suffix}", **options.get(suffix, {}))
    whole = path.read_bytes()
    assert not lost_of(path)
    for rest, said in {
        b"\0\0\r\n": [],
        b"\0\0\0\x18ftypmp42" + bytes(99): ["video after the image (motion photo)"],
        b"data" + bytes(20) + b"end": ["27 bytes after the image"],
        whole + b"x": [f"{len(whole) + 1} bytes after the image"],
    }.items():
        path.write_bytes(whole + rest)
        assert list(lost_of(path)) == said, rest[:20]


def test_images_of_one_file_are_not_data_after_it(tmp_path: Path) -> None:
    """The further images of a multi-picture JPEG are counted elsewhere; a video is named."""
    path = tmp_path / "a.jpg"
    PICTURE.save(path, "MPO", save_all=True, append_images=[PICTURE])
    assert not lost_of(path)
    path.write_bytes(path.read_bytes() + b"\0\0\0\x18ftypmp42" + bytes(99))
    assert list(lost_of(path)) == ["video after the image (motion photo)"]


def test_other_data_of_a_file_is_named(tmp_path: Path) -> None:
    """Whatever nobody thought of: chunks of a PNG, segments of a JPEG, comments."""
    path = save(tmp_path / "a.png")
    path.write_bytes(with_chunk(path.read_bytes(), b"prVt", b"private"))
    assert list(lost_of(path)) == ["'prVt' chunk"]
    path.write_bytes(with_chunk(save(path).read_bytes(), b"sBIT", b"\5\6\5"))
    assert not lost_of(path)

    jpeg = save(tmp_path / "a.jpg", comment=b"hello", exif=exif(), icc_profile=ICC).read_bytes()
    segments = {
        (0xED, b"Photoshop 3.0\0" + bytes(20)): "Photoshop and IPTC data",
        (0xEB, b"JP\0\1" + bytes(40)): "content credentials (JUMBF)",
        (0xE5, b"anything"): "application data (APP5)",
    }
    data = jpeg[:2]
    for number, content in segments:
        data += bytes([0xFF, number]) + struct.pack(">H", len(content) + 2) + content
    (tmp_path / "a.jpg").write_bytes(data + jpeg[2:])
    assert sorted(lost_of(tmp_path / "a.jpg")) == sorted([*segments.values(), "comment"])
    assert not lost_of(full(tmp_path / "b.jpg"))


def test_pixels_of_a_jpeg_that_are_not_square(tmp_path: Path) -> None:
    data = save(tmp_path / "a.jpg").read_bytes()
    at = data.index(b"JFIF") + 7
    (tmp_path / "a.jpg").write_bytes(data[:at] + struct.pack(">BHH", 0, 1, 2) + data[at + 5 :])
    upscaled(tmp_path / "a.jpg", tmp_path / "a.png")
    assert b"pHYs" + struct.pack(">IIB", 2, 1, 0) in (tmp_path / "a.png").read_bytes()


def test_any_number_of_profiles_is_left_out(tmp_path: Path) -> None:
    data = save(tmp_path / "a.png").read_bytes()
    profile = with_chunk(data, b"iCCP", b"x" * 80)[33 : -len(data[33:])]
    assert png_without_profile(data[:33] + 50_000 * profile + data[33:] + profile) == data
    assert png_without_profile(data) == data


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_keep_profiles(tmp_path: Path, suffix: str) -> None:
    """Pillow writes no RGB of 16 bits: profile and pixels are both right nevertheless."""
    deep = np.random.default_rng(0).integers(0, 65536, (16, 24, 3)).astype(np.uint16)
    write_image(tmp_path / "in.png", image=deep)
    profile = b"x\0\0" + zlib.compress(ICC)
    path = tmp_path / "in.png"
    path.write_bytes(with_chunk(path.read_bytes(), b"iCCP", profile))
    upscaled(path, tmp_path / f"out{suffix}")
    assert found(tmp_path / f"out{suffix}") == {"icc"}
    assert read_image(tmp_path / f"out{suffix}").dtype == np.uint16


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (b"iCCP", b"x\0\0notzlib"),
        (b"iCCP", b"x\0\0" + zlib.compress(b"no profile" * 20)),
        (b"iCCP", b""),
        (b"iCCP", b"x\0\0" + zlib.compress(bytes(2**25))),
        (b"eXIf", b"II*\0\xff\xff\xff\xff"),
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**27))),
        (b"pHYs", b"\0"),
        (b"gAMA", b""),
    ],
    ids=["no zlib", "no profile", "empty", "huge", "EXIF", "text bomb", "pHYs", "gAMA"],
)
def test_damaged_metadata_is_not_fatal(tmp_path: Path, name: bytes, content: bytes) -> None:
    """Viewers show such images: they are upscaled, and what is lost is reported."""
    path = save(tmp_path / "in.png")
    pixels = read_image(path)
    path.write_bytes(with_chunk(path.read_bytes(), name, content))
    np.testing.assert_array_equal(read_image(path), pixels)
    summary = upscaled(path, tmp_path / "out.png")
    assert read_image(tmp_path / "out.png").shape == (64, 96, 3)
    if name == b"iCCP":
        assert [c.what for c in summary.dropped] == ["colour profile (ICC)"]


def test_a_wrong_checksum_of_text(tmp_path: Path) -> None:
    path = save(tmp_path / "in.png")
    data = with_chunk(path.read_bytes(), b"tEXt", b"Comment\0hello")
    path.write_bytes(data.replace(b"hello", b"jello"))
    assert not upscaled(path, tmp_path / "out.png").kept


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif"])
def test_a_damaged_profile_elsewhere(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"in{suffix}", icc_profile=bytes(200))
    summary = upscaled(path, tmp_path / f"out{suffix}")
    assert [c.what for c in summary.dropped] == ["colour profile (ICC)"]
    assert found(tmp_path / f"out{suffix}") == set()


def test_exif_too_large_for_jpeg(tmp_path: Path) -> None:
    tags = exif()
    tags[0x010E] = "x" * 70_000
    path = save(tmp_path / "in.png", exif=tags)
    summary = upscaled(path, tmp_path / "out.jpg")
    assert [c.what for c in summary.dropped] == ["EXIF data"]


def test_a_profile_of_another_colour_space_is_applied(tmp_path: Path) -> None:
    """The output is RGB: a profile for CIELAB or grey would be wrong there."""
    lab = ImageCms.profileToProfile(
        PICTURE, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    lab.save(tmp_path / "in.tif")
    expected = np.asarray(PICTURE).astype(int)
    assert np.abs(read_image(tmp_path / "in.tif").astype(int) - expected).max() <= 10
    grey_profile = ICC[:16] + b"GRAY" + ICC[20:]
    PICTURE.convert("L").save(tmp_path / "grey.jpg", icc_profile=grey_profile)
    upscaled(tmp_path / "grey.jpg", tmp_path / "out.png")
    assert found(tmp_path / "out.png") == set()


def linear_grey() -> bytes:
    """Return an ICC profile of grey samples without gamma."""

    def entry(kind: bytes, content: bytes) -> bytes:
        return kind + bytes(4) + content + bytes(-len(content) % 4)

    white = struct.pack(">3i", *(round(x * 65536) for x in (0.9642, 1, 0.8249)))
    entries = {b"wtpt": entry(b"XYZ ", white), b"kTRC": entry(b"curv", struct.pack(">IH", 1, 256))}
    at, table, body = 132 + 12 * len(entries), struct.pack(">I", len(entries)), b""
    for name, content in entries.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    header = struct.pack(">I4sI", 128 + len(table + body), b"lcms", 0x02100000) + b"mntrGRAYXYZ "
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white
    return header + bytes(48) + table + body


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_profile_of_grey_is_applied(tmp_path: Path, suffix: str, alpha: bool) -> None:
    if alpha and suffix == ".jpg":
        pytest.skip("JPEG has no alpha")
    grey = Image.new("LA" if alpha else "L", (24, 16), (128, 128) if alpha else 128)
    grey.save(tmp_path / f"a{suffix}", icc_profile=linear_grey())
    assert abs(int(read_image(tmp_path / f"a{suffix}").mean()) - 188) <= 1  # half of the light


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_profile_for_other_pixels_is_left_out(tmp_path: Path, suffix: str) -> None:
    """As viewers do."""
    path = save(tmp_path / f"a{suffix}", icc_profile=linear_grey())
    difference = read_image(path).astype(int) - np.asarray(PICTURE)
    assert np.abs(difference).mean() <= 2
    assert "GRAY" in lost_of(path)["colour profile (ICC)"]
    cmyk = tmp_path / "cmyk.jpg"
    PICTURE.convert("CMYK").save(cmyk, icc_profile=ICC[:16] + b"CMYK" + ICC[20:])
    assert lost_of(cmyk)["colour profile (ICC)"].startswith("it is damaged")


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    """Its fourth channel is black, not alpha."""
    path = tmp_path / f"in{suffix}"
    options: dict[str, Any] = {"quality": 98, "subsampling": 0} if suffix == ".jpg" else {}
    PICTURE.convert("CMYK").save(path, **options)
    difference = read_image(path).astype(int) - np.asarray(PICTURE)
    assert np.abs(difference).max() <= 8
    upscaled(path, tmp_path / "out.png", reading=ReadOptions(alpha="refuse"))


class TestPaletteWithAlpha:
    """A palette, and a single colour, can be transparent."""

    @pytest.fixture(params=["palette", "colour", "grey"])
    def path(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        path = tmp_path / "in.png"
        if request.param == "palette":
            PICTURE.quantize(16).save(path, transparency=3)
        elif request.param == "colour":
            PICTURE.save(path, transparency=PICTURE.getpixel((0, 0)))
        else:
            grey = PICTURE.convert("L")
            grey.save(path, transparency=grey.getpixel((0, 0)))
        return path

    def test_kept(self, path: Path, tmp_path: Path) -> None:
        upscaled(path, tmp_path / "out.png", reading=ReadOptions(alpha="keep"))
        with Image.open(path) as image:
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
        with Image.open(tmp_path / "out.png") as image:
            assert image.mode == "RGBA"
            made = np.asarray(image)[..., 3]
        assert alpha.min() == 0
        assert made.reshape(16, 4, 24, 4).mean((1, 3))[alpha == 0].mean() < 120

    def test_refused(self, path: Path, tmp_path: Path) -> None:
        with pytest.raises(MediaError, match="has an alpha channel"):
            upscaled(path, tmp_path / "out.png", reading=ReadOptions(alpha="refuse"))

    def test_dropped(self, path: Path, tmp_path: Path) -> None:
        summary = upscaled(path, tmp_path / "out.png")
        assert [c.what for c in summary.dropped] == ["alpha channel"]


def test_bytes_of_an_image_do_not_depend_on_the_run(tmp_path: Path) -> None:
    for suffix in HOLDS:
        path = full(tmp_path / f"in{suffix}")
        for name in ("a", "b"):
            upscaled(path, tmp_path / f"{name}{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_pixels_survive_a_round_trip_through_pillow(tmp_path: Path) -> None:
    """Files are read as Pillow reads them."""
    for suffix in (".png", ".tif", ".webp", ".bmp"):
        image = media.gradient(1, width=9, height=5)
        write_image(tmp_path / f"a{suffix}", image=image)
        file = io.BytesIO((tmp_path / f"a{suffix}").read_bytes())
        np.testing.assert_array_equal(np.asarray(Image.open(file).convert("RGB")), image)
