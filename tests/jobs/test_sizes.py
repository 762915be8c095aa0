"""Tests jobs whose output has another size than four times the input's."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.errors import MediaError, RbvsrError
from rbvsr_deploy.jobs.batch import was_finished
from rbvsr_deploy.jobs.identity import job_identity
from rbvsr_deploy.jobs.preview import write_preview
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.runtime.output_size import OutputSize
from rbvsr_deploy.runtime.scenes import SceneCuts
from rbvsr_deploy.runtime.settings import Settings
from rbvsr_deploy.video import ReadOptions, WriteOptions, open_source
from tests.support.media import gradient, make_video, read_still, write_still
from tests.support.tensorrt_double import small_bundle

QUARTER_TURN = (0, 1, -1, 0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    bundle = small_bundle(tmp_path_factory.mktemp("bundle") / "small.plan")
    with open_engine(bundle.path, device="cpu") as engine:
        yield engine


def stream_of(path: Path) -> tuple[int, int, Fraction | None]:
    """Return width, height and pixel aspect ratio as written in a file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.width, stream.height, stream.sample_aspect_ratio


def mean_difference(output: Path, expected: Path) -> float:
    """Return the mean difference of two outputs, the second enlarged or reduced to the first."""
    with open_source(output) as made, open_source(expected) as wanted:
        got, want = next(iter(made)).image, next(iter(wanted)).image
        frame = av.VideoFrame.from_ndarray(want, format="rgb24")
        small = frame.reformat(width=made.width, height=made.height, interpolation="AREA")
        return float(np.abs(got.astype(int) - small.to_ndarray()).mean())


@pytest.mark.parametrize(
    ("size", "made", "expected"),
    [
        ({"scale": 2}, {"aspect": Fraction(16, 15)}, (128, 96, Fraction(16, 15))),
        ({"height": 180}, {"aspect": Fraction(16, 15)}, (256, 180, Fraction(1))),
        ({"size": (160, 90)}, {"aspect": Fraction(4, 3)}, (160, 90, Fraction(1))),
        ({"size": (161, 91)}, {}, (120, 90, None)),
        ({"scale": 1.5}, {"matrix": QUARTER_TURN}, (72, 96, None)),
        ({"height": 100}, {"matrix": QUARTER_TURN}, (76, 100, None)),
    ],
)
def test_videos(
    size: dict[str, Any],
    made: dict[str, Any],
    expected: tuple[int, int, Fraction | None],
    engine: Engine,
    tmp_path: Path,
) -> None:
    """The size is exact, upright and even, pixels have the right shape, and the content is that of
    the usual output.
    """
    suffix = ".mp4" if "matrix" in made else ".mkv"
    source = make_video(tmp_path / f"in{suffix}", stamps=[0, 1001, 2002], **made)
    lossless = WriteOptions(codec="libx264", crf=0)
    output, usual = tmp_path / f"out{suffix}", tmp_path / f"usual{suffix}"
    summary = upscale_file(source, output, engine=engine, size=OutputSize(**size), writing=lossless)
    upscale_file(source, usual, engine=engine, writing=lossless)
    width, height, aspect = stream_of(output)
    assert (width, height, aspect or None) == expected
    assert (summary.width, summary.height) == expected[:2]
    assert mean_difference(output, usual) < 2


def test_cover_shows_the_middle(engine: Engine, tmp_path: Path) -> None:
    """The cropped rows are those of the middle: dark bars above and below disappear."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[6:42] = 200
    source = write_still(tmp_path / "bars.png", image)
    covered, inside = tmp_path / "cover.png", tmp_path / "inside.png"
    for fit, path in (("cover", covered), ("inside", inside)):
        size = OutputSize(size=(64, 32), fit=fit)  # type: ignore[arg-type]
        upscale_file(source, path, engine=engine, size=size, settings=Settings(cleanings=0))
    assert read_still(covered).shape == (32, 64, 3)
    assert read_still(covered)[[0, -1]].mean() > read_still(inside)[[0, -1]].mean() + 100


def test_image_folders_keep_odd_sizes_and_depth(engine: Engine, tmp_path: Path) -> None:
    """Nothing is rounded to an even size where no pixel format asks for it; 16 bits stay."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        image = gradient(i, width=31, height=21).astype(np.uint16) * 257
        write_still(folder / f"{i}.png", image)
    output = tmp_path / "out"
    upscale_file(folder, output, engine=engine, size=OutputSize(scale=1.5))
    for i in range(3):
        image = read_still(output / f"{i}.png")
        assert image.shape == (32, 47, 3)
        assert image.dtype == np.uint16
        assert len(np.unique(image % 257)) > 100


