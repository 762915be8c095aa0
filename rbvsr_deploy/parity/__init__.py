"""Measures how far the results of two engines differ."""
