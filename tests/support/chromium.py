"""Drives a page in headless Chromium through two pipes with the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.closing import Closing

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)

_TIMEOUT = 120  # seconds

# Chromium reads commands from descriptor 3 and writes answers to 4.
_LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for place, end in zip((3, 4), ends):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""

KEYS = {
    "Tab": 9,
    "Enter": 13,
    "PageDown": 34,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
}


class Chromium(Closing):
    """Drives one browser window."""

    requests: list[str]
    """URLs of all requests."""
    errors: list[str]
    """Errors and console messages of the page."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        self.requests, self.errors = [], []
        listen, write = os.pipe()
        read, answer = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _LAUNCH, str(listen), str(answer), CHROMIUM),
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--remote-debugging-pipe", "--no-first-run", "--disable-extensions"),
                *("--hide-scrollbars", "--force-color-profile=srgb", f"--user-data-dir={profile}"),
                "about:blank",
            ],
            pass_fds=(listen, answer),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(listen)
        os.close(answer)
        self._write, self._read = os.fdopen(write, "wb", 0), os.fdopen(read, "rb", 0)
        self._pending = b""
        self._number = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        self._write.close()
        self._read.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its answer."""
        answer = self._answer_to(method, **parameters)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _answer_to(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next_message()
            if answer.get("id") == self._number:
                return answer

    def open(self, path: Path, *, width: int, height: int, phone: bool = False) -> None:
        """Load a file and wait for its images."""
        self.visit(path.as_uri(), width=width, height=height, phone=phone)
        self.settle()

    def visit(self, url: str, *, width: int, height: int, phone: bool = False) -> None:
        """Load an address."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.call("Page.navigate", url=url)
        self.run(
            "new Promise(done => document.readyState === 'complete' ? done()"
            " : addEventListener('load', () => done()))"
        )

    def wait_for(self, condition: str, *, seconds: float = _TIMEOUT) -> None:
        """Wait until an expression is true, also across pages."""
        end = time.monotonic() + seconds
        while True:
            # The page that is being left answers with an error.
            answer = self._answer_to("Runtime.evaluate", expression=f"!!({condition})")
            if answer.get("result", {}).get("result", {}).get("value") is True:
                return
            assert time.monotonic() < end, f"{condition} is not true after {seconds} s"
            time.sleep(0.1)

    def choose_files(self, selector: str, *paths: Path) -> None:
        """Choose files in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def settle(self) -> None:
        """Wait until every image is decoded and all changes are painted."""
        self.run(
            "Promise.all([...document.images].map(image => image.decode())).then("
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))))"
            ".then(() => true)"
        )

    def run(self, script: str) -> Any:
        """Evaluate an expression, await it and return its value."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        code = KEYS[key]
        for kind in ("rawKeyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "rawKeyDown" else {}
            self.call(
                "Input.dispatchKeyEvent",
                type="keyDown" if text else kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **text,
            )

    def drag(self, *points: tuple[float, float]) -> None:
        """Press the mouse button at the first point and release it at the last."""
        for i, (x, y) in enumerate(points):
            kind = "mouseMoved" if i else "mousePressed"
            button = {"button": "left", "buttons": 1, "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)
        x, y = points[-1]
        self.call(
            "Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1
        )

    def swipe(self, *points: tuple[float, float]) -> None:
        """Put a finger on the first point and lift it at the last."""
        for i, (x, y) in enumerate(points):
            kind = "touchMove" if i else "touchStart"
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def screenshot(self) -> NDArray[np.uint8]:
        """Return the content of the window, (H, W, 3) RGB."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        return np.asarray(image, np.uint8)

    def _next_message(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._read], [], [], _TIMEOUT)
            assert ready, "Chromium does not answer"
            data = self._read.read(2**20)
            assert data, "Chromium has exited"
            self._pending += data
        first, _, self._pending = self._pending.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        elif message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.errors.append(json.dumps(message["params"]))
        return message
