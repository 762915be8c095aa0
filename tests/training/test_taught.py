"""Tests clips that are stored together with the output of a teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.training.config import TrainingConfig, load_config
from rbvsr_deploy.training.data.sources import SourceConfig
from rbvsr_deploy.training.losses import steadiness_loss
from rbvsr_deploy.training.taught import TaughtClips, TaughtImages
from tests.support.teachers import make_layers, write_ncnn
from tests.support.training_runs import SMALL, changed

Arrays = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.bin"
    write_ncnn(path, make_layers(seed=0))
    return path


@pytest.fixture
def taught(clips: list[SourceConfig], teacher_file: Path, tmp_path: Path) -> TrainingConfig:
    changes = (
        *SMALL,
        f"distillation.teacher={json.dumps(str(teacher_file))}",
        f"distillation.folder={json.dumps(str(tmp_path / 'stored'))}",
        "distillation.share=0.5",
        "distillation.clips=3",
        "distillation.patch=12",
        "data.stochastic=false",
        "images.crop=20",
    )
    return load_config("tiny-stage1", changes=changes, sources=clips)


def drawn(dataset: TaughtClips, index: int) -> Arrays:
    item = dataset[index]
    assert not isinstance(item, RbvsrError), item
    return item[0]


def reduced(frames: NDArray[Any]) -> NDArray[np.float32]:
    length, side = len(frames), frames.shape[1] // 4
    blocks = frames.astype(np.float32).reshape(length, side, 4, side, 4, 3)
    return np.asarray(blocks.mean(axis=(2, 4)))


def test_shapes_of_clips_and_images(taught: TrainingConfig) -> None:
    """Both give patches of the stored clips; images have one frame, without flow."""
    clip, image = drawn(TaughtClips(taught), 4), drawn(TaughtImages(taught), 4)
    fine = {"truth": (4, 48, 48, 3), "sharpened": (4, 48, 48, 3), "taught": (4, 48, 48, 3)}
    rest = {"degraded": (4, 12, 12, 3), "flow": (3, 2, 12, 12), "known": (3, 12, 12)}
    assert {k: v.shape for k, v in clip.items()} == {"index": (), **fine, **rest}
    assert {k: v.shape for k, v in image.items()} == {
        "index": (),
        "degraded": (1, 12, 12, 3),
        **{name: (1, *shape[1:]) for name, shape in fine.items()},
    }


def test_a_clip_is_taught_once_and_read_from_then_on(
    taught: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process reads it too; of three clips, number 4 is another patch of number 1."""
    first = TaughtClips(taught)
    before = {index: drawn(first, index) for index in (0, 1, 4)}
    stored = sorted(path.name for path in first.folder.glob("*.safetensors"))
    assert stored == ["000000.safetensors", "000001.safetensors"]

    again = TaughtClips(taught)
    monkeypatch.setattr(again.clips, "sample", None)
    monkeypatch.setattr(again.teacher, "upscale", None)
    for index, arrays in before.items():
        for name, array in drawn(again, index).items():
            np.testing.assert_array_equal(array, arrays[name])
    assert not np.array_equal(before[1]["truth"], before[4]["truth"])


def test_an_interrupted_store_is_continued(taught: TrainingConfig) -> None:
    """A clip that was not written completely is created again, with the same content."""
    dataset = TaughtClips(taught)
    before = drawn(dataset, 1)
    (path,) = dataset.folder.glob("*.safetensors")
    path.rename(path.with_name(".000001.safetensors.x.part"))
    for name, array in drawn(TaughtClips(taught), 1).items():
        np.testing.assert_array_equal(array, before[name])


