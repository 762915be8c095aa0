"""Makes bundles as versions before 0.3 exported them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rbvsr_deploy.bundle import Bundle, write_bundle
from rbvsr_deploy.graphs import OPTIONAL


def without_optional_graphs(bundle: Bundle, path: Path) -> Path:
    """Write a bundle without the graphs that came later."""
    kept = {name: io for name, io in bundle.manifest.graphs.items() if name not in OPTIONAL}
    graphs = {name: bundle.graph(name) for name in kept}
    write_bundle(path, replace(bundle.manifest, graphs=kept), graphs)
    return path
