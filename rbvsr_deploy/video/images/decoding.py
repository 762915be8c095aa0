"""Decodes image files: pixels, alpha and metadata.

FFmpeg decodes PNG, JPEG, WebP and BMP, also of 16 bits; OpenCV decodes TIFF of more than 8 bits;
Pillow decodes everything else, and reads the metadata.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rbvsr_deploy.errors import MediaError, RbvsrError
from rbvsr_deploy.pixels import Image
from rbvsr_deploy.video.colour.colour import BT601, colour_of, depth_of
from rbvsr_deploy.video.colour.conversion import opacity_of, to_rgb
from rbvsr_deploy.video.colour.orientation import Orientation, exif_orientation, upright
from rbvsr_deploy.video.image_metadata import (
    ICC,
    ImageMetadata,
    coding_chunk,
    metadata_of_png,
    png_animation_length,
    png_is_bounded,
    png_pixels,
    png_size,
    read_metadata,
)
from rbvsr_deploy.video.pyav import DECODER_LIMITS, MAX_PIXELS, media_errors, open_input

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.codeccontext import VideoCodecContext
    from PIL.Image import Image as PillowImage

__all__ = ["DecodedImage", "decode_image"]

_BY_FFMPEG = {"JPEG": "mjpeg", "WEBP": "webp", "BMP": "bmp"}
_DEEP_BY_FFMPEG = {"PPM": "ppm", "JPEG2000": "jpeg2000"}
"""Decoders for more than 8 bits per sample."""
_UNSEEN = ("AVIF", *_DEEP_BY_FFMPEG)
"""Formats of which Pillow shows neither depth nor colour coding."""
_SUBFILE_TYPE, _BITS, _PHOTOMETRIC, _DNG_VERSION = 254, 258, 262, 50706  # tags of TIFF
_GREY, _RGB = 1, 2  # photometric interpretations
_NOT_APPLICABLE = "it is damaged, and cannot be applied"
_MOST_SCANS = 500
"""Scans of a progressive JPEG; cameras write about ten. Each one takes a few bytes, and the time of
decoding the whole image.
"""
_MOST_PAGES = 5000  # Pillow's time to count those of a TIFF is quadratic


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """Holds the first image of a file."""

    image: Image
    """``(H, W, 3)`` RGB, upright and contiguous: uint8, or uint16 if the file has more bits."""
    opacity: Image | None = None
    """Alpha channel, ``(H, W, 1)`` with the image's dtype; ``None``: opaque."""
    metadata: ImageMetadata = field(default_factory=ImageMetadata)
    others: int = 0
    """Number of further images in the file, such as pages."""
    conversions: Mapping[str, str] = field(default_factory=dict)
    """Parts that were converted, and how."""


def decode_image(data: bytes, name: str, path: Path) -> DecodedImage:
    """Decode the first image of a file.

    Args:
        data: the complete file.
        name: Pillow's name of its format.
        path: the file's path, for messages.

    Raises:
        MediaError: it is damaged, too large, or stored in a way that is not supported.
    """
    with _decoding(path):
        if name == "PNG":
            return _decoded_png(data, path)
        opened = _opened(data, name)
        if opened is not None and opened.width * opened.height > MAX_PIXELS:
            raise _too_large(path)
        if name == "JPEG" and data.count(b"\xff\xda") > _MOST_SCANS:
            raise MediaError(
                f"cannot read the image {path}: it has more than {_MOST_SCANS} scans; convert it "
                "to PNG"
            )
        others = 0 if opened is None else _others(opened, path)
        depth, colour = _coding(data) if name in _UNSEEN else (8, {})
        by_pillow = opened is not None and (opened.mode == "CMYK" or (name == "WEBP" and others))
        if (name in _BY_FFMPEG or (name in _DEEP_BY_FFMPEG and depth > 8)) and not by_pillow:
            metadata = ImageMetadata() if opened is None else read_metadata(opened)
            decoded = _with_opacity(
                _decoded_by_ffmpeg(data, (_BY_FFMPEG | _DEEP_BY_FFMPEG)[name], path),
                exif_orientation(data),
                metadata,
            )
        elif opened is None:
            raise MediaError(
                f"cannot read the image {path}: it is damaged, or stored in a way that is not "
                "supported: convert it to PNG"
            )
        elif name == "TIFF" and _is_deep(opened, path):
            decoded = _decoded_by_opencv(data, opened, path)
        else:
            decoded = _decoded_by_pillow(opened)
        if depth > 8 * decoded.image.itemsize:
            change = {f"{depth} bits per sample": "rounded to 8, as Pillow reads no more"}
            decoded = replace(decoded, conversions={**decoded.conversions, **change})
        metadata = replace(decoded.metadata, png_copied={**colour, **decoded.metadata.png_copied})
        return _without_grey_profile(replace(decoded, metadata=metadata, others=others))