def test_the_teacher_sees_the_truth_and_the_student_degraded_frames(
    taught: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    dataset = TaughtClips(taught)
    upscale = dataset.teacher.upscale

    def record(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        seen.append(images)
        return upscale(images)

    monkeypatch.setattr(dataset.teacher, "upscale", record)
    sample = dataset.clips.sample(0, stream=dataset.stream)
    stored = dataset._taught(sample)
    np.testing.assert_array_equal(seen[0], np.rint(reduced(sample.truth)).astype(np.uint8))
    np.testing.assert_array_equal(stored["taught"], upscale(seen[0]))
    np.testing.assert_array_equal(stored["degraded"], sample.degraded)
    assert not np.array_equal(seen[0], sample.degraded)


def test_patches_mirrored_and_transposed_still_fit_together(
    taught: TrainingConfig, clips: list[SourceConfig]
) -> None:
    """The reduced ground truth equals the degraded patch if no other degradation is applied, and a
    photograph changes less along the flow than in place.
    """
    clean = load_config(
        "tiny-stage1",
        changes=(
            *SMALL,
            "degradation.preset=clean",
            "data.stochastic=false",
            "data.length=3",
            "data.crop=24",
            "data.max_speed=3.0",
            "data.parallax=0.0",
            f"distillation.teacher={json.dumps(taught.distillation.teacher)}",
            f"distillation.folder={json.dumps(str(taught.distillation.folder) + '-clean')}",
            "distillation.share=0.5",
            "distillation.clips=2",
            "distillation.patch=16",
        ),
        sources=[clip for clip in clips if clip.kind == "photos"],
    )
    dataset = TaughtClips(clean)
    along, in_place, ways = 0.0, 0.0, set()
    for index in range(24):
        arrays = drawn(dataset, index)
        np.testing.assert_allclose(reduced(arrays["sharpened"]), arrays["degraded"], atol=1.0)
        truth = torch.from_numpy(arrays["truth"]).permute(0, 3, 1, 2)[None].float()
        flow, known = (
            torch.from_numpy(arrays["flow"])[None],
            torch.from_numpy(arrays["known"])[None],
        )
        nothing = torch.zeros_like(truth)
        along += steadiness_loss(truth, nothing, flow, known).item()
        in_place += steadiness_loss(truth, nothing, 0 * flow, known).item()
        ways.add(tuple(np.sign(arrays["flow"].mean(axis=(0, 2, 3)))))
    assert along < 0.25 * in_place
    assert len(ways) > 2


def test_footage_has_no_known_flow(taught: TrainingConfig, clips: list[SourceConfig]) -> None:
    videos = tuple(clip for clip in clips if clip.kind == "videos")
    dataset = TaughtClips(
        changed(taught, f'distillation.folder="{taught.distillation.folder}-videos"')
    )
    dataset.clips.sources = [s for s in dataset.clips.sources if s.config in videos]
    dataset.clips._weights = np.ones(1)
    assert not drawn(dataset, 0)["known"].any()


@pytest.mark.parametrize(
    "change", ["data.crop=20", "seed=5", "distillation.mixture=0.5", "degradation.clean=0.5"]
)
def test_clips_of_another_recipe_are_refused(taught: TrainingConfig, change: str) -> None:
    TaughtClips(taught)
    with pytest.raises(RbvsrError, match=r"contains clips of other sources.*distillation\.folder"):
        TaughtClips(changed(taught, change))


def test_changes_that_affect_no_clip_are_accepted(taught: TrainingConfig, tmp_path: Path) -> None:
    TaughtClips(taught)
    for change in (
        "distillation.share=0.5",
        "distillation.clips=5",
        "distillation.patch=8",
        "distillation.share=1.0",
        f'data.cache="{tmp_path / "cache"}"',
        "losses.lpips_weight=0.1",
    ):
        TaughtClips(changed(taught, change))


def test_a_damaged_clip_is_named(taught: TrainingConfig) -> None:
    dataset = TaughtClips(taught)
    drawn(dataset, 2)
    path = dataset.folder / "000002.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    error = dataset[2]
    assert isinstance(error, RbvsrError)
    assert "000002.safetensors' cannot be read" in str(error)
    assert "remove the file" in str(error)


def test_a_clean_share_of_the_clips_is_only_reduced(taught: TrainingConfig) -> None:
    """About half of the clips are only reduced, and the others are degraded as before."""
    half = changed(taught, "degradation.clean=0.5")
    dataset = TaughtClips(changed(half, f'distillation.folder="{taught.distillation.folder}-half"'))
    counts = [len(dataset.clips.sample(i, stream=1).degradation.steps) for i in range(30)]
    assert 5 < sum(count == 1 for count in counts) < 25
    clip = next(
        sample
        for i in range(30)
        if len((sample := dataset.clips.sample(i, stream=1)).degradation.steps) == 1
    )
    side = clip.degraded.shape[1]
    area = [cv2.resize(f, (side, side), interpolation=cv2.INTER_AREA) for f in clip.sharpened]
    np.testing.assert_allclose(clip.degraded, np.stack(area), atol=1.0)
