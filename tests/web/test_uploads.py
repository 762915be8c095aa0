"""Tests uploads: safe names, limits, and files that are complete or not there."""

from __future__ import annotations

import asyncio
import os
import string
from collections.abc import AsyncIterator, Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest

from rbvsr_deploy.web.uploads import Limits, UploadError, receive, safe_name


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("clip.mp4", "clip.mp4"),
        ("Ein Fïlm (1).mkv", "Ein Fïlm (1).mkv"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/etc/passwd", "passwd"),
        ("C:\\a\\b.avi", "b.avi"),
        ("C:b.avi", "C_b.avi"),
        ("folder/", "folder"),
        ("..", "input"),
        ("", "input"),
        ("/", "input"),
        (".bashrc", "bashrc"),
        (" . clip.mp4 . ", "clip.mp4"),
        ("-overwrite.mp4", "_-overwrite.mp4"),
        ("CON.mp4", "_CON.mp4"),
        ("a\0b.mp4", "b.mp4"),
        ("a\nb\u202e4pm.exe", "a_b_4pm.exe"),
        ("%05d.png", "_05d.png"),
        ("*.png", "_.png"),
    ],
)
def test_safe_names(given: str, safe: str) -> None:
    assert safe_name(given) == safe


def test_any_name_is_safe(tmp_path: Path) -> None:
    """Names made of dangerous parts give a visible file in the folder, and are safe afterwards."""
    parts = [*'/\\.. -%:\0\n~$*?"<>|', "..", "../", "con", "nul.", "é", "\udc80", "漢", "x" * 300]
    parts += list(string.ascii_letters)
    draw = np.random.default_rng(3)
    for _ in range(400):
        given = "".join(draw.choice(parts, draw.integers(0, 12)))
        name = safe_name(given)
        assert PurePosixPath(name).name == PureWindowsPath(name).name == name, given
        assert not name.startswith((".", "-")), given
        assert not name.endswith((".", " ")), given
        assert len(os.fsencode(name)) < 150
        assert safe_name(name) == name, given
    (tmp_path / name).touch()
    assert os.listdir(tmp_path) == [name]


def test_long_names_keep_their_suffix() -> None:
    assert safe_name("漢" * 200 + ".mp4") == "漢" * 38 + ".mp4"


@pytest.mark.parametrize(
    ("size", "files", "free", "message"),
    [
        (0, 1, 10**12, "nothing to upload"),
        (5, 0, 10**12, "nothing to upload"),
        (2**31, 1, 10**12, "has 2.0 GiB, and at most 1.0 GiB"),
        (100, 11, 10**12, "has 11 images, and at most 10"),
        (100, 1, 2**20, "the disk has only 1 MiB free"),
    ],
)
def test_limits(size: int, files: int, free: int, message: str) -> None:
    limits = Limits(upload=2**30, files=10, spare=2**20)
    limits.check(size=2**30, files=10, free=2**40)
    with pytest.raises(UploadError, match=message):
        limits.check(size=size, files=files, free=free)


async def stream(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def test_a_file_is_stored_as_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    assert asyncio.run(receive(stream([b"one", b"", b"two"]), path, at_most=6)) == 6
    assert path.read_bytes() == b"onetwo"


def test_nothing_remains_of_a_file_that_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(UploadError, match="more bytes than announced"):
        asyncio.run(receive(stream([b"one", b"two"]), tmp_path / "a.mp4", at_most=5))
    assert os.listdir(tmp_path) == []


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("first")
    with pytest.raises(UploadError, match=r"two files would be named a\.png"):
        asyncio.run(receive(stream([b"two"]), tmp_path / "a.png", at_most=9))
    assert (tmp_path / "a.png").read_text() == "first"


def test_nothing_remains_where_the_disk_is_full() -> None:
    with pytest.raises(UploadError, match="cannot be stored: No such file"):
        asyncio.run(receive(stream([b"two"]), Path("/nowhere/a"), at_most=9))
