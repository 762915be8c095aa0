"""The bundle: one ``model.plan`` that holds a network as typed ONNX graphs and everything known
about it.

A zip with stored members: ``manifest.json``, ``graphs/<name>.onnx`` and any number of
``engines/<set>/<name>.plan``. The manifest has a SHA-256 for every member, and the zip's comment
one of the whole file before it, so that no flipped byte goes unseen. The same content always gives
the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rbvsr_deploy.engine_sets import EngineSet
from rbvsr_deploy.errors import BundleError
from rbvsr_deploy.files import check_writable, write_atomically
from rbvsr_deploy.graph_check import check_graph_bytes
from rbvsr_deploy.graphs import GRAPHS, PRECISIONS, Precision, graph_names, head_channels
from rbvsr_deploy.onnx_reader import GraphFormatError

__all__ = [
    "SCHEMA_VERSION",
    "Bundle",
    "Manifest",
    "Weights",
    "bundle_in_memory",
    "check_bundle_path",
    "graph_io",
    "open_bundle",
    "write_bundle",
]

SCHEMA_VERSION = 1

_MANIFEST = "manifest.json"
_DIGEST = re.compile(rb"rbvsr-bundle sha256=([0-9a-f]{64})$")
_RAW_PLANS = (b"ftrt", b"ptrt", b"vtrt")
"""First bytes of serialised engines: TensorRT, and TensorRT-RTX (1.7 writes ``vtrt``)."""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can hold: bytes do not depend on the day


@dataclass(frozen=True)
class Weights:
    """Where the weights came from."""

    file_name: str
    sha256: str
    """Of the checkpoint file, as published sums are."""
    license: str | None = None
    provenance: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What is known about the network in a bundle. ``rbvsr-info`` shows it."""

    model: Mapping[str, Any]
    """``RealBasicVSRConfig.as_dict()``."""
    weights: Weights
    precision: Precision
    opset: int
    refine_threshold: float
    """Dynamic refinement's default, on the 0-255 scale."""
    graphs: Mapping[str, Any]
    """Inputs and outputs of each graph: name, dtype, shape."""
    verification: Mapping[str, Any]
    """Largest difference from the torch model per graph, output and size, measured by the export.
    """
    toolkit_version: str
    scale: int = 4
    quantisation: Mapping[str, Any] | None = None
    """Calibration record of an INT8 bundle; ``None`` for floating point."""
    engine_sets: tuple[EngineSet, ...] = ()
    """What the bundle holds compiled."""
    schema_version: int = SCHEMA_VERSION
    members: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every other member; filled in by :func:`write_bundle`."""

    @property
    def has_cleaning(self) -> bool:
        """Whether there is a ``clean`` graph: RealBasicVSR has one, BasicVSR has not."""
        return self.model["cleaning_blocks"] is not None

    @property
    def channels(self) -> int:
        """Channels of the recurrent state."""
        return int(self.model["mid_channels"])

    @property
    def head_channels(self) -> int:
        """See :func:`rbvsr_deploy.graphs.head_channels`."""
        return head_channels(
            channels=self.channels, single_shuffle=bool(self.model["single_shuffle"])
        )


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its members are what the manifest says, and its graphs are of this network.
    Compiled engines, which are machine code, cannot be checked like that.
    """

    path: Path
    manifest: Manifest
    sha256: str
    """Of the whole file."""
    members: Mapping[str, bytes]

    def graph(self, name: str) -> bytes:
        """The serialised ONNX model of a graph.

        Raises:
            KeyError: the bundle has no such graph (``clean`` of a BasicVSR).
        """
        return self.members[_graph_member(name)]

    def graphs(self) -> dict[str, bytes]:
        """All of them by name."""
        return {name: self.graph(name) for name in self.manifest.graphs}

    def plans(self, engine_set: EngineSet) -> dict[str, bytes]:
        """The serialised engines of one of the manifest's sets, by graph."""
        return {name: self.members[_plan_member(engine_set, name)] for name in self.manifest.graphs}


def bundle_in_memory(name: str, manifest: Manifest, graphs: Mapping[str, bytes]) -> Bundle:
    """A bundle that no file holds, for engines to try; ``name`` stands for it in messages."""
    members = {_graph_member(graph): data for graph, data in graphs.items()}
    return Bundle(Path(name), manifest, "", members)


def _graph_member(name: str) -> str:
    return f"graphs/{name}.onnx"


def _plan_member(engine_set: EngineSet, graph: str) -> str:
    return f"engines/{engine_set.name}/{graph}.plan"


def graph_io(*, has_cleaning: bool, channels: int, precision: Precision) -> dict[str, Any]:
    """Inputs and outputs of every graph in plain values, for the manifest and for engines to check
    against.
    """
    return {
        name: {
            side: [
                {
                    "name": item.name,
                    "dtype": item.numpy_dtype(precision),
                    "shape": [channels if size == "C" else size for size in item.shape],
                }
                for item in items
            ]
            for side, items in (("inputs", GRAPHS[name].inputs), ("outputs", GRAPHS[name].outputs))
        }
        for name in graph_names(has_cleaning=has_cleaning)
    }


