"""Training and evaluation: clips, degradations, losses, the two stages, metrics.

Installed as ``rbvsr_deploy.training``; ``rbvsr-train`` and ``rbvsr-eval`` are its commands, the
``train`` and ``eval`` extras bring what they need.
"""

from __future__ import annotations

if __name__ != "rbvsr_deploy.training":
    raise ImportError(
        f"this folder is the package 'rbvsr_deploy.training', not '{__name__}': "
        "install the project and import it under that name"
    )
