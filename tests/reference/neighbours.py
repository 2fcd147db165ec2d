"""Neighbours by trying every image."""

import itertools

import numpy as np


def brute_force_edges(positions, cell, pbc, r_max: float) -> dict:
    """{(i, j, n_a, n_b, n_c): vector from i to the image of j} of all pairs closer than r_max."""
    n = len(positions)
    ranges = [range(1)] * 3
    if np.any(pbc):
        heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
        fractions = positions @ np.linalg.inv(cell)
        for axis in np.flatnonzero(pbc):
            reach = int(r_max / heights[axis] + np.ptp(fractions[:, axis])) + 1
            ranges[axis] = range(-reach, reach + 1)
    edges = {}
    for shift in itertools.product(*ranges):
        vectors = positions[None, :, :] - positions[:, None, :] + np.array(shift) @ cell
        for i, j in np.argwhere(np.linalg.norm(vectors, axis=2) < r_max):
            if i != j or any(shift):
                edges[(int(i), int(j), *shift)] = vectors[i, j]
    assert n or not edges
    return edges
