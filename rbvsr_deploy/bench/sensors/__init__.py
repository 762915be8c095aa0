"""Reads power, clocks and temperatures: Linux sysfs, Jetson boards, NVIDIA's management library."""
