"""Spreads jobs over worker processes, on this machine or a Ray cluster, with the same bytes."""
