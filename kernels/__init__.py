"""Numerical kernels: tensors in, tensors out. Nothing here knows of models or atoms.

Every folder reads the same way: ``naive.py`` is the specification in plain PyTorch; other files
are faster implementations of the same function, tested against it.
"""
