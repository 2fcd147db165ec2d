"""The specification of the Coulomb matrix of Gaussian charges in plain PyTorch.

Sources: Ewald (Ann. Phys. 369, 253, 1921); Gaussian charges as in 4G-HDNNP (Ko, Finkler, Goedecker & Behler, Nat.
Commun. 12, 398, 2021, Eq. 4-9 and its supplement); slabs as in Parry (Surf. Sci. 49, 433, 1975).
"""

import math

import torch
from torch import Tensor

from .system import System
from .tables import wave_indices

MESH_WAVES = 1e-12  # relative size at which the waves end that stand for a particle mesh


def coulomb_energy(q: Tensor, system: System) -> Tensor:
    """q' A q / 2 of each structure (B,) in e^2/Å, from charges (N,) in e; differentiable."""
    charges = system.pad(q)[:, :, None]
    return 0.5 * (charges * (coulomb_matrix(system) @ charges)).sum(dim=(1, 2))


def coulomb_matrix(system: System) -> Tensor:
    """A[b, i, j], such that a structure's Coulomb energy is (k / 2) q' A q; differentiable.

    A molecule:  A_ij = erf(r / (sqrt2 g_ij)) / r,  A_ii = 1 / (s_i sqrt(pi)),  g_ij^2 = s_i^2 + s_j^2.
    A cell, with the images of j and the splitting width eta:

        real space   sum [erf(r / (sqrt2 g_ij)) - erf(r / (sqrt2 eta))] / r
        reciprocal   (4 pi / V) sum_k exp(-eta^2 k^2 / 2) / k^2 cos(k r_ij), twice a half space
        self         - sqrt(2 / pi) / eta on the diagonal
        k = 0        - 2 pi (eta^2 - g_ij^2) / V everywhere: the average potential of each Gaussian is zero, so
                     that A is positive semidefinite and does not depend on eta, and a net charge is
                     compensated by a uniform background

    Waves are those of the tables, or for a particle mesh those that it stands for.

    A slab of area S, z along its normal, with real space and self as above and

        reciprocal   (pi / S) sum_k cos(k r_ij) / k [exp(kz) erfc(k eta / sqrt2 + z / (sqrt2 eta)) + the same for -z]
        k = 0        - (2 pi / S) [z erf(z / (sqrt2 eta)) + eta sqrt(2 / pi) exp(-z^2 / 2 eta^2)]

    over the wave vectors of the plane. The potential of a charged layer is -2 pi |z| / S: nothing compensates it.

    Returns:
        (B, n, n) in 1/Å with n the size of the largest structure, zero outside each structure's own block.
    """
    tables, x = system.tables, system.positions
    size, places = system.size, system.places
    local = places - system.batch * size

    first = torch.repeat_interleave(torch.arange(len(x), device=x.device), tables.ptr[1:] - tables.ptr[:-1])
    second = tables.neighbour.long()
    structure = system.batch.index_select(0, first)
    shift = (tables.shift.to(x.dtype)[:, None, :] @ system.cell.index_select(0, structure)).squeeze(1)
    r = torch.linalg.vector_norm(x.index_select(0, second) - x.index_select(0, first) + shift, dim=1)
    a = system.squared_widths
    gamma = torch.sqrt(a.index_select(0, first) + a.index_select(0, second))
    beta = system.beta.index_select(0, structure)
    near = (torch.special.erfc(r * beta) - torch.special.erfc(r / (math.sqrt(2.0) * gamma))) / r
    flat = places.index_select(0, first) * size + local.index_select(0, second)
    matrix = x.new_zeros(system.num_structures * size * size).index_add(0, flat, near)
    matrix = matrix.index_add(0, places * size + local, system.self_terms())
    matrix = matrix.view(system.num_structures, size, size)

    for number, b in enumerate(tables.periodic.tolist()):
        start, stop = system.node_ptr[b], system.node_ptr[b + 1]
        far = _slab if tables.height[number] > 0.0 else _cell
        block = far(x[start:stop], a[start:stop], system.lattice()[number], tables, number, 1.0 / tables.inverse_eta[b])
        block = torch.nn.functional.pad(block, (0, size - block.shape[0], 0, size - block.shape[0]))
        matrix = matrix.index_add(0, tables.periodic[number : number + 1], block[None])
    return matrix


def _cell(x: Tensor, a: Tensor, lattice: Tensor, tables, number: int, eta: Tensor) -> Tensor:
    lines, waves = tables.lines[number], tables.waves[number]
    if bool(tables.mesh[number].any()):
        k_max = math.sqrt(-2.0 * math.log(MESH_WAVES)) / float(eta)
        lines, waves = (
            torch.from_numpy(part).to(x.device) for part in wave_indices(lattice.detach().cpu().numpy(), k_max)
        )
    line, sign, third = torch.nonzero(waves, as_tuple=True)
    indices = torch.cat([lines[line], (third * (1 - 2 * sign))[:, None]], dim=1).to(x.dtype)
    volume = torch.linalg.det(lattice).abs()
    waves = 2.0 * math.pi * indices @ torch.linalg.inv(lattice).T
    k2 = (waves**2).sum(dim=1)
    weight = 2.0 * (4.0 * math.pi / volume) * torch.exp(-0.5 * eta**2 * k2) / k2
    phase = x @ waves.T
    cosine, sine = torch.cos(phase), torch.sin(phase)
    average = 2.0 * math.pi * (eta**2 - a[:, None] - a[None, :]) / volume
    return (cosine * weight) @ cosine.T + (sine * weight) @ sine.T - average


def _slab(x: Tensor, a: Tensor, lattice: Tensor, tables, number: int, eta: Tensor) -> Tensor:
    area = torch.linalg.vector_norm(torch.linalg.cross(lattice[0], lattice[1]))
    normal = lattice[2] / torch.linalg.vector_norm(lattice[2])
    separation = x[:, None, :] - x[None, :, :]
    z = separation @ normal
    lines = tables.lines[number]
    lines = lines[(lines != 0).any(dim=1)].to(x.dtype)
    waves = 2.0 * math.pi * lines @ torch.linalg.inv(lattice).T[:2]
    total = -(2.0 * math.pi / area) * (
        z * torch.erf(z / (math.sqrt(2.0) * eta)) + eta * math.sqrt(2.0 / math.pi) * torch.exp(-0.5 * (z / eta) ** 2)
    )
    for k_vector in waves:
        k = torch.linalg.vector_norm(k_vector)
        both = 0.0
        for side in (z, -z):
            # exp(kz) erfc(t) = exp(kz - t^2) erfcx(t), which neither overflows nor cancels
            t = (k * eta + side / eta) / math.sqrt(2.0)
            both = both + torch.where(
                t > 0.0,
                torch.exp(k * side - t**2) * torch.special.erfcx(torch.where(t > 0.0, t, 0.0)),
                torch.exp(torch.where(t > 0.0, 0.0, k * side)) * torch.erfc(t),
            )
        total = total + 2.0 * math.pi / (area * k) * torch.cos(separation @ k_vector) * both
    return total
