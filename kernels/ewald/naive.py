"""The specification of the Coulomb matrix of Gaussian charges in plain PyTorch.

Sources: Ewald (Ann. Phys. 369, 253, 1921); Gaussian charges as in 4G-HDNNP (Ko, Finkler, Goedecker & Behler, Nat.
Commun. 12, 398, 2021, Eq. 4-9 and its supplement).
"""

import math

import torch
from torch import Tensor


def coulomb_matrix(
    positions: Tensor,
    widths: Tensor,
    cell: Tensor,
    batch: Tensor,
    slot: Tensor,
    size: int,
    pairs: Tensor,
    shifts: Tensor,
    inverse_eta: Tensor,
    periodic: Tensor,
    wave_indices: Tensor,
) -> Tensor:
    """A[b, i, j], such that a structure's Coulomb energy is (k / 2) q' A q.

    A molecule:  A_ij = erf(r / (sqrt2 g_ij)) / r,  A_ii = 1 / (s_i sqrt(pi)),  g_ij^2 = s_i^2 + s_j^2.
    A cell, with the images of j and the splitting width eta:

        real space   sum [erf(r / (sqrt2 g_ij)) - erf(r / (sqrt2 eta))] / r
        reciprocal   (4 pi / V) sum_k exp(-eta^2 k^2 / 2) / k^2 cos(k r_ij), twice a half space
        self         - sqrt(2 / pi) / eta on the diagonal
        k = 0        - 2 pi (eta^2 - g_ij^2) / V everywhere: the average potential of each Gaussian is zero, so
                     that A is positive semidefinite and does not depend on eta, and a net charge is
                     compensated by a uniform background

    Args:
        positions: (N, 3) float64, Å.
        widths: (N,) Gaussian widths s, Å.
        cell: (B, 3, 3), rows are lattice vectors; read for periodic structures only.
        batch, slot: (N,) the structure of each atom, and its index within the structure.
        size: the largest number of atoms in a structure.
        pairs: (P, 2) half list of atoms, as in ``tables.CoulombTables``, indices into the whole batch.
        shifts: (P, 3) lattice shifts of the second atom.
        inverse_eta: (B,) 1/Å, zero for molecules.
        periodic: (Bp,) the periodic structures.
        wave_indices: (Bp, K, 3) their wave vectors, padded with zeros.

    Returns:
        (B, size, size) in 1/Å, zero outside each structure's own block.
    """
    num_structures = cell.shape[0]
    first, second = pairs[:, 0], pairs[:, 1]
    structure = batch.index_select(0, first)

    # real space (all there is, for a molecule), half list then symmetrised
    shift = (shifts.to(cell.dtype)[:, None, :] @ cell.index_select(0, structure)).squeeze(1)
    r = torch.linalg.vector_norm(positions.index_select(0, second) - positions.index_select(0, first) + shift, dim=1)
    gamma = torch.sqrt(widths.index_select(0, first) ** 2 + widths.index_select(0, second) ** 2)
    smeared = torch.erf(r / (math.sqrt(2.0) * gamma))
    if len(periodic):
        smeared = smeared - torch.erf(r * inverse_eta.index_select(0, structure) / math.sqrt(2.0))
    flat = (structure * size + slot.index_select(0, first)) * size + slot.index_select(0, second)
    half = positions.new_zeros(num_structures * size * size).index_add(0, flat, smeared / r)
    matrix = half.view(num_structures, size, size)
    matrix = matrix + matrix.transpose(1, 2)

    # self-interaction
    self_term = 1.0 / (widths * math.sqrt(math.pi)) - math.sqrt(2.0 / math.pi) * inverse_eta.index_select(0, batch)
    matrix = matrix + torch.diag_embed(_pad(self_term, batch, slot, num_structures, size))
    if not len(periodic):
        return matrix

    # reciprocal space and the k = 0 term of the periodic structures
    lattice = cell.index_select(0, periodic)
    volume = torch.linalg.det(lattice).abs()[:, None]
    eta = 1.0 / inverse_eta.index_select(0, periodic)[:, None]
    waves = 2.0 * math.pi * wave_indices.to(cell.dtype) @ torch.linalg.inv(lattice).transpose(1, 2)  # (Bp, K, 3)
    k2 = (waves**2).sum(dim=2)
    is_wave = (wave_indices != 0).any(dim=2)
    k2 = torch.where(is_wave, k2, 1.0)
    weight = torch.where(is_wave, 2.0 * (4.0 * math.pi / volume) * torch.exp(-0.5 * eta**2 * k2) / k2, 0.0)

    is_atom = _pad(torch.ones_like(widths), batch, slot, num_structures, size).index_select(0, periodic)
    padded = _pad(positions, batch, slot, num_structures, size).index_select(0, periodic)
    phase = padded @ waves.transpose(1, 2)  # (Bp, size, K)
    cosine, sine = torch.cos(phase) * is_atom[:, :, None], torch.sin(phase) * is_atom[:, :, None]
    reciprocal = (cosine * weight[:, None, :]) @ cosine.transpose(1, 2)
    reciprocal = reciprocal + (sine * weight[:, None, :]) @ sine.transpose(1, 2)

    s2 = _pad(widths**2, batch, slot, num_structures, size).index_select(0, periodic)
    average = 2.0 * math.pi * (eta[:, :, None] ** 2 - s2[:, :, None] - s2[:, None, :]) / volume[:, :, None]
    average = average * is_atom[:, :, None] * is_atom[:, None, :]
    return matrix.index_add(0, periodic, reciprocal - average)


def _pad(values: Tensor, batch: Tensor, slot: Tensor, num_structures: int, size: int) -> Tensor:
    """(N, ...) -> (B, size, ...), zeros where a structure has fewer atoms."""
    out = values.new_zeros(num_structures * size, *values.shape[1:])
    return out.index_add(0, batch * size + slot, values).view(num_structures, size, *values.shape[1:])
