"""The influence function: by what the Fourier transform of spread charges is multiplied to give their potential.

Charges smeared with width eta interact, in a cell of volume V, by

    g(k) = (4 pi / V) exp(-eta^2 k^2 / 2) / k^2,      g(0) = 0.

On a mesh, wave vectors k_m = k + 2 pi sum_a m_a n_a b_a of all whole numbers m look alike, and a B-spline multiplies
them by U(k_m) = product over the axes of sinc(k_a / n_a + m_a)^p. The function that makes the mean square error of the
energy least (Hockney & Eastwood, Computer Simulation Using Particles, 1988; Ballenegger, Cerda & Holm, J. Chem. Theory
Comput. 8, 936, 2012) is

    G(k) = sum_m U(k_m)^2 g(k_m) / [sum_m U(k_m)^2]^2.

The denominator is a product of three functions of one variable, known in closed form. In the numerator, terms other
than m = 0 matter only at the edge of the mesh's wave vectors, where g is as small as the error that is allowed. Without
them forces are as good (the same, or better by some per cent where the mesh is very coarse, since the G above is made
for energies), and G is g times three functions of one variable that depend neither on the cell nor on eta. That is the
default; the full sum is there for comparison.
"""

import math
from functools import cache, lru_cache

import torch
from torch import Tensor


def influence(
    cell: Tensor, eta: float, dims: tuple[int, int, int], p: int, height: float = 0.0, images: int = 0
) -> Tensor:
    """G (n1, n2, n3 // 2 + 1) times n1 n2 n3, such that phi = gather(irfftn(G rfftn(spread(q)))); differentiable.

    Args:
        cell: (3, 3) Å, rows are lattice vectors. A slab's third is normal to the others and of length 2 height.
        eta: splitting width, Å.
        dims: points of the mesh.
        p: order of the B-splines.
        height: R in Å where a slab's interaction is cut off along its normal (see ``ewald.reciprocal``), or zero.
        images: the numerator has the terms |m_a| <= images.

    Returns:
        1/Å
    """
    total = 0.0
    shifts = range(-images, images + 1)
    for m in [(i, j, k) for i in shifts for j in shifts for k in shifts]:
        total = total + _term(cell, eta, dims, p, height, m)
    return total


def fixed_influence(cell: Tensor, eta: float, dims: tuple[int, int, int], p: int, height: float = 0.0) -> Tensor:
    """The same without derivatives; the last one is kept, for cells that do not change from step to step."""
    return _kept(tuple(cell.flatten().tolist()), cell.dtype, cell.device, eta, tuple(dims), p, height)


@lru_cache(maxsize=1)
def _kept(cell, dtype, device, eta, dims, p, height) -> Tensor:
    return influence(torch.tensor(cell, dtype=dtype, device=device).view(3, 3), eta, dims, p, height)


def _term(
    cell: Tensor, eta: float, dims: tuple[int, int, int], p: int, height: float, m: tuple[int, int, int]
) -> Tensor:
    """What image m adds to the numerator, over the denominator."""
    indices = waves(dims, cell.device)
    ratios = [
        (window(index + shift * n, n, p) / window_sum(index, n, p)) ** 2
        for index, shift, n in zip(indices, m, dims, strict=True)
    ]
    first, second, third = (ratio.to(cell.dtype) for ratio in ratios)
    shifted = [(index + shift * n).to(cell.dtype) for index, shift, n in zip(indices, m, dims, strict=True)]
    both = (math.prod(dims) * first)[:, None, None] * second[:, None] * third
    return both * green(cell, eta, shifted, height)


