"""Kernels timed on a device, at the shapes that a model's forward pass launches them with.

``job.py`` says what is timed and what came of it, ``inputs.py`` fills its buffers, ``work.py`` counts what a launch
must move and compute, ``run.py`` times it on an open device.
"""
