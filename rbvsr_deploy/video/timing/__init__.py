"""Places the frames and packets of a file in time: clocks, timestamps and seeking."""
