"""Scores upscaled sequences, with or without a ground truth."""
