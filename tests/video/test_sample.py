"""Tests that the clip in tests/data survives a round trip and may be distributed."""

from __future__ import annotations

from pathlib import Path

from rbvsr_deploy.video import open_source
from tests.support import media
from tests.support.sinks import job_sink

DATA = Path(__file__).parent.parent / "data"
SAMPLE = DATA / "sample.mp4"


def test_sample_is_small_and_complete() -> None:
    assert SAMPLE.stat().st_size < 200_000
    with open_source(SAMPLE) as source:
        assert (source.width, source.height, source.frame_count) == (320, 180, 54)
        images = [frame.image for frame in source]
    assert len(images) == 54
    assert all(image.std() > 20 for image in images)
    assert [stream.codec for stream in media.companions_of(SAMPLE)] == ["aac"]


def test_sample_round_trip(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    with (
        open_source(SAMPLE) as source,
        job_sink(out, source=source, width=320, height=180, crf=30) as sink,
    ):
        for frame in source:
            sink.write(frame)
        sink.finish()
    assert media.stamps_of(out) == media.stamps_of(SAMPLE)
    assert media.companions_of(out) == media.companions_of(SAMPLE)


def test_author_and_licence_are_named() -> None:
    text = (DATA / "README.md").read_text(encoding="utf-8")
    assert "Momtchil Momtchev" in text
    assert "Permission to use, copy, modify, and/or distribute this software" in text
