"""Random batches of Gaussian charges in molecules, slabs and cells."""

import numpy as np
import torch
from fastlr.kernels.ewald.system import System
from fastlr.kernels.ewald.tables import CoulombTables, coulomb_tables

MOLECULE, SLAB, CELL = (0, 0, 0), (1, 1, 0), (1, 1, 1)
KINDS = {"molecule": MOLECULE, "slab": SLAB, "slab along y": (1, 0, 1), "slab along x": (0, 1, 1), "cell": CELL}


def random_system(rng, structures: list[tuple], edge: float = 5.0, accuracy: float = 1e-14, eta=None) -> System:
    """Structures of (atoms, pbc) with skewed cells, some left-handed; some widths are zero."""
    positions, widths, cells, parts = [], [], [], []
    for n, pbc in structures:
        cell = (np.eye(3) + 0.2 * rng.uniform(-1.0, 1.0, (3, 3))) * edge
        cell = cell[[1, 0, 2]] if rng.random() < 0.5 else cell
        positions.append(rng.uniform(-0.3, 1.2, (n, 3)) @ cell)
        widths.append(np.where(rng.random(n) < 0.2, 0.0, rng.uniform(0.3, 1.2, n)))
        cells.append(cell)
        parts.append(coulomb_tables(positions[-1], cell, np.array(pbc, bool), widths[-1], accuracy, eta))
    return joined(positions, widths, cells, parts)


def joined(positions: list, widths: list, cells: list, parts: list[CoulombTables]) -> System:
    """The batch of these structures."""
    sizes = torch.tensor([len(x) for x in positions], dtype=torch.int64)
    return System.of(
        torch.from_numpy(np.concatenate(positions)),
        torch.from_numpy(np.concatenate(widths)) ** 2,
        torch.from_numpy(np.stack(cells)),
        torch.arange(len(sizes)).repeat_interleave(sizes),
        torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]),
        CoulombTables.join(parts),
    )
