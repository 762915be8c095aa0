"""Makes the image of the page of ``rbvsr web``, from a real run of it in Chromium.

    PYTHONPATH=. python docs/make_web_image.py

Needs the extras cpu and web, and Chromium.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2

from tests.support.chromium import Chromium

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "tests" / "data" / "sample.mp4"
IMAGE = ROOT / "docs" / "images" / "web.png"
PROGRAM = "from rbvsr_deploy.commands.rbvsr import rbvsr; rbvsr()"


def main() -> None:
    """Upload the sample, run half of it, and take the image."""
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "web", "--port=0", f"--folder={folder}/jobs"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},  # its children run in other folders
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        try:
            address = server.stdout.readline().split()[0]
            with Chromium(Path(folder) / "profile") as browser:
                browser.visit(address, width=1200, height=790)
                browser.wait_for("document.getElementById('rb-file')")
                browser.choose_files("#rb-file", SAMPLE)
                browser.wait_for("document.querySelector('.rb-view iframe')", seconds=600)
                browser.run("document.getElementById('rb-start').click()")
                browser.wait_for(
                    "document.querySelector('.rb-card progress[value]')?.value > 30", seconds=900
                )
                time.sleep(1)  # the progress bar moves slowly
                image = browser.screenshot()
        finally:
            server.terminate()
            server.wait()
    cv2.imwrite(str(IMAGE), image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
