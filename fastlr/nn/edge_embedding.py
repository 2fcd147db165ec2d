"""Edge vectors to angular and radial features in the model's float type."""

import torch
from torch import Tensor, nn

from fastlr.backends import Operations


class EdgeEmbedding(nn.Module):
    """Spherical harmonics and Bessel functions of the edges, computed in float64 and then rounded."""

    def __init__(self, r_max: float, l_max: int, num_bessels: int, trainable: bool, p: float, operations: Operations):
        super().__init__()
        self.r_max, self.l_max, self.p = float(r_max), l_max, float(p)
        roots = torch.arange(1, num_bessels + 1, dtype=torch.float64)
        if trainable:
            self.roots = nn.Parameter(roots)
        else:
            self.register_buffer("roots", roots)
        self.operations = operations

    def forward(self, vectors: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(E, 3) float64 -> (E, (l_max + 1)^2) and (E, num_bessels) of ``dtype``."""
        return self.operations.edge_basis(vectors, self.r_max, self.roots, self.p, self.l_max, dtype)
