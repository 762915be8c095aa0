"""Tests checkpoints of every layout found in the wild, and every kind of file to refuse."""

from __future__ import annotations

import builtins
import collections
import hashlib
import json
import os
import pickle
import re
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rbvsr_deploy.checkpoint import load_checkpoint
from rbvsr_deploy.errors import CheckpointError
from rbvsr_deploy.model import RealBasicVSR, RealBasicVSRConfig

LITTLE = RealBasicVSRConfig(
    mid_channels=8,
    propagation_blocks=1,
    cleaning_blocks=1,
    flow_channels=(4, 4),
    flow_kernel=3,
    flow_levels=2,
)
LITTLE_BASICVSR = RealBasicVSRConfig(**{**LITTLE.as_dict(), "cleaning_blocks": None})

State = dict[str, Tensor]


def make_state(config: RealBasicVSRConfig = LITTLE, seed: int = 0) -> State:
    """Return weights in [-1, 1] under the published names."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.empty_like(value).uniform_(-1, 1, generator=generator)
        for name, value in RealBasicVSR(config).state_dict().items()
    }


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def assert_loads(
    path: Path, expected: State, layout: str, *, config: RealBasicVSRConfig = LITTLE
) -> None:
    """Check that the file gives exactly these weights in a float32 model ready for inference."""
    loaded = load_checkpoint(path)
    got = loaded.model.state_dict()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == torch.float32, name
        assert torch.equal(got[name], value.float()), name
    assert loaded.model.config == config
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.layout == layout
    assert loaded.file_name == path.name
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def refusal(path: Path) -> str:
    """Return the message a file is refused with: one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert f"'{path}'" in message
    return message


# ----------------------------------------------------------------------------------- what is read


def test_safetensors_with_metadata(tmp_path: Path) -> None:
    """Licence, provenance and the refinement threshold of a file's metadata are kept."""
    path = tmp_path / "net.safetensors"
    metadata = {"license": "CC0-1.0", "provenance": "trained on noise", "refine_threshold": "1.5"}
    save_file(make_state(), path, metadata=metadata)
    assert_loads(path, make_state(), "bare")
    loaded = load_checkpoint(path)
    assert (loaded.license, loaded.provenance) == ("CC0-1.0", "trained on noise")
    assert loaded.refine_threshold == 1.5


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".ckpt", ".bin"])
def test_bare_of_every_suffix(tmp_path: Path, suffix: str) -> None:
    """A bare state_dict is read from every suffix; missing metadata stays unknown, and the
    refinement threshold is the released 255.
    """
    path = tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        save_file(make_state(), path)
    else:
        torch.save(make_state(), path)
    assert_loads(path, make_state(), "bare")
    loaded = load_checkpoint(path)
    assert (loaded.license, loaded.provenance, loaded.refine_threshold) == (None, None, 255.0)


