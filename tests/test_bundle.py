"""Tests that bundles are restored exactly as written, and that other files are refused."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
import torch

from rbvsr_deploy.bundle import (
    SCHEMA_VERSION,
    Bundle,
    Manifest,
    Weights,
    graph_io,
    open_bundle,
    write_bundle,
)
from rbvsr_deploy.errors import BundleError
from rbvsr_deploy.export.resize_graph import resize_graph
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.graphs import GRAPHS
from rbvsr_deploy.model import COMPACT, RealBasicVSRConfig


def make_graphs(*, has_cleaning: bool = True) -> dict[str, bytes]:
    """Return ONNX models of a few operations that fulfil the contract of :func:`make_manifest`."""
    io = graph_io(has_cleaning=has_cleaning, channels=COMPACT.mid_channels, precision="float16")
    resize = bytes(resize_graph("float16", opset=17).SerializeToString())
    return {name: resize if name == "resize" else _graph(name, io[name]) for name in io}


def _graph(name: str, sides: dict[str, Any]) -> bytes:
    node = onnx.helper.make_node
    constants = {
        "flow": [onnx.numpy_helper.from_array(np.array([0, 1]), "first_two")],
        "reconstruct": [onnx.numpy_helper.from_array(np.array([1, 1, 4, 4], "float32"), "scales")],
    }
    nodes = {
        "ingest": [
            node("Cast", ["image"], ["numbers"], to=onnx.TensorProto.FLOAT16),
            node("Transpose", ["numbers"], ["frame"], perm=[0, 3, 1, 2]),
        ],
        "clean": [
            node("Relu", ["frame"], ["cleaned"]),
            node("ReduceMean", ["frame"], ["mean"], axes=[1, 2, 3], keepdims=0),
            node("Cast", ["mean"], ["residue"], to=onnx.TensorProto.FLOAT),
        ],
        "flow": [node("Gather", ["reference", "first_two"], ["flow"], axis=1)],
        "backward": [node("Relu", ["state"], ["new_state"])],
        "forward": [node("Relu", ["state"], ["new_state"])],
        "reconstruct": [node("Resize", ["frame", "", "scales"], ["picture"])],
        "emit": [
            node("Cast", ["picture"], ["numbers"], to=onnx.TensorProto.UINT8),
            node("Transpose", ["numbers"], ["image"], perm=[0, 2, 3, 1]),
        ],
        "mix": [node("Add", ["frame", "cleaned"], ["mixed"])],
        "blend": [node("Relu", ["picture"], ["blended"])],
    }
    inputs, outputs = (
        [
            onnx.helper.make_tensor_value_info(
                item["name"],
                onnx.helper.np_dtype_to_tensor_dtype(np.dtype(item["dtype"])),
                item["shape"],
            )
            for item in sides[side]
        ]
        for side in ("inputs", "outputs")
    )
    graph = onnx.helper.make_graph(nodes[name], name, inputs, outputs, constants.get(name, []))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


def make_manifest(config: RealBasicVSRConfig = COMPACT) -> Manifest:
    has_cleaning = config.cleaning_blocks is not None
    channels = config.mid_channels
    return Manifest(
        model=config.as_dict(),
        weights=Weights("net.pth", "ab" * 32, license="CC0-1.0", provenance="noise"),
        precision="float16",
        opset=18,
        refine_threshold=5.0,
        graphs=graph_io(has_cleaning=has_cleaning, channels=channels, precision="float16"),
        verification={"runtime": "none"},
        toolkit_version="0.0.0",
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write a small bundle."""
    path = tmp_path / "model.plan"
    write_bundle(path, make_manifest(), make_graphs())
    return path


def refusal(path: Path) -> str:
    """Return the message that refuses a file, one line that names the file."""
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert f"'{path}'" in message
    return message


