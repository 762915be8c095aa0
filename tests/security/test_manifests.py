"""Tests hostile zips and manifests: odd members, odd JSON and terminal escape sequences."""

from __future__ import annotations

import bz2
import copy
import hashlib
import io
import json
import os
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rbvsr_deploy.bundle import open_bundle, write_bundle
from rbvsr_deploy.commands._common import command_errors, report, show
from rbvsr_deploy.commands.info import info
from rbvsr_deploy.errors import BundleError, RbvsrError
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
from rbvsr_deploy.printable import printable
from tests.support.tensorrt_double import ENGINE_SET, small_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Write a bundle with every optional part."""
    path = tmp_path / "model.plan"
    small_bundle(path)
    opened = open_bundle(path)
    score = {"psnr": 50.0, "worst_psnr": 40.0, "worst_clip": "a.mp4", "worst_frame": 3}
    clip = {"clip": "a.mp4", "sha256": "0", "frames": 3, "pictures": {"psnr": 60, "peak": 1.0}}
    clip["pictures"] |= {"max_difference": 0.1}  # type: ignore[operator]
    manifest = json.loads(json.dumps(vars(opened.manifest), default=vars))
    manifest["quantisation"] = {
        "graphs": {"clean": [{"block": 0, "form": "int8"}]},
        "clips": [{"name": "a.mp4", "frames": 3}],
        "psnr": {"int8": score, "float16": score},
    }
    figures = {"max_difference": 0.1, "peak": 1.0, "psnr": 60.0}
    manifest["verification"] = {
        "runtime": "onnxruntime",
        "outputs": {"flow": {"flow": {"1x45x70": figures}}},
        "clip": clip,
    }
    plans = {name: b"plan of " + name.encode() for name in opened.manifest.graphs}
    write_bundle(path, opened.manifest, opened.graphs(), [(ENGINE_SET, plans)])
    held = members_of(path)
    written = json.loads(held["manifest.json"])
    for name in ("quantisation", "verification"):
        written[name] = manifest[name]
    path.write_bytes(sealed(stored({**held, "manifest.json": json.dumps(written).encode()})))
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def stored(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def sealed(archive: bytes) -> bytes:
    """Append this project's checksum to a zip as its comment."""
    content = archive[:-2] + (84).to_bytes(2, "little")
    return content + b"rbvsr-bundle sha256=" + hashlib.sha256(content).hexdigest().encode()


def refused(path: Path) -> str:
    """Return the sentence with which ``rbvsr-info`` refuses a bundle, the same in every format."""
    lines = set()
    for arguments in ([], ["--json"], ["-v"]):
        done = CliRunner().invoke(info, [str(path), *arguments])
        assert done.exit_code == 1, done.output
        assert isinstance(done.exception, SystemExit), done.exception
        assert done.stdout == ""
        lines.add(done.stderr.strip().splitlines()[-1])
    (line,) = lines
    assert line.startswith(f"Error: '{path}' ")
    assert len(line) < 1000
    return line


def test_a_bundle_with_all_parts_opens(bundle: Path) -> None:
    """The unchanged bundle opens, so the tests below can fail."""
    for arguments in ([], ["--json"], ["-v"]):
        done = CliRunner().invoke(info, [str(bundle), *arguments])
        assert done.exit_code == 0, done.output
    assert open_bundle(bundle).manifest.engine_sets == (ENGINE_SET,)


# ---------------------------------------------------------------------------------------- the zip


def entries(count: int, *, size: int, method: int, packed: bytes, crc: int) -> bytes:
    """Return a zip with ``count`` entries that share the bytes of one member."""
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, method, 0, 33, crc, 0, 0, 13, 0)
    head = local[:18] + struct.pack("<2L", len(packed), size) + local[26:] + b"manifest.json"
    directory = b""
    for number in range(count):
        name = b"manifest.json" if number == 0 else f"m{number}".encode()
        fields = (20, 20, 0, method, 0, 33, crc, len(packed), size, len(name), 0, 0, 0, 0, 0, 0)
        directory += struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *fields) + name
    begin = len(head) + len(packed)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), begin, 0)
    return head + packed + directory + end


def deflate_bomb(members: dict[str, bytes]) -> bytes:
    compressor = zlib.compressobj(9, wbits=-15)
    zeros = bytes(2**20)
    packed = b"".join(compressor.compress(zeros) for _ in range(2**7)) + compressor.flush()
    return entries(1, size=2**32 - 1, method=8, packed=packed, crc=0)


def bzip2_bomb(members: dict[str, bytes]) -> bytes:
    compressor = bz2.BZ2Compressor()
    packed = b"".join(compressor.compress(bytes(2**20)) for _ in range(2**5)) + compressor.flush()
    return entries(1, size=2**32 - 1, method=12, packed=packed, crc=0)


