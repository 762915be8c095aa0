"""Tests damaged and forged job records: the segment is redone, or one sentence says what to do."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.errors import EngineError, MediaError
from rbvsr_deploy.jobs.summary import Summary
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.runtime.stream_state import StreamState
from rbvsr_deploy.video import Job, open_sink, open_source
from rbvsr_deploy.video.images import write_image
from rbvsr_deploy.video.staging import parts
from rbvsr_deploy.video.staging.parts import SegmentRecord
from tests.security.test_job_folder import as_an_earlier_version_left_it, snapshot
from tests.support import media
from tests.support.engine_doubles import ArithmeticEngine
from tests.support.sinks import write_segments

LENGTHS = [6, 6]
Seal = Literal["kept", "missing", "renewed"]
Change = Callable[[dict[str, Any]], object]

FOR_ALL: dict[str, Change] = {
    "many frames": lambda record: record.update(frames=10**9),
    "fewer frames": lambda record: record.update(frames=record["frames"] - 1),
    "no frames": lambda record: record.update(frames=0),
    "frames to the power": lambda record: record.update(frames=1e300),
    "whole frames": lambda record: record.update(frames=6.0),
    "frames in words": lambda record: record.update(frames="6"),
    "frames are true": lambda record: record.update(frames=True),
    "frames are missing": lambda record: record.pop("frames"),
    "note is null": lambda record: record.update(note=None),
    "note is a number": lambda record: record.update(note=1),
    "media is a list": lambda record: record.update(media=[1]),
    "no files": lambda record: record.update(files=[]),
    "files are null": lambda record: record.update(files=None),
    "files are names": lambda record: record.update(files=["part-000001.packets"]),
    "a file twice": lambda record: record["files"].append(record["files"][0]),
    "size in words": lambda record: record["files"][0].update(size="899"),
    "negative size": lambda record: record["files"][0].update(size=-1),
    "checksum is a number": lambda record: record["files"][0].update(sha256=1),
    "no name": lambda record: record["files"][0].pop("name"),
    "attachment is a name": lambda record: record.update(attachment="part-000001.state"),
}
FOR_VIDEOS: dict[str, Change] = {
    "no next time": lambda record: record["media"].pop("next_pts"),
    "late next time": lambda record: record["media"].update(next_pts=10**12),
    "early next time": lambda record: record["media"].update(next_pts=0),
    "next time in words": lambda record: record["media"].update(next_pts="6007"),
    "no delay": lambda record: record["media"].update(delay=0),
    "negative delay": lambda record: record["media"].update(delay=-1),
    "long delay": lambda record: record["media"].update(delay=10**9),
    "delay in words": lambda record: record["media"].update(delay="2"),
    "another encoder": lambda record: record["media"].update(extradata="00"),
    "no media": lambda record: record.update(media={}),
}
CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "a number": b"1",
    "null": b"null",
    "deep": b"[" * 10**5 + b"]" * 10**5,
    "deep note": b'{"note": ' + b'{"a":' * 10**5,
    "many digits": b'{"frames": ' + b"9" * 10**5 + b"}",
    "large": b"[" + b"0," * 10**7 + b"0]",
    "binary": bytes(range(256)),
}


def edit(path: Path, change: Change, *, seal: Seal) -> None:
    """Change a segment's record file."""
    record = json.loads(path.read_text())
    change(record)
    if seal != "kept":
        del record[parts._SEAL]
    if seal == "renewed":
        record[parts._SEAL] = parts._checksum(record)
    path.write_text(json.dumps(record))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Moving noise, for which the encoder uses B-frames."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    noise = noise.repeat(4, axis=0).repeat(4, axis=1)
    images = [np.ascontiguousarray(noise[:, n : n + 64]) for n in range(12)]
    return media.make_video(tmp_path_factory.mktemp("in") / "clip.mp4", images=images)


@pytest.fixture(scope="module")
def whole(clip: Path) -> dict[str, object]:
    """Outputs of uninterrupted runs."""
    folder = clip.with_name("whole")
    folder.mkdir()
    for name in ("out.mp4", "out"):
        write_segments(clip, folder / name, lengths=LENGTHS)
    return snapshot(folder)


