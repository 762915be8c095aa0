"""Finds the control groups that limit this process: of a container, a service or a batch job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["control_groups"]

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def control_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, of version 1 or 2, and of those above
    them, whose limits apply too. Some may not exist.

    Args:
        controller: "cpu" or "memory"; in version 1 each controller has a hierarchy of its own.
    """
    try:
        lines = _OWN.read_text("ascii", errors="replace").splitlines()
    except OSError:  # not Linux, or hidden
        yield from (_ROOT, _ROOT / controller)
        return
    for line in lines:
        _, controllers, name = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            roots = {_ROOT}
        elif controller in controllers.split(","):
            roots = {_ROOT / controllers, _ROOT / controller}
        else:
            continue
        path = PurePosixPath("/", name)
        if ".." in path.parts:  # outside what this container sees
            path = PurePosixPath("/")
        for group in (path, *path.parents):
            for root in roots:
                yield root / group.relative_to("/")