def test_alpha_is_resized_too(engine: Engine, tmp_path: Path) -> None:
    """It has the output's size, and its edge stays where it was."""
    image = np.full((20, 30, 4), 255, np.uint8)
    image[:, :15, 3] = 0
    source = write_still(tmp_path / "in.png", image)
    output = tmp_path / "out.png"
    reading = ReadOptions(alpha="keep")
    upscale_file(source, output, engine=engine, size=OutputSize(scale=2), reading=reading)
    alpha = read_still(output)[..., 3]
    assert alpha.shape == (40, 60)
    assert alpha[:, :28].max() < 20
    assert alpha[:, 32:].min() > 235


def test_an_odd_size_that_cannot_be_written(engine: Engine, tmp_path: Path) -> None:
    """It is refused before any work, and possible in 4:4:4."""
    source = make_video(tmp_path / "in.mp4", stamps=[0, 1001])
    output = tmp_path / "out.mp4"
    size = OutputSize(height=101)
    with pytest.raises(RbvsrError, match="134x101 cannot be written"):
        upscale_file(source, output, engine=engine, size=size)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
    upscale_file(source, output, engine=engine, size=size, writing=WriteOptions(pix_fmt="yuv444p"))
    assert stream_of(output)[:2] == (135, 101)


def test_the_size_is_part_of_the_jobs_identity(engine: Engine, tmp_path: Path) -> None:
    """Also where the number of pixels is the same; without one, older jobs are continued."""

    def identity(size: OutputSize) -> dict[str, str]:
        return job_identity(
            tmp_path,
            engine=engine,
            settings=Settings(),
            size=size,
            reading=ReadOptions(),
            cuts=SceneCuts(None, detect=True),
        )

    usual = identity(OutputSize())
    sizes = [OutputSize(size=(64, 64), fit=fit) for fit in ("inside", "cover", "stretch")]
    assert len({str(identity(size)) for size in sizes} | {str(usual)}) == 4
    assert "size of the output" not in usual


def test_a_finished_output_is_recognised(engine: Engine, tmp_path: Path) -> None:
    """In a batch that is continued, an even size belongs to an odd one."""
    images = [gradient(i, width=62, height=46) for i in range(2)]
    source = make_video(tmp_path / "in.mp4", images=images, size=(62, 46), stamps=[0, 1001])
    size, output = OutputSize(scale=1.5), tmp_path / "out.mp4"
    upscale_file(source, output, engine=engine, size=size)
    assert stream_of(output)[:2] == (94, 70) or stream_of(output)[:2] == (92, 70)
    assert was_finished(source, output, ReadOptions(), size)
    assert not was_finished(source, output, ReadOptions())
    assert not was_finished(source, output, ReadOptions(), OutputSize(scale=2))


def test_reports_show_the_same_part(engine: Engine, tmp_path: Path) -> None:
    """Before and after have one size where the output is cropped, and so has a preview."""
    source = make_video(tmp_path / "in.mp4", stamps=[0, 1001, 2002])
    size = OutputSize(size=(96, 48), fit="cover")
    image, page = tmp_path / "both.png", tmp_path / "page.html"
    upscale_file(
        source, tmp_path / "out.mp4", engine=engine, size=size, before_after=image, page=page
    )
    both = read_still(image)
    assert both.shape == (48, 2 * 96 + 16, 3)
    assert np.abs(both[:, :96].astype(int) - both[:, -96:]).mean() < 30
    assert "64×48" in page.read_text(encoding="utf-8")
    preview = write_preview(source, tmp_path / "p.html", count=1, engine=engine, size=size)
    assert (preview.width, preview.height) == (96, 48)


def test_a_pipe_gets_an_even_size(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """y4m is 4:2:0 unless another pixel format is asked for, which is checked before the work."""
    images = [gradient(i, width=62, height=46) for i in range(2)]
    source = make_video(tmp_path / "in.mp4", images=images, size=(62, 46), stamps=[0, 1001])
    with open_source(source) as opened:
        from rbvsr_deploy.video import output_multiple

        assert output_multiple(Path("-"), source=opened) == (2, 2)
        wide = WriteOptions(pix_fmt="yuv422p10le")
        assert output_multiple(Path("-"), source=opened, options=wide) == (1, 2)
        with pytest.raises(MediaError, match="'rgb24' cannot be piped"):
            output_multiple(Path("-"), source=opened, options=WriteOptions(pix_fmt="rgb24"))