def waves(dims: tuple[int, int, int], device=None) -> list[Tensor]:
    """Indices (n1,), (n2,), (n3 // 2 + 1,) int64 of waves of ``torch.fft.rfftn``, the smallest of each set."""
    n1, n2, n3 = dims
    full = [torch.arange(n, device=device) for n in (n1, n2)]
    full = [torch.where(index <= (n - 1) // 2, index, index - n) for index, n in zip(full, (n1, n2), strict=True)]
    return [*full, torch.arange(n3 // 2 + 1, device=device)]


def green(cell: Tensor, eta: float, indices: list[Tensor], height: float = 0.0) -> Tensor:
    """g(k) (A, B, C) of the wave vectors with these indices (A,), (B,) and (C,) along the three axes; zero at k = 0."""
    reciprocal = 2.0 * math.pi * torch.linalg.inv(cell).T  # rows
    first, second, third = indices
    metric = reciprocal @ reciprocal.T
    k2 = squares(metric, indices)
    zero = (first == 0)[:, None] & (second == 0)
    origin = zero[:, :, None] & (third == 0)
    # a number far out at k = 0 makes both the function and its derivatives zero there
    k2 = k2.masked_fill(origin, 1.0)
    volume = torch.linalg.det(cell).abs()
    g = torch.exp(-0.5 * eta**2 * k2) * (4.0 * math.pi / volume / k2)
    if height > 0.0:
        g = g * _cut(cell, reciprocal, indices, _plane(metric, indices), height)
    return g.masked_fill(origin, 0.0)


def squares(metric: Tensor, indices: list[Tensor]) -> Tensor:
    """k^2 (A, B, C) of the wave vectors with these indices, given the products of the reciprocal vectors (3, 3)."""
    first, second, third = indices
    cross = 2.0 * (metric[0, 2] * first[:, None] + metric[1, 2] * second)
    return _plane(metric, indices)[:, :, None] + cross[:, :, None] * third + metric[2, 2] * third**2


def _plane(metric: Tensor, indices: list[Tensor]) -> Tensor:
    """(A, B) square of the part in the plane of the first two reciprocal vectors."""
    first, second, _ = indices
    plane = metric[0, 0] * (first**2)[:, None] + metric[1, 1] * second**2
    return plane + 2.0 * metric[0, 1] * first[:, None] * second


def _cut(cell: Tensor, reciprocal: Tensor, indices: list[Tensor], plane: Tensor, height: float) -> Tensor:
    """What cutting the interaction of a slab off at |z| = R does to g(k) (A, B, C).

    With kappa and k_z, the parts of k in the plane of the first two lattice vectors and normal to it, the integrals
    over |z| < R of (2 pi / kappa) exp(-kappa |z|) cos k_z z, and for kappa = 0 of -2 pi |z| cos k_z z, are 4 pi / k^2
    times

        1 - exp(-kappa R) [cos k_z R - (k_z / kappa) sin k_z R]      and      1 - cos k_z R - k_z R sin k_z R

    (Rozzi et al., Phys. Rev. B 73, 205119, 2006; Sohier, Calandra & Mauri, Phys. Rev. B 96, 075448, 2017). The sines
    are zero if the third vector is normal to the others and 2 R long, but their derivatives are not: with them nothing
    depends on that vector.
    """
    first, second, third = indices
    zero = (first == 0)[:, None] & (second == 0)
    normal = torch.linalg.cross(cell[0], cell[1])
    along = reciprocal @ (normal / torch.linalg.vector_norm(normal))
    tilt = along[0] * first[:, None] + along[1] * second  # (A, B) k_z without the third index
    kappa = (plane - tilt**2).masked_fill(zero, 1.0).sqrt()
    # a sine or cosine of a sum is one of either of the two parts, so that none is computed in three dimensions
    cos_1, sin_1 = torch.cos(height * tilt)[:, :, None], torch.sin(height * tilt)[:, :, None]
    cos_2, sin_2 = torch.cos(height * along[2] * third), torch.sin(height * along[2] * third)
    decay = torch.exp(-height * kappa).masked_fill(zero, 1.0)[:, :, None]
    slope = torch.where(zero, -height, 1.0 / kappa)[:, :, None]  # at kappa = 0 the sign of the sine is the other
    k_z = tilt[:, :, None] + along[2] * third
    return 1.0 - decay * (cos_1 * cos_2 - sin_1 * sin_2 - slope * k_z * (sin_1 * cos_2 + cos_1 * sin_2))


def window(index: Tensor, n: int, p: int) -> Tensor:
    """U of the wave vectors with these indices along an axis of n points, in float64."""
    return torch.sinc(index.double() / n) ** p


def window_sum(index: Tensor, n: int, p: int) -> Tensor:
    """The sum of U^2 over all images of these wave vectors along an axis, in float64.

    By Poisson's formula it is the Fourier series of the B-spline of order 2 p at whole numbers.
    """
    phase = (2.0 * math.pi / n) * index.double()
    values = _cardinal_splines(2 * p)
    return values[p] + 2.0 * sum(values[p + j] * torch.cos(j * phase) for j in range(1, p))


@cache
def _cardinal_splines(order: int) -> list[float]:
    """M_order(x) at x = 0, 1, ..., order, by exact arithmetic."""
    return [
        sum((-1) ** k * math.comb(order, k) * (x - k) ** (order - 1) for k in range(x)) / math.factorial(order - 1)
        for x in range(order + 1)
    ]