def spread(size: int, *, count: int) -> list[int]:
    """Return about ``count`` positions in a file, including the first and last 40 bytes."""
    step = max(size // (count - 80), 1)
    return sorted({*range(min(40, size)), *range(0, size, step), *range(max(size - 40, 0), size)})


# --------------------------------------------------------------------------------- write and open


@pytest.mark.parametrize("cleaning_blocks", [2, None], ids=["RealBasicVSR", "BasicVSR"])
def test_a_written_bundle_opens_unchanged(tmp_path: Path, cleaning_blocks: int | None) -> None:
    """Manifest and graphs are unchanged: those of the network and the optional ones."""
    config = replace(COMPACT, cleaning_blocks=cleaning_blocks)
    manifest = make_manifest(config)
    graphs = make_graphs(has_cleaning=cleaning_blocks is not None)
    path = tmp_path / "model.plan"
    write_bundle(path, manifest, graphs)
    bundle = open_bundle(path)
    assert {name: bundle.graph(name) for name in graphs} == graphs
    assert len(bundle.members) == len(graphs) == (10 if cleaning_blocks else 8)
    assert bundle.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert bundle.path == path
    assert RealBasicVSRConfig.from_dict(bundle.manifest.model) == config
    assert bundle.manifest.has_cleaning is (cleaning_blocks is not None)
    assert bundle.manifest.channels == 32
    assert bundle.manifest.members == {
        f"graphs/{name}.onnx": hashlib.sha256(data).hexdigest() for name, data in graphs.items()
    }
    plain = json.loads(json.dumps(manifest.model))
    assert replace(bundle.manifest, members={}) == replace(manifest, model=plain)


def test_a_missing_graph_is_a_key_error(tmp_path: Path) -> None:
    """A BasicVSR has no ``clean``."""
    path = tmp_path / "model.plan"
    config = replace(COMPACT, cleaning_blocks=None)
    write_bundle(path, make_manifest(config), make_graphs(has_cleaning=False))
    with pytest.raises(KeyError, match="clean"):
        open_bundle(path).graph("clean")


def test_same_content_same_bytes(path: Path, tmp_path: Path) -> None:
    """The bytes depend only on the content, not on the date, the path or the order of keys."""
    again = tmp_path / "elsewhere.plan"
    manifest = make_manifest()
    shuffled = replace(manifest, model=dict(reversed(list(manifest.model.items()))))
    write_bundle(again, shuffled, make_graphs())
    assert again.read_bytes() == path.read_bytes()
    write_bundle(again, replace(manifest, opset=17), make_graphs())
    assert again.read_bytes() != path.read_bytes()


def test_a_bundle_is_a_zip_of_stored_members(path: Path) -> None:
    """Any zip tool can open a bundle, and its members are uncompressed."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        dated = {(info.date_time, info.create_system) for info in archive.infolist()}
        assert dated == {((1980, 1, 1, 0, 0, 0), 3)}  # independent of date and system
        assert archive.namelist() == ["manifest.json", *(f"graphs/{name}.onnx" for name in GRAPHS)]
        assert json.loads(archive.read("manifest.json"))["schema_version"] == SCHEMA_VERSION


def test_graph_io_is_the_contract_in_plain_values() -> None:
    """The manifest's inputs and outputs are those of ``graphs.py`` with channels and float type
    filled in; flow stays float32.
    """
    described = graph_io(has_cleaning=False, channels=24, precision="float16")
    network = ["ingest", "flow", "backward", "forward", "reconstruct", "emit"]
    assert list(described) == [*network, "blend", "resize"]
    assert described["backward"] == {
        "inputs": [
            {"name": "frame", "dtype": "float16", "shape": ["N", 3, "H", "W"]},
            {"name": "state", "dtype": "float16", "shape": ["N", 24, "H", "W"]},
            {"name": "flow", "dtype": "float32", "shape": ["N", 2, "H", "W"]},
        ],
        "outputs": [{"name": "new_state", "dtype": "float16", "shape": ["N", 24, "H", "W"]}],
    }
    assert "clean" in graph_io(has_cleaning=True, channels=24, precision="float32")


# --------------------------------------------------------------------------- written or not at all


@pytest.mark.parametrize(
    ("function", "problem"),
    [("replace", errno.EACCES), ("fsync", errno.ENOSPC), ("chmod", errno.EPERM)],
)
def test_a_failed_write_leaves_the_old_bundle(
    path: Path, monkeypatch: pytest.MonkeyPatch, function: str, problem: int
) -> None:
    """A full disk or a failed rename is a BundleError with the reason; the old bundle is intact and
    no temporary file remains.
    """

    def fail(*args: object) -> NoReturn:
        raise OSError(problem, os.strerror(problem))

    before = path.read_bytes()
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(BundleError, match=rf"cannot be written to .*{os.strerror(problem)}"):
        write_bundle(path, replace(make_manifest(), opset=17), make_graphs())
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    assert open_bundle(path).manifest.opset == 18


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the data is flushed is passed on, and the temporary file is removed."""

    def interrupt(*args: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "model.plan", make_manifest(), make_graphs())
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    """A missing folder, and a folder with the bundle's own name, are BundleErrors."""
    folder = tmp_path / "model.plan"
    folder.mkdir()
    for place in (tmp_path / "missing" / "model.plan", folder):
        with pytest.raises(BundleError, match="choose a file in a folder that exists"):
            write_bundle(place, make_manifest(), make_graphs())
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    """A file has the permissions that open() would give it, and the umask is unchanged."""
    path = tmp_path / "file"
    before = os.umask(umask)
    try:
        write_atomically(path, b"data")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert path.read_bytes() == b"data"


def test_an_existing_file_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    """A reader that has the old file open still reads the old content."""
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"new content")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new content"
    assert list(tmp_path.iterdir()) == [path]


