"""Which pairs and wave vectors a Coulomb sum visits: integer tables that stay valid while atoms move little.

For one structure with Gaussian charges of widths s_i (rho ~ exp(-r^2 / 2 s_i^2), g_ij^2 = s_i^2 + s_j^2), splitting
width eta and requested accuracy a, both sums stop where a Gaussian has fallen to a: x = sqrt(-2 ln a),

    real space        r < x max(eta, g_ij)         erfc(x / sqrt 2) <= a
    reciprocal space  k < x / eta                   exp(-eta^2 k^2 / 2) <= a

A molecule has all pairs, no wave vectors, and eta = infinity.
"""

from dataclasses import dataclass

import numpy as np
import vesin


@dataclass(frozen=True)
class CoulombTables:
    """Tables of one structure (numpy).

    Attributes:
        pairs: (P, 2) int64 half list of atoms i <= j; i == j only for an atom and its own image.
        shifts: (P, 3) int8 or wider, lattice shift of j.
        wave_indices: (K, 3) int64 Miller indices of a half space of wave vectors, the zero vector left out.
        inverse_eta: 1 / eta in 1/Å; zero for a molecule.
    """

    pairs: np.ndarray
    shifts: np.ndarray
    wave_indices: np.ndarray
    inverse_eta: float


def balanced_eta(volume: float, num_atoms: int) -> float:
    """Splitting width in Å that balances the two sums (Jackson & Catlow, Mol. Simul. 1, 207, 1988), times 0.8.

    The dense reciprocal sum is a matrix product and thus cheaper a term than the error functions of the real
    sum, so a width smaller than the textbook one is faster.
    """
    return 0.8 * (volume**2 / num_atoms) ** (1.0 / 6.0) / np.sqrt(2.0 * np.pi)


def coulomb_tables(
    positions: np.ndarray,
    cell: np.ndarray | None,
    widths: np.ndarray,
    accuracy: float = 1e-10,
    eta: float | None = None,
) -> CoulombTables:
    """Tables of one structure.

    Args:
        positions: (n, 3) Å.
        cell: (3, 3) Å, rows are lattice vectors, for a cell periodic in three directions; None for a molecule.
        widths: (n,) Gaussian widths s_i, Å.
        accuracy: relative size at which both sums are cut.
        eta: splitting width in Å (default: ``balanced_eta``).
    """
    n = len(positions)
    if cell is None:
        pairs = np.stack(np.triu_indices(n, 1), axis=1)
        return CoulombTables(pairs, np.zeros((len(pairs), 3), np.int8), np.zeros((0, 3), np.int64), 0.0)

    volume = abs(np.linalg.det(cell))
    if eta is None:
        eta = balanced_eta(volume, max(n, 1))
    reach = np.sqrt(-2.0 * np.log(accuracy))

    cutoff = reach * max(eta, float(np.sqrt(2.0) * widths.max(initial=0.0)))
    neighbours = vesin.NeighborList(cutoff=cutoff, full_list=False)
    i, j, shifts, distances = neighbours.compute(positions, cell, True, quantities="ijSd")
    gamma = np.sqrt(widths[i] ** 2 + widths[j] ** 2)
    near = distances < reach * np.maximum(eta, gamma)
    pairs = np.stack([i[near], j[near]], axis=1).astype(np.int64)
    shifts = shifts[near]
    shifts = shifts.astype(np.int8 if np.abs(shifts).max(initial=0) < 127 else np.int32)

    return CoulombTables(pairs, shifts, wave_indices(cell, reach / eta), 1.0 / eta)


def wave_indices(cell: np.ndarray, k_max: float) -> np.ndarray:
    """(K, 3) Miller indices with 0 < |k| < k_max, one of each pair +k, -k.

    |n_a| = |k . a| / 2 pi <= k_max |a| / 2 pi bounds the indices in any cell, skewed ones too.
    """
    bounds = np.floor(k_max * np.linalg.norm(cell, axis=1) / (2.0 * np.pi)).astype(int)
    grids = np.meshgrid(*(np.arange(-bound, bound + 1) for bound in bounds), indexing="ij")
    indices = np.stack([grid.ravel() for grid in grids], axis=1)
    a, b, c = indices.T
    half = (a > 0) | ((a == 0) & ((b > 0) | ((b == 0) & (c > 0))))
    indices = indices[half]
    waves = 2.0 * np.pi * indices @ np.linalg.inv(cell).T
    return indices[(waves**2).sum(axis=1) < k_max**2]
