"""Tests that all that is kept, converted or dropped is listed once, and reported once."""

from __future__ import annotations

import pytest

from rbvsr_deploy.video.changes import Change, Changes


def test_each_thing_is_in_one_list_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """The trial before the work and the work itself name the same things; the last word counts."""
    changes = Changes()
    for _ in range(2):
        changes.keep("audio stream 1 (aac)", "copied")
        changes.convert("audio stream 2 (flac)", "to aac")
        changes.drop("closed captions", "mpeg4 cannot write them")
    changes.drop("audio stream 1 (aac)", "unreadable")
    assert changes.kept == []
    assert changes.converted == [Change("audio stream 2 (flac)", "to aac")]
    assert [change.what for change in changes.dropped] == [
        "audio stream 1 (aac)",
        "closed captions",
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "Converted: audio stream 2 (flac): to aac",
        "Dropped: closed captions: mpeg4 cannot write them",
        "Dropped: audio stream 1 (aac): unreadable",
    ]
