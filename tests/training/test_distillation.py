"""Tests runs that learn from a teacher: images first, then flow, then clips."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.training.clips import to_frames
from rbvsr_deploy.training.config import TrainingConfig, load_config
from rbvsr_deploy.training.data.sources import SourceConfig
from rbvsr_deploy.training.evaluation.metrics import alexnet
from rbvsr_deploy.training.evaluation.metrics.alexnet import load_alexnet_distance
from rbvsr_deploy.training.losses import cleaning_target, gradient_loss, l1, steadiness_loss
from tests.support.teachers import make_layers, write_ncnn
from tests.support.training_runs import SMALL, changed, lines, saved, train

WIDTHS, SIDES = (3, 64, 192, 384, 256, 256), (11, 5, 3, 3, 3)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with the weights of a teacher and of LPIPS."""
    folder = tmp_path_factory.mktemp("files")
    write_ncnn(folder / "teacher.bin", make_layers(seed=0))
    rng = np.random.default_rng(1)
    content: dict[str, object] = {}
    for i, (side, ins, outs) in enumerate(zip(SIDES, WIDTHS, WIDTHS[1:], strict=False)):
        kernel = rng.normal(0, 1 / np.sqrt(side * side * ins), (side, side, ins, outs))
        layer = {"kernel": kernel.astype(np.float32), "bias": np.zeros(outs, np.float32)}
        content.setdefault("AlexNet_0", {})[f"Conv_{i}"] = layer
        head = rng.uniform(0, 1, (1, 1, outs, 1)).astype(np.float32)
        content[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": head}}
    (folder / "alexnet.ckpt").write_bytes(pickle.dumps(content))
    return folder


@pytest.fixture(scope="module")
def taught(clips: list[SourceConfig], files: Path) -> TrainingConfig:
    """Return a recipe with all three phases and every loss; tests share the stored clips."""
    changes = (
        *SMALL,
        "iterations=3",
        "data.length=3",
        "data.stochastic=false",
        "images.iterations=3",
        "images.batch=2",
        "images.crop=16",
        f"distillation.teacher={json.dumps(str(files / 'teacher.bin'))}",
        f"distillation.folder={json.dumps(str(files / 'stored'))}",
        "distillation.share=0.5",
        "distillation.clips=4",
        "distillation.patch=12",
        "losses.gradient_weight=0.5",
        "losses.lpips_weight=0.2",
        "losses.steadiness_weight=0.3",
        f"losses.lpips={json.dumps(str(files / 'alexnet.ckpt'))}",
        "output.keep_every=0",
        "output.pictures_every=0",
    )
    return load_config("tiny-stage1", changes=changes, sources=clips)


@pytest.fixture(scope="module")
def whole(taught: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(taught, output=folder)
    return folder


class CutError(Exception):
    """Raised to simulate a power cut."""


@pytest.mark.slow
def test_phases_follow_each_other_with_their_losses(whole: Path) -> None:
    phases = [(line["phase"], line["iteration"]) for line in lines(whole)]
    names = ("images", "flow", "restoration")
    assert phases == [(name, i) for name in names for i in (1, 2, 3)]
    images, _, clips = (line for line in lines(whole) if line["iteration"] == 1)
    losses = {"pixel", "gradient", "cleaning", "lpips", "gan"}
    assert losses <= images.keys()
    assert "steadiness" not in images
    assert losses | {"steadiness"} <= clips.keys()
    for line in (images, clips):
        parts = [line[name] for name in (*losses, "steadiness") if name in line]
        assert line["loss"] == pytest.approx(sum(parts), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("place", [("images", 2), ("images", 3), ("flow", 1), ("restoration", 2)])
def test_a_run_resumes_exactly_from_every_phase(
    taught: TrainingConfig, whole: Path, tmp_path: Path, place: tuple[str, int]
) -> None:
    """Networks, averages, optimisers and the log are bit-identical."""

    def cut(phase: str, done: int, total: int) -> None:
        if (phase, done) == place:
            raise CutError

    with pytest.raises(CutError):
        train(taught, output=tmp_path, on_step=cut)
    train(taught, output=tmp_path)
    expected, result = saved(whole), saved(tmp_path)
    assert expected.keys() == result.keys()
    assert [name for name in expected if not torch.equal(expected[name], result[name])] == []
    assert lines(tmp_path) == lines(whole)


@pytest.mark.slow
def test_images_leave_the_flow_alone_and_hand_on_their_average(
    taught: TrainingConfig, tmp_path: Path
) -> None:
    """The first phase changes everything but the flow network, and the second phase starts from
    its average.
    """
    states = {}

    def look(phase: str, done: int, total: int) -> None:
        if (phase, done) in (("flow", 1), ("flow", 2)):
            states[phase, done] = saved(tmp_path)

    train(changed(taught, "images.iterations=2"), output=tmp_path, on_step=look)
    # The callback runs before the checkpoint of its iteration: the latest is the previous one.
    after_images, after_flow = states["flow", 1], states["flow", 2]
    flow = "/state_dict/generator.basicvsr.spynet"
    names = [n for n in after_images if n.startswith("/state_dict/generator.")]
    of_images = [n for n in names if not n.startswith(flow)]
    for name in of_images:
        average = name.replace("/generator.", "/generator_ema.")
        assert torch.equal(after_flow[name], after_images[average]), name
        assert torch.equal(after_flow[average], after_images[average]), name
    assert any(not torch.equal(after_images[n], after_flow[n]) for n in of_images)


@pytest.mark.slow
def test_targets_are_the_teacher_mixed_with_the_sharpened_truth(
    taught: TrainingConfig, files: Path, tmp_path: Path
) -> None:
    """The logged losses equal those computed from the clips and weights of the first iteration."""
    from rbvsr_deploy.model import RealBasicVSR
    from rbvsr_deploy.training.networks import build_networks
    from rbvsr_deploy.training.taught import TaughtClips

    config = changed(
        taught,
        "images.iterations=0",
        "flow.iterations=0",
        "losses.gan_weight=0.0",
        'losses.pixel="l1"',
        "distillation.share=0.25",
        "losses.lpips_every=2",
        "iterations=1",
    )
    train(config, output=tmp_path)
    dataset = TaughtClips(config)
    items = [dataset[i][0] for i in range(config.batch)]
    batch = {k: torch.from_numpy(np.stack([item[k] for item in items])) for k in items[0]}
    model: RealBasicVSR = build_networks(config, torch.device("cpu")).generator
    cpu = torch.device("cpu")
    degraded, truth, sharpened, taught_frames = (
        to_frames(batch[k], cpu) for k in ("degraded", "truth", "sharpened", "taught")
    )
    with torch.no_grad():
        cleaned = model.refine(degraded, cleanings=1)
        output = model.propagate(cleaned)
    # In the colours of what is degraded, on average over each clip.
    sharpened, taught_frames = (
        images
        - images.mean(dim=(1, 3, 4), keepdim=True)
        + degraded.mean(dim=(1, 3, 4), keepdim=True)
        for images in (sharpened, taught_frames)
    )
    wanted = 0.75 * sharpened + 0.25 * taught_frames
    distance = load_alexnet_distance(files / "alexnet.ckpt")
    expected = {
        "pixel": l1(output, wanted),
        "gradient": 0.5 * gradient_loss(output, wanted),
        "cleaning": l1(cleaned, cleaning_target(sharpened)),
        "steadiness": 0.3 * steadiness_loss(output, wanted, batch["flow"], batch["known"]),
    }
    (line,) = lines(tmp_path)
    for name, value in expected.items():
        assert line[name] == pytest.approx(value.item(), rel=1e-4), name
    # At one of the offsets against the pixel shuffle.
    ours, theirs = (images.flatten(0, 1)[::2] for images in (output, truth))
    places = itertools.product(range(4), range(4))
    distances = [0.2 * distance(ours[..., y:, x:], theirs[..., y:, x:]).mean() for y, x in places]
    assert any(line["lpips"] == pytest.approx(value.item(), rel=1e-4) for value in distances)


def test_the_lpips_loss_has_finite_gradients(files: Path) -> None:
    """This includes equal and flat images; no gradient reaches the target or the weights."""
    distance = load_alexnet_distance(files / "alexnet.ckpt")
    for images in (torch.rand(2, 3, 48, 64), torch.zeros(2, 3, 48, 48)):
        ours = images.clone().requires_grad_()
        assert distance(images, images).tolist() == [0.0, 0.0]
        loss = distance(ours, (images + 0.1).clamp(max=1.0)).sum()
        loss.backward()
        assert ours.grad is not None
        assert torch.isfinite(ours.grad).all()
        assert ours.grad.abs().max() > 0
    assert all(p.grad is None for p in distance.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("distillation.share=0.0", "need a distillation.share above 0"),
        ("distillation.mixture=1.5", "mixture"),
        ("network.reconstruction_blocks=-1", "must be from 0 to"),
        ("degradation.clean=2.0", "clean"),
    ],
)
def test_recipes_that_do_not_fit_together(
    taught: TrainingConfig, change: str, message: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        changed(taught, change)


def test_missing_weights_are_named_before_anything_is_trained(
    taught: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RbvsrError, match=r"nowhere\.bin' cannot be read"):
        train(changed(taught, 'distillation.teacher="nowhere.bin"'), output=tmp_path)
    with pytest.raises(RbvsrError, match=r"set distillation\.teacher to"):
        train(changed(taught, "distillation.teacher=null"), output=tmp_path)
    monkeypatch.setattr(alexnet, "installed_file", lambda *_: None)
    with pytest.raises(RbvsrError, match=r"losses\.lpips"):
        train(changed(taught, "losses.lpips=null"), output=tmp_path)
    assert not (tmp_path / "latest.pth").exists()
