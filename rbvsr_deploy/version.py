"""Holds the version, which every file that this package writes names."""

__version__ = "0.2.0"
