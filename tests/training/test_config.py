"""Tests the defaults of recipes, the order of overrides, and the errors for wrong recipes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.model import COMPACT, PUBLISHED
from rbvsr_deploy.training.config import load_config
from rbvsr_deploy.training.data.sources import SourceConfig
from rbvsr_deploy.training.degradations import config as degradation_config
from rbvsr_deploy.training.presets import PRESETS

CLIPS = [SourceConfig(kind="videos", path="clips")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a=" + b"[" * 5000, "is not valid TOML: maximum recursion depth exceeded"),
        # Pythons without a limit for the digits of a number read it, and then it is too large.
        (b"iterations = " + b"9" * 5000, "is not valid TOML: Exceeds the limit|expected int <="),
        (b"a = 'b", "is not valid TOML"),
        (b"\xff\xfe", "cannot be read"),
        (b"#" * 2**17, "is not a file of at most 64 KiB"),
    ],
)
def test_recipes_that_are_not_toml(content: bytes, message: str, tmp_path: Path) -> None:
    """They are refused in one sentence; as the value of a change, the same is a string."""
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(RbvsrError, match=message) as refused:
        load_config(str(path), sources=CLIPS)
    assert "\n" not in str(refused.value)
    value = content.decode("utf-8", "replace").partition("=")[2]
    with pytest.raises(RbvsrError):
        load_config("tiny-stage1", changes=[f"iterations={value}"], sources=CLIPS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes need a POSIX system")
def test_recipes_that_have_no_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    for name in ("pipe.toml", "zero.toml"):
        with pytest.raises(RbvsrError, match="is not a file of at most 64 KiB"):
            load_config(str(tmp_path / name), sources=CLIPS)


def test_published_presets_are_the_published_recipe() -> None:
    """They have every value of section 3 of the published configurations."""
    one, two = (load_config(f"published-stage{i}", sources=CLIPS) for i in (1, 2))
    for config in (one, two):
        assert config.network == PUBLISHED
        assert config.degradation == degradation_config.PUBLISHED
        assert (config.data.length, config.data.crop, config.data.stochastic) == (30, 64, True)
        assert config.optimizer.betas == (0.9, 0.99)
        assert config.optimizer.ema_decay == 0.999
        assert (config.optimizer.schedule, config.optimizer.warm_up) == ("constant", 0)
        assert config.optimizer.clip_norm is None
        assert config.flow.factor == 0.0
        assert config.losses.pixel == "l1"
        assert (config.losses.pixel_weight, config.losses.cleaning_weight) == (1.0, 1.0)
    assert (one.iterations, one.batch, one.optimizer.learning_rate) == (300_000, 2, 1e-4)
    assert (one.losses.perceptual_weight, one.losses.gan_weight) == (0.0, 0.0)
    assert (two.iterations, two.batch, two.optimizer.learning_rate) == (150_000, 1, 5e-5)
    assert two.optimizer.discriminator_learning_rate == 1e-4
    assert (two.losses.perceptual_weight, two.losses.gan_weight) == (1.0, 0.05)
    assert two.losses.perceptual_layers == {
        "conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0
    }  # fmt: skip
    assert two.discriminator_channels == 64


@pytest.mark.parametrize("name", PRESETS)
def test_both_stages_of_a_preset_are_the_same_network(name: str) -> None:
    """Every preset is a valid recipe; a second stage fits the first stage of its size."""
    config = load_config(name, sources=CLIPS)
    size, _, stage = name.partition("-")
    assert config.network == load_config(f"{size}-stage1", sources=CLIPS).network
    assert bool(config.losses.gan_weight) == (stage == "stage2" and size != "compact")


def test_a_preset_is_a_file_to_edit(tmp_path: Path) -> None:
    """The output of ``--print``, saved to a file, is the same recipe, and can be edited."""
    file = tmp_path / "mine.toml"
    text = PRESETS["compact-stage1"].read_text()
    file.write_text(text)
    assert load_config(str(file), sources=CLIPS) == load_config("compact-stage1", sources=CLIPS)
    file.write_text(text.replace("crop = 64", "crop = 56"))
    assert load_config(str(file), sources=CLIPS).data.crop == 56


def test_changes_and_presets_of_sections() -> None:
    """Changes override the file, and the values of a section override those of its preset."""
    config = load_config(
        "compact-stage1",
        changes=[
            "network.mid_channels=16",
            "losses.pixel=l1",
            'flow.weights="spynet.pth"',
            "degradation.first.video.probability=0.5",
            "optimizer.betas=[0.5, 0.9]",
        ],
        sources=CLIPS,
    )
    assert config.network.mid_channels == 16
    assert config.network.flow_channels == COMPACT.flow_channels
    assert config.losses.pixel == "l1"
    assert config.flow.weights == "spynet.pth"
    assert config.degradation.first.video.probability == 0.5
    assert config.degradation.first.jpeg == degradation_config.MODERATE.first.jpeg
    assert config.optimizer.betas == (0.5, 0.9)
    assert config.data.sources == tuple(CLIPS)


REFUSED = {
    "data.crp=3": r"data\.crp is not a known key: in data allowed are .*did you mean crop",
    "speed=3": "speed is not a known key: allowed are .*iterations",
    "data.crop=abc": r"data\.crop: expected int, got str",
    "data.crop=4": r"data\.crop: expected int >= 8",
    "iterations=0": "iterations: expected int >= 1",
    f"iterations={10**30}": "iterations: expected int <= 1000000000",
    f"seed={2**32}": "seed: expected int <= 4294967295",
    "workers=1000": "workers: expected int <= 256",
    f"network.flow_levels={10**30}": "network.flow_levels must be from 1 to 12",
    "losses.pixel=l2": r"losses\.pixel: .*'l2', allowed are charbonnier, l1",
    "precision=half": "precision: .*'half', allowed are bfloat16, float16, float32",
    "flow=3": "flow: expected table, got int",
    "data=3": "data: expected table, got int",
    "optimizer.betas=[1, 2]": r"optimizer\.betas\[0\]: expected float < 1\.0",
    "network.preset=big": r"network\.preset is 'big': allowed are published, compact",
    "network.mid=3": r"network\.mid is not a known key: in network allowed are mid_channels",
    "network.mid_channels=0": r"network\.mid_channels must be from 1 to 4096, got 0",
    "degradation.first.blur.sigma.low=9": r"blur\.sigma: a range must have low <= high, got 9",
    "degradation.first.blur.kinds.soft=1": r"blur\.kinds: .*'soft', allowed are anisotropic",
    "degradation.first.video.codecs=[{encodr='x'}]": r"codecs\[0\]\.encodr is not a.*encoder",
    "data.sources=[{kind='clips', path='a'}]": r"data\.sources\[0\]\.kind: .*frames, photos, video",
    "data.sources=[{kind='photos'}]": r"data\.sources\[0\]\.path is missing",
    "data.sources=[]": r"nothing to train on.*data\.sources",
    "losses.perceptual_layers={conv9_9=1.0}": r"_layers: .*'conv9_9', allowed are conv1_1",
    "iterations": "'iterations' is not a valid change: use section.key=value",
    "iterations.x=1": "cannot be applied: iterations is not a section",
}


@pytest.mark.parametrize(("change", "message"), REFUSED.items())
def test_a_wrong_recipe_is_refused_in_one_sentence(change: str, message: str) -> None:
    """The message names the key and what is allowed."""
    sources = () if change.startswith("data.sources") else CLIPS
    with pytest.raises(RbvsrError, match=message) as error:
        load_config("tiny-stage1", changes=[change], sources=sources)
    assert "\n" not in str(error.value)


def test_contradictory_recipes() -> None:
    """Values that are valid on their own but not together are refused."""
    for changes, message in (
        (("losses.gan_weight=0.05", "data.crop=33"), r"data\.crop must be even, got 33"),
        (("losses.perceptual_weight=1", "losses.perceptual_layers={}"), "needs a layer in"),
        (("network.flow_kernel=4",), r"network\.flow_kernel must be odd, got 4"),
    ):
        with pytest.raises(RbvsrError, match=message):
            load_config("tiny-stage1", changes=changes, sources=CLIPS)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    """A missing file, invalid TOML and an unknown preset are refused."""
    with pytest.raises(RbvsrError, match="cannot be read"):
        load_config(str(tmp_path / "none.toml"))
    damaged = tmp_path / "damaged.toml"
    damaged.write_text("iterations = = 3")
    with pytest.raises(RbvsrError, match="is not valid TOML"):
        load_config(str(damaged))
    with pytest.raises(RbvsrError, match=r"'huge' is neither .* presets are compact-stage1"):
        load_config("huge")
