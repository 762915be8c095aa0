"""Defines the options for compiling engines, shared by ``rbvsr-build`` and ``rbvsr-export``."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rbvsr_deploy.bundle.engine_sets import EngineSet, ShapeProfile
from rbvsr_deploy.commands._common import Count, memory_size, report

if TYPE_CHECKING:
    from rbvsr_deploy.engines.tensorrt.build import BuildOptions
    from rbvsr_deploy.engines.tensorrt.compile import Target, TargetName

__all__ = ["Compiling", "compile_options"]

_Size = tuple[int, int]


@dataclass(frozen=True)
class Compiling:
    """Holds the values of the options for compiling."""

    compute_capabilities: tuple[str, ...]
    profile: ShapeProfile
    options: dict[str, Any]
    """Arguments for :class:`~rbvsr_deploy.engines.tensorrt.build.BuildOptions`, whose module is
    too heavy to import for ``--help``.
    """

    def check_usage(self, target: str | None) -> None:
        """Raise click.UsageError for options that do not fit the target."""
        if self.compute_capabilities and target not in ("tensorrt", "tensorrt-rtx"):
            problem = f"cannot be combined with --target {target}" if target else "needs --target"
            raise click.UsageError(
                f"--compute-capability {problem}: use --target tensorrt-rtx or --target tensorrt"
            )

    def targets(self, name: TargetName) -> list[Target]:
        """Call :func:`~rbvsr_deploy.engines.tensorrt.compile.choose_targets` with the options."""
        from rbvsr_deploy.engines.tensorrt.compile import choose_targets

        return choose_targets(name, self.compute_capabilities, options=self._build_options())

    def into_bundle(
        self,
        path: Path,
        targets: list[Target],
        *,
        output: Path | None = None,
        remove: tuple[str, ...] = (),
    ) -> tuple[EngineSet, ...]:
        """Compile engines into a bundle, with progress on standard error."""
        from rbvsr_deploy.commands._progress import CompileDisplay
        from rbvsr_deploy.engines.tensorrt.compile import compile_into_bundle

        with CompileDisplay() as progress:
            return compile_into_bundle(
                path,
                targets,
                profile=self.profile,
                options=self._build_options(),
                remove=remove,
                output=output,
                progress=progress,
                report=report,
            )

    def _build_options(self) -> BuildOptions:
        from rbvsr_deploy.engines.tensorrt.build import BuildOptions

        return BuildOptions(**self.options)


def _capabilities(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Parse numbers such as 8.6,8.9."""
    if value is None:
        return ()
    found = tuple(part.strip() for part in value.split(","))
    if wrong := [part for part in found if not re.fullmatch(r"\d{1,2}\.\d", part, re.ASCII)]:
        raise click.BadParameter(
            f"{wrong[0]!r} is not a compute capability: use numbers such as 8.6,8.9,12.0"
        )
    return found


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> _Size | None:
    """Parse WxH into height and width."""
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value, re.ASCII)
    if match is None:
        raise click.BadParameter(
            f"{value!r} is not a size: use width x height, such as 1280x720 (up to 99999x99999)"
        )
    return int(match[2]), int(match[1])


_OPTIONS = (
    click.option(
        "--compute-capability",
        "compute_capabilities",
        metavar="X.Y[,X.Y...]",
        callback=_capabilities,
        help="Compute capabilities of the GPUs to compile for, one engine set each (TensorRT-RTX)."
        "  [default: this machine's]",
    ),
    click.option(
        "--min-size",
        metavar="WxH",
        callback=_size,
        help="Smallest frame size the engines accept.  [default: 64x64]",
    ),
    click.option(
        "--opt-size",
        metavar="WxH",
        callback=_size,
        help="Frame size the engines are tuned for.  [default: 320x180]",
    ),
    click.option(
        "--max-size",
        metavar="WxH",
        callback=_size,
        help="Largest frame size the engines accept.  [default: 1280x720]",
    ),
    click.option(
        "--batch",
        metavar="N",
        type=Count(1, 1024),
        default=4,
        help="Largest batch of the graphs without recurrence, and the one they are tuned for.",
    ),
    click.option(
        "--workspace",
        metavar="SIZE",
        callback=memory_size,
        help="Device memory that a kernel may use, such as 4GiB.  [default: all]",
    ),
    click.option(
        "--optimization-level",
        metavar="LEVEL",
        type=click.IntRange(0, 5),
        help="Effort that TensorRT spends on finding fast kernels.  [default: TensorRT's own, 3]",
    ),
    click.option(
        "--version-compatible",
        is_flag=True,
        help="Build engines that also run on later versions of TensorRT; they contain code, so "
        "RBVSR_TRUST_ENGINES=1 must be set to run them.",
    ),
    click.option(
        "--hardware-compatible",
        is_flag=True,
        help="Build engines that run on any GPU of compute capability 8.0 or higher (TensorRT).",
    ),
)


def compile_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add these options to a command, which receives them as ``compiling``."""

    @functools.wraps(command)
    def collected(
        compute_capabilities: tuple[str, ...],
        min_size: _Size | None,
        opt_size: _Size | None,
        max_size: _Size | None,
        batch: int,
        workspace: int | None,
        optimization_level: int | None,
        version_compatible: bool,
        hardware_compatible: bool,
        **others: Any,
    ) -> None:
        default = ShapeProfile()
        opt = opt_size or _within(default.opt_size, min_size, max_size)
        try:
            profile = ShapeProfile(
                min_size=min_size or _within(default.min_size, None, opt),
                opt_size=opt,
                max_size=max_size or _within(default.max_size, opt, None),
                batch=batch,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        options = {
            "workspace": workspace,
            "optimization_level": optimization_level,
            "version_compatible": version_compatible,
            "hardware_compatible": hardware_compatible,
        }
        command(compiling=Compiling(compute_capabilities, profile, options), **others)

    for option in reversed(_OPTIONS):
        collected = option(collected)
    return collected


def _within(size: _Size, least: _Size | None, most: _Size | None) -> _Size:
    """Clip a default size to the range set by the sizes that were given."""
    height, width = size
    if most is not None:
        height, width = min(height, most[0]), min(width, most[1])
    if least is not None:
        height, width = max(height, least[0]), max(width, least[1])
    return height, width
