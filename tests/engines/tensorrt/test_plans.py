"""Tests the sources of engines: the bundle's nearest, then the cache, then the compiler."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rbvsr_deploy.bundle import Bundle, open_bundle
from rbvsr_deploy.bundle.engine_sets import EngineSet, ShapeProfile
from rbvsr_deploy.engines.cuda.driver import Gpu
from rbvsr_deploy.engines.tensorrt import plans as plans_module
from rbvsr_deploy.engines.tensorrt.base import Candidate
from rbvsr_deploy.engines.tensorrt.build import BuildOptions, this_platform
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT, load_flavour
from rbvsr_deploy.engines.tensorrt.plans import MachinePlans, fits, profile_for
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.graphs import GRAPHS
from tests.support.tensorrt_bindings import bindings

GPU = Gpu("Ada of a test", "8.9", "12.6", 2**34)


class OneGpu:
    """The part of a driver that is used here."""

    current = contextlib.nullcontext

    def __init__(self, gpu: Gpu = GPU) -> None:
        self._gpu = gpu

    def gpu(self) -> Gpu:
        return self._gpu


class Compiler:
    """Replaces :func:`build_engine_set`; every build returns different bytes."""

    def __init__(self) -> None:
        self.profiles: list[ShapeProfile] = []

    def __call__(
        self, tensorrt: TensorRT, manifest: Any, graphs: Any, **asked: Any
    ) -> tuple[EngineSet, dict[str, bytes]]:
        self.profiles.append(asked["profile"])
        made = engine_set(asked["profile"], version=tensorrt.version, flavour=tensorrt.name)
        number = len(self.profiles)
        return made, {graph: f"{graph} {number}\n".encode() * number for graph in graphs}


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    compiler = Compiler()
    monkeypatch.setattr(plans_module, "build_engine_set", compiler)
    return compiler


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RBVSR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def bundle(tiny_bundle_float16: Path) -> Bundle:
    return open_bundle(tiny_bundle_float16)


def engine_set(profile: ShapeProfile | None = None, **others: Any) -> EngineSet:
    """Return a set that fits the machine of these tests, except for the given values."""
    values = {
        "flavour": "tensorrt-rtx",
        "version": load_flavour("tensorrt-rtx").version,
        "compute_capability": "8.9",
        "platform": this_platform(),
    }
    return EngineSet(profile=profile or ShapeProfile(), **{**values, **others})


def holding(bundle: Bundle, sets: Sequence[EngineSet]) -> Bundle:
    """Return the bundle with engine sets, whose engines are their names."""
    members = {
        f"engines/{s.name}/{graph}.plan": s.name.encode()
        for s in sets
        for graph in bundle.manifest.graphs
    }
    manifest = replace(bundle.manifest, engine_sets=tuple(sets))
    return replace(bundle, manifest=manifest, members={**bundle.members, **members})


def machine(
    bundle: Bundle, *, gpu: Gpu = GPU, tensorrt: TensorRT | None = None, **options: Any
) -> MachinePlans:
    return MachinePlans(
        bundle,
        tensorrt or load_flavour("tensorrt-rtx"),
        OneGpu(gpu),  # type: ignore[arg-type]
        options=BuildOptions(**options),
    )


def first(plans: MachinePlans, height: int = 180, width: int = 320, *, batch: int = 4) -> Candidate:
    """Return the candidate for a machine that can load anything."""
    return next(plans.candidates(height, width, batch=batch))


FITTING: list[tuple[str, dict[str, Any], bool]] = [
    ("the same", {}, True),
    ("other flavour", {"flavour": "tensorrt"}, False),
    ("other version", {"version": "10.3.1"}, False),
    ("earlier", {"version": "10.2.0"}, False),
    ("earlier, compatible", {"version": "8.6.1", "version_compatible": True}, True),
    ("later, compatible", {"version": "10.10.0", "version_compatible": True}, False),
    ("other GPU", {"compute_capability": "8.6"}, False),
    ("later GPU", {"compute_capability": "12.0"}, False),
    ("compatible GPU", {"compute_capability": "8.0", "hardware_compatible": True}, True),
    ("other platform", {"platform": "linux-aarch64"}, False),
    ("other system", {"platform": "windows-x86_64"}, False),
]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [(differences, expected) for _, differences, expected in FITTING],
    ids=[name for name, *_ in FITTING],
)
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_only_suitable_sets_are_tried(
    flavour: str, differences: dict[str, Any], expected: bool
) -> None:
    """Flavour, version, GPU and platform decide; TensorRT-RTX engines run on any system."""
    values = {"flavour": flavour, "version": "10.3.0", "platform": "linux-x86_64", **differences}
    if "flavour" in differences:
        values["flavour"] = "tensorrt" if flavour == "tensorrt-rtx" else "tensorrt-rtx"
    if flavour == "tensorrt-rtx" and differences == {"platform": "windows-x86_64"}:
        expected = True
    asked = {"version": "10.3.0", "compute_capability": "8.9", "platform": "linux-x86_64"}
    assert fits(engine_set(**values), flavour=flavour, **asked) is expected


def test_before_ampere_nothing_is_hardware_compatible() -> None:
    """TensorRT's hardware-compatible engines need compute capability 8.0 or higher."""
    made = engine_set(hardware_compatible=True, compute_capability="8.6")
    asked = {"flavour": made.flavour, "version": made.version, "platform": made.platform}
    assert fits(made, compute_capability="12.0", **asked)
    assert not fits(made, compute_capability="7.5", **asked)
    assert not fits(made, compute_capability="8.7", **asked)  # Jetson Orin


