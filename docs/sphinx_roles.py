"""Turns the Sphinx roles and literal blocks of the docstrings into Markdown, for mkdocstrings.

An extension of Griffe (see mkdocs.yml). ``:class:`~rbvsr_deploy.upscaler.Upscaler` `` becomes the
code ``Upscaler``, linked where the API reference has it.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(~?)([\w.]+)`")


class SphinxRoles(griffe.Extension):
    """Rewrites every docstring when it is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            text = _ROLE.sub(lambda role: _reference(obj, role), obj.docstring.value)
            text = re.sub(r"(^| )::$", "", text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _reference(obj: griffe.Object, role: re.Match[str]) -> str:
    """Return the code that a role names, as a link that may have no target."""
    short, name = role.groups()
    owners = [owner for owner in (obj, obj.parent, obj.module) if owner is not None]
    target = next((f"{owner.path}.{name}" for owner in owners if name in owner.members), name)
    shown = name.rpartition(".")[2] if short else name
    return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'
