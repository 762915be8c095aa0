"""Tests ``rbvsr-eval``: the pairing of sequences, its scores, its files and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from rbvsr_deploy.commands.evaluate import evaluate as command
from rbvsr_deploy.training.evaluation.evaluate import Evaluation, SequenceScores, Specimen
from rbvsr_deploy.training.evaluation.metrics.base import CroppedImage, ScoredFrame, luma
from rbvsr_deploy.training.evaluation.metrics.catalogue import METRICS
from rbvsr_deploy.training.evaluation.metrics.fidelity import psnr_y
from rbvsr_deploy.training.evaluation.metrics.resize import enlarge
from rbvsr_deploy.training.evaluation.score_report import _plot, specimen_image
from rbvsr_deploy.training.evaluation.sequences import find_sequences, pair_up
from rbvsr_deploy.video.images import write_image
from tests.training.conftest import make_photo

Image = NDArray[np.uint8]

WIDTH, HEIGHT, LENGTH = 208, 112, 4


def clip(seed: int, *, length: int = LENGTH) -> list[Image]:
    """Simulate a camera that moves over an image."""
    photo = make_photo(seed)
    return [
        np.ascontiguousarray(photo[t : t + HEIGHT, 2 * t : 2 * t + WIDTH]) for t in range(length)
    ]


def reduced(image: Image) -> Image:
    small = cv2.resize(image, (WIDTH // 4, HEIGHT // 4), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def noisy(image: Image, *, seed: int) -> Image:
    noise = np.random.default_rng(seed).normal(0, 5, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def write_frames(folder: Path, images: list[Image]) -> Path:
    """Write an image folder with VideoLQ's file names."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        write_image(folder / f"{number:08}.png", image=image)
    return folder


def write_video(path: Path, images: list[Image]) -> Path:
    """Write a lossless RGB video in Matroska."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="bgr0")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write ``truth``, ``results`` and ``inputs`` of two sequences, "a" shorter than "b"."""
    root = tmp_path_factory.mktemp("footage")
    for number, name in enumerate("ab"):
        truth = clip(number, length=LENGTH - 1 + number)
        write_frames(root / "truth" / name, truth)
        write_frames(root / "inputs" / name, [reduced(image) for image in truth])
        results = [noisy(image, seed=10 * number + t) for t, image in enumerate(truth)]
        write_frames(root / "results" / name, results)
    return root


