"""Edge vectors to angular and radial features in the model's float type."""

import torch
from torch import Tensor, nn

from fastlr.backends import Operations

from .radial import EveryEdge, Tabulated, tabulated


class EdgeEmbedding(nn.Module):
    """Spherical harmonics and Bessel functions of the edges, computed in float64 and then rounded.

    With ``table_intervals``, radial networks see the knots of a table with so many intervals in place of the edges.
    """

    table_intervals: int | None = None
    kept_tables: dict | None = None  # of networks whose weights are fixed

    def __init__(self, r_max: float, l_max: int, num_bessels: int, trainable: bool, p: float, operations: Operations):
        super().__init__()
        self.r_max, self.l_max, self.p = float(r_max), l_max, float(p)
        roots = torch.arange(1, num_bessels + 1, dtype=torch.float64)
        if trainable:
            self.roots = nn.Parameter(roots)
        else:
            self.register_buffer("roots", roots)
        self.operations = operations

    def forward(self, vectors: Tensor, dtype: torch.dtype) -> tuple[Tensor, EveryEdge | Tabulated]:
        """(E, 3) float64 -> (E, (l_max + 1)^2) of ``dtype``, and what the radial networks are evaluated on."""
        edge_basis = self.operations.edge_basis
        if self.table_intervals is None:
            angular, radial = edge_basis(vectors, self.r_max, self.roots, self.p, self.l_max, dtype)
            return angular, EveryEdge(radial)
        angular, _ = edge_basis(vectors, self.r_max, self.roots.detach()[:0], self.p, self.l_max, dtype)
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        return angular, self.table(lengths, self.table_intervals, dtype, self.kept_tables)

    def table(self, lengths: Tensor, num_intervals: int, dtype: torch.dtype, kept: dict | None = None) -> Tabulated:
        """A table with ``num_intervals`` intervals for edges of ``lengths`` (E,)."""
        return tabulated(lengths, num_intervals, self.r_max, self.roots, self.p, dtype, kept)

    def table_of(self, network, num_intervals: int) -> Tensor:
        """(M + 5, outputs of the network) float64: a table of M intervals; see ``kernels/radial_table/naive.py``."""
        return self.table(self.roots.new_zeros(0), num_intervals, torch.float64, kept={}).table(network)