def test_engines_of_an_earlier_interface_are_not_used() -> None:
    """They would read states in another order."""
    made = engine_set()
    asked = {"flavour": made.flavour, "version": made.version, "platform": made.platform}
    old = EngineSet.from_dict({k: v for k, v in made.as_dict().items() if k != "interface"})
    assert fits(made, compute_capability="8.9", **asked)
    assert not fits(old, compute_capability="8.9", **asked)


def test_the_bundles_nearest_set_comes_first(bundle: Bundle, compiler: Compiler) -> None:
    """The set tuned for the nearest size is first; sets that do not cover the size are not used."""
    small = engine_set(ShapeProfile((64, 64), (180, 320), (720, 1280)))
    large = engine_set(ShapeProfile((64, 64), (540, 960), (720, 1280)))
    other = engine_set(ShapeProfile((64, 64), (540, 960), (1080, 1920)), compute_capability="8.6")
    plans = machine(holding(bundle, [small, large, other]))
    assert [first(plans, *size).engine_set for size in ((200, 300), (500, 960))] == [small, large]
    found = list(itertools.islice(plans.candidates(500, 960, batch=4), 2))
    assert [c.engine_set for c in found] == [large, small]
    assert [c.reason for c in found] == ["from the bundle"] * 2
    assert found[0].plans == {graph: large.name.encode() for graph in bundle.manifest.graphs}
    assert compiler.profiles == []


def test_compiled_engines_are_reused(bundle: Bundle, compiler: Compiler) -> None:
    """The next process finds the same bytes in the cache."""
    made = first(machine(bundle))
    assert made.reason == "compiled now"
    found = first(machine(bundle))
    assert found.reason == "compiled earlier, from the cache"
    assert (found.engine_set, found.plans) == (made.engine_set, made.plans)
    assert len(compiler.profiles) == 1


def test_compiled_engines_cover_other_sizes(bundle: Bundle, compiler: Compiler) -> None:
    """Landscape, portrait and small sizes need no second build; beyond, one covers all of them."""
    plans = machine(bundle)
    for size in ((180, 320), (320, 180), (64, 64), (720, 1280), (1280, 720)):
        first(plans, *size)
    assert len(compiler.profiles) == 1
    assert first(plans, 1080, 1920).reason == "compiled now"
    assert first(plans, 48, 48).reason == "compiled now"
    assert first(plans, 180, 320, batch=6).reason == "compiled now"
    widest = compiler.profiles[-1]
    assert widest.opt_size == (180, 320)
    assert all(
        widest.covers(*size, batch=6) for size in ((1080, 1920), (48, 48), (1280, 720), (180, 320))
    )


def test_a_new_profile_covers_the_existing_ones() -> None:
    """It is at least as wide in every direction, and tuned for the requested size."""
    beside = ShapeProfile((16, 200), (180, 320), (400, 2000), batch=7)
    made = profile_for(900, 50, batch=1, beside=[beside])
    assert made == ShapeProfile((16, 50), (900, 50), (1280, 2000), batch=7)


def test_engines_that_do_not_load_are_compiled_again(bundle: Bundle, compiler: Compiler) -> None:
    """If the bundle's and the cached engines are rejected, new ones replace the cached ones."""
    held = holding(bundle, [engine_set()])
    first(machine(bundle))
    tried = list(machine(held).candidates(180, 320, batch=4))
    assert [c.reason for c in tried] == [
        "from the bundle",
        "compiled earlier, from the cache",
        "compiled now",
    ]
    assert len(compiler.profiles) == 2
    (_, again, *_) = machine(held).candidates(180, 320, batch=4)
    assert again.plans == tried[-1].plans


