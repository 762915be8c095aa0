"""Places the frames and packets of a file in time: clocks, time stamps and seeking."""
