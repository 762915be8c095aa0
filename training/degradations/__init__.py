"""Degrades clean clips in the way that real low-quality video is degraded."""