def test_the_cache_is_used_only_where_it_fits(bundle: Bundle, compiler: Compiler) -> None:
    """Another graph, driver, GPU or option needs another build, which is cached separately."""
    graphs = {**bundle.members, "graphs/emit.onnx": bundle.graph("ingest")}
    tensorrt = TensorRT("tensorrt", bindings("10.3.0"))
    ways: list[Callable[[], MachinePlans]] = [
        lambda: machine(bundle),
        lambda: machine(replace(bundle, members=graphs)),
        lambda: machine(bundle, gpu=replace(GPU, driver_version="13.0")),
        lambda: machine(bundle, gpu=replace(GPU, name="another Ada")),
        lambda: machine(bundle, gpu=replace(GPU, compute_capability="12.0")),
        lambda: machine(bundle, workspace=2**30),
        lambda: machine(bundle, tensorrt=tensorrt),
    ]
    made = [first(way()) for way in ways]
    assert [c.reason for c in made] == ["compiled now"] * len(ways)
    assert [first(way()).plans for way in ways] == [c.plans for c in made]
    assert len(compiler.profiles) == len(ways)


def test_a_damaged_cache_is_rebuilt(
    bundle: Bundle, compiler: Compiler, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A truncated file is removed with a warning, and the run continues."""
    first(machine(bundle))
    (path,) = cache.rglob("*.engines")
    path.write_bytes(path.read_bytes()[:-1])
    assert first(machine(bundle)).reason == "compiled now"
    assert "is damaged" in caplog.text
    assert first(machine(bundle)).reason == "compiled earlier, from the cache"


def test_runs_continue_without_a_cache_folder(
    bundle: Bundle,
    compiler: Compiler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A folder that cannot be written costs a warning and the next compilation."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("RBVSR_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert first(machine(bundle)).reason == "compiled now"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_8_6_compiles_for_the_size_alone(bundle: Bundle, compiler: Compiler) -> None:
    """Its engines need scratch memory for the largest shapes, so these are kept small."""
    plans = machine(bundle, tensorrt=TensorRT("tensorrt", bindings("8.6.1")))
    first(plans, 90, 160, batch=2)
    assert compiler.profiles == [ShapeProfile((64, 64), (90, 160), (90, 160), batch=2)]


def test_8_6_compiles_for_what_fits_into_memory(bundle: Bundle, compiler: Compiler) -> None:
    """On a small GPU, its batch and its bands are smaller than asked for, and the set is reused."""
    published = {**bundle.manifest.model, "mid_channels": 64, "single_shuffle": False}
    large = replace(bundle, manifest=replace(bundle.manifest, model=published))
    for _ in range(2):
        plans = machine(
            large,
            gpu=replace(GPU, total_memory=8 * 2**30),
            tensorrt=TensorRT("tensorrt", bindings("8.6.1")),
        )
        first(plans, 480, 854)
    (profile,) = compiler.profiles
    assert (profile.max_size, profile.batch) == ((480, 854), 1)
    assert profile.band is not None
    assert 100 < profile.band < 480
    shapes = profile.shapes(GRAPHS["reconstruct"], channels=64)
    assert shapes["frame"][1:] == ((1, 3, profile.band, 854),) * 2


@pytest.mark.slow
def test_compiling_is_announced_and_real(bundle: Bundle, cache: Path) -> None:
    """The real TensorRT-RTX is announced, reports progress, and fills the cache."""
    lines: list[str] = []
    graphs: set[str] = set()
    plans = MachinePlans(
        bundle,
        load_flavour("tensorrt-rtx"),
        OneGpu(),  # type: ignore[arg-type]
        report=lines.append,
        progress=lambda graph, *_: graphs.add(graph),
    )
    made = first(plans, 48, 64, batch=1)
    assert lines == ["Compiling engines for 64x48 on Ada of a test, once for all runs"]
    assert graphs == set(made.plans) == set(bundle.manifest.graphs)
    found = first(plans, 48, 64, batch=1)
    assert found.reason == "compiled earlier, from the cache"
    sums = [
        {name: hashlib.sha256(plan).hexdigest() for name, plan in c.plans.items()}
        for c in (made, found)
    ]
    assert sums[0] == sums[1]


def test_a_gpu_that_cannot_be_compiled_for_is_reported(bundle: Bundle) -> None:
    """TensorRT-RTX does not support compute capability 9.0: a clear error, and no cache file."""
    plans = machine(bundle, gpu=replace(GPU, compute_capability="9.0"))
    with pytest.raises(EngineError, match=r"not for 9\.0"):
        first(plans)
