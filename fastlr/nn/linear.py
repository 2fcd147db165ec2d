"""Equivariant linear maps on component-major features (blocks of (2l+1, channels))."""

from math import sqrt

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn


def unique_irreps(irreps) -> Irreps:
    """``irreps`` simplified; each irrep must occur once, since features are stored as one block an irrep."""
    irreps = Irreps(irreps).simplify()
    if len({ir for _, ir in irreps}) != len(irreps):
        raise ValueError(f"an irrep occurs in two places of {irreps}; sort and simplify it first")
    return irreps


class Linear(nn.Module):
    """Mix the channels of each irrep: z[k, v] = sum_u W[u, v] x[k, u] / sqrt(channels in).

    As e3nn's ``Linear`` ("element" normalisation). An output irrep that the input lacks is zero.
    """

    def __init__(self, irreps_in, irreps_out):
        super().__init__()
        self.irreps_in, self.irreps_out = unique_irreps(irreps_in), unique_irreps(irreps_out)
        self.blocks = _matching_blocks(self.irreps_in, self.irreps_out)
        self.weights = nn.ParameterDict(
            {str(ir): nn.Parameter(torch.randn(mul_in, mul_out)) for ir, _, mul_in, mul_out in self.blocks if mul_in}
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, irreps_in.dim) -> (N, irreps_out.dim)."""
        out = []
        for ir, block, mul_in, mul_out in self.blocks:
            if mul_in:
                z = x[:, block].reshape(-1, mul_in) @ (self.weights[str(ir)] * (1.0 / sqrt(mul_in)))
                out.append(z.view(-1, ir.dim * mul_out))
            else:
                out.append(x.new_zeros(x.shape[0], ir.dim * mul_out))
        return torch.cat(out, dim=1)


class SelfConnection(nn.Module):
    """Mix channels by a matrix that depends on the node attributes: z[k, w] = sum_uv W[u, v, w] x[k, u] a[v] / norm.

    The fully connected product of the features with scalar attributes; norm = sqrt(channels * attributes).
    """

    def __init__(self, irreps_in, num_attributes: int, irreps_out):
        super().__init__()
        self.irreps_in, self.irreps_out = unique_irreps(irreps_in), unique_irreps(irreps_out)
        self.num_attributes = num_attributes
        self.blocks = _matching_blocks(self.irreps_in, self.irreps_out)
        self.weights = nn.ParameterDict(
            {
                str(ir): nn.Parameter(torch.randn(mul_in, num_attributes, mul_out))
                for ir, _, mul_in, mul_out in self.blocks
                if mul_in
            }
        )

    def forward(self, x: Tensor, attributes: Tensor) -> Tensor:
        """(N, irreps_in.dim), (N, num_attributes) -> (N, irreps_out.dim)."""
        out = []
        for ir, block, mul_in, mul_out in self.blocks:
            if mul_in:
                norm = 1.0 / sqrt(mul_in * self.num_attributes)
                outer = x[:, block].reshape(-1, ir.dim, mul_in, 1) * (attributes * norm)[:, None, None, :]
                z = outer.reshape(-1, mul_in * self.num_attributes) @ self.weights[str(ir)].flatten(0, 1)
                out.append(z.view(-1, ir.dim * mul_out))
            else:
                out.append(x.new_zeros(x.shape[0], ir.dim * mul_out))
        return torch.cat(out, dim=1)


def _matching_blocks(irreps_in: Irreps, irreps_out: Irreps) -> list[tuple]:
    """(irrep, its slice in the input, channels in, channels out) for every output irrep."""
    inputs = {ir: (block, mul) for block, (mul, ir) in zip(irreps_in.slices(), irreps_in, strict=True)}
    return [(ir, *inputs.get(ir, (slice(0, 0), 0)), mul) for mul, ir in irreps_out]
