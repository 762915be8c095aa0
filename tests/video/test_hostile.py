"""Inputs that are damaged, false or uncommon, and an environment that fails: the end is a whole
output or one sentence.

The part of the corpus that is worth repeating at every change; ``benchmarks/fuzz.py`` runs all of
it, and hundreds of files damaged at random, through the command.
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


def ending(path: Path, engine: BicubicEngine) -> Outcome:
    """Of ``rbvsr-run PATH --json``, in this process."""
    try:
        summary = upscale_file(
            path, default_output(path), engine=engine, settings=Settings(memory=2**29)
        )
    except RbvsrError as error:
        return Outcome(1, "", f"Error: {error}")
    return Outcome(0, json.dumps(dataclasses.asdict(summary)), "")


def made(
    kind: Callable[[dict[str, Path]], Iterator[corpus.Recipe]],
    seeds: dict[str, Path],
    folder: Path,
    *,
    wanted: str = "",
) -> Iterator[tuple[str, Path]]:
    """The cases of a kind whose name holds something, each in a folder of its own."""
    for number, recipe in enumerate(kind(seeds)):
        if wanted in recipe.name:
            place = folder / f"{number}"
            place.mkdir()
            yield recipe.name, recipe.make(place)


@pytest.mark.parametrize(
    ("kind", "every"),
    [(corpus.places, 1), (corpus.contents, 1), (corpus.claims, 3), (corpus.remuxed, 7)],
)
def test_corpus(kind, every, seeds, engine, tmp_path):
    """Names, contents, claims and packets: no case ends in anything but success or one sentence."""
    wrong = {}
    for name, path in itertools.islice(made(kind, seeds, tmp_path), 0, None, every):
        found = violations(ending(path, engine), path=path)
        if found:
            wrong[name] = found
        shutil.rmtree(path.parent)
    assert not wrong


def test_random_damage(seeds, engine, tmp_path):
    """The same for some files damaged at random."""
    wrong = {}
    for number, recipe in enumerate(itertools.islice(corpus.random_damage(seeds, 5), 24)):
        place = tmp_path / f"{number}"
        place.mkdir()
        path = recipe.make(place)
        found = violations(ending(path, engine), path=path)
        if found:
            wrong[recipe.name] = found
    assert not wrong


def test_corpus_is_deterministic(seeds, tmp_path):
    """The same seed damages the same bytes, another seed others."""
    digests = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        digest = hashlib.sha256()
        for recipe in itertools.islice(corpus.random_damage(seeds, seed), 60):
            digest.update(recipe.make(folder).read_bytes())
        digests.append(digest.hexdigest())
    assert digests[0] == digests[1] != digests[2]


def read(path: Path, **options: object) -> tuple[list[int | None], int, int]:
    """Time stamps of the frames, and how many were lost and damaged."""
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
    def test_counted_and_refused_where_strict(self, name, lost, damaged, seeds, tmp_path):
        """Frames that do not come out are counted, also where the decoder is silent about them; the
        others keep their time stamps.
        """
        ((_, path),) = made(corpus.remuxed, seeds, tmp_path, wanted=name)
        whole, *_ = read(seeds[path.name])
        stamps, found_lost, found_damaged = read(path)
        assert (found_lost, found_damaged) == (lost, damaged)
        missing = 1 if "first" in name else 0
        assert len(stamps) + lost + missing == len(whole) == corpus.FRAMES
        assert set(stamps) <= set(whole)
        with pytest.raises(MediaError, match=r"^frame \d+ of .* or turn strict off"):
            read(path, strict=True)

    def test_nothing_is_counted_in_whole_files(self, seeds):
        """Nor refused where strict."""
        for name, path in seeds.items():
            frames = 1 if path.stem == "picture" else corpus.FRAMES
            for strict in (False, True):
                stamps, lost, damaged = read(path, strict=strict)
                assert (len(stamps), lost, damaged) == (frames, 0, 0), name

    def test_a_run_tells(self, seeds, engine, tmp_path, caplog):
        """The summary has the counts, and a warning says them once."""
        ((_, path),) = made(
            corpus.remuxed, seeds, tmp_path, wanted="h264.mkv: noise in three frames"
        )
        with caplog.at_level(logging.WARNING):
            summary = upscale_file(path, tmp_path / "out.mkv", engine=engine)
        assert (summary.frames, summary.lost_frames, summary.damaged_frames) == (11, 1, 1)
        assert caplog.text.count("that are left out: 1") == 1
        assert caplog.text.count("that are kept: 1") == 1

    def test_a_strict_run_publishes_nothing(self, seeds, engine, tmp_path):
        ((_, path),) = made(corpus.remuxed, seeds, tmp_path, wanted="vp9.webm: a frame cut in half")
        out = tmp_path / "out.mkv"
        with pytest.raises(MediaError, match="frame 6 of"):
            upscale_file(path, out, engine=engine, reading=ReadOptions(strict=True))
        assert not out.exists()


class TestCutOff:
    @pytest.mark.parametrize(
        "name",
        ["faststart.mp4", "fragments.mp4", "h264.mkv", "vp9.webm", "mpeg4.avi", "y4m.y4m"],
    )
    def test_what_is_there_can_be_taken(self, name, seeds, tmp_path):
        """The refusal names a number of frames that can be read."""
        path = tmp_path / name
        path.write_bytes(seeds[name].read_bytes()[: seeds[name].stat().st_size * 3 // 4])
        with pytest.raises(
            MediaError, match=r"cut off: only \d+ of its .*number of frames to \d+$"
        ) as caught:
            read(path)
        frames = int(str(caught.value).rsplit(" ", 1)[1])
        assert 3 < frames < corpus.FRAMES
        stamps, *_ = read(path, frames=frames)
        assert frames - 1 <= len(stamps) <= frames  # the last one may be of use to others only
        with pytest.raises(MediaError, match="cut off"):
            read(path, frames=corpus.FRAMES + 1)

    def test_an_excerpt_within_what_is_there(self, seeds, tmp_path):
        path = tmp_path / "cut.mkv"
        path.write_bytes(seeds["h264.mkv"].read_bytes()[:-1000])
        assert len(read(path, end=Fraction(9, 100))[0]) == 3
        with pytest.raises(MediaError, match="cut off"):
            read(path, end=Fraction(10))


class TestSize:
    @pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux has it")
    def test_claims_take_no_memory(self, tmp_path):
        """A picture of some kilobytes that would be 430 MB is refused before memory is taken."""
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
        assert "or has more than 44,739,242 pixels" in sentence
        assert int(peak) < 300

    def test_widths_that_x265_cannot_do(self, tmp_path):
        """It writes beyond its buffers: refused before it can."""
        path = media.make_video(tmp_path / "in.mkv", codec="ffv1", size=(12, 8), stamps=[0])
        with (
            open_source(path) as source,
            pytest.raises(MediaError, match="libx265 cannot encode a width of 48 pixels"),
            job_sink(tmp_path / "out.mkv", source=source, width=48, height=32, codec="libx265"),
        ):
            pass

    def test_one_frame_too_large_is_lost(self, seeds, tmp_path):
        """A frame whose header was hit does not end the video."""
        ((_, path),) = made(
            corpus.claims, seeds, tmp_path, wanted="prores.mov claims 60000x60000 in a frame"
        )
        stamps, lost, _ = read(path)
        assert (len(stamps), lost) == (corpus.FRAMES - 1, 1)


def run(
    *arguments: object, limit: int | None = None, **options: object
) -> subprocess.CompletedProcess[str]:
    """The command; with a limit in bytes on the size of files, which stands in for a full disk."""

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
    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
    @pytest.mark.parametrize("option", ["--json", "--verbose"])
    def test_result_cannot_be_printed(self, option, seeds, tiny_bundle, tmp_path):
        """The output is there, the exit status tells that something went wrong."""
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

    def test_reader_of_standard_output_leaves(self, seeds, tiny_bundle):
        """As ``| head``: no traceback, no thread that hangs."""
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = run(seeds["h264.mp4"], "-o", "-", "--engine", tiny_bundle, stdout=writing)
        finally:
            os.close(writing)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "Broken pipe" in done.stderr.strip().splitlines()[-1]

    def test_full_disk_in_the_final_join(self, seeds, tiny_bundle, tmp_path):
        """The parts fit and the whole does not: one sentence, and with space, the same command
        makes the output without a frame computed again.
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

    def test_output_folder_vanishes(self, seeds, engine, tmp_path):
        """While frames are made."""
        folder = tmp_path / "place"
        folder.mkdir()

        def remove(*progress: object) -> None:
            shutil.rmtree(folder, ignore_errors=True)

        with pytest.raises(MediaError, match="cannot") as caught:
            upscale_file(seeds["h264.mp4"], folder / "out.mp4", engine=engine, progress=remove)
        assert "\n" not in str(caught.value)
        with contextlib.suppress(FileNotFoundError):
            assert not any(folder.iterdir())
