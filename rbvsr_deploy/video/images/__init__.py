"""Reads and writes images and image folders."""

from __future__ import annotations

from rbvsr_deploy.video.images.files import (
    ALPHA_SUFFIXES,
    IMAGE_SUFFIXES,
    encode_image,
    encode_jpeg,
    is_image,
    read_image,
    write_image,
)

__all__ = [
    "ALPHA_SUFFIXES",
    "IMAGE_SUFFIXES",
    "encode_image",
    "encode_jpeg",
    "is_image",
    "read_image",
    "write_image",
]
