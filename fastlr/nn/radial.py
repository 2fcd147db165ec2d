"""What a radial network is evaluated on: each edge, or the knots of a table from which the edges interpolate."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastlr.kernels.edge_basis.naive import radial_basis
from fastlr.kernels.radial_table.intervals import interval_of
from fastlr.kernels.radial_table.naive import DEGREE, sites, spline_coefficients
from fastlr.kernels.radial_table.sites import rows_from_values, site_weights


class EveryEdge(NamedTuple):
    """The network is evaluated on the radial basis of each edge.

    Attributes:
        basis: (E, num_bessels).
    """

    basis: Tensor


class Tabulated(NamedTuple):
    """The network is evaluated in float64 at the sites of a table; see ``kernels/radial_table/naive.py``.

    Attributes:
        basis: gives (M + 5, num_bessels) float64, the radial basis at the sites.
        coefficients: (E, 6), splines at the edges.
        interval: (E,) int64, of the edges.
        kept: tables of networks that do not change any more, by network; None while they do.
    """

    basis: Callable[[], Tensor]
    coefficients: Tensor
    interval: Tensor
    kept: dict[Callable, Tensor] | None = None

    def table(self, network: Callable) -> Tensor:
        """(M + 5, outputs of the network)."""
        if self.kept is None:  # made in each step, from few sites: one product of matrices
            weights = site_weights(self.basis().shape[0] - DEGREE, self.basis().device)
            return self._made(network, lambda values: weights @ values)
        if network not in self.kept:
            with torch.no_grad():
                self.kept[network] = self._made(network, rows_from_values)
        return self.kept[network]

    def _made(self, network: Callable, rows: Callable[[Tensor], Tensor]) -> Tensor:
        return network(self.basis(), rows).to(self.coefficients.dtype)


def tabulated(lengths, num_intervals: int, r_max: float, roots, p: float, dtype, kept=None) -> Tabulated:
    """Tables of ``num_intervals`` intervals for edges of ``lengths`` (E,), float64; beyond the cutoff all is zero."""
    scaled = lengths * (num_intervals / r_max)
    interval = interval_of(scaled, num_intervals)
    coefficients = spline_coefficients(scaled - interval)
    coefficients = torch.where((lengths < r_max)[:, None], coefficients, 0.0)

    @cache
    def basis() -> Tensor:  # which tables that are kept do not need
        x = sites(num_intervals).to(lengths) / num_intervals
        return radial_basis(x, r_max, roots, p)

    return Tabulated(basis, coefficients.to(dtype), interval, kept)
