"""Tests that clips are reproducible and cut correctly, and that bad input is reported early."""

from __future__ import annotations

import errno
import logging
import os
import runpy
import time
from collections import Counter
from math import sqrt
from pathlib import Path
from typing import Any

import av
import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

import rbvsr_deploy.training
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.training.data.cache import FrameCache
from rbvsr_deploy.training.data.footage import DamagedSourceError, ImageFiles, Region, VideoFile
from rbvsr_deploy.training.data.training_set import DataConfig, Sample, SourceConfig, TrainingSet
from rbvsr_deploy.training.degradations.clip_degradation import CLEAN, PUBLISHED
from tests.training.conftest import make_photo

SAMPLE = Path(__file__).parents[2] / "data" / "sample.mp4"

Frames = NDArray[np.uint8]


@pytest.fixture(scope="module")
def reds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create two folders of eight 72x60 frames in the layout of REDS. Red encodes x, green y, and
    blue the time and the folder.
    """
    root = tmp_path_factory.mktemp("train_sharp")
    for clip in range(2):
        folder = root / f"{clip:03d}"
        folder.mkdir()
        for t in range(8):
            y, x = np.mgrid[0:60, 0:72] * 3
            frame = np.stack((np.full_like(x, 100 * clip + 10 * t), y, x), axis=-1)
            cv2.imwrite(str(folder / f"{t:08d}.png"), frame.astype(np.uint8))
    return root


def only(kind: str, path: Path, **options: Any) -> DataConfig:
    source = msgspec.convert({"kind": kind, "path": str(path)}, SourceConfig)
    return DataConfig(**{"sources": (source,), "length": 6, "crop": 8, **options})


def clips(config: DataConfig, seed: int = 3) -> TrainingSet:
    data = TrainingSet(config, CLEAN, seed=seed)
    data.check()
    return data


def equal(one: Sample, other: Sample) -> bool:
    pairs = [(one.degraded, other.degraded), (one.truth, other.truth)]
    pairs.append((one.sharpened, other.sharpened))
    same = all(np.array_equal(a, b) for a, b in pairs)
    return same and one.degradation == other.degradation and one.source == other.source


def test_a_bare_import_says_which_name_to_use() -> None:
    source = Path(rbvsr_deploy.training.__file__)
    with pytest.raises(ImportError, match=r"rbvsr_deploy\.training"):
        runpy.run_path(str(source), run_name="training")


# --------------------------------------------------------------------------------- reproducibility


class _Clips(Dataset[Sample]):
    def __init__(self, data: TrainingSet) -> None:
        self.data = data

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Sample:
        return self.data.sample(index)


@pytest.fixture(scope="module")
def mixed(reds: Path, sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a training set of every kind of source, with the published degradations."""
    config = DataConfig(
        sources=(
            SourceConfig("frames", str(reds)),
            SourceConfig("videos", str(sources[1]), reduction=2),
            SourceConfig("photos", str(sources[0])),
        ),
        length=6,
        crop=12,
        cache=str(tmp_path_factory.mktemp("cache")),
    )
    return TrainingSet(config, PUBLISHED, seed=11)


@pytest.mark.slow
def test_clips_are_bit_identical_across_worker_counts(mixed: TrainingSet) -> None:
    """With 0, 1 and 2 worker processes, sources of every kind give the same twelve clips."""

    def load(workers: int) -> list[Sample]:
        data = _Clips(mixed)
        return list(DataLoader(data, batch_size=None, num_workers=workers))

    expected = load(0)
    assert len({Path(s.source).parent.parent for s in expected}) >= 2
    assert {s.path is None for s in expected} == {True, False}
    for workers in (1, 2):
        results = load(workers)
        assert all(equal(a, b) for a, b in zip(expected, results, strict=True))
        for a, b in zip(expected, results, strict=True):
            if a.path is not None and b.path is not None:
                assert np.array_equal(a.path.maps, b.path.maps)


def test_a_clip_is_a_function_of_seed_stream_and_index(mixed: TrainingSet) -> None:
    """The order of requests does not matter; another seed, stream or index gives another clip."""
    first = mixed.sample(5)
    mixed.sample(8)
    assert equal(first, mixed.sample(5))
    other_seed = TrainingSet(mixed.config, PUBLISHED, seed=12)
    for other in (mixed.sample(6), mixed.sample(5, stream=1), other_seed.sample(5)):
        assert not equal(first, other)


