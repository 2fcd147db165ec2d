"""The specification of spreading to a mesh and gathering from it, in plain PyTorch.

A periodic mesh of dims (n1, n2, n3) and the cardinal B-spline M_p of order p (degree p - 1, support of width p; de
Boor, A Practical Guide to Splines, 1978), centred:

    W_i(k) = product over the axes a of  sum over images of  M_p(x_ia - k_a + p / 2),

where x_i are mesh coordinates (fractional coordinates times n). With y = x + p / 2, the spline touches the p points
k = start + j, start = floor(y) - p + 1, along an axis, where it is a polynomial in s = y - floor(y) - 1/2.

A jet of order d holds the derivatives of W_i(k) by x_i up to order d, in the order of ``components``:
W | dW/dx, dW/dy, dW/dz | xx, xy, xz, yy, yz, zz | xxx, ...
"""

from collections.abc import Callable
from functools import cache
from itertools import combinations_with_replacement
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

ORDERS = range(4, 9)  # p for which there are kernels


class Mesh(NamedTuple):
    """The two operations: (mesh, x, order, p) -> ``gather``; (c, x, dims, order, p) -> ``spread``."""

    gather: Callable[..., Tensor]
    spread: Callable[..., Tensor]


@cache
def components(order: int) -> tuple[tuple[int, int, int], ...]:
    """How often each component of a jet is differentiated along each axis; there are 1, 4, 10, 20, ... of them."""
    return tuple(
        tuple(axes.count(axis) for axis in range(3))
        for degree in range(order + 1)
        for axes in combinations_with_replacement(range(3), degree)
    )


@cache
def differentiated(order: int) -> tuple[tuple[int, int, int], ...]:
    """For each component of a jet, the components of the jet one order higher that are its derivatives by x, y, z."""
    higher = components(order + 1)
    return tuple(
        tuple(
            higher.index(tuple(count + (other == axis) for other, count in enumerate(component))) for axis in range(3)
        )
        for component in components(order)
    )


@cache
def polynomials(p: int, derivative: int = 0) -> Tensor:
    """(p, p) float64: row k holds the coefficients of s^k of the p B-splines that cover an interval, or derivatives."""
    splines = [torch.ones(1, dtype=torch.float64)]  # degree 0; spline j as polynomial in s, lowest power first

    def times(offset: float, slope: float, polynomial: Tensor) -> Tensor:
        out = polynomial.new_zeros(len(polynomial) + 1)
        out[:-1] += offset * polynomial
        out[1:] += slope * polynomial
        return out

    for degree in range(1, p):
        # Cox-de Boor on uniform knots with t = s + 1/2: B_j = ((t + degree - j) B'_(j-1) + (j + 1 - t) B'_j) / degree
        zero = torch.zeros(degree, dtype=torch.float64)
        lower = [zero, *splines, zero]  # B'_(j-1) is lower[j], B'_j is lower[j + 1]
        splines = [
            (times(degree - j + 0.5, 1.0, lower[j]) + times(j + 0.5, -1.0, lower[j + 1])) / degree
            for j in range(degree + 1)
        ]
    rows = torch.stack(splines, dim=1)
    powers = torch.arange(p, dtype=torch.float64)[:, None]
    for _ in range(derivative):
        rows = torch.cat([(powers * rows)[1:], rows.new_zeros(1, p)])
    return rows


def locate(x: Tensor, dims: tuple[int, int, int], p: int) -> tuple[Tensor, Tensor]:
    """First point (N, 3) int64 that each atom touches, and its place s (N, 3) within an interval, from x (N, 3)."""
    y = x + 0.5 * p
    floor = y.detach().floor()
    start = torch.remainder(floor.long() - (p - 1), torch.tensor(dims, device=x.device))
    return start, y - floor - 0.5


def splines(place: Tensor, p: int, derivative: int = 0) -> Tensor:
    """(..., p) values of the splines, or their derivatives, at places s (...)."""
    powers = torch.stack([place**k for k in range(p)], dim=-1)
    return powers @ polynomials(p, derivative).to(place)


def _stencil(x: Tensor, dims: tuple[int, int, int], order: int, p: int) -> tuple[Tensor, list[Tensor]]:
    """The points each atom touches, as places in the mesh (N, p, p, p), and its jet there, (N, p, p, p) a component."""
    start, place = locate(x, dims, p)
    points = torch.remainder(start[:, :, None] + torch.arange(p, device=x.device), start.new_tensor(dims)[:, None])
    i, j, k = points.unbind(1)
    index = (i[:, :, None, None] * dims[1] + j[:, None, :, None]) * dims[2] + k[:, None, None, :]
    w = [splines(place, p, derivative) for derivative in range(order + 1)]
    jet = [
        torch.einsum("ij,ik,il->ijkl", w[a][:, 0], w[b][:, 1], w[c][:, 2]) for a, b, c in components(order)
    ]  # fmt: skip
    return index, jet


def gather(mesh: Tensor, x: Tensor, order: int, p: int) -> Tensor:
    """sum_k mesh[k] jet_i(k).

    Args:
        mesh: (n1, n2, n3).
        x: (N, 3) mesh coordinates.

    Returns:
        (N, components)
    """
    index, jet = _stencil(x, tuple(mesh.shape), order, p)
    values = mesh.reshape(-1)[index]
    return torch.stack([(values * component).sum(dim=(1, 2, 3)) for component in jet], dim=1)


def spread(c: Tensor, x: Tensor, dims: tuple[int, int, int], order: int, p: int) -> Tensor:
    """mesh[k] = sum_i c_i . jet_i(k).

    Args:
        c: (N, components).
        x: (N, 3) mesh coordinates.

    Returns:
        (n1, n2, n3)
    """
    index, jet = _stencil(x, tuple(dims), order, p)
    values = sum(c[:, n, None, None, None] * component for n, component in enumerate(jet))
    return c.new_zeros(prod(dims)).index_add(0, index.reshape(-1), values.reshape(-1)).view(tuple(dims))


MESH = Mesh(gather, spread)
