"""Measures how fast a bundle runs on this machine, and how far that is from what it could do."""
