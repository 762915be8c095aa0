"""Chooses, configures and runs video encoders, one segment of the output at a time."""