# -------------------------------------------------------------------------------- damaged bundles


@pytest.mark.slow
def test_every_flipped_byte_is_detected(path: Path) -> None:
    """One changed byte anywhere (local headers, manifest, graphs, central directory, comment) is
    refused as damage.
    """
    whole = path.read_bytes()
    positions = spread(len(whole), count=600)
    # Each region is hit: first header, manifest, central directory, comment.
    directory = whole.index(b"PK\x01\x02")
    assert sum(30 < p < 500 for p in positions) > 5
    assert sum(directory < p < len(whole) - 84 for p in positions) > 20
    assert sum(p >= len(whole) - 84 for p in positions) > 40
    for position in positions:
        for change in (0x01, 0xFF):
            changed = bytearray(whole)
            changed[position] ^= change
            path.write_bytes(changed)
            assert "damaged" in refusal(path), position
    path.write_bytes(whole)
    open_bundle(path)


def test_every_truncation_is_detected(path: Path) -> None:
    """A bundle that is truncated or has data after its end is refused."""
    whole = path.read_bytes()
    for length in spread(len(whole), count=200):
        path.write_bytes(whole[:length])
        refusal(path)
    for tail in (b"\n", b"\0", whole):
        path.write_bytes(whole + tail[:50])
        refusal(path)


@pytest.mark.parametrize("length", [100, 1000, -100, -1])
def test_a_truncated_bundle_is_reported_as_such(path: Path, length: int) -> None:
    """An interrupted copy is distinguished from a file that never was a bundle."""
    path.write_bytes(path.read_bytes()[:length])
    assert "is a damaged or truncated bundle: copy or export it again" in refusal(path)


