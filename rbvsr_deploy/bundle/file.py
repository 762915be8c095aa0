"""Reads and writes ``model.plan``, which holds a network as typed ONNX graphs and its metadata.

The file is a zip with stored members: ``manifest.json``, ``graphs/<name>.onnx`` and any number of
``engines/<set>/<name>.plan``. The manifest has a SHA-256 of every member, and the zip's comment has
one of the whole file up to the comment, so that every flipped byte is detected. The same content
always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rbvsr_deploy.bundle.engine_sets import EngineSet
from rbvsr_deploy.bundle.graph_check import check_graph_bytes
from rbvsr_deploy.bundle.manifest import (
    Manifest,
    ManifestError,
    read_manifest,
)
from rbvsr_deploy.bundle.onnx_fields import GraphFormatError
from rbvsr_deploy.bundle.stored_zip import ZipFormatError, read_stored
from rbvsr_deploy.errors import BundleError
from rbvsr_deploy.files import check_writable, write_atomically
from rbvsr_deploy.graphs import GRAPHS

__all__ = [
    "Bundle",
    "bundle_in_memory",
    "check_bundle_path",
    "open_bundle",
    "write_bundle",
]

_MANIFEST = "manifest.json"
_DIGEST = re.compile(rb"rbvsr-bundle sha256=([0-9a-f]{64})$")
_RAW_PLANS = (b"ftrt", b"ptrt", b"vtrt")
"""First bytes of serialised engines of TensorRT and TensorRT-RTX (1.7 writes ``vtrt``)."""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # earliest date of a zip: the bytes do not depend on the day
_LARGEST = 2**30  # bytes of a bundle
_MOST_MEMBERS = 10_000


@dataclass(frozen=True)
class Bundle:
    """Holds an opened bundle, whose members match the manifest and whose graphs have been checked.

    Compiled engines are machine code and cannot be checked.
    """

    path: Path
    manifest: Manifest
    sha256: str
    """SHA-256 of the whole file."""
    members: Mapping[str, bytes]

    def graph(self, name: str) -> bytes:
        """Return the serialised ONNX model of a graph.

        Raises:
            KeyError: the bundle has no such graph (a BasicVSR has no ``clean``).
        """
        return self.members[_graph_member(name)]

    def graphs(self) -> dict[str, bytes]:
        """Return all serialised graphs by name."""
        return {name: self.graph(name) for name in self.manifest.graphs}

    def plans(self, engine_set: EngineSet) -> dict[str, bytes]:
        """Return the serialised engines of one of the manifest's sets by graph name."""
        return {name: self.members[_plan_member(engine_set, name)] for name in self.manifest.graphs}


def bundle_in_memory(name: str, manifest: Manifest, graphs: Mapping[str, bytes]) -> Bundle:
    """Return a bundle without a file, for trying out engines; messages call it ``name``."""
    members = {_graph_member(graph): data for graph, data in graphs.items()}
    return Bundle(Path(name), manifest, "", members)


def _graph_member(name: str) -> str:
    return f"graphs/{name}.onnx"


def _plan_member(engine_set: EngineSet, graph: str) -> str:
    return f"engines/{engine_set.name}/{graph}.plan"


def write_bundle(
    path: Path,
    manifest: Manifest,
    graphs: Mapping[str, bytes],
    engines: Sequence[tuple[EngineSet, Mapping[str, bytes]]] = (),
) -> None:
    """Write a bundle atomically.

    Args:
        path: the file to write; an existing file is replaced.
        manifest: the metadata; its ``engine_sets`` and ``members`` are filled in here.
        graphs: serialised ONNX model by graph name.
        engines: engine sets, each with its serialised engines by graph name.

    Raises:
        BundleError: the file cannot be written, or would be too large; no partial file remains.
    """
    members = {_graph_member(name): data for name, data in graphs.items()}
    for engine_set, plans in engines:
        members |= {_plan_member(engine_set, name): data for name, data in plans.items()}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    sets = [engine_set.as_dict() for engine_set, _ in engines]
    values = {**asdict(manifest), "engine_sets": sets, "members": sums}
    members = {_MANIFEST: json.dumps(values, indent=1, sort_keys=True).encode(), **members}

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3  # always Unix: the bytes do not depend on the system
            archive.writestr(info, data)
        # A placeholder of the final length first: the digest covers the two bytes that hold the
        # length of the comment.
        archive.comment = _comment(b"")
    content = buffer.getvalue()[: -len(_comment(b""))]
    if len(content) > _LARGEST - len(_comment(b"")):
        raise BundleError(_too_large(path, len(content)))
    try:
        write_atomically(path, content + _comment(content))
    except OSError as error:
        raise _unwritable(path, error) from None


def check_bundle_path(path: Path) -> None:
    """Check before a long export that its bundle can be written.

    Raises:
        BundleError: as :func:`write_bundle` would.
    """
    try:
        check_writable(path)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> BundleError:
    return BundleError(
        f"the bundle cannot be written to '{path}' ({error.strerror}): choose a file in a folder "
        "that exists and has room"
    )