def one_kernel(members: dict[str, bytes]) -> bytes:
    packed = members["manifest.json"]
    crc = zlib.crc32(packed)
    return entries(400, size=len(packed), method=0, packed=packed, crc=crc)


def compressed(members: dict[str, bytes]) -> bytes:
    return stored(members, zipfile.ZIP_DEFLATED)


def many(members: dict[str, bytes]) -> bytes:
    return stored({**members, **{f"engines/{n}": b"" for n in range(20_000)}})


def named_twice(members: dict[str, bytes]) -> bytes:
    data = stored({**members, "graphs/flow.onnY": b"other"})
    return data.replace(b"graphs/flow.onnY", b"graphs/flow.onnx")


def unlisted(members: dict[str, bytes]) -> bytes:
    return stored({**members, "payload": b"x" * 1000})


def hidden_between(members: dict[str, bytes]) -> bytes:
    """Insert bytes before the directory that belong to no entry."""
    data = stored(members)
    start = data.index(b"PK\x01\x02")
    end = data[-22:-6] + struct.pack("<L", start + 100) + data[-2:]
    return data[:start] + b"x" * 100 + data[start:-22] + end


def other_local_name(members: dict[str, bytes]) -> bytes:
    return stored(members).replace(b"graphs/flow.onnx", b"graphs/evil.onnx", 1)


def hollow(members: dict[str, bytes]) -> bytes:
    """Write sizes that reach beyond the end of the file."""
    data = bytearray(stored(members))
    entry = data.index(b"PK\x01\x02")
    struct.pack_into("<2L", data, entry + 20, 0xFFFFFFFF, 0xFFFFFFFF)
    return bytes(data)


def directory_elsewhere(members: dict[str, bytes]) -> bytes:
    data = stored(members)
    return data[:-6] + struct.pack("<L", 4) + data[-2:]


def no_manifest(members: dict[str, bytes]) -> bytes:
    return stored({name: data for name, data in members.items() if name != "manifest.json"})


def empty(members: dict[str, bytes]) -> bytes:
    return stored({})


def large_manifest(members: dict[str, bytes]) -> bytes:
    return stored({**members, "manifest.json": b'{"a":"' + b"x" * 2**23 + b'"}'})


ZIPS = (
    deflate_bomb,
    bzip2_bomb,
    one_kernel,
    compressed,
    many,
    named_twice,
    unlisted,
    hidden_between,
    other_local_name,
    hollow,
    directory_elsewhere,
    no_manifest,
    empty,
    large_manifest,
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make", ZIPS, ids=lambda make: make.__name__)
def test_an_odd_zip_is_refused(make: Callable[[dict[str, bytes]], bytes], bundle: Path) -> None:
    """Compressed, overlapping, repeated, unlisted or hidden members are refused without inflating
    anything, within an address space of 1 GiB.
    """
    bundle.write_bytes(sealed(make(members_of(bundle))))
    line = refused(bundle)
    assert "bundle" in line or "member" in line

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))

    program = "from rbvsr_deploy.commands.info import info; info()"
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=limit,
    )
    assert (done.returncode, done.stderr.strip()) == (1, line)


def test_a_pipe_or_a_device_is_refused(tmp_path: Path) -> None:
    """Neither is read, as reading might never end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert "is a device or a pipe, not a bundle" in refused(path)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """A large file is refused unread, even if it ends like a bundle."""
    path = tmp_path / "model.plan"
    for ending, expected in (
        (b"", "is not a bundle"),
        (b"rbvsr-bundle sha256=" + b"0" * 64, "GiB"),
    ):
        with path.open("wb") as file:
            file.truncate(2**33)
            file.seek(0, io.SEEK_END)
            file.write(ending)
        assert expected in refused(path)


# -------------------------------------------------------------------------------- the manifest

ODD: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    1e308,
    2**70,
    10**5000,
    "text",
    "",
    [],
    {},
    [[]],
    {"a": 1},
    "\x1b]52;c;ZXZpbA==\x07",
    "x" * 20_000,
)
RAW = ("NaN", "Infinity", "1e999", "[" * 10**4 + "]" * 10**4, '{"a":' * 10**4 + "1" + "}" * 10**4)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a manifest."""
    found = [path]
    items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else ()
    items = enumerate(value[:1]) if isinstance(value, list) else items
    for key, inner in items:
        found += paths(inner, (*path, key))
    return found


