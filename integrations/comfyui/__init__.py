"""RealBasicVSR for ComfyUI: nodes that upscale image batches and whole videos."""

from __future__ import annotations

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
