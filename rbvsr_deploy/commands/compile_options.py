"""The options of compiling engines, the same for every command that does."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rbvsr_deploy.commands.edge import memory_size, say
from rbvsr_deploy.engine_sets import EngineSet, ShapeProfile

if TYPE_CHECKING:
    from rbvsr_deploy.engines.tensorrt.build import BuildOptions
    from rbvsr_deploy.engines.tensorrt.compile import Target, Wish

__all__ = ["Compiling", "compile_options"]

_Size = tuple[int, int]


@dataclass(frozen=True)
class Compiling:
    """What was asked of the compiler."""

    compute_capabilities: tuple[str, ...]
    profile: ShapeProfile
    options: dict[str, Any]
    """Of :class:`~rbvsr_deploy.engines.tensorrt.build.BuildOptions`, which --help need not load."""

    def targets(self, wish: Wish) -> list[Target]:
        """See :func:`~rbvsr_deploy.engines.tensorrt.compile.choose_targets`."""
        from rbvsr_deploy.engines.tensorrt.compile import choose_targets

        return choose_targets(wish, self.compute_capabilities, options=self._build_options())

    def into_bundle(
        self,
        path: Path,
        targets: list[Target],
        *,
        output: Path | None = None,
        remove: tuple[str, ...] = (),
    ) -> tuple[EngineSet, ...]:
        """Compile into a bundle and show how far that is, on standard error."""
        from rbvsr_deploy.engines.tensorrt.compile import compile_into_bundle
        from rbvsr_deploy.progress import CompileDisplay

        with CompileDisplay() as progress:
            return compile_into_bundle(
                path,
                targets,
                profile=self.profile,
                options=self._build_options(),
                remove=remove,
                output=output,
                progress=progress,
                report=say,
            )

    def _build_options(self) -> BuildOptions:
        from rbvsr_deploy.engines.tensorrt.build import BuildOptions

        return BuildOptions(**self.options)


def _capabilities(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Numbers such as 8.6,8.9."""
    if value is None:
        return ()
    found = tuple(part.strip() for part in value.split(","))
    if wrong := [part for part in found if not re.fullmatch(r"\d+\.\d", part)]:
        raise click.BadParameter(
            f"{wrong[0]!r} is no compute capability: write them like 8.6,8.9,12.0"
        )
    return found


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> _Size | None:
    """Height and width of WxH."""
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no size: write width and height like 1280x720")
    return int(match[2]), int(match[1])


_OPTIONS = (
    click.option(
        "--compute-capability",
        "compute_capabilities",
        metavar="X.Y[,X.Y...]",
        callback=_capabilities,
        help="GPUs to compile for, one engine set each (TensorRT-RTX).  [default: this machine's]",
    ),
    click.option(
        "--min-size",
        metavar="WxH",
        callback=_size,
        help="Smallest frames the engines take.  [default: 64x64]",
    ),
    click.option(
        "--opt-size",
        metavar="WxH",
        callback=_size,
        help="Frames the engines are tuned for.  [default: 320x180]",
    ),
    click.option(
        "--max-size",
        metavar="WxH",
        callback=_size,
        help="Largest frames the engines take.  [default: 1280x720]",
    ),
    click.option(
        "--batch",
        type=click.IntRange(min=1),
        default=4,
        help="Most frames at a time, and the usual number, where there is no recurrence.",
    ),
    click.option(
        "--workspace",
        metavar="SIZE",
        callback=memory_size,
        help="Device memory a kernel may use, such as 4GiB.  [default: all]",
    ),
    click.option(
        "--optimization-level",
        type=click.IntRange(0, 5),
        help="How long TensorRT looks for fast kernels.  [default: its own, 3]",
    ),
    click.option(
        "--version-compatible",
        is_flag=True,
        help="Engines that later versions of TensorRT run too, if RBVSR_TRUST_ENGINES=1 is set "
        "there: they bring code of their own.",
    ),
    click.option(
        "--hardware-compatible",
        is_flag=True,
        help="Engines that any GPU from compute capability 8.0 on runs (TensorRT).",
    ),
)


def compile_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; it gets them as ``compiling``."""

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
        usual = ShapeProfile()
        opt = opt_size or _within(usual.opt_size, min_size, max_size)
        try:
            profile = ShapeProfile(
                min_size=min_size or _within(usual.min_size, None, opt),
                opt_size=opt,
                max_size=max_size or _within(usual.max_size, opt, None),
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
    """A default moved to where the sizes that were given allow it."""
    height, width = size
    if most is not None:
        height, width = min(height, most[0]), min(width, most[1])
    if least is not None:
        height, width = max(height, least[0]), max(width, least[1])
    return height, width
