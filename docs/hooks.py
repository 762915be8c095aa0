"""Adds the Markdown files outside docs/ to the site, and keeps the site free of network requests.

A hook of MkDocs (see mkdocs.yml). Links in all pages are written as links between files of the
repository, so that they also work where the repository is browsed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

PAGES = {
    "benchmarks/README.md": "benchmarks.md",
    "rbvsr_deploy/pretrained/MODEL_CARD.md": "model-card.md",
    "integrations/vapoursynth/README.md": "vapoursynth.md",
    "integrations/comfyui/README.md": "comfyui.md",
    "integrations/triton/README.md": "triton.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""File of the repository outside docs/ -> its page in the site."""

_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)\s#]+)((?:#[^)\s]*)?\))")
_REQUEST = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=\"?https?://[^>]*>"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that come from files outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    sources = {name: source for source, name in PAGES.items()}
    name = page.file.src_uri
    folder = PurePosixPath(sources.get(name, f"docs/{name}")).parent
    return _LINK.sub(lambda found: f"{found[1]}{_site_link(folder, found[2])}{found[3]}", markdown)


def _site_link(folder: PurePosixPath, target: str) -> str:
    """Return the site's link for a link in a file of ``folder``; others stay, for MkDocs to check.

    All pages that a hook or a link reaches lie directly in the site's root.
    """
    path = os.path.normpath(folder / target).replace(os.sep, "/")
    return PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else target)


def on_post_page(output: str, page: Page, **kwargs: Any) -> str:
    """Refuse a page that would make a browser ask another server for something.

    Raises:
        PluginError: the page has such an element; the build fails.
    """
    if found := _REQUEST.search(output):
        raise PluginError(f"{page.file.src_uri} requests {found[0]}: keep the file in docs/")
    return output
