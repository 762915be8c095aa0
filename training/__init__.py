"""Trains and evaluates models: clips, degradations, losses, the two stages, metrics.

This package is installed as ``rbvsr_deploy.training``. Its commands are ``rbvsr-train`` and
``rbvsr-eval``; the extras ``train`` and ``eval`` install their dependencies.
"""

from __future__ import annotations

if __name__ != "rbvsr_deploy.training":
    raise ImportError(
        f"this folder is the package 'rbvsr_deploy.training', not '{__name__}': "
        "install the project and import it under that name"
    )
