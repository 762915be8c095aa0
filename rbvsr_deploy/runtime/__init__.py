"""Runs a scene: recurrent state, propagation, dynamic refinement and the memory they need."""