def begun(clip: Path, out: Path) -> Path:
    """Return the job folder of a run that was interrupted in its second segment."""
    return write_segments(clip, out, lengths=LENGTHS, stop_after=8).folder


def assert_redone(clip: Path, out: Path, whole: dict[str, object]) -> None:
    job = write_segments(clip, out, lengths=LENGTHS)
    assert job.resumed_segments == 0
    assert snapshot(out.parent) == {
        name: content for name, content in whole.items() if Path(name).parts[0] == out.name
    }


class TestSegmentsAreRedone:
    @pytest.mark.parametrize("name", ["out.mp4", "out"])
    @pytest.mark.parametrize("change", FOR_ALL.values(), ids=FOR_ALL)
    def test_forged_record(
        self, clip: Path, whole: dict[str, object], tmp_path: Path, name: str, change: Change
    ) -> None:
        out = tmp_path / name
        edit(begun(clip, out) / "part-000001.json", change, seal="renewed")
        assert_redone(clip, out, whole)

    @pytest.mark.parametrize("change", FOR_VIDEOS.values(), ids=FOR_VIDEOS)
    def test_forged_record_of_a_video(
        self, clip: Path, whole: dict[str, object], tmp_path: Path, change: Change
    ) -> None:
        out = tmp_path / "out.mp4"
        folder = begun(clip, out)
        assert json.loads((folder / "part-000001.json").read_text())["media"]["delay"] > 0
        edit(folder / "part-000001.json", change, seal="renewed")
        assert_redone(clip, out, whole)

    @pytest.mark.parametrize("frames", [10**9, 7, 5])
    @pytest.mark.parametrize("name", ["out.mp4", "out"])
    def test_damaged_record_of_an_earlier_version(
        self, clip: Path, whole: dict[str, object], tmp_path: Path, name: str, frames: int
    ) -> None:
        """Without a checksum, the stored frames reveal the damage."""
        out = tmp_path / name
        path = begun(clip, out) / "part-000001.json"
        edit(path, lambda record: record.update(frames=frames), seal="missing")
        assert_redone(clip, out, whole)

    @pytest.mark.parametrize("name", ["out.mp4", "out"])
    @pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
    def test_other_content(
        self, clip: Path, whole: dict[str, object], tmp_path: Path, name: str, content: bytes
    ) -> None:
        out = tmp_path / name
        (begun(clip, out) / "part-000001.json").write_bytes(content)
        assert_redone(clip, out, whole)

    @pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
    def test_other_journal(
        self, clip: Path, whole: dict[str, object], tmp_path: Path, content: bytes
    ) -> None:
        """Work without its identity is useless."""
        out = tmp_path / "out.mp4"
        (begun(clip, out) / "job.json").write_bytes(content)
        assert_redone(clip, out, whole)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda j: j.update(schema=2), "from another version of this program"),
            (lambda j: j.update(identity=[]), "is damaged"),
            (lambda j: j.update(identity={"model": {"a": [1]}}), "is damaged"),
            (lambda j: j["identity"].update(container="x" * 10_000), f"was {'x' * 200} and is"),
            (lambda j: j["identity"].update({"x" * 10_000: "b"}), f"the {'x' * 200} was b"),
            (lambda j: j.pop("identity"), "is damaged"),
        ],
    )
    def test_forged_journal(
        self,
        clip: Path,
        whole: dict[str, object],
        tmp_path: Path,
        change: Change,
        reason: str,
    ) -> None:
        out = tmp_path / "out.mp4"
        edit(begun(clip, out) / "job.json", change, seal="renewed")
        with open_source(clip) as source, Job(out, identity={}) as job:
            open_sink(out, source=source, width=64, height=48, job=job).close()
            assert job.started_over is not None
            assert reason in job.started_over
            assert len(job.started_over) < 700
        assert_redone(clip, out, whole)

    def test_only_the_checksum_reveals_a_changed_note(
        self, clip: Path, whole: dict[str, object], tmp_path: Path
    ) -> None:
        out = tmp_path / "out.mp4"
        edit(begun(clip, out) / "part-000001.json", lambda r: r["note"].update(end=7), seal="kept")
        assert_redone(clip, out, whole)

    def test_record_of_an_earlier_version_has_no_checksum(
        self, clip: Path, whole: dict[str, object], tmp_path: Path
    ) -> None:
        for name in ("out.mp4", "out"):
            as_an_earlier_version_left_it(begun(clip, tmp_path / name))
            assert write_segments(clip, tmp_path / name, lengths=LENGTHS).resumed_segments == 1
        assert snapshot(tmp_path) == whole


