"""Degrades clean clips the way real low-quality video is degraded."""
