"""CUDA without torch: memory, streams, events and graphs, through cuda-python or pycuda.

``driver.py`` is the protocol and chooses the adapter; ``cuda_python.py`` and ``pycuda.py`` are the
adapters. ``queues.py`` makes work on several streams wait for the data it needs, and ``buffers.py``
lends memory that is allocated once.
"""
