"""What lists of neighbours are made from: positions without the empty space in which there are none."""

import numpy as np

WIDE = 20.0  # cutoffs; a structure no wider than that is left as it is


def without_gaps(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> np.ndarray:
    """(n, 3) positions with the same pairs within the cutoff, and the same vectors between them.

    Along directions that are not periodic, groups of atoms that lie more than the cutoff apart are moved together. What
    puts atoms into boxes takes time and memory for empty ones, too, and fails where an atom has flown away.

    Args:
        cell: (3, 3) Å; read for periodic directions only.
        pbc: (3,) bool.
        cutoff: Å.
    """
    periodic = np.asarray(cell, float)[np.asarray(pbc, bool)]
    if len(periodic) == 3 or not len(positions) or np.ptp(positions, axis=0).max() < WIDE * cutoff:
        return positions
    # unit vectors normal to all periodic ones, and to each other
    for direction in np.linalg.svd(periodic)[2][len(periodic) :] if len(periodic) else np.eye(3):
        height = positions @ direction
        if len(height) < 2 or np.ptp(height) < WIDE * cutoff:
            continue
        order = np.argsort(height)
        excess = np.maximum(np.diff(height[order]) - 1.5 * cutoff, 0.0)
        taken = np.zeros_like(height)
        taken[order[1:]] = np.cumsum(excess)
        positions = positions - taken[:, None] * direction
    return positions
