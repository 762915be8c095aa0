"""Scores upscaled sequences, with or without ground truth."""
