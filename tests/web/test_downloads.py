"""Tests the zip file of an output folder."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from rbvsr_deploy.web.downloads import zipped


def test_zip_has_all_files(tmp_path: Path) -> None:
    """It comes in small blocks, and unpacks to the files of the folder, hidden folders left out."""
    folder = tmp_path / "frames_x4"
    (folder / "inner").mkdir(parents=True)
    content = {f"{i}.png": bytes([i]) * (i * 700_000) for i in range(4)}
    for name, data in content.items():
        (folder / name).write_bytes(data)
    blocks = list(zipped(folder))
    assert max(map(len, blocks)) < 1.1 * 2**20
    with zipfile.ZipFile(io.BytesIO(b"".join(blocks))) as archive:
        assert archive.testzip() is None
        assert {n: archive.read(n) for n in archive.namelist()} == {
            f"frames_x4/{name}": data for name, data in content.items()
        }