# --------------------------------------------------------------------------------- other files


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def torch_checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model.plan", b"", "is empty"),
        ("model.plan", b"ftrt\x00\x00\x00\x00" + bytes(500), "is a raw TensorRT engine"),
        ("model.plan", b"ptrt\x00\x00\x00\x00" + bytes(500), "is a raw TensorRT engine"),
        ("model.onnx", b"\x08\x08\x12\x07pytorch" + bytes(500), "is an ONNX file"),
        ("model.plan", b"\x08\x08\x12\x07pytorch" + bytes(500), "is not a bundle"),
        ("net.pth", torch_checkpoint(), "is a zip archive or a PyTorch checkpoint"),
        ("model.plan", zip_of({"a.txt": b"a"}), "is a zip archive or a PyTorch checkpoint"),
        ("model.plan", b"text\n", "is not a bundle"),
        ("model.plan", b"PK", "is not a bundle"),
        ("model.plan", b"rbvsr-bundle sha256=" + b"0" * 64, "is damaged"),
    ],
)
def test_other_files_are_identified(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    """Files mistaken for a bundle are identified, and the message says how to make a bundle."""
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert expected in message
    assert "rbvsr-export" in message or "export it again" in message


def test_places_without_a_bundle(tmp_path: Path) -> None:
    """A missing file and a folder are refused with the system's reason."""
    assert "No such file" in refusal(tmp_path / "missing.plan")
    assert "directory" in refusal(tmp_path)


def sealed(archive: bytes) -> bytes:
    """Append this project's checksum to a zip, as another tool could."""
    length = len(b"rbvsr-bundle sha256=") + 64
    content = archive[:-2] + length.to_bytes(2, "little")
    return content + b"rbvsr-bundle sha256=" + hashlib.sha256(content).hexdigest().encode()


def edited(bundle: Bundle, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the bundle with an edited manifest and a valid checksum."""
    with zipfile.ZipFile(bundle.path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members["manifest.json"])
    edit(manifest)
    return sealed(zip_of({**members, "manifest.json": json.dumps(manifest).encode()}))


def test_a_bundle_of_a_newer_format(path: Path) -> None:
    """A newer schema, whatever its fields, is refused with advice to update."""
    bundle = open_bundle(path)
    path.write_bytes(edited(bundle, lambda manifest: None))
    assert open_bundle(path).manifest == bundle.manifest  # editing alone causes no damage

    path.write_bytes(
        edited(bundle, lambda m: m.update(schema_version=SCHEMA_VERSION + 1, weights=[], new=1))
    )
    message = refusal(path)
    assert f"has bundle format {SCHEMA_VERSION + 1}" in message
    assert "update rbvsr-deploy" in message


def test_a_bundle_repacked_by_another_tool(path: Path) -> None:
    """A bundle unzipped and zipped again, which loses its checksum, is refused as damaged."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    path.write_bytes(zip_of(members))
    assert "damaged or truncated bundle" in refusal(path)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda m: m.update(precision="int4"), "precision 'int4'; known are float32, float16"),
        (lambda m: m.pop("weights"), "not a bundle of this toolkit"),
        (lambda m: m.update(surprise=1), "not a bundle of this toolkit"),
        (lambda m: m.update(weights=None), "not a bundle of this toolkit"),
        (lambda m: m["members"].update({"graphs/flow.onnx": "0" * 64}), "'graphs/flow.onnx' is"),
        (lambda m: m["members"].update({"graphs/other.onnx": "0" * 64}), "'graphs/other.onnx' is"),
        (lambda m: m.pop("schema_version"), "has bundle format None"),
    ],
)
def test_an_invalid_manifest_is_refused(
    path: Path, edit: Callable[[dict[str, Any]], object], expected: str
) -> None:
    """An invalid manifest with a valid checksum is refused with a BundleError."""
    path.write_bytes(edited(open_bundle(path), edit))
    assert expected in refusal(path)


@pytest.mark.parametrize("manifest", [None, b"", b"[]", b"{", b'"text"', b"\xff"])
def test_a_sealed_zip_without_a_manifest(path: Path, manifest: bytes | None) -> None:
    """A bundle without a manifest, or with an invalid one, is refused."""
    path.write_bytes(sealed(zip_of({} if manifest is None else {"manifest.json": manifest})))
    refusal(path)
