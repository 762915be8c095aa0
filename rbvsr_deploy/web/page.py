"""Lays out the page with Gradio. What it shows is described in ``view``."""

from __future__ import annotations

import dataclasses
import os
from importlib import resources
from typing import TYPE_CHECKING, Any

from rbvsr_deploy.web.records import Settings
from rbvsr_deploy.web.runner import Runner
from rbvsr_deploy.web.store import Store
from rbvsr_deploy.web.view import View, describe, history

if TYPE_CHECKING:
    from gradio import Blocks
    from starlette.applications import Starlette

__all__ = ["build_page", "mount_page"]

_LONGEST = 40
"""Most characters of a setting that is typed."""

_SIZES = {
    "4 times": "4",
    "3 times": "3",
    "2 times": "2",
    "1.5 times": "1.5",
    "Same size, restored": "1",
    "720 rows": "720p",
    "1080 rows": "1080p",
    "1440 rows": "1440p",
    "2160 rows (4K)": "2160p",
}

_ADDRESS = "() => [new URL(location).searchParams.get('job') || '']"
"""JavaScript: the id of the job that the page's address names."""


def build_page(store: Store, runner: Runner) -> Blocks:
    """Return the page; it needs :func:`mount_page`."""
    # Read when Gradio is imported: nothing is fetched or reported, nothing is kept elsewhere.
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_TEMP_DIR=str(store.folder / "gradio"),
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
    )
    import gradio as gr

    handlers = _Handlers(store, runner)
    with gr.Blocks(title="rbvsr", analytics_enabled=False) as blocks:
        # In the browser, so that the page works on when the server was started again.
        job = gr.Textbox(visible="hidden")
        shown = gr.State(_Shown())
        gr.HTML(_text("header.html"), padding=False)
        with gr.Row(visible=False, elem_classes="rb-work") as work:
            with gr.Column(scale=3, min_width=320):
                heading, preview = gr.HTML(padding=False), gr.HTML(padding=False)
            with gr.Column(scale=2, min_width=300):
                settings = _settings(runner)
                with gr.Row(elem_classes="rb-buttons"):
                    start = gr.Button("Start", elem_id="rb-start", min_width=120)
                    again = gr.Button("Preview again", elem_id="rb-again", min_width=120)
                    cancel = gr.Button("Cancel", elem_id="rb-cancel", min_width=120)
                status = gr.HTML(padding=False)
        gr.HTML('<h2 class="rb-title">Jobs</h2>', padding=False)
        jobs = gr.HTML(padding=False)

        quiet: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,
        }
        parts = [shown, heading, preview, status, start, again, cancel, jobs]
        blocks.load(handlers.opened, [job], [job, work, *settings, *parts], js=_ADDRESS, **quiet)
        gr.Timer(1.0).tick(handlers.looked, [job, shown], parts, **quiet)
        for button, handler in ((start, handlers.started), (again, handlers.previewed)):
            button.click(handler, [job, shown, *settings], parts, **quiet)
        cancel.click(handlers.cancelled, [job, shown], parts, **quiet)
    return blocks


def mount_page(app: Starlette, blocks: Blocks) -> None:
    """Serve the page at the root of an application."""
    import gradio as gr

    theme = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        radius_size="md",
        font=("system-ui", "sans-serif"),  # the system's fonts: nothing is fetched
        font_mono=("ui-monospace", "monospace"),
    )
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=theme,
        css=_text("page.css"),
        head=f"<script>{_text('page.js')}</script>",
        footer_links=[],
        allowed_paths=[],
        max_file_size=1,
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )


