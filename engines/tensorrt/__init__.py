"""The bundle's graphs under TensorRT 8.6, 10, 11 and TensorRT-RTX.

``flavours.py`` is the one place that knows how these differ. ``build.py`` compiles a graph,
``plans.py`` finds the compiled engines that fit a machine or has them made, ``engine.py`` runs them
with everything in the GPU's memory, by way of ``launches.py``. ``open.py`` puts these together,
``base.py`` says what they ask of each other.
"""
