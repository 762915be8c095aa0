"""Tests that damaged, malformed and unusual inputs, and a failing environment, end in a complete
output or one error sentence.

This is the part of the corpus that is worth running at every change. ``benchmarks/fuzz.py`` runs
all of it, and hundreds of randomly damaged files, through the command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from rbvsr_deploy.errors import MediaError, RbvsrError
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.video import ReadOptions, default_output, open_source
from tests.support import corpus, media
from tests.support.engine_doubles import BicubicEngine
from tests.support.sinks import job_sink
from tests.support.verdict import Outcome, violations

COMMAND = [sys.executable, "-c", "from rbvsr_deploy.commands.run import run; run()"]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return corpus.make_seeds(tmp_path_factory.mktemp("corpus") / "seeds")


@pytest.fixture
def engine() -> BicubicEngine:
    return BicubicEngine()


def run_in_process(path: Path, engine: BicubicEngine) -> Outcome:
    """Return the outcome of ``rbvsr-run PATH --json``, run in this process."""
    try:
        summary = upscale_file(
            path, default_output(path), engine=engine, settings=Settings(memory=2**29)
        )
    except RbvsrError as error:
        return Outcome(1, "", f"Error: {error}")
    return Outcome(0, json.dumps(dataclasses.asdict(summary)), "")


def make_cases(
    kind: Callable[[dict[str, Path]], Iterator[corpus.Recipe]],
    seeds: dict[str, Path],
    folder: Path,
    *,
    name: str = "",
) -> Iterator[tuple[str, Path]]:
    """Yield the cases of a kind whose names contain ``name``, each in its own folder."""
    for number, recipe in enumerate(kind(seeds)):
        if name in recipe.name:
            place = folder / f"{number}"
            place.mkdir()
            yield recipe.name, recipe.make(place)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "every"),
    [(corpus.places, 1), (corpus.contents, 1), (corpus.claims, 3), (corpus.remuxed, 7)],
)
def test_corpus(
    kind: Callable[[dict[str, Path]], Iterator[corpus.Recipe]],
    every: int,
    seeds: dict[str, Path],
    engine: BicubicEngine,
    tmp_path: Path,
) -> None:
    """Names, contents, claims and packets: every case ends in success or in one sentence."""
    failures = {}
    for name, path in itertools.islice(make_cases(kind, seeds, tmp_path), 0, None, every):
        found = violations(run_in_process(path, engine), path=path)
        if found:
            failures[name] = found
        shutil.rmtree(path.parent)
    assert not failures


@pytest.mark.slow
def test_random_damage(seeds: dict[str, Path], engine: BicubicEngine, tmp_path: Path) -> None:
    """Randomly damaged files end in success or in one sentence."""
    failures = {}
    for number, recipe in enumerate(itertools.islice(corpus.random_damage(seeds, 5), 24)):
        place = tmp_path / f"{number}"
        place.mkdir()
        path = recipe.make(place)
        found = violations(run_in_process(path, engine), path=path)
        if found:
            failures[recipe.name] = found
    assert not failures


def test_corpus_is_deterministic(seeds: dict[str, Path], tmp_path: Path) -> None:
    """The same seed damages the same bytes; another seed damages others."""
    digests = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        digest = hashlib.sha256()
        for recipe in itertools.islice(corpus.random_damage(seeds, seed), 60):
            digest.update(recipe.make(folder).read_bytes())
        digests.append(digest.hexdigest())
    assert digests[0] == digests[1] != digests[2]


def read(path: Path, **options: Any) -> tuple[list[int | None], int, int]:
    """Return the timestamps of the frames and the numbers of lost and damaged ones."""
    with open_source(path, ReadOptions(**options)) as source:
        stamps = [frame.pts for frame in source]
        return stamps, source.lost_frames, source.damaged_frames


class TestDamage:
    @pytest.mark.parametrize(
        ("name", "lost", "damaged"),
        [
            ("h264.mkv: noise in three frames", 1, 1),
            ("h264.mkv: a frame cut in half", 1, 0),
            ("h264.mp4: the last frame cut in half", 1, 0),
            ("h264.mp4: the first key frame missing", 5, 0),
            ("hevc.mp4: noise in three frames", 7, 0),
            ("vp9.webm: noise in three frames", 3, 0),
            ("ffv1.mkv: noise in a key frame", 6, 0),
            ("mpeg4.avi: noise in three frames", 0, 3),
            ("prores.mov: a frame cut in half", 1, 0),
        ],
    )
    def test_counted_and_refused_if_strict(
        self, name: str, lost: int, damaged: int, seeds: dict[str, Path], tmp_path: Path
    ) -> None:
        """Lost frames are counted even if the decoder does not report them; the others keep their
        timestamps.
        """
        ((_, path),) = make_cases(corpus.remuxed, seeds, tmp_path, name=name)
        whole, *_ = read(seeds[path.name])
        stamps, found_lost, found_damaged = read(path)
        assert (found_lost, found_damaged) == (lost, damaged)
        missing = 1 if "first" in name else 0
        assert len(stamps) + lost + missing == len(whole) == corpus.FRAMES
        assert set(stamps) <= set(whole)
        with pytest.raises(MediaError, match=r"^frame \d+ of .* or turn strict off"):
            read(path, strict=True)

    @pytest.mark.slow
    def test_nothing_is_counted_in_undamaged_files(self, seeds: dict[str, Path]) -> None:
        """Strict reading accepts them, too."""
        for name, path in seeds.items():
            frames = 1 if path.stem == "image" else corpus.FRAMES
            for strict in (False, True):
                stamps, lost, damaged = read(path, strict=strict)
                assert (len(stamps), lost, damaged) == (frames, 0, 0), name

    def test_a_run_reports_damage(
        self,
        seeds: dict[str, Path],
        engine: BicubicEngine,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The summary has the counts, and a warning gives them once."""
        ((_, path),) = make_cases(
            corpus.remuxed, seeds, tmp_path, name="h264.mkv: noise in three frames"
        )
        with caplog.at_level(logging.WARNING):
            summary = upscale_file(path, tmp_path / "out.mkv", engine=engine)
        assert (summary.frames, summary.lost_frames, summary.damaged_frames) == (11, 1, 1)
        assert caplog.text.count("that are left out: 1") == 1
        assert caplog.text.count("that are kept: 1") == 1

    def test_a_strict_run_publishes_nothing(
        self, seeds: dict[str, Path], engine: BicubicEngine, tmp_path: Path
    ) -> None:
        ((_, path),) = make_cases(
            corpus.remuxed, seeds, tmp_path, name="vp9.webm: a frame cut in half"
        )
        out = tmp_path / "out.mkv"
        with pytest.raises(MediaError, match="frame 6 of"):
            upscale_file(path, out, engine=engine, reading=ReadOptions(strict=True))
        assert not out.exists()