def _opened(data: bytes, name: str) -> PillowImage | None:
    """Open an image with Pillow, which reads its header; ``None`` if that is damaged."""
    from PIL import Image as Pillow

    try:
        return Pillow.open(io.BytesIO(data), formats=(name,))
    except MemoryError:
        raise
    except Exception:  # Pillow raises nearly anything on foreign bytes
        return None


def _coding(data: bytes) -> tuple[int, dict[bytes, bytes]]:
    """Return the bits per sample of an image, and its colours as chunks of a PNG if they are not
    the usual ones.
    """
    import av

    try:
        with open_input(io.BytesIO(data)) as container:
            context = container.streams.video[0].codec_context
            depth = 8 if context.format is None else depth_of(context.format)
            return depth, coding_chunk(context.color_primaries, context.color_trc)
    except (av.FFmpegError, IndexError, AttributeError):  # the decoder describes damage better
        return 8, {}


def _others(image: PillowImage, path: Path) -> int:
    """Return the number of further images in a file.

    Raises:
        MediaError: it is a TIFF with too many.
    """
    try:
        if image.format == "TIFF":
            for number in range(_MOST_PAGES):
                image.seek(number)
            raise MediaError(f"{path} has {_MOST_PAGES} pages or more: split it")
        return int(getattr(image, "n_frames", 1)) - 1
    except EOFError:
        image.seek(0)
        return number - 1
    except MediaError:
        raise
    except Exception:  # as above
        return 0


def _decoded_png(data: bytes, path: Path) -> DecodedImage:
    width, height = png_size(data)
    if width * height > MAX_PIXELS:
        raise _too_large(path)
    if not png_is_bounded(data):
        raise MediaError(
            f"cannot read the image {path}: it is damaged, as it holds more pixels than its size "
            "says"
        )
    # Other chunks, which may be damaged or huge, are not needed for the pixels.
    decoded = _with_opacity(
        _decoded_by_ffmpeg(png_pixels(data), "png", path),
        exif_orientation(data),
        metadata_of_png(data),
    )
    return _without_grey_profile(replace(decoded, others=max(0, png_animation_length(data) - 1)))


def _decoded_by_ffmpeg(data: bytes, decoder: str, path: Path) -> VideoFrame:
    import av

    context: VideoCodecContext = av.CodecContext.create(decoder, "r")  # type: ignore[assignment]
    context.options = DECODER_LIMITS | {"err_detect": "explode"}
    frames = context.decode(av.Packet(data)) or context.decode(None)
    if not frames:
        raise MediaError(f"cannot read the image {path}: it is damaged or incomplete")
    return frames[0]


def _with_opacity(
    frame: VideoFrame, orientation: Orientation, metadata: ImageMetadata
) -> DecodedImage:
    colour = colour_of(frame, matrix_if_unknown=BT601)
    if frame.format.name == "pal8":  # its colours may have alpha
        frame = frame.reformat(format="rgba")
    elif frame.format.name.startswith("rgba64"):
        # Once for both of the following; a frame takes up to 340 MiB.
        frame = frame.reformat(format="gbrap16le")
    image, opacity = to_rgb(frame, colour=colour, is_image=True), opacity_of(frame)
    return DecodedImage(
        upright(image, orientation),
        None if opacity is None else upright(opacity, orientation),
        metadata,
    )