def _comment(content: bytes) -> bytes:
    return b"rbvsr-bundle sha256=" + hashlib.sha256(content).hexdigest().encode()


def open_bundle(path: Path) -> Bundle:
    """Open and check a bundle.

    Every command and API call that runs or shows a bundle opens it here. This is the only check
    between an untrusted file and the runtimes.

    Raises:
        BundleError: the file is missing, truncated or changed; it is something else, such as a raw
            TensorRT engine, an ONNX file or a checkpoint; its format is newer; or
            :mod:`rbvsr_deploy.bundle.manifest` or :mod:`rbvsr_deploy.bundle.graph_check` refuses
            its manifest or a graph.
    """
    data = _read_file(path)
    size = len(_comment(b""))
    if _comment(data[:-size]) != data[-size:]:
        raise BundleError(
            f"'{path}' is damaged: its content does not match its own checksum; copy or export "
            "it again"
        )
    try:
        members = read_stored(data, comment=size, most=_MOST_MEMBERS)
        manifest = read_manifest(members.pop(_MANIFEST, memoryview(b"")))
    except ManifestError as error:
        raise BundleError(f"'{path}' {error}") from None
    except ZipFormatError as error:  # the checksum matches, so another program wrote it
        raise BundleError(
            f"'{path}' is not a bundle of this toolkit ({error}): export the checkpoint again"
        ) from None
    _check_members(path, manifest, members)
    for name in manifest.graphs:
        try:
            check_graph_bytes(
                members[_graph_member(name)],
                GRAPHS[name],
                precision=manifest.precision,
                channels=manifest.channels,
            )
        except GraphFormatError as error:
            raise BundleError(
                f"'{path}' is refused: its graph '{name}' {error}; use a bundle made by "
                "rbvsr-export"
            ) from None
    contents = {name: bytes(member) for name, member in members.items()}
    return Bundle(path, manifest, hashlib.sha256(data).hexdigest(), contents)


def _read_file(path: Path) -> bytes:
    """Return the bytes of a file that ends like a bundle; other files are not read in full.

    Raises:
        BundleError: the file cannot be read, is too large, or is not a bundle.
    """
    size = len(_comment(b""))
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise BundleError(f"'{path}' is a device or a pipe, not a bundle: give a file")
        with path.open("rb") as file:
            beginning = file.read(64)
            file.seek(max(status.st_size - size, 0))
            if not _DIGEST.search(file.read(size)):
                raise BundleError(_not_a_bundle(path, beginning))
            if status.st_size > _LARGEST:
                raise BundleError(_too_large(path, status.st_size))
            file.seek(0)
            return file.read(status.st_size)
    except OSError as error:
        raise BundleError(
            f"the bundle '{path}' cannot be read ({error.strerror}): make one with rbvsr-export"
        ) from None


def _too_large(path: Path, size: int) -> str:
    return (
        f"'{path}' has {size / 2**30:.2f} GiB, and bundles have at most {_LARGEST / 2**30:g}: keep "
        "engine sets for different GPUs in different bundles"
    )


def _check_members(path: Path, manifest: Manifest, members: Mapping[str, memoryview]) -> None:
    """Raise BundleError unless the members match the manifest byte for byte."""
    for name, expected in manifest.members.items():
        if hashlib.sha256(members.get(name, b"")).hexdigest() != expected:
            raise BundleError(
                f"'{path}' is damaged: its member '{name}' is missing or changed; export it again"
            )
    expected_names = {_graph_member(name) for name in manifest.graphs}
    for engine_set in manifest.engine_sets:
        expected_names |= {_plan_member(engine_set, name) for name in manifest.graphs}
    for name in sorted(expected_names ^ members.keys() | expected_names ^ manifest.members.keys()):
        raise BundleError(f"'{path}' has an extra or missing member '{name}'; export it again")


def _not_a_bundle(path: Path, data: bytes) -> str:
    """Describe a file that is not a complete bundle, judging by its first bytes."""
    make_one = "make a bundle with rbvsr-export"
    if not data:
        return f"'{path}' is empty, not a bundle: {make_one}"
    if data[:4] in _RAW_PLANS:
        return (
            f"'{path}' is a raw TensorRT engine, not a bundle: it fits one GPU and one TensorRT "
            f"version only; {make_one}"
        )
    if data[:4] == b"PK\x03\x04":
        if _MANIFEST.encode() in data:
            return f"'{path}' is a damaged or truncated bundle: copy or export it again"
        return (
            f"'{path}' is a zip archive or a PyTorch checkpoint, not a bundle: {make_one} from a "
            "checkpoint"
        )
    if path.suffix == ".onnx":
        return (
            f"'{path}' is an ONNX file, not a bundle: {make_one} from the checkpoint it came from"
        )
    return f"'{path}' is not a bundle: {make_one}"
