"""Where one scene ends and the next begins: found in the stream, or read from a file.

A recurrent network must forget at a cut; flow from one scene to another means nothing.
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

__all__ = ["CutDetector", "SceneCuts", "read_scene_list", "write_scene_list"]

logger = logging.getLogger(__name__)

_LONG_SIDE = 256
"""Pixels; larger frames are compared at this size, PySceneDetect's own default width."""

_LEVEL = 20.0
"""Smallest score of a cut: 0 for equal frames, 255 for black against white."""

_RATIO = 2.0
"""How far the score of a cut stands above those of the frames before it."""

_RECENT = 3
"""How many scores the ratio looks back on."""


class CutDetector:
    """Finds hard cuts while frames come in, each decided at once from it and those before it.

    The score of a frame is PySceneDetect's: the mean change per pixel against the frame before, of
    hue and saturation (one sixth each) and brightness (two thirds). A cut scores high and twice as
    high as every one of the three frames before, which fast motion, shake and noise do not.

    So within three frames of a cut only a change twice as large is another. A flash that short can
    begin a scene, but its end begins no other. Dissolves are no cuts; fades through black may be.

    Cuts found and false ones, with PySceneDetect 0.7.2 on 2026-11-22. The film is Elephants Dream
    (14,561 frames, 113 cuts seen by eye, fades and titles left out), the joins are of 14 clips::

                                   this   ContentDetector(27)  AdaptiveDetector
        film                    107, 10                97, 28            101, 3
        79 joins of real clips    78, 2                 66, 1             69, 0
          noise of sigma 12       77, 2                 63, 4             36, 0
          x264 at crf 42          79, 2                 66, 0             69, 0
          without colour          77, 2                 16, 0             60, 0
          at fourfold speed       70, 3                 55, 2             61, 0
          shaken by 6 pixels      62, 4                41, 18             46, 1

    Level, ratio and weights were chosen on the same material. Both detectors had their defaults;
    AdaptiveDetector looks two frames ahead, which a live stream cannot.
    """

    def __init__(self) -> None:
        # OpenCV and PySceneDetect take half a second to load, so not before they are needed.
        from scenedetect import FrameTimecode
        from scenedetect.detectors import ContentDetector

        # In colour-poor, dark or noisy pictures hue and saturation say little: brightness leads.
        weights = ContentDetector.Components(delta_hue=1.0, delta_sat=1.0, delta_lum=4.0)
        self._content = ContentDetector(weights=weights)
        # Only the library's own decision, which is not used, asks for the time.
        self._time = FrameTimecode(0, fps=25.0)
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._shape: tuple[int, ...] | None = None

    def is_cut(self, image: Image) -> bool:
        """Takes the next frame and tells whether a new scene begins with it.

        Args:
            image: ``(H, W, 3)`` RGB, uint8 or uint16, of the same size in every call.

        Returns:
            ``False`` for the first frame.

        Raises:
            ValueError: the image has another shape or dtype.
        """
        expected = self._shape or (*image.shape[:2], 3)
        if image.shape != expected or image.dtype not in ("uint8", "uint16") or not image.size:
            raise ValueError(
                f"a frame is (H, W, 3) uint8 or uint16 RGB, all of one size, not {image.dtype} of "
                f"{image.shape}"
            )
        self._shape = expected
        score = self._score(image)
        cut = score >= _LEVEL and score >= _RATIO * max(self._recent, default=0.0)
        self._recent.append(score)
        return cut

    def _score(self, image: Image) -> float:
        """Weighted mean change against the frame before, 0 to 255; 0 for the first frame."""
        import cv2

        from rbvsr_deploy.pixels import eight_bits

        height, width = image.shape[:2]
        scale = min(1.0, _LONG_SIDE / max(height, width))
        small = cv2.resize(
            eight_bits(image), (max(1, round(width * scale)), max(1, round(height * scale)))
        )
        self._content.process_frame(self._time, cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        # Where AdaptiveDetector, its subclass, takes the score from. The public way, a
        # StatsManager, works out edges as well, which takes four times as long.
        return float(self._content._frame_score)


def read_scene_list(path: Path) -> list[int]:
    """Reads where scenes begin from a text file.

    One frame number per line, counted from 0, each greater than the one before; blank lines and
    what follows a ``#`` are skipped.

    Args:
        path: the file.

    Returns:
        The first frame of every scene but the first one, which begins at 0 whether or not the file
        says so.

    Raises:
        MediaError: the file cannot be read, or a line holds anything else.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise MediaError(f"the scene list '{path}' cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise MediaError(
            f"the scene list '{path}' is no text file: write one frame number per line"
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
    """Writes a file that ``read_scene_list`` reads, replacing one that is there.

    Args:
        path: the file.
        cuts: the first frame of every scene but the first one: above 0 and rising.

    Raises:
        ValueError: the cuts are not above 0 and rising.
        MediaError: the file cannot be written; nothing is left behind.
    """
    starts = [0, *cuts]
    if any(later <= earlier for earlier, later in pairwise(starts)):
        raise ValueError(f"cuts are frame numbers above 0 and rising, not {list(cuts)}")
    lines = ["# First frame of each scene, counted from 0.", *map(str, starts)]
    try:
        write_atomically(path, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise MediaError(
            f"the scene list '{path}' cannot be written ({error.strerror}): choose another folder"
        ) from None


class SceneCuts:
    """Where the scenes of a job's input begin: detected, or read from a list; and the list that is
    written.

    Args:
        path: of the list, which is read if it exists.
        detect: whether to look for cuts where no list says so.

    Raises:
        MediaError: the list cannot be read, or could not be written.
    """

    def __init__(self, path: Path | None, *, detect: bool) -> None:
        self._path = path
        self._given = read_scene_list(path) if path is not None and path.exists() else None
        self._detector = CutDetector() if self._given is None and detect else None
        self._found: list[int] = []
        if path is not None and self._given is None:
            if not detect:
                raise MediaError(
                    f"the scene list '{path}' does not exist, and without looking for cuts there "
                    "is nothing to write into it: name an existing one"
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
        """All the cuts depend on beside the frames, in words."""
        if self._given is not None:
            return f"at {', '.join(map(str, self._given))}"
        return "detected" if self._detector is not None else "none"

    def mark(self, source: Source, *, skip: int) -> Iterator[tuple[Frame, bool]]:
        """The frames from number ``skip`` on, each with whether a scene begins with it.

        Those before are looked at too: whether there is a cut depends on the frames before.
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

    def finish(self, *, frames: int) -> None:
        """Write the list, or say which of the given cuts do not exist."""
        if self._path is not None and self._given is None:
            write_scene_list(self._path, self._found)
        if self._given and self._given[-1] >= frames:
            logger.warning(
                "the scene list '%s' names frame %d, but the input has only %d",
                self._path,
                self._given[-1],
                frames,
            )