def call(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def scores(*arguments: object) -> dict[str, Any]:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def refusal(*arguments: object, code: int = 1) -> str:
    """Return the error message, which must be a single sentence."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    return last


# --------------------------------------------------------------------------------------- sequences


def test_every_layout_is_found(tmp_path: Path) -> None:
    """Image folders, videos and folders of both are found; hidden and other files are ignored."""
    frames = write_frames(tmp_path / "set" / "walk_x4", clip(0, length=1))
    video = write_video(tmp_path / "set" / "run.mkv", clip(1, length=1))
    write_frames(tmp_path / "set" / ".hidden", clip(0, length=1))
    (tmp_path / "set" / "notes.txt").write_text("nothing")
    (tmp_path / "set" / "empty").mkdir()
    assert find_sequences(tmp_path / "set") == {"run": video, "walk": frames}
    assert find_sequences(frames) == {"walk": frames}
    assert find_sequences(video) == {"run": video}


def test_single_sequences_belong_together_whatever_their_names(footage: Path) -> None:
    (item,) = pair_up(footage / "results" / "a", truth=footage / "truth" / "b")
    assert item.name == "a"
    assert item.results == footage / "results" / "a"
    assert item.truth == footage / "truth" / "b"
    assert item.inputs is None


# ----------------------------------------------------------------------------------------- figures


def test_scores_are_means_over_sequences_of_means_over_frames(footage: Path) -> None:
    """Sequences count equally whatever their length; frames are scored without the border."""
    found = scores(
        footage / "results", "--truth", footage / "truth", "--metrics", "psnr_y", "--border", 6
    )
    means = []
    for number, name in enumerate("ab"):
        expected = []
        for t, truth in enumerate(clip(number, length=LENGTH - 1 + number)):
            image = CroppedImage(noisy(truth, seed=10 * number + t), border=6)
            expected.append(psnr_y(ScoredFrame(image, CroppedImage(truth, border=6))))
        of_sequence = found["sequences"]["results"][name]
        assert of_sequence["frames"] == list(range(len(expected)))
        assert of_sequence["per_frame"]["psnr_y"] == pytest.approx(expected, abs=1e-9)
        assert of_sequence["means"]["psnr_y"] == pytest.approx(np.mean(expected), abs=1e-9)
        means.append(np.mean(expected))
    assert found["means"] == {"results": {"psnr_y": pytest.approx(np.mean(means), abs=1e-9)}}


def test_the_baseline_is_the_enlarged_input(footage: Path) -> None:
    """It gets the same scores as if it had been given as a result."""
    given = ["--truth", footage / "truth", "--metrics", "psnr_y,warping_error"]
    found = scores(footage / "results", *given, "--input", footage / "inputs")
    assert list(found["means"]) == ["results", "bicubic"]
    large = enlarge(reduced(clip(0)[1]), 4)
    expected = psnr_y(
        ScoredFrame(CroppedImage(large, border=4), CroppedImage(clip(0)[1], border=4))
    )
    here = found["sequences"]["bicubic"]["a"]["per_frame"]
    assert here["psnr_y"][1] == pytest.approx(expected, abs=1e-9)
    assert here["warping_error"][0] is None
    assert here["warping_error"][1] > 0
    without = scores(footage / "results", *given, "--input", footage / "inputs", "--no-baseline")
    assert without["means"] == {"results": found["means"]["results"]}


def test_videos_score_like_folders(footage: Path, tmp_path: Path) -> None:
    """A lossless video and an image folder give the same scores."""
    for name in "ab":
        images = [
            cv2.imread(str(p))[..., ::-1] for p in sorted((footage / "truth" / name).iterdir())
        ]
        write_video(tmp_path / f"{name}.mkv", [np.ascontiguousarray(image) for image in images])
    of_folders, of_videos = (
        scores(footage / "results", "--truth", truth, "--metrics", "psnr_rgb,tof")["means"]
        for truth in (footage / "truth", tmp_path)
    )
    assert of_videos == of_folders


def test_frames_can_be_chosen(footage: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Numbers start at 0; those beyond the end of a sequence are skipped with a warning."""
    given = [footage / "results", "--truth", footage / "truth", "--metrics", "psnr_y"]
    found = scores(*given, "--only-frames", "3,0")
    assert caplog.messages == ["a has only 3 frames: skipping frame 3"]
    assert found["sequences"]["results"]["a"]["frames"] == [0]
    assert found["sequences"]["results"]["b"]["frames"] == [0, 3]
    every_b = scores(*given)["sequences"]["results"]["b"]["per_frame"]["psnr_y"]
    assert found["sequences"]["results"]["b"]["per_frame"]["psnr_y"] == [every_b[0], every_b[3]]


def test_settings_reach_the_engine(footage: Path, tiny_checkpoint: Path) -> None:
    """Scores equal those of ``Upscaler`` with the same settings, and differ from the defaults."""
    from rbvsr_deploy.upscaler import Upscaler

    engine = ["--engine", tiny_checkpoint, "--device", "cpu", "--input", footage / "inputs" / "a"]
    given = [*engine, "--truth", footage / "truth" / "a", "--metrics", "psnr_y", "--no-baseline"]
    options = ["--cleanings", "3", "--lookahead", "0", "--memory", "1GiB", "--no-scene-cuts"]
    truth = clip(0, length=LENGTH - 1)
    settings = {"cleanings": 3, "lookahead": 0, "scene_cuts": False}
    with Upscaler(tiny_checkpoint, device="cpu", **settings) as upscaler:  # type: ignore[arg-type]
        outputs = list(upscaler.frames([reduced(image) for image in truth]))
    expected = [
        psnr_y(ScoredFrame(CroppedImage(output, border=4), CroppedImage(image, border=4)))  # type: ignore[arg-type]
        for output, image in zip(outputs, truth, strict=True)
    ]
    found, without = scores(*given, *options), scores(*given)
    (of_sequence,) = found["sequences"]["results"].values()
    assert of_sequence["per_frame"]["psnr_y"] == pytest.approx(expected, abs=1e-9)
    assert without["means"] != found["means"]
    assert found["settings"]["engine"] == tiny_checkpoint.name
    assert {name: found["settings"][name] for name in settings} == settings


@pytest.mark.slow
def test_inputs_can_be_synthesised_from_the_truth(footage: Path, tiny_checkpoint: Path) -> None:
    """A seed gives the same scores whatever else is scored; another seed gives different ones."""
    engine = ["--engine", tiny_checkpoint, "--device", "cpu", "--degrade", "moderate"]
    given = [*engine, "--metrics", "psnr_y"]
    found = scores(*given, "--truth", footage / "truth", "--seed", "3")
    alone = scores(*given, "--truth", footage / "truth" / "b", "--seed", "3")
    other = scores(*given, "--truth", footage / "truth" / "b", "--seed", "4")
    for method in ("results", "bicubic"):
        assert found["sequences"][method]["b"] == alone["sequences"][method]["b"]
        assert found["sequences"][method]["b"] != other["sequences"][method]["b"]
    assert (found["settings"]["degrade"], found["settings"]["seed"]) == ("moderate", 3)


def test_an_engine_makes_the_results(footage: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Scores equal those of the output of ``rbvsr-run``."""
    from rbvsr_deploy.upscaler import Upscaler

    with Upscaler(tiny_checkpoint, device="cpu") as upscaler:
        for name in "ab":
            upscaler.video(footage / "inputs" / name, tmp_path / f"{name}_x4")
    given = ["--truth", footage / "truth", "--metrics", "psnr_y"]
    written = scores(tmp_path, *given)
    direct = scores(
        "--engine",
        tiny_checkpoint,
        "--device",
        "cpu",
        "--input",
        footage / "inputs",
        *given,
        "--no-baseline",
    )
    assert direct["means"] == written["means"]
    assert direct["sequences"] == written["sequences"]
    given = ["--engine", tiny_checkpoint, "--device", "cpu", "--input", footage / "inputs", *given]
    first = scores(*given, "--no-baseline", "--only-frames", "0")  # given up after a frame of each
    for name, of_sequence in first["sequences"]["results"].items():
        every = written["sequences"]["results"][name]["per_frame"]["psnr_y"]
        assert of_sequence["per_frame"]["psnr_y"] == every[:1]


# ------------------------------------------------------------------------------------------ report


def test_the_report_is_complete_and_reproducible(footage: Path, tmp_path: Path) -> None:
    """It has the JSON, a plot for each sequence, and the worst and the best frame."""
    given = [footage / "results", "--truth", footage / "truth", "--input", footage / "inputs"]
    given += ["--metrics", "psnr_y"]
    outputs = [tmp_path / "one", tmp_path / "two"]
    for output in outputs:
        result = call(*given, "-o", output)
        assert result.exit_code == 0, result.output
    assert "PSNR (Y)" in result.stdout
    assert "bicubic" in result.stdout
    files = [
        {p.relative_to(output).as_posix(): p.read_bytes() for p in output.rglob("*") if p.is_file()}
        for output in outputs
    ]
    assert set(files[0]) == {"scores.json", "worst.png", "best.png", "plots/a.png", "plots/b.png"}
    assert files[0] == files[1]
    found = json.loads(files[0]["scores.json"])
    frames = {
        (name, number): value
        for name, of_sequence in found["sequences"]["results"].items()
        for number, value in enumerate(of_sequence["per_frame"]["psnr_y"])
    }
    for which, extreme in (("worst", min), ("best", max)):
        entry = found[which]
        assert (entry["sequence"], entry["frame"]) == extreme(frames, key=frames.__getitem__)
    image = cv2.imread(str(outputs[0] / "worst.png"))
    assert image is not None
    height = 36 + HEIGHT + 36 + 3 * HEIGHT  # a line of text, the frame, another line, its detail
    assert image.shape == (height, 3 * (3 * HEIGHT) + 2 * 8, 3)


def test_specimen_images_show_the_frame_and_its_detail() -> None:
    """The unchanged frame is below its title, and three enlarged crops show its finest detail."""
    truth = np.full((300, 400, 3), 128, np.uint8)
    truth[200:210:2, 270:280] = 255
    specimen = Specimen("name", 3, 30.0, 20.0, truth // 2, truth // 4, truth)
    image = specimen_image(specimen, which="worst", metric=METRICS["psnr_y"])
    side = (1280 - 2 * 8) // 3 // 3
    width = 3 * 3 * side + 2 * 8
    left = (width - 400) // 2
    assert image.shape == (36 + 300 + 36 + 3 * side, width, 3)
    np.testing.assert_array_equal(image[36:100, left : left + 400], truth[:64] // 2)
    row = image[36 + 300 + 36 :]
    for number, scale in enumerate((4, 2, 1)):  # baseline, result, truth
        crop = row[:, (3 * side + 8) * number :][:, : 3 * side]
        assert crop.max() == 255 // scale
        assert np.sum(crop[..., 0] == 255 // scale) == 9 * 50


def test_large_frames_are_reduced_and_long_titles_too() -> None:
    """A 4K portrait frame fits a page, and its title is not cut off."""
    frame = np.zeros((3840, 2160, 3), np.uint8)
    specimen = Specimen("name " * 40, 3, 30.0, None, frame, None, None)
    image = specimen_image(specimen, which="best", metric=METRICS["niqe"])
    assert image.shape == (36 + 720 + 36 + 3 * 426, 3 * 426, 3)
    title = image[:36]
    assert title.min() < 100
    assert (title[:, -8:] == 255).all()


@pytest.mark.parametrize("frames", [[0], [0, 50, 99], list(range(40))])
def test_plots_take_any_frames_and_names(frames: list[int]) -> None:
    """This includes one frame, chosen frames and many; a metric that is undefined everywhere; and
    names with formula characters, or characters that the font lacks.
    """
    name = r"$\frac 映画$"
    of_sequence = SequenceScores(frames, {"niqe": [1.0] * len(frames), "tof": [None] * len(frames)})
    evaluation = Evaluation(("niqe", "tof"), {"results": {name: of_sequence}})
    plot = cv2.imdecode(np.frombuffer(_plot(evaluation, name) or b"", np.uint8), cv2.IMREAD_COLOR)
    assert plot is not None
    blue = (plot == (180, 119, 31)).all(axis=2)
    assert blue.sum() > 20  # matplotlib's tab:blue


# ---------------------------------------------------------------------------------------- bad input


def test_a_missing_pair_is_named(footage: Path, tmp_path: Path) -> None:
    write_frames(tmp_path / "truth" / "a", clip(0))
    write_frames(tmp_path / "truth" / "c", clip(0))
    error = refusal(footage / "results", "--truth", tmp_path / "truth")
    assert "b of the results has no counterpart in the ground truth" in error


def test_sizes_and_counts_must_agree(footage: Path, tmp_path: Path) -> None:
    """A mismatch is reported before anything is scored."""
    small = write_frames(tmp_path / "small", [reduced(image) for image in clip(0, length=3)])
    error = refusal(footage / "results" / "a", "--truth", small)
    assert "52x28" in error
    assert "208x112" in error
    error = refusal(footage / "results" / "a", "--input", footage / "truth" / "a")
    assert "832x448, enlarged by 4," in error
    error = refusal(footage / "results" / "a", "--truth", footage / "truth" / "b")
    assert "4 frames" in error
    error = refusal(footage / "truth" / "a", "--input", footage / "truth" / "a")  # the same one
    assert "832x448, enlarged by 4," in error


def test_a_video_that_ends_too_soon_is_refused(footage: Path, tmp_path: Path) -> None:
    """The length of a video is known only at its end; no report is written in that case."""
    video = write_video(tmp_path / "a.mkv", clip(0, length=2))
    output = tmp_path / "out"
    error = refusal(
        footage / "results" / "a", "--truth", video, "--metrics", "psnr_y", "-o", output
    )
    assert "ends after 2 frames" in error
    assert not output.exists()


def test_frames_that_are_too_small_for_a_metric_are_reported(footage: Path) -> None:
    """Other metrics are computed; it is an error if there are none, or if no pixels remain."""
    given = [footage / "truth" / "a", "--border", 50]
    named = [*given, "--metrics", "niqe,warping_error"]
    assert "niqe: needs images of 192x96 or larger" in refusal(*named)
    found = scores(*named[:-2], "--truth", footage / "truth" / "a", "--metrics", "niqe,psnr_y")
    assert "the smallest are 108x12" in found["missing"]["niqe"]
    assert list(found["means"]["results"]) == ["psnr_y"]
    error = refusal(footage / "truth" / "a", "--border", 56)
    assert "a border of 56 leaves no pixels of a, which is 208x112" in error


def test_wrong_usage_is_refused(footage: Path, tmp_path: Path) -> None:
    """The exit code is 2, and nothing is opened."""
    results, truth = footage / "results", footage / "truth"
    wrong: dict[str, list[Any]] = {
        "'psnr' is not a metric: use psnr_y": [results, "--metrics", "psnr"],
        "psnr_y needs ground truth": [results, "--metrics", "psnr_y"],
        "successive frames": [results, "--metrics", "warping_error", "--only-frames", "0,2"],
        "use either RESULTS or --engine": [],
        "use either --input, or": ["--engine", tmp_path / "model.plan"],
        "--cleanings needs --engine": [results, "--truth", truth, "--cleanings", "1"],
        "--scene-cuts needs --engine": [results, "--truth", truth, "--no-scene-cuts"],
        "--degrade makes inputs for --engine": [results, "--truth", truth, "--degrade", "clean"],
        "--degrade makes the inputs from the ground truth": [
            "--engine",
            "x.plan",
            "--degrade",
            "clean",
        ],
        "--seed needs --degrade": [results, "--truth", truth, "--seed", "1"],
        "github.com/VQAssessment/DOVER": [results, "--metrics", "dover"],
        "'1-3' is not valid: use frame numbers": [
            results,
            "--truth",
            truth,
            "--only-frames",
            "1-3",
        ],
    }
    for sentence, arguments in wrong.items():
        assert sentence in refusal(*arguments, code=2)


def test_paths_without_frames_are_refused(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "contains no images, videos or image folders" in refusal(tmp_path / "empty")
    assert "does not exist" in refusal(tmp_path / "missing")
    (tmp_path / "text.mp4").write_text("text")
    assert "text.mp4" in refusal(tmp_path / "text.mp4")
    given = ["--truth", footage / "truth", "--metrics", "psnr_y", "--only-frames", "7,9"]
    assert "a has none of the frames 7, 9" in refusal(footage / "results", *given)


def test_a_report_is_not_overwritten_by_default(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    given = [footage / "results" / "a", "--metrics", "warping_error", "-o", tmp_path]
    assert "is not empty" in refusal(*given)
    assert call(*given, "--overwrite").exit_code == 0
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "scores.json").exists()


def test_a_metric_that_cannot_be_computed_is_a_row(
    footage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row says what to install; the metric alone is an error."""
    monkeypatch.setattr(
        "rbvsr_deploy.training.evaluation.metrics.niqe.installed_parameters", lambda: None
    )
    arguments = [footage / "results" / "a", "--metrics", "niqe,warping_error"]
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "mmagic" in result.stdout
    found = scores(*arguments)
    assert "mmagic" in found["missing"]["niqe"]
    assert list(found["means"]["results"]) == ["warping_error"]
    assert "mmagic" in refusal(footage / "results" / "a", "--metrics", "niqe")


def test_luma_is_computed_without_the_border() -> None:
    """The border is removed before luma is computed, not after."""
    image = make_photo(1)
    np.testing.assert_array_equal(CroppedImage(image, border=5).y, luma(image[5:-5, 5:-5]))
