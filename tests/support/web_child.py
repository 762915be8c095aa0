"""Stands in for a child of the web page's queue; its input says what it does.

It is a program: LOCK INPUT OPTION..., like ``rbvsr_deploy.commands._tethered``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path


def main() -> None:
    """Do what the input says: one word per line."""
    _, path, *options = sys.argv[1:]
    given = dict(option.split("=", 1) for option in options if "=" in option)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(Path(path).parents[1] / "calls.txt", "a") as calls:
        calls.write(json.dumps(options) + "\n")
    for word in Path(path).read_text().split():
        if word == "wait":
            print("forward: 1 of 4 frames (25% done), 40 s left", file=sys.stderr, flush=True)
            time.sleep(60)
        elif word == "fail":
            print("Error: the frames are bad (--memory)", file=sys.stderr)
            sys.exit(1)
        elif word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "deaf":
            Path(path).with_name("deaf").touch()
            time.sleep(60)
    if "--report" in given:
        Path(given["--report"]).write_text("a preview")
        print(json.dumps({"frames": 4, "width": 64, "height": 48, "estimated_seconds": 9.0}))
    else:
        (Path(given["--output"]) / "made.mp4").write_text("made")
        print(json.dumps({"frames": 4, "width": 64, "height": 48}))


def _end_with_parent() -> None:
    while os.read(0, 64):
        pass
    if not Path(sys.argv[2]).with_name("deaf").exists():
        os._exit(130)


if __name__ == "__main__":
    main()
