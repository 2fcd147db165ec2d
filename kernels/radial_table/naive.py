"""The specification of tabulated radial functions: quintic B-splines on uniform knots, in plain PyTorch.

A radial network maps the length of each edge to a row of weights. Its functions have one variable and are smooth,
so a row at each of a few hundred knots says as much as a row for each of many thousand edges. With knots at
r = m h, m = 0 ... M, an edge of length r in interval m = floor(r / h) at t = r / h - m has the weights

    w = sum_j C_j(t) T[m + j],   j = 0 ... 5,

where C are the quintic B-splines on one interval (de Boor, A Practical Guide to Splines, 1978) and the M + 5 rows of T
are chosen such that w is exact at M + 5 sites. The error falls as h^6, and w has four continuous derivatives.
"""

import torch
from torch import Tensor

from ..constants import constant

DEGREE = 5
ROWS = DEGREE + 1  # of the table that an edge reads


@constant
def polynomials(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    """(6, 6): row k holds the coefficients of t^k in the six B-splines that cover an interval."""
    splines = [torch.ones(1, dtype=torch.float64)]  # degree 0; spline j as polynomial in t, lowest power first
    for degree in range(1, ROWS):
        # Cox-de Boor on uniform knots: B_j = ((t + degree - j) / degree) B'_(j-1) + ((j + 1 - t) / degree) B'_j, where
        # spline j of an interval starts degree - j intervals to its left
        def times(offset: float, slope: float, p: Tensor) -> Tensor:
            out = p.new_zeros(len(p) + 1)
            out[:-1] += offset * p
            out[1:] += slope * p
            return out

        zero = torch.zeros(degree, dtype=torch.float64)
        lower = [zero, *splines, zero]  # B'_(j-1) is lower[j], B'_j is lower[j + 1]
        splines = [
            (times(degree - j, 1.0, lower[j]) + times(j + 1.0, -1.0, lower[j + 1])) / degree for j in range(degree + 1)
        ]
    return torch.stack(splines, dim=1).to(device, dtype)


def spline_coefficients(t: Tensor) -> Tensor:
    """C (E, 6) at the places t (E,) within an interval, 0 <= t < 1; differentiable."""
    powers = torch.stack([t**k for k in range(ROWS)], dim=1)
    return powers @ polynomials(t.device, t.dtype)


def sites(num_intervals: int) -> Tensor:
    """(M + 5,) float64 in units of h: the knots, and the middles of the two intervals at either end."""
    knots = torch.arange(num_intervals + 1, dtype=torch.float64)
    return torch.cat([knots, knots.new_tensor([0.5, 1.5, num_intervals - 1.5, num_intervals - 0.5])]).sort().values


def collocation(num_intervals: int) -> tuple[Tensor, Tensor]:
    """Which rows of the table each site is read from, and how much of each: (M + 5, 6) int64, (M + 5, 6) float64."""
    x = sites(num_intervals)
    interval = x.floor().clamp(max=num_intervals - 1).long()
    return interval[:, None] + torch.arange(ROWS), spline_coefficients(x - interval)


def site_weights(num_intervals: int) -> Tensor:
    """(M + 5, M + 5) float64: the table as a linear function of the values at ``sites``; M is at least 5."""
    columns, entries = collocation(num_intervals)
    matrix = entries.new_zeros(len(columns), len(columns))
    return torch.linalg.inv(matrix.scatter_(1, columns, entries))


def interpolate(coefficients: Tensor, table: Tensor, interval: Tensor) -> Tensor:
    """w[e] = sum_j C[e, j] T[interval[e] + j].

    Args:
        coefficients: C (E, J).
        table: T (K, F).
        interval: (E,) int64, of the edges.

    Returns:
        (E, F)
    """
    out = coefficients.new_zeros(coefficients.shape[0], table.shape[1])
    for j in range(coefficients.shape[1]):
        out = out + coefficients[:, j, None] * table.index_select(0, interval + j)
    return out