@pytest.mark.slow
def test_sources_are_mixed_by_their_weights(reds: Path, sources: tuple[Path, Path]) -> None:
    config = DataConfig(
        sources=(
            SourceConfig("frames", str(reds), weight=3.0),
            SourceConfig("photos", str(sources[0]), weight=1.0),
        ),
        length=2,
        crop=8,
    )
    data = clips(config)
    count = 400
    photos = sum(data.sample(i).path is not None for i in range(count))
    assert abs(photos - count / 4) < 5 * sqrt(count * 0.25 * 0.75)
    assert all(data.sample(i, motion_only=True).path is not None for i in range(20))
    assert data.has_motion
    footage = clips(only("frames", reds))
    assert not footage.has_motion
    with pytest.raises(ValueError, match="photos"):
        footage.sample(0, motion_only=True)


# --------------------------------------------------------------------------------- content of clips


@pytest.mark.parametrize(("length", "order"), [(6, [0, 1, 2, 2, 1, 0]), (5, [0, 1, 2, 2, 1])])
def test_the_stochastic_scheme_mirrors_and_walks(reds: Path, length: int, order: list[int]) -> None:
    """Half of the frames run forwards and back; the degraded frames are not mirrored."""
    data = TrainingSet(only("frames", reds, length=length), PUBLISHED, seed=1)
    for index in range(4):
        sample = data.sample(index)
        assert sample.degraded.shape == (length, 8, 8, 3)
        assert sample.truth.shape == sample.sharpened.shape == (length, 32, 32, 3)
        assert {a.dtype for a in (sample.degraded, sample.truth, sample.sharpened)} == {
            np.dtype(np.uint8)
        }
        times = sample.truth[:, 0, 0, 2].astype(int) // 10 % 10
        assert (times - times[0]).tolist() == order
        assert np.array_equal(sample.truth, sample.truth[:3][order])
        assert np.array_equal(sample.sharpened, sample.sharpened[:3][order])
        assert not np.array_equal(sample.degraded, sample.degraded[:3][order])
        fields = [msgspec.structs.asdict(s).values() for s in sample.degradation.steps]
        walked = [f for values in fields for f in values if isinstance(f, tuple)]
        assert any(len(set(f)) > 1 for f in walked)


def test_without_the_scheme_all_frames_differ_and_nothing_walks(reds: Path) -> None:
    """Every frame of the clip is a different one, and all share one set of parameters."""
    data = TrainingSet(only("frames", reds, stochastic=False), PUBLISHED, seed=1)
    sample = data.sample(0)
    times = sample.truth[:, 0, 0, 2].astype(int) // 10 % 10
    assert np.diff(times).tolist() == [1] * 5
    for step in sample.degradation.steps:
        fields = msgspec.structs.asdict(step).values()
        assert all(len(set(f)) == 1 for f in fields if isinstance(f, tuple))


def test_crops_and_orientations(reds: Path) -> None:
    """All frames of a clip share one position and orientation. All orientations are equally likely,
    and every position occurs.
    """
    data = clips(only("frames", reds, length=2))
    orientations: Counter[tuple[bool, bool, bool]] = Counter()
    lefts, tops, starts = set(), set(), set()
    count = 400
    for index in range(count):
        truth = data.sample(index).truth.astype(int)
        assert np.array_equal(truth[0, ..., :2], truth[1, ..., :2])
        x, y = truth[0, ..., 0] // 3, truth[0, ..., 1] // 3
        transposed = bool(x[0, 0] != x[1, 0])
        if transposed:
            x, y = x.T, y.T
        orientations[transposed, bool(x[0, 0] > x[0, 1]), bool(y[0, 0] > y[1, 0])] += 1
        lefts.add(int(x.min()))
        tops.add(int(y.min()))
        starts.add(int(truth[0, 0, 0, 2]))
        assert np.ptp(x) == np.ptp(y) == 31
    assert all(abs(n - count / 8) < 5 * sqrt(count / 8 * 7 / 8) for n in orientations.values())
    assert len(orientations) == 8
    assert lefts == set(range(72 - 32 + 1))
    assert tops == set(range(60 - 32 + 1))
    assert starts == {100 * clip + 10 * t for clip in range(2) for t in range(8)}


