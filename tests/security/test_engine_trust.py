"""Tests that only engines compiled by this user, or from a trusted bundle, are run: compiled
engines are machine code.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rbvsr_deploy import Upscaler
from rbvsr_deploy.bundle import open_bundle, write_bundle
from rbvsr_deploy.bundle.engine_sets import EngineSet
from rbvsr_deploy.commands.run import run
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.engines.base import Network
from rbvsr_deploy.engines.tensorrt import compile as compile_module
from rbvsr_deploy.engines.tensorrt import open as open_module
from rbvsr_deploy.engines.tensorrt import plans as plans_module
from rbvsr_deploy.engines.tensorrt.build import BuildOptions, this_platform
from rbvsr_deploy.engines.tensorrt.cache import read_cached, write_cached
from rbvsr_deploy.engines.tensorrt.compile import Target, compile_into_bundle
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT
from rbvsr_deploy.engines.tensorrt.signing import compiled_by_this_user
from tests.conftest import short_clip
from tests.support.cuda_double import DriverDouble
from tests.support.tensorrt_bindings import bindings
from tests.support.tensorrt_double import ENGINE_SET, RuntimeDouble, small_bundle

posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes of POSIX")
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away"
)
NOBODY = 65534


class Machine:
    """Simulates a machine with a GPU and TensorRT 10, whose user has a key and a cache."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config, self.cache = folder / "config", folder / "cache"
        self.tensorrt = TensorRT("tensorrt", bindings("10.0.0"))
        self.driver = DriverDouble()
        self.loaded: list[bytes] = []
        """Engines passed to the deserialiser."""
        self.compiled = 0
        self._patch = monkeypatch
        monkeypatch.setenv("RBVSR_CACHE", str(self.cache))
        monkeypatch.delenv("RBVSR_TRUST_ENGINES", raising=False)
        self.become(self.config)
        monkeypatch.setattr(open_module, "check_installed", lambda: None)
        monkeypatch.setattr(open_module, "open_driver", lambda: self.driver)
        monkeypatch.setattr(open_module, "flavour_for", lambda gpu, options: self.tensorrt)
        monkeypatch.setattr(open_module, "TensorRTRuntime", self._runtime)
        monkeypatch.setattr(plans_module, "build_engine_set", self._build)
        monkeypatch.setattr(compile_module, "build_engine_set", self._build)
        # Values are compared in tests/engines/tensorrt/test_values.py.
        monkeypatch.setattr(compile_module, "run_once", lambda *arguments: arguments[3])

    def become(self, config: Path) -> None:
        """Switch to another user, who has another key."""
        self._patch.setenv("RBVSR_CONFIG", str(config))

    def _runtime(self, tensorrt: Any, gpu: Any) -> RuntimeDouble:
        runtime = RuntimeDouble(self.driver, self.network)
        load = runtime.load

        def recorded(graph: str, plan: bytes) -> Any:
            self.loaded.append(plan)
            return load(graph, plan)

        runtime.load = recorded  # type: ignore[method-assign]
        return runtime

    network: Network

    def _build(
        self, tensorrt: Any, manifest: Any, graphs: Any, **asked: Any
    ) -> tuple[EngineSet, dict[str, bytes]]:
        self.compiled += 1
        gpu = self.driver.gpu()
        made = replace(
            ENGINE_SET,
            compute_capability=gpu.compute_capability,
            platform=this_platform(),
            profile=asked["profile"],
        )
        return made, dict(graphs)

    def open(self, bundle: Path, **options: Any) -> str:
        """Open a bundle as for a run of small frames; return where its engines came from."""
        self.network = Network.of(open_bundle(bundle).manifest)
        self.loaded.clear()
        with open_engine(bundle, size=lambda: (20, 30), **options) as engine:
            return engine.describe().reason.rpartition(", engines ")[2]

    def build(self, bundle: Path) -> None:
        """Compile engines into a bundle like ``rbvsr-build --here``."""
        target = Target(self.tensorrt, self.driver.gpu().compute_capability, self.driver)
        compile_into_bundle(bundle, [target], profile=ENGINE_SET.profile, options=BuildOptions())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    small_bundle(tmp_path / "model.plan")
    return tmp_path / "model.plan"


EVIL = b"bad: this would be machine code"


def forge(bundle: Path, machine: Machine, **changes: Any) -> None:
    """Put engines that claim to fit into a bundle with valid checksums."""
    opened = open_bundle(bundle)
    claimed = replace(
        ENGINE_SET,
        compute_capability=machine.driver.gpu().compute_capability,
        platform=this_platform(),
        **changes,
    )
    plans = dict.fromkeys(opened.manifest.graphs, EVIL)
    write_bundle(bundle, opened.manifest, opened.graphs(), [(claimed, plans)])


# ----------------------------------------------------------------------------------- of a bundle