def test_every_changed_byte_of_a_record_is_noticed(clip: Path, tmp_path: Path) -> None:
    """A record with a changed byte either cannot be read, or says the same."""
    folder = begun(clip, tmp_path / "out.mp4")
    part = SegmentRecord.from_bytes((folder / "part-000001.json").read_bytes())
    journal = parts.unsealed((folder / "job.json").read_bytes())

    def same_record(data: bytes) -> bool:
        return SegmentRecord.from_bytes(data) == part

    def same_journal(data: bytes) -> bool:
        found = parts.unsealed(data)
        return all(found[key] == value for key, value in journal.items())

    for name, same in (("part-000001.json", same_record), ("job.json", same_journal)):
        data = (folder / name).read_bytes()
        refused = 0
        for position in range(len(data)):
            for bit in (0x01, 0x20, 0x80):
                changed = bytearray(data)
                changed[position] ^= bit
                try:
                    assert same(bytes(changed))
                except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
                    refused += 1
        assert refused > 2 * len(data)


class TestRun:
    """Tests the data that the runtime stores with segments: scenes and stream state."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "in"
        folder.mkdir()
        for i in range(130):
            image = np.full((1, 1, 3), 7 * i * i % 97, np.uint8)
            write_image(folder / f"{i:03}.png", image=image)
        (tmp_path / "cuts.txt").write_text("60\n")
        return folder

    def run(self, folder: Path, engine: ArithmeticEngine) -> Summary:
        cuts = folder.with_name("cuts.txt")
        return upscale_file(folder, folder.with_name("out"), engine=engine, scene_list=cuts)

    def stopped(self, folder: Path) -> Path:
        """Return the job folder of a run with one finished segment, the first scene."""

        class Fails(ArithmeticEngine):
            def run(self, graph: str, **arguments: Any) -> tuple[Any, ...]:
                if graph == "forward" and self.items["forward"] == 100:
                    raise EngineError("the device was lost")
                return super().run(graph, **arguments)

        with pytest.raises(EngineError):
            self.run(folder, Fails())
        return folder.with_name(".out.job")

    def assert_refused(self, folder: Path) -> None:
        place = folder.with_name(".out.job")
        with pytest.raises(MediaError, match=r"records are damaged: delete the folder .*out\.job"):
            self.run(folder, ArithmeticEngine())
        assert (place / "part-000001.json").exists()  # an earlier version may be able to use it

    @pytest.mark.parametrize(
        "scenes",
        [
            None,
            "none",
            [None],
            [{}],
            [{"first_frame": 0}],
            [{"first_frame": 0, "frames": 60, "cleanings": 1, "residues": None}],
            [{"first_frame": 0, "frames": 60, "cleanings": 1, "residues": [{}]}],
            [{"first_frame": 0, "frames": 60, "cleanings": "1", "residues": []}],
            [{"first_frame": 0, "frames": 1e300, "cleanings": 1, "residues": []}],
            [{"first_frame": 0, "frames": -60, "cleanings": 1, "residues": []}],
            [{"first_frame": 7, "frames": 60, "cleanings": 1, "residues": []}],
            [{"first_frame": 0, "frames": 60, "cleanings": 1, "residues": [10**999]}],
        ],
    )
    def test_scenes(self, folder: Path, scenes: object) -> None:
        place = self.stopped(folder)
        edit(place / "part-000001.json", lambda r: r["note"].update(scenes=scenes), seal="renewed")
        self.assert_refused(folder)

    def test_note_without_scenes(self, folder: Path) -> None:
        place = self.stopped(folder)
        edit(place / "part-000001.json", lambda r: r["note"].pop("scenes"), seal="missing")
        self.assert_refused(folder)

    @pytest.mark.parametrize(
        "images",
        [None, [], {}, {"frames": "60", "ended": False, "sha256": ""}, {"frames": 61},
         {"frames": 10**9, "ended": False, "sha256": None}, {"frames": -1, "ended": False}],
    )  # fmt: skip
    def test_images(self, folder: Path, images: object) -> None:
        """A segment made of unknown images is made again."""
        place = self.stopped(folder)
        edit(place / "part-000001.json", lambda r: r["note"].update(images=images), seal="renewed")
        assert self.run(folder, ArithmeticEngine()).resumed_frames == 0

    def test_no_state(self, folder: Path) -> None:
        place = self.stopped(folder)
        edit(place / "part-000001.json", lambda r: r.update(attachment=None), seal="renewed")
        self.assert_refused(folder)

    def test_earlier_version_is_continued(self, folder: Path) -> None:
        as_an_earlier_version_left_it(self.stopped(folder))
        assert self.run(folder, ArithmeticEngine()).resumed_frames == 60
        made = snapshot(folder.with_name("out"))
        folder.with_name("out").rename(folder.with_name("before"))
        self.run(folder, ArithmeticEngine())
        assert snapshot(folder.with_name("out")) == made

    @pytest.mark.slow
    @pytest.mark.parametrize("what", ["state", "bytes"])
    def test_states(self, folder: Path, what: str) -> None:
        """Wrong states are refused; with the right one, the work resumes."""
        place = self.stopped(folder)
        path = place / "part-000001.state"
        right = path.read_bytes()

        def store(data: bytes) -> None:
            path.write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            file = {"name": path.name, "size": len(data), "sha256": digest}
            edit(place / "part-000001.json", lambda r: r.update(attachment=file), seal="renewed")

        for data in _wrong_states() if what == "state" else _malformed_states():
            store(data)
            self.assert_refused(folder)
        store(right)
        assert self.run(folder, ArithmeticEngine()).resumed_frames == 60


def _wrong_states() -> list[bytes]:
    """Return states whose numbers, shapes or types do not fit a stream of one pixel."""
    one, rgb = np.zeros((1, 1, 1, 1)), np.zeros((1, 3, 1, 1))
    right: dict[str, NDArray[Any]] = {"forward_state": one, "previous": rgb}
    wrong: list[dict[str, NDArray[Any]]] = [
        {"forward_state": one},
        {"previous": rgb},
        {**right, "more": one},
        {**right, "forward_state": rgb},
        {**right, "previous": one},
        {**right, "previous": np.zeros((1, 3, 2, 2))},
        {**right, "forward_state": one.astype(np.int64)},
        {**right, "forward_state": one.astype(np.float32)},
    ]
    states = [
        StreamState(59, 59, 59),
        StreamState(10**9, 10**9, 10**9),
        StreamState(60, 61, 60),
        StreamState(60, -1, 60, None, right),
        StreamState(60, 0, 10**9, None, right),
        StreamState(60, 60, 60, None, right),
        StreamState(60, 0, 0),
        *(StreamState(60, 0, 0, None, arrays) for arrays in wrong),
    ]
    return [state.to_bytes() for state in states]


def _malformed_states() -> list[bytes]:
    """Return files that are not archives of arrays, or that claim more data than they hold."""
    position = np.array([60, 60, 60, 0])

    def saved(save: Callable[..., None], **arrays: Any) -> bytes:
        file = io.BytesIO()
        save(file, **arrays)
        return file.getvalue()

    usual = saved(np.savez, position=position, residues=np.zeros(0))
    return [
        b"",
        b"not an archive",
        usual[:-30],
        usual.replace(b"(4,)", b"(9,)"),
        usual.replace(b"(0,), }", b"(9**9,)"),
        usual.replace(b"'<i8'", b"'|O8'"),
        saved(np.savez, position=position),
        saved(np.savez, residues=np.zeros(0)),
        saved(np.savez, position=position[:3], residues=np.zeros(0)),
        saved(np.savez, position=np.full(4, np.inf), residues=np.zeros(0)),
        saved(np.savez, position=np.array("60"), residues=np.zeros(0)),
        saved(np.savez_compressed, position=position, residues=np.zeros(2**23)),
    ]
