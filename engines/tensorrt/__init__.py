"""Runs the bundle's graphs with TensorRT 8.6, 10, 11 and TensorRT-RTX.

``flavours.py`` contains everything that differs between these. ``build.py`` compiles graphs,
``compile.py`` adds compiled engines to a bundle, and ``plans.py`` finds or compiles engines that
fit a machine. ``engine.py`` runs them through ``launches.py`` with all data in GPU memory.
``open.py`` assembles these parts, and ``base.py`` defines the protocols between them.
"""
