"""CUDA without torch: memory, streams, events and graphs, through cuda-python or pycuda.

``driver.py`` defines the protocol, ``cuda_python.py`` and ``pycuda.py`` implement it, and
``open.py`` chooses between them. ``queues.py`` makes work on several streams wait for the data it
needs. ``buffers.py`` allocates memory once and reuses it.
"""
