"""``rbvsr web``: a page in the browser for uploading, previewing and upscaling."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from rbvsr_deploy.commands._common import (
    PATH,
    VERBOSE,
    VERSION,
    Command,
    Count,
    command_errors,
    memory_size,
    report,
    require,
    show,
)
from rbvsr_deploy.commands._run_options import DEVICE, TRUST_ENGINES

__all__ = ["web"]


@click.command(cls=Command, params=[DEVICE, TRUST_ENGINES], context_settings={"show_default": True})
@click.option(
    "--host", metavar="ADDRESS", default="127.0.0.1", help="Address or name to listen on."
)
@click.option(
    "--port",
    metavar="N",
    type=Count(0, 65535),
    default=7860,
    help="Port to listen on; 0 is any free one.",
)
@click.option(
    "--engine",
    "engines",
    metavar="PATH",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="Bundle or checkpoint to choose on the page; may be given several times.  [default: the "
    "included compact model for CPUs]",
)
@click.option(
    "--memory",
    metavar="SIZE",
    callback=memory_size,
    help="Maximum device memory to use, such as 4GiB.  [default: half of what is free]",
)
@click.option(
    "--folder",
    type=PATH,
    help="Folder for uploads and outputs.  [default: RBVSR_DATA, or the user's data folder]",
)
@click.option(
    "--max-upload",
    metavar="SIZE",
    default="20GiB",
    callback=memory_size,
    help="Largest input to accept.",
)
@VERBOSE
@VERSION
def web(
    host: str,
    port: int,
    engines: tuple[Path, ...],
    memory: int | None,
    folder: Path | None,
    max_upload: int,
    device: str,
    trust_engines: bool,
    verbose: bool,
) -> None:
    """Serve a page to upload, upscale and download videos.

    Only this machine can open it, unless --host says otherwise. Jobs run one at a time, and resume
    when the server was stopped.
    """
    with command_errors(verbose=verbose):
        require("gradio", extra="web", purpose="the web page")
        from rbvsr_deploy.engines.user_folders import data_folder
        from rbvsr_deploy.web.guard import is_local
        from rbvsr_deploy.web.runner import Runner
        from rbvsr_deploy.web.server import build_app, listen, serve
        from rbvsr_deploy.web.store import Store
        from rbvsr_deploy.web.uploads import Limits

        options = [f"--device={device}"]
        options += ["--trust-engines"] if trust_engines else []
        options += [f"--memory={memory}"] if memory is not None else []
        with (
            listen(host, port) as listening,
            Store(folder or data_folder() / "web", limits=Limits(upload=max_upload)) as store,
            Runner(
                store,
                command=[sys.executable, "-m", "rbvsr_deploy.commands._tethered"],
                models=_models(engines),
                options=options,
            ) as runner,
        ):
            if not is_local(host):
                report(
                    "Warning: the page has no password; everyone who can reach this machine can "
                    "see and delete all jobs"
                )
            app = build_app(store, runner, host=host)
            name = f"[{host}]" if ":" in host else host
            show(f"http://{name}:{listening.getsockname()[1]}/ (Ctrl-C stops it)")
            serve(app, listening)


def _models(engines: Sequence[Path]) -> dict[str, Path | None]:
    """Name the models for the page, each differently."""
    models: dict[str, Path | None] = {}
    for path in engines:
        name = path.stem if path.stem not in models else str(path)
        models[name] = path.absolute()
    return models or {"compact (included)": None}
