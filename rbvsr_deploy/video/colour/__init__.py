"""Converts between decoded video frames and upright RGB images."""