def put(manifest: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a manifest with the value at a path replaced."""
    if not path:
        return value
    made = place = json.loads(json.dumps(manifest))  # a tenth of deepcopy's time
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return made


@pytest.mark.slow
def test_every_field_of_every_wrong_kind(bundle: Path) -> None:
    """If any value of a manifest is replaced by any other, the bundle either opens and can be shown
    or is refused in one sentence. No other exception is raised.
    """
    sys.set_int_max_str_digits(0)  # to write the number that must be refused
    held = members_of(bundle)
    manifest = json.loads(held["manifest.json"])
    opened = refusals = longest = 0
    places = [p for p in paths(manifest) if p[:1] != ("graphs",) or len(p) < 5]
    for place in places:
        for odd in (*ODD, *RAW):
            marked = put(manifest, place, "MARK" if odd in RAW else odd)
            text = json.dumps(marked)
            if odd in RAW:
                text = text.replace('"MARK"', str(odd))
            bundle.write_bytes(sealed(stored({**held, "manifest.json": text.encode()})))
            try:
                open_bundle(bundle)
            except BundleError as error:
                longest = max(longest, len(str(error)))
                refusals += 1
                continue
            opened += 1
            for arguments in ([], ["--json"], ["-v"]):
                done = CliRunner().invoke(info, [str(bundle), *arguments])
                assert done.exit_code == 0, (place, odd, done.exception)
                assert "\x1b" not in done.output
    assert longest < 1000
    assert refusals > 10 * len(places)
    assert opened > len(places) / 10


@pytest.mark.slow
def test_every_field_left_out_or_added(bundle: Path) -> None:
    """Neither causes a traceback; unknown fields are refused, except in measurements."""
    held = members_of(bundle)
    manifest = json.loads(held["manifest.json"])

    def outcome(made: Any) -> str:
        text = json.dumps(made).encode()
        bundle.write_bytes(sealed(stored({**held, "manifest.json": text})))
        done = CliRunner().invoke(info, [str(bundle), "-v"])
        if done.exit_code:
            return refused(bundle)
        return ""

    for place in paths(manifest)[1:]:
        made = copy.deepcopy(manifest)
        inner = made
        for key in place[:-1]:
            inner = inner[key]
        if isinstance(inner, dict):
            del inner[place[-1]]
            outcome(made)
    for place in ((), ("weights",), ("model",), ("engine_sets", 0), ("engine_sets", 0, "profile")):
        assert "surprise" in outcome(put(manifest, (*place, "surprise"), 1))
    for place in (("verification",), ("quantisation",), ("verification", "clip")):
        assert outcome(put(manifest, (*place, "surprise"), 1)) == ""


def test_engine_sets_without_their_engines(bundle: Path) -> None:
    """A set without its engines, a set listed twice, and engines without a set are refused."""
    held = members_of(bundle)
    manifest = json.loads(held["manifest.json"])
    for sets in (
        [{**manifest["engine_sets"][0], "version": "11.0.0"}],
        manifest["engine_sets"] * 2,
        [],
    ):
        text = json.dumps({**manifest, "engine_sets": sets}).encode()
        bundle.write_bytes(sealed(stored({**held, "manifest.json": text})))
        refused(bundle)


# ------------------------------------------------------------------------------------ terminals

ESCAPES = "\x1b]52;c;ZXZpbA==\x07 \x9b31m \u202egnihtyna \r\b\x00"


def test_terminal_escape_sequences_are_escaped() -> None:
    assert printable("Grüße, 世界\n\tand more") == "Grüße, 世界\n\tand more"
    assert printable("\x1b[31m\x9b\u202e\udc80") == "\\x1b[31m\\x9b\\u202e\\udc80"


def test_a_licence_cannot_control_the_terminal(bundle: Path) -> None:
    """No text of a manifest can send escape sequences or start a line of its own."""
    held = members_of(bundle)
    manifest = json.loads(held["manifest.json"])
    for name in ("license", "provenance", "file_name", "sha256"):
        manifest["weights"][name] = f"{ESCAPES}\n     engines  all of them good"
    manifest["toolkit_version"] = ESCAPES
    text = json.dumps(manifest).encode()
    bundle.write_bytes(sealed(stored({**held, "manifest.json": text})))
    for arguments in ([], ["-v"], ["--json"]):
        done = CliRunner().invoke(info, [str(bundle), *arguments])
        assert done.exit_code == 0
        assert all(c.isprintable() or c == "\n" for c in done.output)
        assert not any(line.startswith("     engines  all of") for line in done.output.splitlines())


def test_no_line_of_a_command_controls_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Results, progress messages and errors are escaped."""
    show(ESCAPES)
    report(ESCAPES)
    with pytest.raises(SystemExit), command_errors():
        raise RbvsrError(ESCAPES)
    out, err = capsys.readouterr()
    assert all(c.isprintable() or c == "\n" for c in out + err)
    assert out.count("ZXZpbA==") == 1
    assert err.count("ZXZpbA==") == 2


def test_the_shipped_bundle_has_a_valid_manifest() -> None:
    assert open_bundle(DEFAULT_BUNDLE).manifest.weights.license == "Apache-2.0"