def test_foreign_engines_never_reach_the_deserialiser(
    bundle: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """The graphs are compiled instead, with a one-line warning."""
    forge(bundle, machine)
    assert machine.open(bundle) == "compiled now"
    assert EVIL not in machine.loaded
    (line,) = [record.getMessage() for record in caplog.records]
    assert "'model.plan' are not used: they are machine code" in line


@pytest.mark.parametrize("signature", ["00" * 32, "ff" * 32, "x", "é" * 64])
def test_an_invented_signature_is_invalid(signature: str, bundle: Path, machine: Machine) -> None:
    """It is invalid even if this user has a key."""
    machine.build(bundle)
    forge(bundle, machine, signature=signature)
    machine.open(bundle)
    assert EVIL not in machine.loaded


def test_what_this_user_has_compiled_is_used(bundle: Path, machine: Machine) -> None:
    """The user's own engines are loaded without a prompt, and nothing is recompiled."""
    machine.build(bundle)
    (engine_set,) = open_bundle(bundle).manifest.engine_sets
    assert compiled_by_this_user(open_bundle(bundle), engine_set)
    assert machine.open(bundle) == "from the bundle"
    assert machine.compiled == 1


def test_what_another_user_has_compiled_is_not(
    bundle: Path, machine: Machine, tmp_path: Path
) -> None:
    """Every user has a different key."""
    machine.build(bundle)
    machine.become(tmp_path / "another")
    assert machine.open(bundle) == "compiled now"
    machine.become(machine.config)
    assert machine.open(bundle) == "from the bundle"


def _other_plan(bundle: Path) -> None:
    opened = open_bundle(bundle)
    (held,) = opened.manifest.engine_sets
    plans = {**opened.plans(held), "flow": EVIL}
    write_bundle(bundle, opened.manifest, opened.graphs(), [(held, plans)])


def _exchanged_plans(bundle: Path) -> None:
    opened = open_bundle(bundle)
    (held,) = opened.manifest.engine_sets
    plans = opened.plans(held)
    plans = {**plans, "forward": plans["backward"], "backward": plans["forward"]}
    write_bundle(bundle, opened.manifest, opened.graphs(), [(held, plans)])


def _other_graph(bundle: Path) -> None:
    opened = open_bundle(bundle)
    (held,) = opened.manifest.engine_sets
    graphs = {**opened.graphs(), "forward": opened.graph("backward")}
    write_bundle(bundle, opened.manifest, graphs, [(held, opened.plans(held))])


def _other_claim(bundle: Path) -> None:
    opened = open_bundle(bundle)
    (held,) = opened.manifest.engine_sets
    wider = replace(held, hardware_compatible=True)
    write_bundle(bundle, opened.manifest, opened.graphs(), [(wider, opened.plans(held))])


@pytest.mark.parametrize("change", [_other_plan, _exchanged_plans, _other_graph, _other_claim])
def test_a_signature_is_of_this_set_these_engines_and_these_graphs(
    change: Callable[[Path], None], bundle: Path, machine: Machine
) -> None:
    machine.build(bundle)
    change(bundle)
    assert machine.open(bundle) == "compiled now"
    assert EVIL not in machine.loaded


def test_a_build_signs_nothing_but_what_it_compiles(bundle: Path, machine: Machine) -> None:
    """A foreign set that remains in the bundle is not signed."""
    forge(bundle, machine, version="10.0.1")
    machine.build(bundle)
    opened = open_bundle(bundle)
    signed = {s.version: compiled_by_this_user(opened, s) for s in opened.manifest.engine_sets}
    assert signed == {"10.0.1": False, "10.0.0": True}


def test_a_trusted_bundle_is_run(
    bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller or the environment can declare a bundle trusted."""
    forge(bundle, machine)
    machine.open(bundle, trust_engines=True)
    assert EVIL in machine.loaded
    with Upscaler(bundle, trust_engines=True) as upscaler:
        assert upscaler.engine.describe().engine == "tensorrt"
    monkeypatch.setenv("RBVSR_TRUST_ENGINES", "1")
    machine.open(bundle)
    assert EVIL in machine.loaded


@pytest.mark.parametrize("trusted", [False, True])
def test_the_command_passes_the_trust_on(
    trusted: bool,
    tiny_bundle: Path,
    sample: Path,
    tmp_path: Path,
    machine: Machine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """``rbvsr-run --trust-engines`` runs the engines; without it, they cause a warning."""
    bundle = tmp_path / "tiny.plan"
    bundle.write_bytes(tiny_bundle.read_bytes())
    forge(bundle, machine, profile=replace(ENGINE_SET.profile, max_size=(128, 128)))
    machine.network = Network.of(open_bundle(bundle).manifest)
    video = short_clip(sample, tmp_path / "video.mp4", frames=2)
    arguments = [str(video), "--engine", str(bundle), "-o", str(tmp_path / "out.mkv")]
    done = CliRunner().invoke(run, arguments + ["--trust-engines"] * trusted)
    assert done.exit_code == 0, done.output
    assert (EVIL in machine.loaded) is trusted
    assert ("are not used: they are machine code" in caplog.text) is not trusted


# ----------------------------------------------------------------------------------- of the cache


@posix
def test_cache_and_key_are_private(
    bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are private even with an umask of 0."""
    before = os.umask(0)
    try:
        machine.open(bundle)
    finally:
        os.umask(before)
    found = [machine.config, machine.cache, *machine.config.rglob("*"), *machine.cache.rglob("*")]
    assert len(found) > 5
    for path in found:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
    assert machine.open(bundle) == "compiled earlier, from the cache"


def entry(machine: Machine) -> Path:
    (path,) = machine.cache.rglob("*.engines")
    return path


def _others_may_write(path: Path) -> None:
    path.chmod(0o666)


def _others_may_write_its_folder(path: Path) -> None:
    path.parent.chmod(0o777)


def _a_link(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@posix
@pytest.mark.parametrize(
    "change", [_others_may_write, _others_may_write_its_folder, _a_link, _a_pipe]
)
def test_what_others_may_have_written_is_compiled_again(
    change: Callable[[Path], None], bundle: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """There is one warning, and the next run uses the new cache entry."""
    machine.open(bundle)
    change(entry(machine))
    assert machine.open(bundle) == "compiled now"
    (line,) = {record.getMessage() for record in caplog.records}
    assert "is not used (" in line
    assert machine.open(bundle) == "compiled earlier, from the cache"


@as_root
@pytest.mark.parametrize("part", ["file", "folder"])
def test_what_others_own_is_not_used(
    part: str, bundle: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.open(bundle)
    path = entry(machine)
    os.chown(path if part == "file" else path.parent, NOBODY, NOBODY)
    assert machine.open(bundle) == "compiled now"
    assert "other users can write to it" in caplog.text


def test_an_entry_of_another_user_is_not_used(
    bundle: Path, machine: Machine, tmp_path: Path
) -> None:
    """A cache entry copied from another user is signed with another key."""
    machine.become(tmp_path / "another")
    machine.open(bundle)
    planted = entry(machine).read_bytes()
    machine.become(machine.config)
    machine.open(bundle)
    entry(machine).write_bytes(planted)
    assert machine.open(bundle) == "compiled now"


def test_a_signature_covers_the_name_of_an_entry(tmp_path: Path, machine: Machine) -> None:
    """A renamed file is invalid."""
    (tmp_path / "a").mkdir(mode=0o700)
    write_cached(tmp_path / "a" / "one", b"content")
    assert read_cached(tmp_path / "a" / "one") == b"content"
    (tmp_path / "a" / "one").rename(tmp_path / "a" / "two")
    assert read_cached(tmp_path / "a" / "two") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"no JSON\n",
        b"[]\n",
        b"{}\n",
        b"[" * 100_000 + b"\n",
        json.dumps({"sizes": {"flow": "3"}, "set": {}}).encode(),
        json.dumps({"sizes": {}, "set": {"profile": 1}}).encode(),
        json.dumps({"sizes": {}, "set": {"later": 1}}).encode(),
    ],
)
def test_signed_entries_of_other_content_are_rebuilt(
    content: bytes, bundle: Path, machine: Machine
) -> None:
    """Entries of a later version, for example, need not be deleted by hand."""
    machine.open(bundle)
    write_cached(entry(machine), content)
    assert machine.open(bundle) == "compiled now"
    assert machine.open(bundle) == "compiled earlier, from the cache"


# ------------------------------------------------------------------------------------ of the key


def key(machine: Machine) -> Path:
    (path,) = machine.config.iterdir()
    return path


@posix
@pytest.mark.parametrize("change", [_others_may_write, _a_link])
def test_a_key_that_others_could_have_written_signs_nothing(
    change: Callable[[Path], None], bundle: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.build(bundle)
    change(key(machine))
    machine.open(bundle)
    assert machine.open(bundle) == "compiled now"
    assert "engine-key' is not used" in caplog.text


def test_a_run_succeeds_without_a_place_for_the_key(
    bundle: Path, machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Engines are not cached, and a warning names the variable to set."""
    (tmp_path / "taken").write_bytes(b"")
    machine.become(tmp_path / "taken")
    for _ in range(2):
        assert machine.open(bundle) == "compiled now"
    assert "set RBVSR_CONFIG" in caplog.text


def test_a_key_of_a_wrong_length_is_not_used(bundle: Path, machine: Machine) -> None:
    machine.build(bundle)
    key(machine).write_bytes(b"")
    assert machine.open(bundle) == "compiled now"
