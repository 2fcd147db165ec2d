"""Equivariant linear maps on component-major features (blocks of (2l+1, channels))."""

from math import sqrt
from typing import NamedTuple

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn


def unique_irreps(irreps) -> Irreps:
    """``irreps`` simplified; each irrep must occur once, since features are stored as one block an irrep."""
    irreps = Irreps(irreps).simplify()
    if len({ir for _, ir in irreps}) != len(irreps):
        raise ValueError(f"an irrep occurs in two places of {irreps}; sort and simplify it first")
    return irreps


def split(x: Tensor, irreps: Irreps) -> tuple[Tensor, ...]:
    """The columns of each irrep; at once, for each slice of its own would have a gradient as large as ``x``."""
    return x.split([mul_ir.dim for mul_ir in irreps], dim=1)


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
        out, parts = [], split(x, self.irreps_in)
        for ir, number, mul_in, mul_out in self.blocks:
            if mul_in:
                z = parts[number].reshape(-1, mul_in) @ (self.weights[str(ir)] * (1.0 / sqrt(mul_in)))
                out.append(z.view(-1, ir.dim * mul_out))
            else:
                out.append(x.new_zeros(x.shape[0], ir.dim * mul_out))
        return torch.cat(out, dim=1)


class NodeAttributes(NamedTuple):
    """Scalar attributes of N atoms: a row of features for each species, and what else an atom has of its own.

    Attributes:
        table: (number of species, F).
        species: (N,) row of each atom.
        own: (N, G), or None.
    """

    table: Tensor
    species: Tensor
    own: Tensor | None = None

    def dense(self) -> Tensor:
        """(N, F + G)."""
        rows = self.table.index_select(0, self.species)
        return rows if self.own is None else torch.cat([rows, self.own], dim=1)


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

    def forward(self, x: Tensor, attributes: NodeAttributes) -> Tensor:
        """(N, irreps_in.dim) -> (N, irreps_out.dim)."""
        out, parts = [], split(x, self.irreps_in)
        # the product of all pairs of channels and attributes is the larger matrix unless the species are many
        mix = self._by_species if attributes.table.shape[0] <= self.num_attributes else self._by_outer_product
        for ir, number, mul_in, mul_out in self.blocks:
            if mul_in:
                weights = self.weights[str(ir)] * (1.0 / sqrt(mul_in * self.num_attributes))
                out.append(mix(parts[number], ir.dim, weights, attributes).view(-1, ir.dim * mul_out))
            else:
                out.append(x.new_zeros(x.shape[0], ir.dim * mul_out))
        return torch.cat(out, dim=1)

    @staticmethod
    def _by_species(x: Tensor, dim: int, weights: Tensor, attributes: NodeAttributes) -> Tensor:
        """One matrix a species, acting on all atoms, of which the right result is then taken."""
        table, species, own = attributes
        (num_species, features), num_nodes = table.shape, species.shape[0]
        mul_in, _, mul_out = weights.shape
        x = x.reshape(num_nodes * dim, mul_in)
        matrices = torch.einsum("sv,uvw->suw", table, weights[:, :features])
        mixed = torch.bmm(x.expand(num_species, -1, -1), matrices).view(num_species * num_nodes, dim * mul_out)
        atoms = torch.arange(num_nodes, device=species.device)
        z = mixed.index_select(0, species * num_nodes + atoms).view(-1, mul_out)
        if own is not None:
            number = own.shape[1]
            further = x @ weights[:, features:].reshape(mul_in, number * mul_out)
            further = further.view(num_nodes, dim, number, mul_out) * own[:, None, :, None]
            z = z + further.sum(dim=2).view(-1, mul_out)
        return z

    @staticmethod
    def _by_outer_product(x: Tensor, dim: int, weights: Tensor, attributes: NodeAttributes) -> Tensor:
        dense = attributes.dense()
        mul_in, number, _ = weights.shape
        num_nodes = dense.shape[0]
        outer = x.reshape(num_nodes, dim, mul_in, 1) * dense[:, None, None, :]
        return outer.view(-1, mul_in * number) @ weights.flatten(0, 1)


def _matching_blocks(irreps_in: Irreps, irreps_out: Irreps) -> list[tuple]:
    """(irrep, its number in the input, channels in, channels out) for every output irrep."""
    inputs = {ir: (number, mul) for number, (mul, ir) in enumerate(irreps_in)}
    return [(ir, *inputs.get(ir, (None, 0)), mul) for mul, ir in irreps_out]