class TestCutOff:
    @pytest.mark.parametrize(
        "name",
        ["faststart.mp4", "fragments.mp4", "h264.mkv", "vp9.webm", "mpeg4.avi", "y4m.y4m"],
    )
    def test_readable_part_can_be_read(
        self, name: str, seeds: dict[str, Path], tmp_path: Path
    ) -> None:
        """The error gives a number of frames that can be read."""
        path = tmp_path / name
        path.write_bytes(seeds[name].read_bytes()[: seeds[name].stat().st_size * 3 // 4])
        with pytest.raises(
            MediaError, match=r"cut off: only \d+ of its .*number of frames to \d+$"
        ) as caught:
            read(path)
        frames = int(str(caught.value).rsplit(" ", 1)[1])
        assert 3 < frames < corpus.FRAMES
        stamps, *_ = read(path, frames=frames)
        assert frames - 1 <= len(stamps) <= frames  # the last packet may only be a reference
        with pytest.raises(MediaError, match="cut off"):
            read(path, frames=corpus.FRAMES + 1)

    def test_an_excerpt_of_the_readable_part(self, seeds: dict[str, Path], tmp_path: Path) -> None:
        path = tmp_path / "cut.mkv"
        path.write_bytes(seeds["h264.mkv"].read_bytes()[:-1000])
        assert len(read(path, end=Fraction(9, 100))[0]) == 3
        with pytest.raises(MediaError, match="cut off"):
            read(path, end=Fraction(10))


class TestSize:
    @pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only on Linux")
    def test_claims_take_no_memory(self, tmp_path: Path) -> None:
        """A file of a few kilobytes that decodes to 430 MB is refused before memory is taken."""
        path = tmp_path / "bomb.png"
        path.write_bytes(corpus.black_png(12_000, 12_000))
        code = (
            "import re, sys; from pathlib import Path\n"
            "from rbvsr_deploy.video import open_source\n"
            "from rbvsr_deploy.errors import MediaError\n"
            "try: open_source(Path(sys.argv[1]))\n"
            "except MediaError as error: print(error)\n"
            "status = Path('/proc/self/status').read_text()\n"
            "print(int(re.search('VmHWM: *([0-9]+)', status.expandtabs())[1]) // 1024)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
        )
        sentence, peak = done.stdout.strip().splitlines()
        assert "has more than 44,739,242 pixels" in sentence
        assert int(peak) < 300

    def test_widths_that_x265_cannot_encode(self, tmp_path: Path) -> None:
        """They are refused, as x265 would write beyond its buffers."""
        path = media.make_video(tmp_path / "in.mkv", codec="ffv1", size=(12, 8), stamps=[0])
        with (
            open_source(path) as source,
            pytest.raises(MediaError, match="libx265 cannot encode a width of 48 pixels"),
            job_sink(tmp_path / "out.mkv", source=source, width=48, height=32, codec="libx265"),
        ):
            pass

    def test_one_frame_too_large_is_lost(self, seeds: dict[str, Path], tmp_path: Path) -> None:
        """A frame with a damaged header does not end the video."""
        ((_, path),) = make_cases(
            corpus.claims, seeds, tmp_path, name="prores.mov claims 60000x60000 in a frame"
        )
        stamps, lost, _ = read(path)
        assert (len(stamps), lost) == (corpus.FRAMES - 1, 1)


def run(
    *arguments: object, limit: int | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command. A file size limit in bytes stands in for a full disk."""

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [*COMMAND, *map(str, arguments), "--device", "cpu"],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        preexec_fn=restrict,
        **options,
    )


class TestEnvironment:
    @pytest.mark.slow
    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only on Linux")
    @pytest.mark.parametrize("option", ["--json", "--verbose"])
    def test_result_cannot_be_printed(
        self, option: str, seeds: dict[str, Path], tiny_bundle: Path, tmp_path: Path
    ) -> None:
        """The output is complete, and the exit status shows that something went wrong."""
        with open("/dev/full", "w") as full:
            done = run(
                seeds["h264.mp4"],
                *("-o", tmp_path / "out.mp4", "--engine", tiny_bundle, option),
                stdout=full,
            )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("Error: ")
        assert "No space left on device" in last
        assert len(media.stamps_of(tmp_path / "out.mp4")) == corpus.FRAMES

    @pytest.mark.slow
    def test_standard_output_is_closed(self, seeds: dict[str, Path], tiny_bundle: Path) -> None:
        """A reader like ``| head`` causes no traceback and no hanging thread."""
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = run(seeds["h264.mp4"], "-o", "-", "--engine", tiny_bundle, stdout=writing)
        finally:
            os.close(writing)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "Broken pipe" in done.stderr.strip().splitlines()[-1]

    @pytest.mark.slow
    def test_full_disk_in_the_final_join(
        self, seeds: dict[str, Path], tiny_bundle: Path, tmp_path: Path
    ) -> None:
        """If the parts fit but the joined file does not, the run ends in one sentence. With more
        space, the same command completes the output without recomputing a frame.
        """
        clip = tmp_path / "clip.mp4"
        media.make_video(clip, stamps=[1001 * n for n in range(60)], size=(64, 48), audio="aac")
        cuts = tmp_path / "cuts.txt"
        cuts.write_text("48\n")
        options = ("-o", tmp_path / "out.mp4", "--engine", tiny_bundle, "--scene-list", cuts)
        whole = run(clip, *options, stdout=subprocess.DEVNULL)
        assert whole.returncode == 0, whole.stderr
        size = (tmp_path / "out.mp4").stat().st_size
        (tmp_path / "out.mp4").unlink()
        done = run(clip, *options, limit=size - 500, stdout=subprocess.DEVNULL)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 1
        assert last.startswith("Error: cannot ")
        assert "File too large" in last
        assert not (tmp_path / "out.mp4").exists()
        again = run(clip, *options, stdout=subprocess.DEVNULL)
        assert again.returncode == 0, again.stderr
        assert "60 frames are done already" in again.stderr
        assert len(media.stamps_of(tmp_path / "out.mp4")) == 60
        assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "cuts.txt", "out.mp4"}

    def test_output_folder_vanishes(
        self, seeds: dict[str, Path], engine: BicubicEngine, tmp_path: Path
    ) -> None:
        """The folder is deleted during the run."""
        folder = tmp_path / "place"
        folder.mkdir()

        def remove(*progress: object) -> None:
            shutil.rmtree(folder, ignore_errors=True)

        with pytest.raises(MediaError, match=r"cannot|was removed") as caught:
            upscale_file(seeds["h264.mp4"], folder / "out.mp4", engine=engine, progress=remove)
        assert "\n" not in str(caught.value)
        with contextlib.suppress(FileNotFoundError):
            assert not any(folder.iterdir())