def _settings(runner: Runner) -> list[Any]:
    """Return the components for the fields of :class:`Settings`, in their order."""
    import gradio as gr

    models = list(runner.models)
    model = gr.Dropdown(models, value=models[0], label="Model", visible=len(models) > 1)
    size = gr.Dropdown(list(_SIZES.items()), value="4", label="Size")
    amounts: dict[str, Any] = {"value": 1, "step": 0.05, "min_width": 140, "buttons": []}
    with gr.Row():
        strength = gr.Slider(0, 1, label="Strength", info="0 only enlarges", **amounts)
        denoise = gr.Slider(0, 1, label="Cleaning", info="0 keeps all noise", **amounts)
    with gr.Row():
        start = gr.Textbox(label="From", placeholder="0:00", max_length=_LONGEST, min_width=100)
        end = gr.Textbox(label="To", placeholder="the end", max_length=_LONGEST, min_width=100)
    return [model, size, strength, denoise, start, end]


@dataclasses.dataclass(frozen=True)
class _Shown:
    """Holds what a browser shows, so that only changes are sent."""

    view: View = dataclasses.field(default_factory=View)
    jobs: str = ""


class _Handlers:
    """Answers the events of the page."""

    def __init__(self, store: Store, runner: Runner) -> None:
        self._store, self._runner = store, runner

    def opened(self, name: str) -> list[Any]:
        """Show the job that the address names."""
        import gradio as gr

        job = self._store.get(str(name))
        if job is None or not job.record.uploaded:
            blank = [gr.skip() for _ in dataclasses.fields(Settings)]
            return ["", gr.update(visible=False), *blank, *self._changes("", _Shown())]
        record = job.record
        used = (record.preview if record.run.state == "new" else record.run).settings
        if used.model not in self._runner.models:
            used = dataclasses.replace(used, model=next(iter(self._runner.models)))
        values = dataclasses.astuple(used)
        return [job.id, gr.update(visible=True), *values, *self._changes(job.id, _Shown())]

    def looked(self, name: str, shown: _Shown) -> list[Any]:
        """Show what has changed."""
        return self._changes(str(name), shown)

    def started(self, name: str, shown: _Shown, *values: Any) -> list[Any]:
        """Start or resume the run."""
        if (job := self._store.get(str(name))) is not None:
            self._runner.start(job, "run", _from_values(values))
        return self._changes(str(name), shown)

    def previewed(self, name: str, shown: _Shown, *values: Any) -> list[Any]:
        """Make the preview with other settings."""
        if (job := self._store.get(str(name))) is not None:
            self._runner.start(job, "preview", _from_values(values))
        return self._changes(str(name), shown)

    def cancelled(self, name: str, shown: _Shown) -> list[Any]:
        """Cancel what the job is doing."""
        if (job := self._store.get(str(name))) is not None:
            self._runner.cancel(job)
        return self._changes(str(name), shown)

    def _changes(self, name: str, shown: _Shown) -> list[Any]:
        """Return updates of the components that no longer show the current state."""
        import gradio as gr

        job = self._store.get(name)
        view = describe(job, self._runner) if job is not None else View()
        now = _Shown(view, history(self._store, shown=name))
        if now == shown:
            return [gr.skip() for _ in range(8)]
        old = shown.view

        def changed(before: object, after: object, update: Any) -> Any:
            return gr.skip() if before == after else update

        return [
            now,
            changed(old.heading, view.heading, view.heading),
            changed(old.preview, view.preview, view.preview),
            changed(old.status, view.status, view.status),
            gr.update(
                value=view.start,
                visible=view.can_start,
                variant="primary" if view.start_is_next else "secondary",
            ),
            gr.update(visible=view.can_preview),
            gr.update(visible=view.can_cancel),
            changed(shown.jobs, now.jobs, now.jobs),
        ]


def _from_values(values: tuple[Any, ...]) -> Settings:
    """Return the settings that a browser has sent, which may be anything."""
    model, size, strength, denoise, start, end = values
    model, size, start, end = (str(text or "")[:_LONGEST] for text in (model, size, start, end))
    return Settings(model, size, float(strength), float(denoise), start, end)


def _text(name: str) -> str:
    return (resources.files("rbvsr_deploy.web") / name).read_text(encoding="utf-8")
