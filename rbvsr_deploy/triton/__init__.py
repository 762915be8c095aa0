"""Serves bundles in NVIDIA's Triton Inference Server."""
