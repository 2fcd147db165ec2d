"""Coulomb matrices of Gaussian charges by formulas that share nothing with an Ewald sum."""

import itertools

import numpy as np
from scipy.special import erf


def molecule_matrix(positions, widths):
    """A_ij = erf(r / (sqrt2 g_ij)) / r, A_ii = 1 / (s_i sqrt(pi)), element by element."""
    n = len(positions)
    matrix = np.zeros((n, n))
    for i, j in itertools.product(range(n), repeat=2):
        if i == j:
            matrix[i, i] = 1.0 / (widths[i] * np.sqrt(np.pi))
        else:
            r = np.linalg.norm(positions[i] - positions[j])
            matrix[i, j] = erf(r / np.sqrt(2.0 * (widths[i] ** 2 + widths[j] ** 2))) / r
    return matrix


def cell_matrix(positions, cell, widths):
    """The Poisson equation of the Gaussians solved in Fourier space, without any splitting.

    A_ij = (4 pi / V) sum over k != 0 of exp(-(s_i^2 + s_j^2) k^2 / 2) cos(k r_ij) / k^2. The Gaussians themselves
    make it converge; with k = 0 left out, every Gaussian's potential averages to zero.
    """
    reciprocal = 2.0 * np.pi * np.linalg.inv(cell).T
    k_max = np.sqrt(-2.0 * np.log(1e-18)) / (np.sqrt(2.0) * np.min(widths))
    bounds = [int(k_max * np.linalg.norm(vector) / (2.0 * np.pi)) + 1 for vector in cell]
    indices = np.array(list(itertools.product(*(range(-b, b + 1) for b in bounds))))
    waves = indices[np.any(indices != 0, axis=1)] @ reciprocal
    k2 = np.sum(waves**2, axis=1)
    waves, k2 = waves[k2 < k_max**2], k2[k2 < k_max**2]
    n = len(positions)
    matrix = np.zeros((n, n))
    for i, j in itertools.product(range(n), repeat=2):
        decay = np.exp(-0.5 * (widths[i] ** 2 + widths[j] ** 2) * k2)
        matrix[i, j] = np.sum(decay * np.cos(waves @ (positions[i] - positions[j])) / k2)
    return matrix * 4.0 * np.pi / abs(np.linalg.det(cell))


def bordered_solve(hessian, electronegativity, total):
    """Charges and Lagrange multiplier of the constrained minimum, by the dense bordered matrix."""
    n = len(electronegativity)
    bordered = np.zeros((n + 1, n + 1))
    bordered[:n, :n] = hessian
    bordered[:n, n] = bordered[n, :n] = 1.0
    solution = np.linalg.solve(bordered, np.append(-np.asarray(electronegativity), total))
    return solution[:n], solution[n]