def training_checkpoint(*, ema: bool = True) -> dict[str, Any]:
    """Return a checkpoint as mmediting 0.x writes it in stage two: two generators, discriminator,
    VGG and Adam.
    """
    raw = make_state(seed=1)
    state = prefixed("generator.", raw)
    if ema:
        state |= prefixed("generator_ema.", make_state(seed=2))
    state |= {
        "step_counter": torch.zeros(1),
        "discriminator.conv_0.weight": torch.zeros(4, 3, 3, 3),
        "discriminator.conv_1.weight_orig": torch.zeros(4, 4, 4, 4),
        "discriminator.conv_1.weight_u": torch.zeros(4),
        "perceptual_loss.vgg.mean": torch.zeros(1, 3, 1, 1),
        "perceptual_loss.vgg.vgg_layers.0.weight": torch.zeros(4, 3, 3, 3),
    }
    adam = {
        "state": {0: {"step": 5, "exp_avg": torch.zeros(3)}},
        "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.99), "params": [0]}],
    }
    return {
        "meta": {"epoch": 1, "iter": 150_000, "time": "Thu Nov  4 2021", "hook_msgs": {}},
        "state_dict": collections.OrderedDict(state),
        "optimizer": {"generator": adam, "discriminator": adam},
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_training_checkpoint_gives_the_averaged_weights(tmp_path: Path, zipped: bool) -> None:
    """The generator with averaged weights, and nothing else, is loaded from a whole training
    checkpoint, in the zip layout and in the older one of openmmlab's files.
    """
    path = tmp_path / "released.pth"
    torch.save(training_checkpoint(), path, _use_new_zipfile_serialization=zipped)
    assert (path.read_bytes()[:2] == b"PK") is zipped
    assert_loads(path, make_state(seed=2), "state_dict, generator_ema.")


def test_training_checkpoint_without_averaged_weights(tmp_path: Path) -> None:
    """Without averaged weights the raw generator is loaded."""
    path = tmp_path / "stage.pth"
    torch.save(training_checkpoint(ema=False), path)
    assert_loads(path, make_state(seed=1), "state_dict, generator.")


class HistoryBuffer:
    """Imitates mmengine's class of that name: arrays, and references to its own methods."""

    def __init__(self) -> None:
        self._max_length = 1_000_000
        self._log_history = np.array([0.5, 0.25])
        self._count_history = np.array([1, 1])
        self._statistics_methods = {"mean": HistoryBuffer.mean, "current": HistoryBuffer.current}

    def mean(self) -> float:
        raise AssertionError("never called")

    def current(self) -> float:
        raise AssertionError("never called")


@pytest.fixture
def mmengine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Provide ``mmengine.logging.history_buffer`` while saving; calling the fixture's value removes
    it, as on a machine without mmengine.
    """
    name = "mmengine.logging.history_buffer"
    module = types.ModuleType(name)
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        for part in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, part, types.ModuleType(part))
        patch.setitem(sys.modules, name, module)
        for thing in (HistoryBuffer, HistoryBuffer.mean, HistoryBuffer.current):
            patch.setattr(thing, "__module__", name)
        yield patch.undo


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_mmagic_checkpoint_with_message_hub(
    tmp_path: Path, mmengine: Callable[[], None], zipped: bool
) -> None:
    """The bookkeeping that mmagic 1.x stores with the weights (loss histories of a class that is
    not installed, NumPy arrays and scalars, references to methods) does not prevent loading.
    """
    path = tmp_path / "iter_1000.pth"
    raw = {
        "meta": {"seed": 1, "experiment_name": "realbasicvsr"},
        "state_dict": {
            **prefixed("generator.", make_state(seed=1)),
            **prefixed("generator_ema.", make_state(seed=2)),
            "data_preprocessor.mean": torch.zeros(3, 1, 1),
            "step_counter": torch.zeros(1),
        },
        "message_hub": {
            "log_scalars": collections.OrderedDict({"train/loss": HistoryBuffer()}),
            "runtime_info": collections.OrderedDict(
                lr=np.float64(1e-4), iter=np.int64(1000), names=np.array(["a"]), cfg="model = {}"
            ),
            "resumed_keys": {},
        },
    }
    torch.save(raw, path, _use_new_zipfile_serialization=zipped)
    mmengine()
    assert b"mmengine.logging.history_buffer" in path.read_bytes()
    assert "mmengine" not in sys.modules
    assert_loads(path, make_state(seed=2), "state_dict, generator_ema.")
    assert "mmengine" not in sys.modules


@pytest.mark.parametrize(
    ("raw", "layout", "seed"),
    [
        ({"params": make_state(seed=1)}, "params", 1),
        ({"params": make_state(seed=1), "params_ema": make_state(seed=2)}, "params_ema", 2),
        (prefixed("module.", make_state(seed=1)), "bare", 1),
        (prefixed("module.generator_ema.", make_state(seed=1)), "generator_ema.", 1),
        ({"state_dict": make_state(seed=1), "params": {}}, "state_dict", 1),
        (dict[Any, Any](make_state(seed=1)) | {0: torch.zeros(1), "epoch": 3}, "bare", 1),
    ],
    ids=["params", "params_ema", "module", "module.generator_ema", "state_dict", "other entries"],
)
def test_wrappers_and_prefixes(tmp_path: Path, raw: dict[Any, Any], layout: str, seed: int) -> None:
    """BasicSR's wrappers (averaged weights first), DataParallel's prefix and combinations load."""
    path = tmp_path / "net.pth"
    torch.save(raw, path)
    assert_loads(path, make_state(seed=seed), layout)


def mmediting_basicvsr() -> State:
    """Return BasicVSR under mmediting's names: no cleaning, no ``basicvsr.``."""
    return {
        name.removeprefix("basicvsr."): value for name, value in make_state(LITTLE_BASICVSR).items()
    }


def basicsr_basicvsr() -> State:
    """Return BasicVSR under BasicSR's names: trunks, upconvs, and numbered activations."""
    named = {}
    for name, value in mmediting_basicvsr().items():
        name = name.replace("_resblocks.main.", "_trunk.main.")
        name = re.sub(r"^upsample([12])\.upsample_conv", r"upconv\1", name)
        name = re.sub(r"(spynet.*)\.(\d+)\.conv\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", name)
        named[name] = value
    return named


def test_basicvsr_of_mmediting(tmp_path: Path) -> None:
    """A published BasicVSR loads as the network without cleaning."""
    path = tmp_path / "basicvsr.pth"
    torch.save({"state_dict": prefixed("generator.", mmediting_basicvsr())}, path)
    assert_loads(
        path,
        make_state(LITTLE_BASICVSR),
        "state_dict, generator., BasicVSR of mmediting",
        config=LITTLE_BASICVSR,
    )


def test_basicvsr_of_basicsr(tmp_path: Path) -> None:
    """A BasicVSR under BasicSR's names loads too."""
    names = basicsr_basicvsr()
    assert {
        "backward_trunk.main.2.0.conv1.weight",
        "forward_trunk.main.0.bias",
        "upconv2.weight",
        "spynet.basic_module.1.basic_module.4.bias",
        "fusion.weight",
        "conv_last.bias",
    } <= names.keys()
    path = tmp_path / "BasicVSR_REDS4.pth"
    torch.save({"params": names}, path)
    assert_loads(
        path, make_state(LITTLE_BASICVSR), "params, BasicVSR of BasicSR", config=LITTLE_BASICVSR
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_other_float_types_become_float32(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    """Half-precision and double weights are loaded as float32."""
    state = {name: value.to(dtype) for name, value in make_state().items()}
    path = tmp_path / f"half{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    assert_loads(path, state, "bare")


# -------------------------------------------------------------------------------- unsafe pickles


class Custom:
    """Stands for a class of somebody's training code."""


class Call:
    """Pickles as a call of ``function(argument)``, which a careless load would run."""

    def __init__(self, function: Callable[[str], object], argument: str) -> None:
        self.call = (function, (argument,))

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return self.call


SAVERS: dict[str, Callable[[object, Path], object]] = {
    "zip": torch.save,
    "legacy": lambda raw, path: torch.save(raw, path, _use_new_zipfile_serialization=False),
    "zip, protocol 4": lambda raw, path: torch.save(raw, path, pickle_protocol=4),
    "legacy, protocol 4": lambda raw, path: torch.save(
        raw, path, pickle_protocol=4, _use_new_zipfile_serialization=False
    ),
    "pickle, protocol 2": lambda raw, path: path.write_bytes(pickle.dumps(raw, 2)),
    "pickle, protocol 5": lambda raw, path: path.write_bytes(pickle.dumps(raw, 5)),
}


@pytest.mark.parametrize("saver", SAVERS)
@pytest.mark.parametrize("payload", ["os.system", "eval", "class"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickles_that_call_anything_are_refused_unrun(
    tmp_path: Path, payload: str, saver: str
) -> None:
    """A pickle that would run a command, evaluate code or build somebody's class is refused, in
    every pickle layout; the error names the call, and none of it runs.
    """
    proof = tmp_path / "ran"
    thing, name = {
        "os.system": (Call(os.system, f"touch '{proof}'"), rf"{os.system.__module__}\.system"),
        "eval": (Call(eval, f"open({str(proof)!r}, 'w')"), r"builtins\.eval"),
        "class": (Custom(), rf"{Custom.__module__}\.Custom"),
    }[payload]
    path = tmp_path / "net.pth"
    SAVERS[saver]({"x": thing, "again": thing, "state_dict": {"a": 1}}, path)
    assert re.search(rf"refused: its pickle calls '{name}'", refusal(path))
    assert not proof.exists()


def test_the_payload_above_does_run_when_unpickled(tmp_path: Path) -> None:
    """The test above is meaningful: Python's own unpickler runs the refused payload."""
    proof = tmp_path / "ran"
    pickle.loads(pickle.dumps(Call(os.system, f"touch '{proof}'")))
    assert proof.exists()


def test_bookkeeping_does_not_open_a_way_in(tmp_path: Path) -> None:
    """The replaced ``getattr``, which mmengine's bookkeeping refers to, gives access to no
    attribute, neither of a class that torch allows nor of anything else.
    """

    def call_through_getattr(module: bytes, name: bytes, attribute: bytes) -> bytes:
        text = b"X" + len(attribute).to_bytes(4, "little") + attribute
        looked_up = b"c__builtin__\ngetattr\nc%s\n%s\n%s\x86R" % (module, name, text)
        return b"\x80\x02" + looked_up + b"X\x01\x00\x00\x00x\x85R."

    path = tmp_path / "net.pth"
    path.write_bytes(call_through_getattr(b"collections", b"OrderedDict", b"fromkeys"))
    assert pickle.loads(path.read_bytes()) == {"x": None}
    refusal(path)
    path.write_bytes(call_through_getattr(b"os", b"environ", b"get"))
    assert "refused: its pickle calls 'os.environ'" in refusal(path)


def test_whole_module_is_refused_by_its_class(tmp_path: Path) -> None:
    """A pickled module (``torch.save(model)``) is refused, and the error names its class."""
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Sequential(torch.nn.ReLU()), path)
    assert "calls 'torch.nn.modules.container.Sequential'" in refusal(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_other_pickle_protocol_is_named(tmp_path: Path) -> None:
    """Plain weights in a pickle protocol unknown to torch's safe loader are not called damaged."""
    path = tmp_path / "net.pth"
    torch.save(make_state(), path, pickle_protocol=4)
    assert "pickle protocol" in refusal(path)


# --------------------------------------------------------------------------- damaged and foreign


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not\na checkpoint\n" * 50, b"check\nit\n", b"\x80\x02"])
def test_files_that_are_not_checkpoints(tmp_path: Path, suffix: str, content: bytes) -> None:
    """Empty files, text and fragments are refused; the error says what they are not."""
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    kind = "PyTorch checkpoint" if suffix == ".pth" else "readable safetensors file"
    assert f"is not a {kind}" in refusal(path)


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path: Path, layout: str) -> None:
    """A truncated file is refused, wherever it ends."""
    path = tmp_path / ("net.safetensors" if layout == "safetensors" else "net.pth")
    if layout == "safetensors":
        save_file(make_state(), path)
    else:
        torch.save(make_state(), path, _use_new_zipfile_serialization=layout == "zip")
    whole = path.read_bytes()
    for length in (2, 7, 100, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        message = refusal(path)
        assert "download or save it again" in message
        assert "refused" not in message
    path.write_bytes(whole)
    assert_loads(path, make_state(), "bare")


def test_paths_that_are_not_files(tmp_path: Path) -> None:
    """A missing file, a folder and an unknown suffix are distinguished from damaged files."""
    folder = tmp_path / "folder.pth"
    folder.mkdir()
    for path in (tmp_path / "missing.safetensors", folder):
        assert "is not a file: give the path of a .safetensors or .pth" in refusal(path)
    onnx = tmp_path / "net.onnx"
    onnx.write_bytes(b"\x08\x08")
    assert "suffix '.onnx': known are .safetensors, .pth, .pt, .ckpt, .bin" in refusal(onnx)


@pytest.mark.parametrize("raw", [None, [1, 2], torch.zeros(3), {}, {"state_dict": {"a": 1}}])
def test_pickles_without_weights(tmp_path: Path, raw: object) -> None:
    """A pickle of something else is refused; the error says what is expected."""
    path = tmp_path / "net.pth"
    torch.save(raw, path)
    assert "holds no weights: expected a dictionary of tensors" in refusal(path)


@pytest.mark.parametrize("text", ["high", "nan", "-5", "inf", "-inf", "1e300", "", "9" * 5000])
def test_impossible_thresholds(tmp_path: Path, text: str) -> None:
    """Invalid metadata is named, in a short sentence."""
    path = tmp_path / "net.safetensors"
    save_file(make_state(), path, metadata={"refine_threshold": text})
    message = refusal(path)
    assert f"'{text[:40]}' for refine_threshold" in message
    assert "a number from 0 to" in message
    assert len(message) < 300 + len(str(path))


def _replaced(change: Callable[[torch.Tensor], torch.Tensor]) -> State:
    """Return the weights with one of them changed."""
    state = make_state()
    state["basicvsr.conv_hr.weight"] = change(state["basicvsr.conv_hr.weight"])
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.to(torch.int64), "basicvsr.conv_hr.weight holds int64, not floating point"),
        (lambda t: t.bool(), "basicvsr.conv_hr.weight holds bool, not floating point"),
        (lambda t: t.to(torch.complex64), "basicvsr.conv_hr.weight holds complex64, not floating"),
        (lambda t: t.to_sparse(), "basicvsr.conv_hr.weight is sparse, quantised, nested"),
        (lambda t: t.to("meta"), "basicvsr.conv_hr.weight is sparse, quantised, nested"),
        (
            lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
            "basicvsr.conv_hr.weight is sparse, quantised, nested",
        ),
        (lambda t: torch.nested.nested_tensor([t, t[:1]]), "is sparse, quantised, nested"),
        (lambda t: torch.zeros(1).expand(10**10), "would take more bytes than the whole file"),
    ],
    ids=["int64", "bool", "complex", "sparse", "meta", "quantised", "nested", "expanded"],
)
@pytest.mark.filterwarnings("ignore")
def test_weights_of_other_kinds(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    """They are refused by name before anything is computed from them."""
    path = tmp_path / "net.pth"
    torch.save(_replaced(change), path)
    message = refusal(path)
    assert words in message or "is not a PyTorch checkpoint" in message
    assert len(message) < 400 + len(str(path))


@pytest.mark.parametrize("channels", [4096, 10**6])
def test_a_small_file_of_a_huge_network(tmp_path: Path, channels: int) -> None:
    """Tensors that are views of one number describe a network of terabytes: nothing of that size
    is allocated.
    """
    state = make_state()
    wide = {
        name: torch.zeros(1).expand([channels if side == 8 else side for side in value.shape])
        for name, value in state.items()
    }
    torch.save(wide, tmp_path / "net.pth")
    assert "more bytes than the whole file" in refusal(tmp_path / "net.pth")
    state["basicvsr.fusion.weight"] = torch.zeros(channels, 0)
    torch.save(state, tmp_path / "net.pth")
    assert "keys are wrong" in refusal(tmp_path / "net.pth")


def test_many_views_of_one_tensor(tmp_path: Path) -> None:
    """Each fits into the file, but all together do not."""
    state = make_state()
    common = torch.zeros(max(value.numel() for value in state.values()))
    views = {n: common[: v.numel()].view(v.shape) for n, v in state.items()}
    torch.save(views, tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    if sum(4 * v.numel() for v in state.values()) > (tmp_path / "net.pth").stat().st_size:
        assert "all its tensors together" in refusal(tmp_path / "net.pth")


def test_a_compressed_zip(tmp_path: Path) -> None:
    """PyTorch does not compress; a file that does may inflate to anything."""
    torch.save(make_state(), tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "net.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
        packed.writestr("archive/data/999", bytes(10**6))
    assert "bytes of content in a file of" in refusal(tmp_path / "net.pth")


def test_a_pickle_of_many_instructions(tmp_path: Path) -> None:
    """A few megabytes could keep PyTorch's reader busy for minutes, in either layout."""
    numbers = b"".join(b"J" + number.to_bytes(4, "little") + b"K\1" for number in range(150_000))
    pickled = b"\x80\x02}(" + numbers + b"u."
    (tmp_path / "raw.pth").write_bytes(pickled)
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("a/metadata.pkl", b"\x80\x02}.")
        archive.writestr("a/data.pkl", pickled)
    for name in ("raw.pth", "zip.pth"):
        assert "more than 200,000 instructions" in refusal(tmp_path / name)


def test_a_file_of_many_tensors(tmp_path: Path) -> None:
    """Files with far more tensors than any network of this kind are refused before they are read,
    also if only their names are long.
    """
    many = {
        f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        for number in range(10_001)
    }
    for name, header, words in (
        ("many", many, "more than 10,000 tensors"),
        ("long", {"x" * 2**22: many["t0"]}, "bytes of names and sizes"),
    ):
        text = json.dumps(header).encode()
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        assert words in refusal(path)
    with zipfile.ZipFile(tmp_path / "many.pth", "w") as archive:
        for number in range(10_001):
            archive.writestr(f"a/data/{number}", b"")
    assert "more than 10,000 members" in refusal(tmp_path / "many.pth")


def test_weights_of_iconvsr(tmp_path: Path) -> None:
    """A related network has hundreds of other keys: the first ten are named, the rest counted."""
    state = make_state()
    state |= {f"basicvsr.edvr.feature.{n}.{'w' * 500}": torch.zeros(1) for n in range(300)}
    path = tmp_path / "net.safetensors"
    save_file(state, path)
    message = refusal(path)
    assert "300 keys are wrong: unexpected basicvsr.edvr.feature.0." in message
    assert message.endswith("; and 290 more")
    assert len(message) < 3000


# ------------------------------------------------------------------------------ names and shapes


def test_every_wrong_key_is_listed(tmp_path: Path) -> None:
    """One message lists all missing, unexpected and mis-shaped keys, and non-finite values."""
    state = make_state()
    del state["basicvsr.conv_hr.bias"]
    del state["image_cleaning.1.weight"]
    state["basicvsr.extra.weight"] = torch.zeros(2)
    state["basicvsr.conv_last.weight"] = torch.zeros(3, 8, 5, 5)
    state["basicvsr.fusion.bias"][3] = float("nan")
    state["basicvsr.conv_hr.weight"][0, 0, 0, 0] = float("-inf")
    path = tmp_path / "net.safetensors"
    save_file(state, path)
    message = refusal(path)
    for clause in (
        "6 keys are wrong",
        "missing basicvsr.conv_hr.bias",
        "missing image_cleaning.1.weight",
        "unexpected basicvsr.extra.weight",
        "basicvsr.conv_last.weight has shape (3, 8, 5, 5) where (3, 8, 3, 3) is expected",
        "basicvsr.fusion.bias holds values that are not finite",
        "basicvsr.conv_hr.weight holds values that are not finite",
    ):
        assert clause in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite(tmp_path: Path, value: float) -> None:
    """A single NaN or infinity in one weight is enough to refuse the file."""
    state = make_state()
    state["basicvsr.upsample1.upsample_conv.weight"][-1, -1, -1, -1] = value
    path = tmp_path / "net.pth"
    torch.save(state, path)
    assert "basicvsr.upsample1.upsample_conv.weight holds values" in refusal(path)


def test_a_gap_in_the_blocks_is_a_missing_key(tmp_path: Path) -> None:
    """Blocks 0 and 2 of a trunk mean that block 1 is missing, not a network of two blocks."""
    state = make_state()
    for name in [name for name in state if name.startswith("basicvsr.forward_resblocks.main.2.0.")]:
        block = name.replace(".main.2.0.", ".main.2.{}.")
        state[block.format(2)] = state[name].clone()
        other = block.replace("forward", "backward")
        state[other.format(1)] = state[name].clone()
        state[other.format(2)] = state[name].clone()
    path = tmp_path / "net.safetensors"
    save_file(state, path)
    message = refusal(path)
    assert "4 keys are wrong" in message
    assert "missing basicvsr.forward_resblocks.main.2.1.conv1.weight" in message


def test_another_model(tmp_path: Path) -> None:
    """Weights of another network are refused; the error quotes the first of their names."""
    path = tmp_path / "esrgan.safetensors"
    save_file({"conv_first.weight": torch.zeros(4, 3, 3, 3), "body.0.bias": torch.zeros(4)}, path)
    message = refusal(path)
    assert "is not a RealBasicVSR or BasicVSR generator" in message
    assert "body.0.bias, conv_first.weight" in message


@pytest.mark.parametrize(
    "strange",
    [
        {"basicvsr.fusion.weight": torch.zeros(())},
        {"basicvsr.spynet.basic_module.x.basic_module.0.conv.weight": torch.zeros(1)},
        {"basicvsr.backward_resblocks.main.2.999999999.conv1.weight": torch.zeros(1)},
    ],
    ids=["no channels", "no number", "absurd number"],
)
def test_sizes_that_make_no_sense(tmp_path: Path, strange: State) -> None:
    """Names and shapes that describe no possible network are refused before one is built."""
    path = tmp_path / "net.safetensors"
    save_file({**make_state(), **strange}, path)
    assert "it lacks the sizes of its layers" in refusal(path)


def test_safetensors_package_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the safetensors package the message names the extra that brings it."""
    path = tmp_path / "net.safetensors"
    save_file(make_state(), path)
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Exception, match=r"pip install 'rbvsr-deploy\[export\]'"):
        load_checkpoint(path)
