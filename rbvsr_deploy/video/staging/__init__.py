"""Keeps unfinished outputs in a job folder and publishes them once they are complete."""
