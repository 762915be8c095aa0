"""The commands, one file each. ``edge.py`` is what they share."""
