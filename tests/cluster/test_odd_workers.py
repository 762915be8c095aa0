"""Tests that one worker which cannot do the work does not stop the others, and is named."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from rbvsr_deploy.errors import EngineError, RbvsrError
from tests.cluster.conftest import alone, shared

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the output of one process; segments differ in length, the frames do not matter."""
    from rbvsr_deploy.jobs import segments
    from tests.support.cluster_worker import LONGEST, SHORTEST

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "LONGEST", LONGEST)
        patch.setattr(segments, "SHORTEST", SHORTEST)
        output = tmp_path_factory.mktemp("alone") / "one.mp4"
        alone(clip, output)
    return output.read_bytes()


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ({"DOUBLE_WITHOUT_MODEL": "1"}, "worker 3 is left out: .*model.plan does not exist"),
        (
            {"DOUBLE_VERSION": "7"},
            "worker 3 on .* is left out: its engine is onnxruntime 7, and that of the others onnx",
        ),
        (
            {"DOUBLE_FAILS": "1"},
            "worker 3.*: graph 'reconstruct' failed",
        ),
        (
            {"DOUBLE_FILE_LIMIT": "1000"},
            "worker 3.*: cannot write .*: File too",
        ),
        ({"PYTHONHOME": "/nowhere"}, "worker 3 is left out: it ended with exit code 1, 3 times"),
    ],
    ids=["no model", "another version", "broken device", "full disk", "no program"],
)
def test_the_others_finish(
    odd: dict[str, str],
    why: str,
    clip: Path,
    model: Path,
    tmp_path: Path,
    expected: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One sentence says why the odd worker does nothing; the output is that of one process."""
    monkeypatch.setenv("DOUBLE_SECONDS", "0.02")
    lines: list[str] = []
    summary = shared(
        clip, tmp_path / "two.mp4", model=model, workers=3, odd=odd, report=lines.append
    )
    assert (tmp_path / "two.mp4").read_bytes() == expected
    assert any(re.search(why, line) for line in lines), lines
    assert [bool(worker.frames) for worker in summary.workers] == [True, True, False]


def test_mixed_engines_are_allowed_on_request(clip: Path, model: Path, tmp_path: Path) -> None:
    """The odd one is named all the same."""
    lines: list[str] = []
    odd = {"DOUBLE_VERSION": "7"}
    shared(clip, tmp_path / "two.mp4", model=model, odd=odd, mixed=True, report=lines.append)
    assert any("its engine is onnxruntime" in line for line in lines)
    assert not any("left out" in line for line in lines)


@pytest.mark.usefixtures("impatient")
def test_a_slow_worker_is_overtaken(
    clip: Path, model: Path, tmp_path: Path, expected: bytes
) -> None:
    """Its unit is run by another worker too, whose result counts, and nobody waits for it."""
    begin = time.monotonic()
    odd = {"DOUBLE_SECONDS": "10"}
    summary = shared(clip, tmp_path / "two.mp4", model=model, odd=odd)
    assert time.monotonic() - begin < 60
    assert (tmp_path / "two.mp4").read_bytes() == expected
    assert [worker.frames for worker in summary.workers] == [summary.frames, 0]


def test_a_unit_that_fails_everywhere_is_named(
    clip: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence names the frames and the number of tries; what was finished stays."""
    monkeypatch.setenv("DOUBLE_FAILS", "1")
    with pytest.raises(
        RbvsrError, match=r"frames \d+ to \d+ failed 3 times, on \d workers: graph "
    ):
        shared(clip, tmp_path / "two.mp4", model=model)
    assert (tmp_path / ".two.mp4.job" / "frames.index").exists()


def test_no_worker_can_work(
    clip: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence says why, and nothing is left."""
    monkeypatch.setenv("DOUBLE_WITHOUT_MODEL", "1")
    with pytest.raises(EngineError, match=r"no worker can work: .*model.plan does not exist"):
        shared(clip, tmp_path / "two.mp4", model=model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.plan"]
