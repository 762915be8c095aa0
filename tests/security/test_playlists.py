"""Tests that no input makes FFmpeg read files that the user did not name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.training.data.footage import DamagedSourceError, ImageFiles, VideoFile
from rbvsr_deploy.video import ReadOptions, open_source

SAMPLE = Path(__file__).parents[1] / "data" / "sample.mp4"
SECRET = "secret.txt"

CONCAT = f"ffconcat version 1.0\nfile {SECRET}\n"
BOM = "\ufeff"
PLAYLISTS = {
    "film.mp4": CONCAT,
    "film.mkv": f"{BOM}{CONCAT}",
    "film.ffconcat": f"\n\n{CONCAT}",
    "film.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:5,\n{SAMPLE}\n#EXT-X-ENDLIST\n",
    "film.m3u": f"#EXTM3U\n#EXTINF:5,\n{SAMPLE}\n",
    "film.mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    "film.sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n",
    "film.avi": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / SECRET).write_text("my secret")
    path = tmp_path / name
    path.write_text(PLAYLISTS[name], encoding="utf-8")
    with pytest.raises(MediaError, match="is a playlist, which names other files") as refused:
        open_source(path)
    assert refused.value.parameters == ("allow_playlists",)
    with pytest.raises(DamagedSourceError, match="is a playlist"):
        VideoFile(path)
    with pytest.raises(DamagedSourceError, match="is a playlist"):
        ImageFiles("frames", [path])


@pytest.mark.parametrize(
    "text",
    [
        "my secret\n" * 50,
        "[InternetShortcut]\nURL=file:///etc/passwd\n",
        f"{SECRET}\n",
    ],
)
def test_text_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "film.txt"
    path.write_text(text)
    with pytest.raises(MediaError, match=r"not a complete video|has no video stream"):
        open_source(path)


@pytest.mark.parametrize("name", ["film.m3u8", "film.ffconcat"])
def test_playlists_are_followed_on_request(name: str, tmp_path: Path) -> None:
    (tmp_path / "part.mp4").write_bytes(SAMPLE.read_bytes())
    path = tmp_path / name
    path.write_text(
        "ffconcat version 1.0\nfile part.mp4\n"
        if name.endswith("concat")
        else "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:5,\npart.mp4\n#EXT-X-ENDLIST\n"
    )
    with open_source(path, ReadOptions(allow_playlists=True, frames=3)) as source:
        assert sum(1 for _ in source) == 3


def test_live_playlists_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "live.m3u8"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:5,\n{SAMPLE}\n")
    with pytest.raises(MediaError, match="live playlist, which has no end"):
        open_source(path, ReadOptions(allow_playlists=True))


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("film.m3u8", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nlive.m3u8\n", "live playlist"),
        ("film.mp4", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n./live.m3u8\r\n", "live playlist"),
        ("film.ffconcat", "ffconcat version 1.0\nfile 'live.m3u8'\n", "live playlist"),
        ("film.m3u8", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nfilm.m3u8\n", "in a playlist"),
        ("film.ffconcat", "ffconcat version 1.0\nfile film.ffconcat\n", "in a playlist"),
    ],
)
def test_playlists_in_playlists(name: str, text: str, match: str, tmp_path: Path) -> None:
    """FFmpeg would wait for ever for more of the one, and open the other again and again."""
    live = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:5,\n{SAMPLE}\n"
    (tmp_path / "live.m3u8").write_text(live)
    (tmp_path / name).write_text(text, newline="")
    with pytest.raises(MediaError, match=match):
        open_source(tmp_path / name, ReadOptions(allow_playlists=True))


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.ts", "tcp://127.0.0.1:9", "/etc/passwd"])
def test_allowed_playlists_reach_no_network(address: str, tmp_path: Path) -> None:
    path = tmp_path / "film.m3u8"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:5,\n{address}\n#EXT-X-ENDLIST\n")
    with pytest.raises(MediaError):
        open_source(path, ReadOptions(allow_playlists=True))


def test_a_name_with_a_pattern_is_one_file(tmp_path: Path) -> None:
    frames = {name: np.full((16, 16, 3), level, np.uint8) for name, level in _LEVELS.items()}
    for name, frame in frames.items():
        cv2.imwrite(str(tmp_path / name), frame)
    pattern = tmp_path / "a%03d.ppm"
    (tmp_path / "a.ppm").rename(pattern)
    with open_source(pattern) as source:
        assert [frame.image.max() for frame in source] == [_LEVELS["a.ppm"]]


_LEVELS = {"a.ppm": 10, "a000.ppm": 100, "a001.ppm": 200}


def test_a_name_that_looks_like_a_protocol_is_a_file(tmp_path: Path) -> None:
    """Such names cannot be given to FFmpeg without care: it would connect to a server."""
    code = (
        "from pathlib import Path; from rbvsr_deploy.video import open_source;"
        "print(open_source(Path('http:a.mp4')).width)"
    )
    (tmp_path / "http:a.mp4").write_bytes(SAMPLE.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().isdecimal()
