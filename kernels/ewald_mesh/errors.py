"""What errors of forces and potentials to expect of the two sums, for charges at random positions.

Root mean squares over the atoms; of forces in e^2/Å^2 (without Coulomb's constant), with Q2 = sum q^2.
"""

import math
from itertools import product

import torch
from torch import Tensor

from .influence import green, influence, waves, window

_IMAGES = range(-1, 2)  # m_a of the sums over wave vectors that look alike; those left out are 0.7 per cent for p = 4
_POINTS = 16  # points an axis at which the sum over wave vectors is as good as its integral


def force_scale(volume: float, num_atoms: int, sum_q2: float) -> float:
    """The force between two neighbours of average charge: q^2 / d^2 with q^2 = Q2 / N and d^3 = V / N."""
    return sum_q2 / num_atoms * (num_atoms / volume) ** (2.0 / 3.0)


def real_space_error(r_cut: float, eta: float, volume: float, num_atoms: int, sum_q2: float) -> float:
    """Of the sum of erfc(r / sqrt2 eta) / r over pairs nearer than r_cut (Kolafa & Perram, Mol. Simul. 9, 351, 1992,
    Eq. 18)."""
    return 2.0 * sum_q2 / math.sqrt(num_atoms * r_cut * volume) * math.exp(-0.5 * (r_cut / eta) ** 2)


def mesh_error(
    cell: Tensor,
    eta: float,
    dims: tuple[int, int, int],
    p: int,
    num_atoms: int,
    sum_q2: float,
    sum_q4: float | None = None,
) -> float:
    """Of the sum by the mesh: sqrt(Q2^2 Q^2 / N + Q4 S^2 / N), see ``mesh_terms``.

    Args:
        cell, eta, dims, p: see ``influence.influence``.
        sum_q4: Q4 = sum q^4 (default: as if all charges were of the same size).
    """
    sum_q4 = sum_q2**2 / num_atoms if sum_q4 is None else sum_q4
    cell, small, smaller = _shrunk(cell, dims)
    pair, own = mesh_terms(cell, eta, small, p)
    return math.sqrt((sum_q2**2 * pair * smaller + sum_q4 * own) / num_atoms)


def potential_error(cell: Tensor, eta: float, dims: tuple[int, int, int], p: int) -> float:
    """That of potentials (1/Å, for charges whose squares have the mean one) over the root of the atoms' density: the
    root of V times

        sum_k sum_m {[G U(k_m)^2 - g(k_m)]^2 + G^2 U(k_m)^2 sum_(m' != m) U(k_m')^2},

    in the notation of ``mesh_terms``. Without the error that an atom makes of its own potential.
    """
    cell, small, _ = _shrunk(cell, dims)
    squares, *_ = _squares(cell, eta, small, p)
    return math.sqrt(float(squares.sum()) * float(torch.linalg.det(cell).abs()))


def _shrunk(cell: Tensor, dims: tuple[int, int, int]) -> tuple[Tensor, tuple[int, int, int], float]:
    """A cell and mesh of the same spacing that are large enough, and their volume beside the given ones'."""
    small = tuple(min(n, _POINTS) for n in dims)
    cell = torch.as_tensor(cell).detach().double().cpu()
    shrink = [few / n for few, n in zip(small, dims, strict=True)]
    return cell * cell.new_tensor(shrink)[:, None], small, math.prod(shrink)