def _is_deep(image: PillowImage, path: Path) -> bool:
    """Return whether a TIFF has more than 8 bits per sample.

    Raises:
        MediaError: it is not the whole image, or has samples that cannot be read.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]
    if _DNG_VERSION in tags or tags.get(_SUBFILE_TYPE, 0) & 1:
        raise MediaError(
            f"{path} is a camera's raw image, or begins with a thumbnail: convert it to a TIFF or "
            "PNG image"
        )
    if max(tags.get(_BITS, (1,))) <= 8:
        return False
    if tags.get(_PHOTOMETRIC) not in (_GREY, _RGB) or image.mode == "I":
        raise MediaError(
            f"the samples of {path} are neither RGB nor grey, or are 32-bit integers: convert it "
            "to RGB of 8 or 16 bits"
        )
    return True


def _decoded_by_opencv(data: bytes, opened: PillowImage, path: Path) -> DecodedImage:
    import cv2

    samples = None
    with _without_opencv_messages(), contextlib.suppress(cv2.error):
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise MediaError(
            f"cannot read the image {path}: it is damaged, or stored in a way that is not "
            "supported: convert it to RGB of 8 or 16 bits"
        )
    if samples.dtype.kind == "f":
        samples = (np.nan_to_num(samples).clip(0, 1) * np.iinfo(np.uint16).max).round()
    elif samples.dtype != np.uint16:
        raise MediaError(f"{path} has samples of {samples.dtype}: convert it to 8 or 16 bits")
    samples = samples.astype(np.uint16).reshape(*samples.shape[:2], -1)
    channels = samples.shape[2]
    image = samples[..., 2::-1] if channels >= 3 else samples[..., [0, 0, 0]]
    return DecodedImage(
        np.ascontiguousarray(image),
        np.ascontiguousarray(samples[..., 3:4]) if channels == 4 else None,
        read_metadata(opened),
    )


def _decoded_by_pillow(image: PillowImage) -> DecodedImage:
    from PIL import ImageOps

    metadata = read_metadata(image)  # before loading, which drops some
    conversions = {}
    image.load()
    image = ImageOps.exif_transpose(image)
    has_alpha = image.has_transparency_data
    if image.mode in ("CMYK", "LAB", "YCbCr"):
        icc = None if ICC in metadata.lost else image.info.get("icc_profile")
        rgb = _in_srgb(image, icc)
        if icc and rgb is not None:
            conversions[ICC] = _applied(icc)
        elif icc:
            metadata = replace(metadata, lost={**metadata.lost, ICC: _NOT_APPLICABLE})
        image = rgb or image.convert("RGB")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > np.iinfo(np.uint16).max or image.mode == "F":
            raise ValueError("its samples are neither of 8 nor of 16 bits")
        grey = deep.astype(np.uint16)
        return DecodedImage(np.dstack([grey] * 3), None, metadata)
    mode = "RGBA" if has_alpha else "RGB"
    samples = np.array(image if image.mode == mode else image.convert(mode))
    return DecodedImage(
        np.ascontiguousarray(samples[..., :3]),
        np.ascontiguousarray(samples[..., 3:]) if has_alpha else None,
        metadata,
        conversions=conversions,
    )


def _without_grey_profile(decoded: DecodedImage) -> DecodedImage:
    """Apply the profile of a grey image, if it has one."""
    from PIL import Image as Pillow

    icc = decoded.metadata.grey_icc
    if icc is None:
        return decoded
    levels = _in_srgb(Pillow.fromarray(np.arange(256, dtype=np.uint8)[None]), icc)
    if levels is None:
        lost = {**decoded.metadata.lost, ICC: _NOT_APPLICABLE}
        return replace(decoded, metadata=replace(decoded.metadata, lost=lost))
    curve, most = np.asarray(levels)[0, :, 1], np.iinfo(decoded.image.dtype).max
    image = np.interp(decoded.image, np.linspace(0, most, 256), curve * (most / 255))
    return replace(
        decoded,
        image=image.round().astype(decoded.image.dtype),
        conversions={**decoded.conversions, ICC: _applied(icc)},
    )


def _applied(icc: bytes) -> str:
    space = icc[16:20].decode("latin-1").strip()
    return f"applied, as it is for {space} and the output is RGB"


def _in_srgb(image: PillowImage, icc: bytes | None) -> PillowImage | None:
    """Convert an image to sRGB with its own profile or, without one, by the usual formulas;
    ``None`` if the profile cannot be applied.
    """
    from PIL import ImageCms

    if image.mode != "LAB" and not icc:
        return image.convert("RGB")
    try:
        source: Any = (
            ImageCms.createProfile("LAB")
            if image.mode == "LAB"
            else ImageCms.ImageCmsProfile(io.BytesIO(icc or b""))
        )
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Raise what decoders raise on damage as ``MediaError``."""
    try:
        with media_errors(f"cannot read the image {path}"), warnings.catch_warnings():
            # Pillow warns of images that are large but far from its limit, and of metadata.
            warnings.simplefilter("ignore")
            yield
    except RbvsrError:
        raise
    except Exception as error:  # Pillow raises nearly anything on foreign bytes
        raise MediaError(f"cannot read the image {path}: it is damaged ({error})") from error


def _too_large(path: Path) -> MediaError:
    return MediaError(f"cannot read the image {path}: it has more than {MAX_PIXELS:,} pixels")


@contextlib.contextmanager
def _without_opencv_messages() -> Iterator[None]:
    """Keep OpenCV from printing what it thinks of a file."""
    import cv2

    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(0)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
