"""Defines the options of ``rbvsr-run`` by section of its help; ``rbvsr-eval`` shares some."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import click

from rbvsr_deploy.commands._common import PATH, Command, Count, FloatRange, memory_size

__all__ = [
    "ARGUMENTS",
    "DEVICE",
    "NETWORK",
    "READING",
    "SCENE_CUTS",
    "SECTIONS",
    "SIZES",
    "TRUST_ENGINES",
    "WORKERS",
    "WRITING",
    "SectionedCommand",
    "values_of",
]

ARGUMENTS = "rbvsr_deploy.arguments"
"""Key of the arguments of a :class:`SectionedCommand`, as given, in its context's ``meta``."""

_SLOWEST, _FASTEST = Fraction(1, 1000), Fraction(1000)
_LATEST = 10**9  # seconds; FFmpeg counts microseconds in 64 bits

# Seconds are below 60 after minutes, and minutes are below 60 after hours.
_TIME = re.compile(r"(?:(?:(\d+):(?=[0-5]?\d:))?(\d+):(?=[0-5]?\d(?:\.|$)))?(\d+(?:\.\d*)?|\.\d+)")


def _lookahead(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """Parse a number of frames, or "all" into ``None``."""
    if value == "all":
        return None
    if re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    raise click.BadParameter(
        f"{value!r} is not valid: use 'all', or a number of frames from 0 to 999999999"
    )


def _rate(ctx: click.Context, param: click.Parameter, value: str | None) -> Fraction | None:
    """Parse a frame rate, a decimal number or a fraction."""
    if value is None:
        return None
    try:
        rate = Fraction(value)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not _SLOWEST <= rate <= _FASTEST:
        raise click.BadParameter(
            f"{value!r} is not a valid frame rate: use a number from {_SLOWEST} to {_FASTEST}, "
            "such as 24, 23.976 or 30000/1001"
        )
    return rate.limit_denominator(1001)


def _time(ctx: click.Context, param: click.Parameter, value: str | None) -> Fraction | None:
    """Parse a time, seconds or [H:]MM:SS, into seconds."""
    if value is None:
        return None
    if (found := _TIME.fullmatch(value)) is not None:
        hours, minutes, seconds = (Fraction(part or 0) for part in found.groups())
        if (time := 3600 * hours + 60 * minutes + seconds) <= _LATEST:
            return time
    raise click.BadParameter(
        f"{value!r} is not a valid time: use seconds such as 12.5, or [H:]MM:SS such as 1:02:03.25"
    )


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Parse a width and a height."""
    if value is None:
        return None
    if (found := re.fullmatch("([0-9]{1,6})[x×]([0-9]{1,6})", value)) is not None:
        width, height = map(int, found.groups())
        return width, height
    raise click.BadParameter(
        f"{value!r} is not a size: use a width and a height in pixels, such as 1920x1080"
    )


READING = (
    click.Option(
        ["--start"],
        metavar="TIME",
        callback=_time,
        help="Start with the first frame at or after this time, in seconds such as 12.5 or "
        "[H:]MM:SS such as 1:02:03.25, counted from the input's first frame.",
    ),
    click.Option(
        ["--end"],
        metavar="TIME",
        callback=_time,
        help="Stop before the first frame at or after this time.",
    ),
    click.Option(["--frames"], metavar="N", type=Count(), help="Stop after N frames."),
    click.Option(
        ["--fps"],
        metavar="RATE",
        callback=_rate,
        help="Frame rate of a video made from an image folder, such as 24 or 30000/1001.  "
        "[default: 25]",
    ),
    click.Option(
        ["--deinterlace"],
        is_flag=True,
        help="Convert interlaced video to progressive frames: those flagged as interlaced, or all "
        "if none is flagged.",
    ),
    click.Option(
        ["--alpha"],
        type=click.Choice(["drop", "keep", "refuse"]),
        default="drop",
        help='How to handle an alpha channel; "keep" upscales it bicubically.',
    ),
    click.Option(
        ["--strict"],
        is_flag=True,
        help="Stop at damage in a video instead of skipping frames that cannot be decoded.",
    ),
    click.Option(
        ["--decoder"],
        metavar="NAME",
        help="Decode video on a device such as cuda, or with the FFmpeg decoder NAME.",
    ),
    click.Option(
        ["--allow-playlists"],
        is_flag=True,
        help="Read the files that an HLS playlist or a concat script names.",
    ),
)
"""Options for the fields of :class:`~rbvsr_deploy.video.ReadOptions`."""

_OUTPUT = (
    click.Option(
        ["-o", "--output"],
        metavar="PATH",
        help="Video, image or image folder to write. An existing folder, or a name that ends in /, "
        "is the folder that the outputs go into, under their default names; with several inputs it "
        "always is. - writes y4m to standard output.  [default: <name>_x4, or another "
        "scale or size, next to INPUT]",
    ),
    click.Option(["--overwrite"], is_flag=True, help="Replace existing outputs."),
)

WRITING = (
    click.Option(
        ["--codec"],
        metavar="NAME",
        help="Video encoder.  [default: libx264, or libvpx-vp9 for .webm; above 8 bits libx265, or "
        "libsvtav1 for .webm; prores_ks, ffv1 or dnxhd if the input is ProRes, FFV1 or DNxHR]",
    ),
    click.Option(
        ["--crf"],
        metavar="VALUE",
        type=float,
        help="Video quality; lower values are better and make larger files.  [default: 18 for "
        "libx264]",
    ),
    click.Option(
        ["--pix-fmt"],
        metavar="FORMAT",
        help="Pixel format of the video.  [default: yuv420p, or yuv420p10le above 8 bits]",
    ),
    click.Option(["--audio/--no-audio"], default=True, help="Keep the audio of a video."),
    click.Option(
        ["--subtitles/--no-subtitles"], default=True, help="Keep the subtitles of a video."
    ),
)
"""Options for the fields of :class:`~rbvsr_deploy.video.WriteOptions`."""

SIZES = (
    click.Option(
        ["--scale"],
        type=click.Choice(["1", "1.5", "2", "3", "4"]),
        callback=lambda ctx, param, value: None if value is None else float(value),
        help="Multiple of the input's size; 1 restores without enlarging.  [default: 4]",
    ),
    click.Option(
        ["--size"],
        metavar="WxH",
        callback=_size,
        help="Size in square pixels instead, such as 1920x1080.",
    ),
    click.Option(
        ["--height"],
        metavar="ROWS",
        type=Count(),
        help="Height in square pixels instead, such as 1080; the width follows.",
    ),
    click.Option(
        ["--fit"],
        type=click.Choice(["inside", "cover", "stretch"]),
        default="inside",
        help="With --size, for inputs of another shape: as large as fits inside it, cropped to "
        "cover it, or stretched.",
    ),
)
"""Options for the fields of :class:`~rbvsr_deploy.runtime.output_size.OutputSize`."""

_KEEP_JOB = click.Option(
    ["--keep-job"],
    is_flag=True,
    help="Keep the job folder with the encoded segments after the run succeeds.",
)

DEVICE = click.Option(
    ["--device"],
    metavar="NAME",
    default="auto",
    help="Device to run on: auto (the best available), tensorrt, cuda, cpu, openvino, webgpu, or "
    "another of those that `rbvsr info --devices` lists.",
)

TRUST_ENGINES = click.Option(
    ["--trust-engines"],
    is_flag=True,
    help="Run the bundle's compiled engines, which are machine code, even if someone else compiled "
    "them.",
)

_ENGINE = (
    click.Option(
        ["--engine", "engine_path"],
        type=PATH,
        help="Bundle made by rbvsr-export, or checkpoint to run in PyTorch.  [default: the "
        "included compact model for CPUs]",
    ),
    DEVICE,
    TRUST_ENGINES,
)

NETWORK = (
    click.Option(
        ["--memory"],
        metavar="SIZE",
        callback=memory_size,
        help="Maximum device memory to use, such as 4GiB.  [default: half of what is free]",
    ),
    click.Option(
        ["--lookahead"],
        metavar="N|all",
        default="all",
        callback=_lookahead,
        help="Number of future frames that each frame uses, or all of its scene; with N, output "
        "starts after N + 1 frames, and every frame takes N + 1 backward steps.",
    ),
    click.Option(
        ["--max-scene"],
        metavar="N",
        type=Count(),
        default=300,
        help="Process longer scenes in chunks of this many frames.",
    ),
    click.Option(
        ["--refine-threshold"],
        metavar="LEVELS",
        type=FloatRange(min=0),
        help="Repeat cleaning while the mean change is at least this many of 255 levels.  "
        "[default: the model's own]",
    ),
    click.Option(
        ["--refine-scope"],
        type=click.Choice(["scene", "frame"]),
        default="scene",
        help="Decide the number of cleaning passes once per scene or for each frame.",
    ),
    click.Option(
        ["--cleanings"],
        metavar="N",
        type=Count(0, 100),
        help="Run exactly N cleaning passes instead of deciding dynamically.",
    ),
    click.Option(
        ["--strength"],
        metavar="0..1",
        type=FloatRange(0, 1),
        default=1.0,
        help="How far to go from plain enlargement (0) to the output of the network (1).",
    ),
    click.Option(
        ["--denoise"],
        metavar="0..1",
        type=FloatRange(0, 1),
        default=1.0,
        help="How much of the cleaning to apply.",
    ),
)
"""Options for the fields of :class:`~rbvsr_deploy.runtime.stream.Settings`."""

_LIVE = click.Option(
    ["--live"],
    is_flag=True,
    help="For live video: --lookahead 2, with its delay reported.",
)

SCENE_CUTS = click.Option(
    ["--scene-cuts/--no-scene-cuts"],
    default=True,
    help="Detect scene cuts and process each scene on its own.",
)

_SCENES = (
    SCENE_CUTS,
    click.Option(
        ["--scene-list"],
        type=PATH,
        help="Text file with the first frame of each scene, one number per line: read if it "
        "exists, otherwise written; frames are counted from --start.",
    ),
)

_REPORTS = (
    click.Option(
        ["--before-after"],
        metavar="IMAGE",
        type=PATH,
        help="Also write an image of the middle frame: bicubic on the left, the result on the "
        "right.",
    ),
    click.Option(
        ["--report", "page"],
        metavar="PAGE.html",
        type=PATH,
        help="Also write a report page with some frames before and after, and the run's figures.",
    ),
    click.Option(
        ["--sheet"],
        is_flag=True,
        help="With --preview, show the frames at several values of --strength and --denoise, each "
        "with its command.",
    ),
    click.Option(
        ["--preview"],
        metavar="N",
        type=click.IntRange(1, 100),
        help="Instead of a video, write a report page with N frames from across the input and an "
        "estimate of the total time, to --report or <name>_x4.html next to INPUT.",
    ),
)

WORKERS = (
    click.Option(
        ["--workers"],
        metavar="N",
        type=Count(1, 10_000),
        help="Share the work among N processes, one per GPU or per share of the processor's cores; "
        "with --cluster, among N workers there.  [default: 1; with --cluster, all that fit]",
    ),
    click.Option(
        ["--cluster"],
        metavar="ADDRESS",
        help="Share the work among workers on a Ray cluster: auto for that of this machine, or "
        "ray://HOST:PORT.",
    ),
    click.Option(
        ["--stage"],
        is_flag=True,
        help="Send each worker its part of the input and have the encoded segments sent back: for "
        "workers that do not see the files under the same paths. The bundle has to be there.",
    ),
    click.Option(
        ["--allow-mixed-engines"],
        is_flag=True,
        help="Also use workers whose engine or versions differ, and whose frames may be rounded "
        "differently.",
    ),
)
"""Options for sharing the work."""

SECTIONS: Mapping[str, Sequence[click.Option]] = {
    "Output": (*_OUTPUT, *SIZES, *WRITING, _KEEP_JOB),
    "Input": READING,
    "Network": (*_ENGINE, *NETWORK, _LIVE, *_SCENES),
    "Several workers": WORKERS,
    "Before and after": _REPORTS,
}


def values_of(options: Sequence[click.Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """Select the values of these options."""
    return {name: values[name] for option in options if (name := option.name) is not None}


class SectionedCommand(Command):
    """A command whose help groups its options in sections.

    Args:
        sections: options by section title; those added by decorators come last, as "Other".
    """

    def __init__(
        self,
        *,
        sections: Mapping[str, Sequence[click.Option]],
        params: Sequence[click.Parameter] | None = None,
        **attributes: Any,
    ) -> None:
        grouped = [option for options in sections.values() for option in options]
        super().__init__(params=[*(params or ()), *grouped], **attributes)
        self._sections = sections
        self._others = [param for param in params or () if isinstance(param, click.Option)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        others = [*self._others, self.get_help_option(ctx)]
        for title, options in (*self._sections.items(), ("Other", others)):
            records = [option.get_help_record(ctx) for option in options if option is not None]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])