def mesh_terms(cell: Tensor, eta: float, dims: tuple[int, int, int], p: int) -> tuple[float, float]:
    """Q^2 and S^2 in 1/Å^4. On a larger mesh of the same spacing Q^2 goes as one over the volume, and S^2 is the same.

    With the notation of ``influence.py``, two charges at places x and y have the energy

        sum_k G(k) sum_m,m' U(k_m) U(k_m') exp(i k_m x - i k_m' y)   instead of   sum_k sum_m g(k_m) exp(i k_m (x - y)).

    The mean square of the difference of the gradients by x over all places is (Hockney & Eastwood 1988; Deserno & Holm,
    J. Chem. Phys. 109, 7694, 1998; for this way to differentiate: Ballenegger, Cerda & Holm 2012)

        Q^2 = sum_k sum_m k_m^2 {[G U(k_m)^2 - g(k_m)]^2 + G^2 U(k_m)^2 sum_(m' != m) U(k_m')^2}.

    A charge also feels its place between the mesh points: its energy with itself has the terms of m' = m - d, d != 0,
    with the mean square force q^4 S^2,

        S^2 = 1/4 sum_d |n d|^2 A_d^2,      A_d = sum_k G(k) sum_m U(k_m) U(k_m-d),

    where |n d| is the length of the wave vector with indices n_a d_a.
    """
    squares, k2, g_mesh, u = _squares(cell, eta, dims, p)
    pair = float((k2 * squares).sum())
    reciprocal = 2.0 * math.pi * torch.linalg.inv(cell).T
    own = 0.0
    # sum_m u(k_m) u(k_m-d) along each axis
    steps = (-1, 0, 1)
    along = [{d: (a[max(d, 0) : len(a) + min(d, 0)] * a[max(-d, 0) : len(a) - max(d, 0)]).sum(0) for d in steps}
             for a in u]  # fmt: skip
    for d in product(steps, steps, steps):
        amplitude = float((g_mesh[0, :, 0, :, 0] * _outer(*(axis[k] for axis, k in zip(along, d, strict=True)))).sum())
        wave = cell.new_tensor([a * n for a, n in zip(d, dims, strict=True)]) @ reciprocal
        own += 0.25 * float(wave @ wave) * amplitude**2
    return pair, own


def _squares(
    cell: Tensor, eta: float, dims: tuple[int, int, int], p: int
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """{...} of ``mesh_terms``, k_m^2, G and the three factors of U, all as arrays (m1, n1, m2, n2, m3, n3)."""
    g_mesh = _unfolded(influence(cell, eta, dims, p), dims)[None, :, None, :, None, :] / math.prod(dims)
    # all wave vectors k_m, as an array (m1, n1, m2, n2, m3, n3)
    first = [waves((n, n, n))[0] for n in dims]
    indices = [torch.stack([index + m * n for m in _IMAGES]) for index, n in zip(first, dims, strict=True)]
    shape = [size for index in indices for size in index.shape]
    u = [window(index, n, p) for index, n in zip(indices, dims, strict=True)]
    u2 = _outer(*(a.reshape(-1) ** 2 for a in u)).view(shape)
    flat = [index.reshape(-1).double() for index in indices]
    g = green(cell, eta, flat).view(shape)
    reciprocal = 2.0 * math.pi * torch.linalg.inv(cell).T
    k2 = ((torch.stack(torch.meshgrid(*flat, indexing="ij"), dim=-1) @ reciprocal) ** 2).sum(dim=-1).view(shape)

    centre = len(_IMAGES) // 2
    main = u2[centre, :, centre, :, centre, :][None, :, None, :, None, :]
    is_main = torch.zeros(shape[::2], dtype=torch.bool)
    is_main[centre, centre, centre] = True
    is_main = is_main[:, None, :, None, :, None]
    others = u2.masked_fill(is_main, 0.0).sum(dim=(0, 2, 4), keepdim=True)
    rest = others + (main - u2).masked_fill(is_main, 0.0)  # the sum over m' != m, without cancellation at m = 0
    return (g_mesh * u2 - g) ** 2 + g_mesh**2 * u2 * rest, k2, g_mesh, u


def _outer(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return a[:, None, None] * b[:, None] * c


def _unfolded(half: Tensor, dims: tuple[int, int, int]) -> Tensor:
    """An even function of k, from the half space of ``rfftn`` to all wave vectors."""
    rest = half[..., 1 : dims[2] - dims[2] // 2]  # k3 > 0 whose -k3 is not there
    back = torch.roll(rest.flip(0, 1, 2), (1, 1), (0, 1))
    return torch.cat([half, back], dim=2)
