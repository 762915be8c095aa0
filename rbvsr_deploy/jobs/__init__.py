"""Turns an input file into an output file, alone or in a batch, and reports on it."""
