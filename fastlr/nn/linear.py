"""Equivariant linear maps on component-major features (blocks of (2l+1, channels))."""

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastlr.backends import Operations, resolve
from fastlr.kernels.irreps import Irreps
from fastlr.kernels.irreps_linear.layout import Layout

from .initial import normal


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

    def __init__(self, irreps_in, irreps_out, operations: Operations | None = None):
        super().__init__()
        self.operations = operations or resolve("reference")
        self.irreps_in, self.irreps_out = unique_irreps(irreps_in), unique_irreps(irreps_out)
        layout = Layout.of(self.irreps_in, self.irreps_out)
        self.layout, self.names = layout.key, _names(self)
        self.weights = nn.ParameterDict(
            {
                name: nn.Parameter(normal(block.mul_in, block.mul_out))
                for name, block in zip(self.names, layout.blocks, strict=True)
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, irreps_in.dim) -> (N, irreps_out.dim)."""
        if not self.weights:
            return x.new_zeros(x.shape[0], self.irreps_out.dim)
        weights = torch.cat([self.weights[name].flatten() for name in self.names])
        return self.operations.irreps_linear(x, weights, self.layout, False)


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

    def __init__(self, irreps_in, num_attributes: int, irreps_out, operations: Operations | None = None):
        super().__init__()
        self.operations = operations or resolve("reference")
        self.irreps_in, self.irreps_out = unique_irreps(irreps_in), unique_irreps(irreps_out)
        self.num_attributes = num_attributes
        layout = Layout.of(self.irreps_in, self.irreps_out)
        self.layout, self.names, self._sums = layout.key, _names(self), {}
        self.weights = nn.ParameterDict(
            {
                name: nn.Parameter(normal(block.mul_in, num_attributes, block.mul_out))
                for name, block in zip(self.names, layout.blocks, strict=True)
            }
        )

    def forward(self, x: Tensor, attributes: NodeAttributes) -> Tensor:
        """(N, irreps_in.dim) -> (N, irreps_out.dim)."""
        table, species, own = attributes
        if not self.weights:
            return x.new_zeros(x.shape[0], self.irreps_out.dim)
        # one matrix an attribute, for all irreps side by side
        matrices = torch.cat([self.weights[name].transpose(0, 1).flatten(1) for name in self.names], dim=1)
        matrices = matrices * (1.0 / sqrt(self.num_attributes))
        num_species, features = table.shape
        if num_species <= features:  # fewer matrices if made for each species
            mixed = table @ matrices[:features]
            shares = torch.nn.functional.one_hot(species, num_species).to(x.dtype)
            if own is not None:
                mixed, shares = torch.cat([mixed, matrices[features:]]), torch.cat([shares, own], dim=1)
        else:
            mixed, shares = matrices, attributes.dense()
        # the sum of all of them is one map of as many multiples of x
        multiples = (shares[:, :, None] * x[:, None, :]).flatten(1)
        return self.operations.irreps_linear(multiples, mixed.flatten(), self.sum_of(mixed.shape[0]), False)

    def sum_of(self, copies: int) -> str:
        """The layout of so many maps side by side."""
        if copies not in self._sums:
            self._sums[copies] = Layout.from_key(self.layout).side_by_side(copies).key
        return self._sums[copies]


def _names(module) -> list[str]:
    """Irreps that input and output have, in the order of the output (``ParameterDict`` has an order of its own)."""
    inputs = {ir for mul, ir in module.irreps_in if mul}
    return [str(ir) for mul, ir in module.irreps_out if mul and ir in inputs]
