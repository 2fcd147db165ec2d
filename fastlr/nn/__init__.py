"""Layers. Each computes one thing and asks the backend registry for the kernels it needs."""
