"""Tests the model repository for Triton in a stand-in for the server, which was not run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from rbvsr_deploy import Upscaler
from rbvsr_deploy.bundle import Manifest, open_bundle
from rbvsr_deploy.commands.export import export
from rbvsr_deploy.errors import ExportError
from rbvsr_deploy.export import to_bundle
from rbvsr_deploy.triton.repository import write_repository
from tests.conftest import moving_clip
from tests.support.triton_doubles import Server

NO_FRAME = np.zeros((0, 0, 3), np.uint8)


def serve(
    bundle: Path, folder: Path, patch: pytest.MonkeyPatch, *, lookahead: int = 2, streams: int = 4
) -> Server:
    write_repository(bundle, folder, lookahead=lookahead, streams=streams)
    return Server(folder, "rbvsr", patch)


def upscaled(bundle: Path, clip: NDArray[Any], *, lookahead: int = 2) -> list[NDArray[Any]]:
    with Upscaler(bundle, device="cpu", lookahead=lookahead) as upscaler:
        return list(upscaler.frames(clip))


def numbered(responses: list[Any]) -> list[tuple[int, NDArray[Any]]]:
    return [(int(r["NUMBER"][0]), r["UPSCALED"]) for r in responses]


@pytest.mark.parametrize("flush_alone", [False, True])
def test_one_stream(
    flush_alone: bool, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Responses come ``lookahead`` frames late, numbered; the end brings the rest, whether it has a
    frame or not.
    """
    clip = moving_clip(6, 16, 20)
    with serve(tiny_bundle, tmp_path, monkeypatch) as server:
        got = []
        for n, frame in enumerate(clip):
            ends = n == 5 and not flush_alone
            (responses,) = server.send((9, frame, n == 0, ends))
            assert len(responses) == (0 if n < 2 else 3 if ends else 1)
            got += numbered(responses)
        if flush_alone:
            (responses,) = server.send((9, NO_FRAME, False, True))
            got += numbered(responses)
    assert [number for number, _ in got] == list(range(6))
    want = upscaled(tiny_bundle, clip)
    np.testing.assert_array_equal(np.stack([image for _, image in got]), np.stack(want))


def test_streams_do_not_mix(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interleaved sequences, of other sizes, in one batch, each give what they give alone."""
    clips = {1: moving_clip(7, 16, 20), 2**40: moving_clip(7, 24, 16), 3: moving_clip(7, 16, 16)}
    got: dict[int, list[tuple[int, NDArray[Any]]]] = {sequence: [] for sequence in clips}
    with serve(tiny_bundle, tmp_path, monkeypatch) as server:
        for n in range(7):
            batch = [(s, clip[n], n == 0, n == 6) for s, clip in clips.items()]
            for sequence, responses in zip(clips, server.send(*batch), strict=True):
                got[sequence] += numbered(responses)
    for sequence, clip in clips.items():
        assert [number for number, _ in got[sequence]] == list(range(7))
        images = np.stack([image for _, image in got[sequence]])
        np.testing.assert_array_equal(images, np.stack(upscaled(tiny_bundle, clip)))


def test_a_new_start_forgets_the_old_stream(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sequence that was abandoned and starts again has nothing of the old frames."""
    clip = moving_clip(4, 16, 16)
    with serve(tiny_bundle, tmp_path, monkeypatch) as server:
        for n in range(4):
            server.send((5, 255 - clip[n], n == 0, False))
        got = []
        for n in range(4):
            got += numbered(server.send((5, clip[n], n == 0, n == 3))[0])
    np.testing.assert_array_equal(
        np.stack([image for _, image in got]), np.stack(upscaled(tiny_bundle, clip))
    )


def test_abandoned_streams_do_not_pile_up(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server gives idle sequences up without a word: as many are open as it serves at once, and
    the one that has been idle longest goes first.
    """
    frame = moving_clip(1, 16, 16)[0]
    with serve(tiny_bundle, tmp_path, monkeypatch, streams=2) as server:
        server.send((1, frame, True, False), (2, frame, True, False))
        server.send((1, frame, False, False))
        server.send((3, frame, True, False))
        assert len(server.model._streams) == 2
        (gone, still_there) = server.send((2, frame, False, False), (1, frame, False, False))
    assert gone == ["sequence 2 is not open: mark its first frame as its start"]
    assert [r["NUMBER"][0] for r in still_there] == [0]


def test_errors_are_answers(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame without a start, or of another size, gets a sentence; the stream continues."""
    clip = moving_clip(3, 16, 16)
    with serve(tiny_bundle, tmp_path, monkeypatch, lookahead=0) as server:
        (answer,) = server.send((7, clip[0], False, True))
        assert answer == ["sequence 7 is not open: mark its first frame as its start"]
        assert len(server.send((7, clip[0], True, False))[0]) == 1
        (answer,) = server.send((7, clip[1, :8], False, False))
        assert len(answer) == 1
        assert "16x16 here, got 16x8" in answer[0]
        (answer,) = server.send((7, NO_FRAME, False, False))
        assert "a frame must be" in answer[0]
        assert [r["NUMBER"][0] for r in server.send((7, clip[2], False, True))[0]] == [1]
        assert not server.model._streams


def test_sixteen_bits(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the types in the configuration changed, as it says, frames have 16 bits."""
    clip = moving_clip(2, 16, 16).astype(np.uint16) * 257
    write_repository(tiny_bundle, tmp_path, lookahead=0)
    config = tmp_path / "rbvsr" / "config.pbtxt"
    config.write_text(config.read_text().replace("TYPE_UINT8", "TYPE_UINT16"))
    with Server(tmp_path, "rbvsr", monkeypatch) as server:
        got = [server.send((1, f, n == 0, False))[0][0]["UPSCALED"] for n, f in enumerate(clip)]
    np.testing.assert_array_equal(np.stack(got), np.stack(upscaled(tiny_bundle, clip, lookahead=0)))


def test_the_command(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``rbvsr-export --triton`` writes a repository that serves, next to other models."""

    def exported(checkpoint: Path, output: Path, **options: Any) -> Manifest:
        shutil.copy(tiny_bundle, output)
        return open_bundle(output).manifest

    monkeypatch.setattr(to_bundle, "export_bundle", exported)  # is tested elsewhere, and slow
    other = tmp_path / "models" / "other" / "config.pbtxt"
    other.parent.mkdir(parents=True)
    other.write_text("")
    arguments = ["-o", tmp_path / "model.plan", "--triton", tmp_path / "models"]
    done = CliRunner().invoke(export, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    assert other.exists()
    clip = moving_clip(3, 16, 16)
    with Server(tmp_path / "models", "rbvsr", monkeypatch) as server:
        responses = [server.send((1, f, n == 0, n == 2))[0] for n, f in enumerate(clip)]
    assert [len(r) for r in responses] == [0, 0, 3]


def test_a_folder_that_cannot_be_written(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"repository '.*file' cannot be written \(.+\): choose"):
        write_repository(tiny_bundle, tmp_path / "file")
