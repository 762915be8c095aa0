"""The options of ``rbvsr-run``, in the sections in which ``--help`` shows them; some of them are
those of ``rbvsr-eval`` too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import click

from rbvsr_deploy.commands.edge import PATH, memory_size

__all__ = [
    "DEVICE",
    "NETWORK",
    "READING",
    "SCENE_CUTS",
    "SECTIONS",
    "TRUST_ENGINES",
    "WRITING",
    "SectionedCommand",
    "values_of",
]

_SLOWEST, _FASTEST = Fraction(1, 1000), Fraction(1000)

# Plain seconds, or below 60 where minutes come before, and those below 60 where hours do.
_TIME = re.compile(r"(?:(?:(\d+):(?=[0-5]?\d:))?(\d+):(?=[0-5]?\d(?:\.|$)))?(\d+(?:\.\d*)?|\.\d+)")


def _lookahead(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """A number of frames, or "all", which is ``None``."""
    if value == "all":
        return None
    if value.isdecimal():
        return int(value)
    raise click.BadParameter(f"{value!r} is neither a number of frames, 0 or more, nor 'all'")


def _rate(ctx: click.Context, param: click.Parameter, value: str | None) -> Fraction | None:
    """Frames per second, as a decimal number or a fraction."""
    if value is None:
        return None
    try:
        rate = Fraction(value)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not _SLOWEST <= rate <= _FASTEST:
        raise click.BadParameter(
            f"{value!r} is no rate: give a number such as 24, 23.976 or 30000/1001, from "
            f"{_SLOWEST} to {_FASTEST}"
        )
    return rate.limit_denominator(1001)


def _time(ctx: click.Context, param: click.Parameter, value: str | None) -> Fraction | None:
    """Seconds, from a number of them or hours, minutes and seconds."""
    if value is None:
        return None
    found = _TIME.fullmatch(value)
    if found is None:
        raise click.BadParameter(
            f"{value!r} is no time: give seconds such as 12.5, or minutes and seconds or hours too "
            "as in 1:02:03.25"
        )
    hours, minutes, seconds = (Fraction(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


READING = (
    click.Option(
        ["--start"],
        metavar="TIME",
        callback=_time,
        help="Begin with the first frame at this time: seconds such as 12.5, or [H:]MM:SS such as "
        "1:02:03.25, counted from the input's first frame.",
    ),
    click.Option(
        ["--end"], metavar="TIME", callback=_time, help="End before the first frame at this time."
    ),
    click.Option(
        ["--frames"], metavar="N", type=click.IntRange(min=1), help="End after so many frames."
    ),
    click.Option(
        ["--fps"],
        metavar="RATE",
        callback=_rate,
        help="Frames per second of a video made of a folder, such as 24 or 30000/1001.  "
        "[default: 25]",
    ),
    click.Option(
        ["--deinterlace"],
        is_flag=True,
        help="Make whole frames of a video's fields: where frames are marked as interlaced, else "
        "of all.",
    ),
    click.Option(
        ["--alpha"],
        type=click.Choice(["drop", "keep", "refuse"]),
        default="drop",
        help="What becomes of opacity; kept, it is enlarged without the network.",
    ),
    click.Option(
        ["--strict"],
        is_flag=True,
        help="Stop where a video is damaged, instead of leaving out what cannot be decoded.",
    ),
    click.Option(
        ["--decoder"],
        metavar="NAME",
        help="Decode a video on a device such as cuda, or with another decoder of FFmpeg's.",
    ),
)
"""Fields of :class:`~rbvsr_deploy.video.ReadOptions`."""

_OUTPUT = (
    click.Option(
        ["-o", "--output"],
        type=PATH,
        help="Video, picture or folder to write; of several inputs, the folder for all; - for y4m "
        "on standard output.  [default: <name>_x4 beside INPUT]",
    ),
    click.Option(["--overwrite"], is_flag=True, help="Replace an existing output."),
)

WRITING = (
    click.Option(
        ["--codec"],
        help="Encoder of a video.  [default: libx264, or libvpx-vp9 for .webm; for more than 8 "
        "bits libx265, or libsvtav1 for .webm; prores_ks, ffv1 and dnxhd for inputs of these]",
    ),
    click.Option(
        ["--crf"],
        type=float,
        help="Quality of a video, smaller is better.  [default: 18 for libx264]",
    ),
    click.Option(
        ["--pix-fmt"],
        help="Pixel format of a video.  [default: yuv420p, or yuv420p10le for more than 8 bits]",
    ),
    click.Option(["--audio/--no-audio"], default=True, help="Keep the sound of a video."),
    click.Option(
        ["--subtitles/--no-subtitles"], default=True, help="Keep the subtitles of a video."
    ),
)
"""Fields of :class:`~rbvsr_deploy.video.WriteOptions`."""

_KEEP_JOB = click.Option(
    ["--keep-job"],
    is_flag=True,
    help="Keep the job folder with the encoded parts after success.",
)

DEVICE = click.Option(
    ["--device"],
    default="auto",
    help="auto (the best there is), tensorrt, cuda, cpu, or the name of an ONNX Runtime execution "
    "provider.",
)

TRUST_ENGINES = click.Option(
    ["--trust-engines"],
    is_flag=True,
    help="Run the bundle's compiled engines even if somebody else compiled them: they are machine "
    "code.",
)

_ENGINE = (
    click.Option(
        ["--engine", "engine_path"],
        type=PATH,
        help="Bundle made by rbvsr-export, or a checkpoint to run in torch.  [default: the compact "
        "model for CPUs]",
    ),
    DEVICE,
    TRUST_ENGINES,
)

NETWORK = (
    click.Option(
        ["--memory"],
        metavar="SIZE",
        callback=memory_size,
        help="How much of the device's memory to use, such as 4GiB.  [default: half of what is "
        "free]",
    ),
    click.Option(
        ["--lookahead"],
        metavar="N|all",
        default="all",
        callback=_lookahead,
        help="How many future frames each frame draws on, or all of its scene. With N, the first "
        "picture comes out after N + 1 frames, and every frame costs N + 1 backward steps.",
    ),
    click.Option(
        ["--max-scene"],
        type=click.IntRange(min=1),
        default=300,
        help="Longer scenes are worked on in parts of so many frames.",
    ),
    click.Option(
        ["--refine-threshold"],
        type=click.FloatRange(min=0),
        help="Clean again while the mean change is at or above this many of 255 levels.  "
        "[default: the model's own]",
    ),
    click.Option(
        ["--refine-scope"],
        type=click.Choice(["scene", "frame"]),
        default="scene",
        help="Whether a whole scene or each frame decides how often it is cleaned.",
    ),
    click.Option(
        ["--cleanings"],
        type=click.IntRange(min=0),
        help="Fixed number of cleaning passes instead.",
    ),
)
"""Fields of :class:`~rbvsr_deploy.stream.Settings`."""

SCENE_CUTS = click.Option(
    ["--scene-cuts/--no-scene-cuts"],
    default=True,
    help="Look for cuts, where a new scene begins.",
)

_SCENES = (
    SCENE_CUTS,
    click.Option(
        ["--scene-list"],
        type=PATH,
        help="Text file of the frames at which scenes begin, one per line: read if it exists, else "
        "written. With --start, frames are counted from there.",
    ),
)

_REPORTS = (
    click.Option(
        ["--before-after"],
        type=PATH,
        help="Also write a picture of the middle frame, bicubic beside result.",
    ),
    click.Option(
        ["--compare"],
        metavar="PAGE.html",
        type=PATH,
        help="Also write a page with some frames before and after, and the figures of the run.",
    ),
    click.Option(
        ["--preview"],
        metavar="N",
        type=click.IntRange(1, 100),
        help="Write no video, but a page with N pictures from all over the input before and after, "
        "and how long all of it would take: what --compare names, or <name>_x4.html beside INPUT.",
    ),
)

SECTIONS: Mapping[str, Sequence[click.Option]] = {
    "Output": (*_OUTPUT, *WRITING, _KEEP_JOB),
    "Input": READING,
    "Network": (*_ENGINE, *NETWORK, *_SCENES),
    "Before and after": _REPORTS,
}


def values_of(options: Sequence[click.Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """What was given for these options, by their names."""
    return {name: values[name] for option in options if (name := option.name) is not None}


class SectionedCommand(click.Command):
    """A command with so many options that its help shows them in sections.

    Args:
        sections: options by the title of their section; those of decorators come last.
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

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        others = [*self._others, self.get_help_option(ctx)]
        for title, options in (*self._sections.items(), ("Other", others)):
            records = [option.get_help_record(ctx) for option in options if option is not None]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])
