"""Reads and writes the bundle: one ``model.plan`` with a network's graphs and compiled engines."""

from __future__ import annotations

from rbvsr_deploy.bundle.file import (
    Bundle,
    bundle_in_memory,
    check_bundle_path,
    open_bundle,
    write_bundle,
)
from rbvsr_deploy.bundle.manifest import SCHEMA_VERSION, Manifest, Weights, graph_io

__all__ = [
    "SCHEMA_VERSION",
    "Bundle",
    "Manifest",
    "Weights",
    "bundle_in_memory",
    "check_bundle_path",
    "graph_io",
    "open_bundle",
    "write_bundle",
]