def test_reduction_averages(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    board = np.indices((80, 80)).sum(axis=0) % 2 * 200
    cv2.imwrite(str(folder / "0.png"), np.stack([board] * 3, axis=-1).astype(np.uint8))
    source = SourceConfig("frames", str(tmp_path), reduction=2)
    data = clips(DataConfig(sources=(source,), length=2, crop=8))
    assert (data.sample(0).truth == 100).all()


# ------------------------------------------------------------------------------------------ footage


def test_any_frame_of_a_video_is_the_one_a_player_shows() -> None:
    """Seeking to any frame gives the same frames as decoding from the start, B-frames included."""
    with av.open(str(SAMPLE)) as container:
        expected = [f.to_ndarray(format="yuv420p").reshape(-1) for f in container.decode(video=0)]
    video = VideoFile(SAMPLE)
    assert video.count == len(expected)
    for start in range(0, video.count - 2, 5):
        for planes, frame in zip(video.decode(start, 3), expected[start:], strict=False):
            assert np.array_equal(planes, frame)
    assert np.array_equal(list(video.decode(video.count - 1, 1)), expected[-1:])


@pytest.mark.parametrize(
    ("name", "encoder", "options"),
    [
        ("pyramid.mp4", "libx264", {"x264-params": "keyint=20:bframes=5:b-pyramid=normal:ref=4"}),
        ("open.mkv", "libx264", {"x264-params": "keyint=12:open-gop=1:bframes=3:scenecut=0"}),
        ("refresh.mp4", "libx264", {"x264-params": "keyint=15:intra-refresh=1"}),
        ("seek.ts", "libx264", {"x264-params": "keyint=20:bframes=3"}),
        ("hevc.mp4", "libx265", {"x265-params": "keyint=15:bframes=4:log-level=none"}),
        ("order.avi", "mpeg4", {"bf": "2", "g": "15"}),
        ("system.mpg", "mpeg2video", {"bf": "2", "g": "15"}),
        ("hidden.webm", "libvpx-vp9", {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "12"}),
        ("dav1d.mkv", "libsvtav1", {"g": "20", "preset": "10", "svtav1-params": "lp=1"}),
    ],
)
def test_clips_begin_anywhere_in_any_coding(
    tmp_path: Path, name: str, encoder: str, options: dict[str, str]
) -> None:
    """The frames match plain decoding bit for bit, although frames on the way are skipped, some key
    frames cannot be decoded alone, and seeking may go too far.
    """
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {encoder}")
    photo, path = make_photo(4), tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(40):
            frame = np.ascontiguousarray(photo[2 * i : 2 * i + 64, 3 * i : 3 * i + 96])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        expected = [f.to_ndarray(format="yuv420p").reshape(-1) for f in container.decode(video=0)]
    video = VideoFile(path)
    assert video.count == len(expected) == 40
    for start in range(0, 38, 3):
        assert np.array_equal(list(video.decode(start, 3)), expected[start : start + 3])


def test_crops_of_a_video_frame_match_the_whole_frame() -> None:
    """Away from its border, a crop has the RGB of the whole frame, at odd offsets too."""
    video = VideoFile(SAMPLE)
    with av.open(str(SAMPLE)) as container:
        whole = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    (planes,) = video.decode(0, 1)
    for top, left in ((0, 0), (31, 77), (180 - 64, 320 - 64)):
        crop = video.cut(planes, Region(top, left, 64, 64)).astype(int)
        expected = whole[top : top + 64, left : left + 64]
        assert crop.shape == (64, 64, 3)
        assert np.abs(crop - expected)[2:-2, 2:-2].max() <= 2


def test_a_cache_changes_no_clip(
    sources: tuple[Path, Path], reds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The frames are the same with a cache, its files are written once, and its use is logged."""
    for kind, path in (("videos", sources[1]), ("photos", sources[0]), ("frames", reds)):
        folder = tmp_path / kind
        plain = clips(only(kind, path))
        with caplog.at_level(logging.INFO):
            cached = clips(only(kind, path, cache=str(folder)))
        assert all(equal(plain.sample(i), cached.sample(i)) for i in range(6))
        files = {f: f.stat().st_mtime_ns for f in folder.iterdir()}
        assert files
        again = clips(only(kind, path, cache=str(folder)))
        assert equal(plain.sample(1), again.sample(1))
        assert files == {f: f.stat().st_mtime_ns for f in folder.iterdir()}
    assert "1 of 1 pieces of footage will be cached" in caplog.text


def test_an_interrupted_cache_is_repaired(reds: Path, tmp_path: Path) -> None:
    """An incomplete file is written again. Partial files abandoned hours ago are removed, but not
    those that another run is writing now, nor other programs' files.
    """
    footage = ImageFiles("000", sorted((reds / "000").iterdir()))
    expected = list(footage.decode(2, 3))
    old, new = (f"{digit * 32}.frames.part" for digit in "01")
    foreign = "film.mkv.part"  # of a browser
    for name, age in ((old, 7200), (new, 0), (foreign, 7200)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    cache = FrameCache(tmp_path, limit=2**30)
    assert {f.name for f in tmp_path.iterdir()} == {new, foreign}
    assert np.array_equal(list(cache.admit(footage).decode(2, 3)), expected)
    (file,) = tmp_path.glob("*.frames")
    os.truncate(file, 1000)
    assert np.array_equal(list(cache.admit(footage).decode(2, 3)), expected)
    assert file.stat().st_size == 8 * 60 * 72 * 3


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="the system has no owners")
def test_a_cache_that_others_can_write_to_is_refused(reds: Path, tmp_path: Path) -> None:
    """They could replace its footage; files that they could have written are written again."""
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(MediaError, match="others can write to it: choose another folder"):
        FrameCache(folder, limit=2**30)
    folder.chmod(0o755)
    footage = ImageFiles("000", sorted((reds / "000").iterdir()))
    expected = list(footage.decode(0, 8))
    cached = FrameCache(folder, limit=2**30).admit(footage)
    list(cached.decode(0, 1))
    (file,) = folder.iterdir()
    file.write_bytes(bytes(file.stat().st_size))
    file.chmod(0o666)
    assert np.array_equal(list(cached.decode(0, 8)), expected)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(file.stat().st_size))
    file.unlink()
    file.symlink_to(secret)
    assert np.array_equal(list(cached.decode(0, 8)), expected)
    assert not any(secret.read_bytes())


def test_a_full_disk_costs_time_only(
    reds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames are read from the footage instead, no file remains, and a warning is logged."""
    footage = ImageFiles("000", sorted((reds / "000").iterdir()))
    cached = FrameCache(tmp_path, limit=2**30).admit(footage)

    def full(source: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for _ in range(2):
        assert np.array_equal(list(cached.decode(0, 3)), list(footage.decode(0, 3)))
    assert not list(tmp_path.iterdir())
    assert caplog.text.count("'000' is not cached: [Errno 28] No space left") == 1


def test_a_cache_folder_that_cannot_be_created(reds: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MediaError, match="cannot create the cache folder"):
        clips(only("frames", reds, cache=str(tmp_path / "file")))


def test_a_cache_stays_within_its_limit(reds: Path, tmp_path: Path) -> None:
    """Footage that does not fit is not admitted, and is read without the cache."""
    footage = [ImageFiles(str(f), sorted(f.iterdir())) for f in sorted(reds.iterdir())]
    size = 8 * 60 * 72 * 3
    cache = FrameCache(tmp_path, limit=size)
    first, second = (cache.admit(f) for f in footage)
    assert second is footage[1]
    for kept, plain in ((first, footage[0]), (second, footage[1])):
        assert np.array_equal(list(kept.decode(3, 4)), list(plain.decode(3, 4)))
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) == size


# ------------------------------------------------------------------------------------------- damage


@pytest.fixture
def damaged(reds: Path, tmp_path: Path) -> Path:
    """Create a copy of the frames with one truncated file in the first folder."""
    for folder in reds.iterdir():
        copy = tmp_path / "damaged" / folder.name
        copy.mkdir(parents=True)
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
    bad = tmp_path / "damaged" / "000" / "00000004.png"
    bad.write_bytes(bad.read_bytes()[:60])
    return tmp_path / "damaged"


def test_damaged_frames_are_skipped_counted_and_named_once(
    damaged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another clip replaces the damaged one, and it is the same clip every time."""
    data, again = clips(only("frames", damaged)), clips(only("frames", damaged))
    samples = [data.sample(i) for i in range(40)]
    bad = str(damaged / "000" / "00000004.png")
    hit = [s for s in samples if s.skipped]
    assert 3 < len(hit) < 40
    assert {path for s in hit for path, _ in s.skipped} == {bad}
    assert data.skipped == {bad: sum(len(s.skipped) for s in samples)}
    assert caplog.text.count("00000004.png") == 1
    assert all(equal(again.sample(i), samples[i]) for i in reversed(range(40)))
    assert again.skipped == data.skipped


def test_a_video_damaged_in_the_middle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Frames before the damage are used, with and without a cache."""
    whole = VideoFile(SAMPLE)
    path = tmp_path / "clips" / "cut.mp4"
    path.parent.mkdir()
    with av.open(str(SAMPLE)) as container:
        stream = container.streams.video[0]
        positions = [(p.pos, p.size) for p in container.demux(stream) if p.size]
    data = bytearray(SAMPLE.read_bytes())
    for pos, size in positions[30:]:
        assert pos is not None
        data[pos : pos + size] = bytes(size)
    path.write_bytes(data)
    cut = VideoFile(path)
    assert np.array_equal(list(cut.decode(3, 4)), list(whole.decode(3, 4)))
    with pytest.raises(DamagedSourceError, match=r"cut\.mp4"):
        list(cut.decode(45, 4))
    plain = clips(only("videos", path.parent))
    cached = clips(only("videos", path.parent, cache=str(tmp_path / "cache")))
    for index in range(6):
        assert equal(plain.sample(index), cached.sample(index))
    assert plain.skipped == cached.skipped
    assert not list((tmp_path / "cache").iterdir())
    assert "is not cached" in caplog.text


def test_sources_with_only_damaged_frames_raise_one_error(damaged: Path) -> None:
    for file in damaged.rglob("*.png"):
        if file.name != "00000000.png":
            file.write_bytes(b"")
    data = clips(only("frames", damaged))
    with pytest.raises(MediaError, match="20 clips in a row could not be read, the last from"):
        data.sample(0)


# ---------------------------------------------------------------------------------------- bad input


def test_no_sources() -> None:
    with pytest.raises(MediaError, match="give at least one source"):
        TrainingSet(DataConfig(sources=()), CLEAN, seed=0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("frames", "contains no image folders"),
        ("videos", "contains no videos"),
        ("photos", "contains no photographs"),
    ],
)
def test_missing_and_empty_folders(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(MediaError, match="does not exist: choose a folder"):
        clips(only(kind, tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(MediaError, match=message):
        clips(only(kind, tmp_path))


def test_a_missing_encoder(reds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported before the first iteration, not during it."""
    data = TrainingSet(only("frames", reds), PUBLISHED, seed=0)
    data.check()

    def missing(name: str, mode: str) -> av.Codec:
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av, "Codec", missing)
    with pytest.raises(MediaError, match="this PyAV build has no encoder 'libx264'"):
        data.check()


def test_clips_that_are_too_short(reds: Path) -> None:
    """With the stochastic scheme, half of the length is enough."""
    clips(only("frames", reds, length=16))
    with pytest.raises(MediaError, match="has 8 frames, but 9 are needed: lower the length"):
        clips(only("frames", reds, length=18))
    with pytest.raises(MediaError, match="has 8 frames, but 16 are needed"):
        clips(only("frames", reds, length=16, stochastic=False))


def test_crops_that_are_too_large(reds: Path, sources: tuple[Path, Path]) -> None:
    clips(only("frames", reds, crop=15))
    with pytest.raises(MediaError, match="72x60, too small for crops of 64x64"):
        clips(only("frames", reds, crop=16))
    with pytest.raises(MediaError, match="300x240, too small for crops of 244x244"):
        clips(only("photos", sources[0], crop=61))


def test_sources_of_damaged_files_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jpg", "b.mp4"):
        (tmp_path / name).write_bytes(b"not media data")
    for kind in ("frames", "videos", "photos"):
        with pytest.raises(MediaError, match="can be decoded: repair or replace"):
            clips(only(kind, tmp_path))
    assert caplog.text.count("b.mp4' is damaged") == 1


def test_footage_that_is_too_short_is_skipped(
    reds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning reports the clips that are too short, and the others are used."""
    for folder in reds.iterdir():
        copy = tmp_path / folder.name
        copy.mkdir()
        for file in sorted(folder.iterdir())[: 8 if folder.name == "001" else 2]:
            (copy / file.name).write_bytes(file.read_bytes())
    data = clips(only("frames", tmp_path))
    assert "skipping 1 of 2 in" in caplog.text
    assert {Path(data.sample(i).source).name for i in range(20)} == {"001"}


@pytest.mark.parametrize("bad", [{"crop": 4}, {"length": 0}, {"parallax": 2.0}, {"crops": 64}])
def test_impossible_configurations_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError, match=next(iter(bad))):
        msgspec.convert({"sources": [], **bad}, DataConfig)


def test_photos_are_read_in_rgb_order(tmp_path: Path) -> None:
    """Pixels keep their place, and channels are in RGB order."""
    photo = make_photo(5)
    cv2.imwrite(str(tmp_path / "p.png"), photo[..., ::-1])
    footage = ImageFiles("p", [tmp_path / "p.png"])
    (planes,) = footage.decode(0, 1)
    assert np.array_equal(planes.reshape(photo.shape), photo)
    part = footage.cut(planes, Region(7, 9, 20, 30))
    assert np.array_equal(part, photo[7:27, 9:39])