def write_bundle(
    path: Path,
    manifest: Manifest,
    graphs: Mapping[str, bytes],
    engines: Sequence[tuple[EngineSet, Mapping[str, bytes]]] = (),
) -> None:
    """Write a bundle in one piece or not at all.

    Args:
        path: an existing file is replaced.
        manifest: its ``engine_sets`` and ``members`` are filled in here.
        graphs: serialised ONNX model by graph name.
        engines: sets with their serialised engines by graph name.

    Raises:
        BundleError: the file cannot be written; nothing is left behind.
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
            info.create_system = 3  # Unix, on Windows too: bytes do not depend on the system
            archive.writestr(info, data)
        # A comment of the final length first: its two length bytes belong to what the digest
        # covers.
        archive.comment = _comment(b"")
    content = buffer.getvalue()[: -len(_comment(b""))]
    try:
        write_atomically(path, content + _comment(content))
    except OSError as error:
        raise _unwritable(path, error) from None


def check_bundle_path(path: Path) -> None:
    """Find out before a long export whether its bundle can be written.

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

    Raises:
        BundleError: missing file; a raw TensorRT plan, an ONNX file, a checkpoint or something else
            in its place; a truncated or changed file; a newer format; a graph that
            :mod:`rbvsr_deploy.graph_check` refuses.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"the bundle '{path}' cannot be read ({error.strerror}): make one with rbvsr-export"
        ) from None
    comment = _DIGEST.search(data[-len(_comment(b"")) :])
    if comment is None:
        raise BundleError(_what_it_is(path, data))
    if _comment(data[: -len(comment[0])]) != comment[0]:
        raise BundleError(
            f"'{path}' is damaged: its content does not match its own checksum; copy or export "
            "it again"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        manifest = _read_manifest(path, members.pop(_MANIFEST))
    except BundleError:
        raise
    except Exception as error:  # the checksum is right: not damaged, but made by something else
        raise BundleError(
            f"'{path}' is not a bundle of this toolkit ({type(error).__name__}: {error}): export "
            "the checkpoint again"
        ) from None
    for name, expected in manifest.members.items():
        if hashlib.sha256(members.get(name, b"")).hexdigest() != expected:
            raise BundleError(
                f"'{path}' is damaged: its member '{name}' is missing or changed; export it again"
            )
    bundle = Bundle(path, manifest, hashlib.sha256(data).hexdigest(), members)
    _check_graphs(bundle)
    return bundle


def _check_graphs(bundle: Bundle) -> None:
    """Raises BundleError. No other check lies between a foreign file and the runtimes."""
    manifest = bundle.manifest
    for name in manifest.graphs:
        if name not in GRAPHS or _graph_member(name) not in bundle.members:
            raise BundleError(
                f"'{bundle.path}' has no graph '{name}', or is not to have one: export it again"
            )
        try:
            check_graph_bytes(
                bundle.graph(name),
                GRAPHS[name],
                precision=manifest.precision,
                channels=manifest.channels,
            )
        except GraphFormatError as error:
            raise BundleError(
                f"'{bundle.path}' is not run: its graph '{name}' {error}; use a bundle that "
                "rbvsr-export has made"
            ) from None


def _read_manifest(path: Path, data: bytes) -> Manifest:
    values = json.loads(data)
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"'{path}' has bundle format {version}, and this version of rbvsr-deploy reads "
            f"{SCHEMA_VERSION}: "
            "update rbvsr-deploy, or export the checkpoint again"
        )
    sets = tuple(EngineSet.from_dict(item) for item in values.get("engine_sets", ()))
    manifest = Manifest(**{**values, "weights": Weights(**values["weights"]), "engine_sets": sets})
    if manifest.precision not in PRECISIONS:
        raise BundleError(
            f"'{path}' has precision '{manifest.precision}'; known are {', '.join(PRECISIONS)}"
        )
    return manifest


def _what_it_is(path: Path, data: bytes) -> str:
    """A sentence for a file that is no complete bundle."""
    make_one = "make a bundle with rbvsr-export"
    if not data:
        return f"'{path}' is empty, not a bundle: {make_one}"
    if data[:4] in _RAW_PLANS:
        return (
            f"'{path}' is a raw TensorRT engine, not a bundle: it fits one GPU and one TensorRT "
            f"version only; {make_one}"
        )
    if data[:4] == b"PK\x03\x04":
        if _MANIFEST.encode() in data[:64]:
            return f"'{path}' is a damaged or truncated bundle: copy or export it again"
        return (
            f"'{path}' is a zip archive or a PyTorch checkpoint, not a bundle: {make_one} "
            "--checkpoint"
        )
    if path.suffix == ".onnx":
        return (
            f"'{path}' is an ONNX file, not a bundle: {make_one} from the checkpoint it came from"
        )
    return f"'{path}' is not a bundle: {make_one}"
