"""Finds where one scene ends and the next begins: detected in the stream, or read from a file.

A recurrent network must be reset at a cut: flow between two scenes is meaningless.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import check_writable, write_atomically

if TYPE_CHECKING:
    from rbvsr_deploy.pixels import Image
    from rbvsr_deploy.video import Frame, Source

__all__ = ["CutDetector", "SceneCuts", "read_scene_list", "scene_list_text", "write_scene_list"]

logger = logging.getLogger(__name__)

_LARGEST_LIST = 2**24  # bytes of a scene list
_LONG_SIDE = 256
"""Pixels; larger frames are compared at this size, PySceneDetect's own default width."""

_LEVEL = 20.0
"""Smallest score of a cut: 0 for equal frames, 255 for black against white."""

_RATIO = 2.0
"""Smallest ratio of a cut's score to those of the frames before it."""

_RECENT = 3
"""Number of earlier scores the ratio applies to."""


class CutDetector:
    """Detects hard cuts in a stream; each frame is decided at once, from it and earlier frames.

    The score of a frame is PySceneDetect's: the mean change per pixel from the previous frame, of
    hue and saturation (one sixth each) and brightness (two thirds). A cut scores high, and twice as
    high as each of the three frames before it; fast motion, shake and noise do not.

    Within three frames of a cut, only a change twice as large is another cut. A flash that short
    can begin a scene, but its end does not begin another. Dissolves are not cuts; fades through
    black may be.

    Correct and false detections, with PySceneDetect 0.7.2 on 2026-11-22. The film is Elephants
    Dream (14,561 frames, 113 cuts found by eye, fades and titles left out), the joins are of 14
    clips::

                                   this   ContentDetector(27)  AdaptiveDetector
        film                    107, 10                97, 28            101, 3
        79 joins of real clips    78, 2                 66, 1             69, 0
          noise of sigma 12       77, 2                 63, 4             36, 0
          x264 at crf 42          79, 2                 66, 0             69, 0
          without colour          77, 2                 16, 0             60, 0
          at fourfold speed       70, 3                 55, 2             61, 0
          shaken by 6 pixels      62, 4                41, 18             46, 1

    Level, ratio and weights were chosen on the same material. Both detectors had their default
    settings; AdaptiveDetector looks two frames ahead, which a live stream cannot.
    """

    def __init__(self) -> None:
        # OpenCV and PySceneDetect take half a second to load: only when they are needed.
        from scenedetect import FrameTimecode
        from scenedetect.detectors import ContentDetector

        # In grey, dark or noisy images hue and saturation mean little: brightness leads.
        weights = ContentDetector.Components(delta_hue=1.0, delta_sat=1.0, delta_lum=4.0)
        self._content = ContentDetector(weights=weights)
        # The time only matters to the library's own decision, which is not used.
        self._time = FrameTimecode(0, fps=25.0)
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._shape: tuple[int, ...] | None = None

    def is_cut(self, image: Image) -> bool:
        """Take the next frame and return whether a new scene begins with it.

        Args:
            image: ``(H, W, 3)`` RGB, uint8 or uint16, of the same size in every call.

        Returns:
            ``False`` for the first frame.

        Raises:
            ValueError: the image has the wrong shape or dtype.
        """
        expected = self._shape or (*image.shape[:2], 3)
        if image.shape != expected or image.dtype not in ("uint8", "uint16") or not image.size:
            raise ValueError(
                f"a frame must be (H, W, 3) uint8 or uint16 RGB, all of one size, not "
                f"{image.dtype} of {image.shape}"
            )
        self._shape = expected
        score = self._score(image)
        cut = score >= _LEVEL and score >= _RATIO * max(self._recent, default=0.0)
        self._recent.append(score)
        return cut

    def _score(self, image: Image) -> float:
        """Return the weighted mean change from the previous frame, 0 to 255; 0 for the first."""
        import cv2

        from rbvsr_deploy.pixels import eight_bits

        height, width = image.shape[:2]
        scale = min(1.0, _LONG_SIDE / max(height, width))
        small = cv2.resize(
            eight_bits(image), (max(1, round(width * scale)), max(1, round(height * scale)))
        )
        self._content.process_frame(self._time, cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        # AdaptiveDetector, a subclass, reads the same attribute. The public way, a StatsManager,
        # computes edges as well, which takes four times as long.
        return float(self._content._frame_score)


def read_scene_list(path: Path) -> list[int]:
    """Read where scenes begin from a text file.

    The file has one frame number per line, counted from 0, each greater than the one before; blank
    lines and everything after a ``#`` are ignored.

    Args:
        path: path of the file.

    Returns:
        The first frame of every scene but the first one, which begins at 0 even if the file does
        not list it.

    Raises:
        MediaError: the file cannot be read, or a line holds anything else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_LIST + 1)
        if len(content) > _LARGEST_LIST:
            raise MediaError(
                f"the scene list '{path}' has more than {_LARGEST_LIST // 2**20} MiB: write one "
                "frame number per line"
            )
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise MediaError(f"the scene list '{path}' cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise MediaError(
            f"the scene list '{path}' is not a text file: write one frame number per line"
        ) from None
    starts: list[int] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        where = f"line {number} of the scene list '{path}'"
        if not re.fullmatch("[0-9]{1,18}", text):
            raise MediaError(
                f"{where} is {text[:40]!r}: write the number of a scene's first frame, counted "
                "from 0"
            )
        start = int(text)
        if starts and start <= starts[-1]:
            raise MediaError(
                f"{where} is {start} after {starts[-1]}: every number must be greater than the "
                "one before"
            )
        starts.append(start)
    return [start for start in starts if start > 0]


def write_scene_list(path: Path, cuts: Sequence[int]) -> None:
    """Write a file that :func:`read_scene_list` can read, replacing an existing one.

    Args:
        path: path of the file.
        cuts: the first frame of every scene but the first one: above 0 and increasing.

    Raises:
        ValueError: the cuts are not above 0 and increasing.
        MediaError: the file cannot be written; no incomplete file remains.
    """
    text = scene_list_text(cuts)
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise MediaError(
            f"the scene list '{path}' cannot be written ({error.strerror}): choose another folder"
        ) from None


def scene_list_text(cuts: Sequence[int]) -> str:
    """Return the text of a file that :func:`read_scene_list` can read.

    Raises:
        ValueError: the cuts are not above 0 and increasing.
    """
    starts = [0, *cuts]
    if any(later <= earlier for earlier, later in pairwise(starts)):
        raise ValueError(f"cuts must be frame numbers above 0 and increasing, not {list(cuts)}")
    lines = ["# First frame of each scene, counted from 0.", *map(str, starts)]
    return "\n".join(lines) + "\n"


class SceneCuts:
    """Marks where the scenes of a job's input begin, detected or read from a list, and writes the
    list.

    Args:
        path: path of the list, which is read if it exists.
        detect: detect cuts if there is no list.

    Raises:
        MediaError: the list cannot be read, or would not be writable.
    """

    def __init__(self, path: Path | None, *, detect: bool) -> None:
        self._path = path
        self._given = read_scene_list(path) if path is not None and path.exists() else None
        self._detector = CutDetector() if self._given is None and detect else None
        self._found: list[int] = []
        if path is not None and self._given is None:
            if not detect:
                raise MediaError(
                    f"the scene list '{path}' does not exist, and without cut detection there is "
                    "nothing to write to it: give an existing one"
                )
            try:
                check_writable(path)
            except OSError as error:
                raise MediaError(
                    f"the scene list '{path}' cannot be written ({error.strerror}): choose another "
                    "folder"
                ) from None

    @property
    def identity(self) -> str:
        """Everything the cuts depend on except the frames, in words."""
        if self._given is not None:
            return f"at {', '.join(map(str, self._given))}"
        return "detected" if self._detector is not None else "none"

    def mark(self, source: Source, *, skip: int) -> Iterator[tuple[Frame, bool]]:
        """Yield the frames from number ``skip`` on, each with whether a scene begins with it.

        Earlier frames are inspected too, as a cut depends on the frames before it.
        """
        starts = set(self._given or ())
        for number, frame in enumerate(source):
            cut = number in starts
            if self._detector is not None:
                cut = self._detector.is_cut(frame.image)
            if cut:
                self._found.append(number)
            if number >= skip:
                yield frame, cut

    @property
    def given(self) -> list[int] | None:
        """The cuts that a list gives; ``None`` if they are detected."""
        return self._given if self._detector is None else None

    def restore(self, found: Sequence[int]) -> None:
        """Take the cuts that an earlier run found, instead of marking frames."""
        self._found = list(found)

    def finish(self, *, frames: int) -> None:
        """Write the list, or warn about given cuts that do not exist."""
        if self._path is not None and self._given is None:
            write_scene_list(self._path, self._found)
        if self._given and self._given[-1] >= frames:
            logger.warning(
                "the scene list '%s' names frame %d, but the input has only %d",
                self._path,
                self._given[-1],
                frames,
            )
