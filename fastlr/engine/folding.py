"""What a trained model holds, as the kernels of the engine read it: what no position changes is computed here."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from fastlr.kernels.irreps_linear.layout import Layout
from fastlr.kernels.irreps_linear.naive import apply, transposed
from fastlr.kernels.message_passing.shape import LayerShape, LayerWeights
from fastlr.nn.edge_embedding import EdgeEmbedding
from fastlr.nn.interaction import InteractionLayer
from fastlr.nn.linear import Linear, SelfConnection
from fastlr.nn.mlp import ScalarMLP
from fastlr.nn.nonlinearities import NONLINEARITIES


@dataclass(frozen=True)
class FoldedLayer:
    """An interaction layer for inference. Scales are part of the weights.

    Attributes:
        shape: what it computes.
        table: (M + 5, weights of the convolution) of the radial network.
        first: layout and weights of the map in front of the convolution, forwards and backwards; or rows of h by
            species, where the layer's input has one row a species.
        linear: weights of the map after it, forwards and backwards.
        connections, own_connections: (maps, weights) by species and by further attribute, forwards and backwards.
    """

    shape: LayerShape
    table: Tensor
    first_layout: Layout
    first: tuple[Tensor, Tensor] | None
    h_by_species: Tensor | None
    linear: tuple[Tensor, Tensor]
    connections: tuple[Tensor, Tensor]
    own_connections: tuple[Tensor, Tensor]

    @property
    def weights(self) -> LayerWeights:
        """Of the layer's kernels, forwards."""
        return LayerWeights(self.table, self.linear[0], self.connections[0], self.own_connections[0])

    @property
    def transposed_weights(self) -> LayerWeights:
        """Of the layer's kernels, backwards."""
        return LayerWeights(self.table, self.linear[1], self.connections[1], self.own_connections[1])

    @property
    def num_bytes(self) -> int:
        """Of all weights and tables."""
        tensors = [self.table, *(self.first or ()), *self.linear, *self.connections, *self.own_connections]
        return sum(tensor.nbytes for tensor in tensors)


@torch.no_grad()
def fold_layers(
    layers: list[InteractionLayer],
    norm: Tensor,
    embedding: EdgeEmbedding,
    num_intervals: int,
    types: Tensor,
    dtype: torch.dtype,
    first: bool,
) -> list[FoldedLayer]:
    """The layers of a stack.

    Args:
        layers: see ``pruning``.
        norm: (species, 1) factor before the convolution.
        embedding: of the edges.
        num_intervals: of the radial tables.
        types: (species, F) type embedding.
        first: whether the input of the stack is the type embedding alone, so that its first rows go by species.
    """
    return [
        _fold(layer, embedding, num_intervals, types.double(), norm, dtype, first and number == 0)
        for number, layer in enumerate(layers)
    ]


def _fold(layer: InteractionLayer, embedding, num_intervals, types, norm, dtype, by_species) -> FoldedLayer:
    connection, num_own = layer.self_connection, 0
    nothing = torch.zeros(0, dtype=dtype), torch.zeros(0, dtype=dtype)
    by_type = by_attribute = nothing
    if connection is not None:
        num_own = connection.num_attributes - types.shape[1]
        by_type, by_attribute = _connections(connection, types, dtype)
    layout = Layout.from_key(layer.linear_1.layout)
    weights = _weights(layer.linear_1)
    h_by_species = None
    if by_species:
        h_by_species = (apply(types, weights, layout, False) * norm.double()).to(dtype).contiguous()
    shape = LayerShape(
        layer.program,
        Layout.from_key(layer.linear_2.layout),
        layer.gate.layout,
        connection and Layout.from_key(connection.layout),
        num_own,
        by_species,
    )
    return FoldedLayer(
        shape=shape,
        table=embedding.table_of(layer.radial_network, num_intervals).to(dtype).contiguous(),
        first_layout=layout,
        first=None if by_species else both_ways(weights, layout, dtype),
        h_by_species=h_by_species,
        linear=both_ways(_weights(layer.linear_2), shape.linear, dtype),
        connections=by_type,
        own_connections=by_attribute,
    )


def _weights(linear: Linear) -> Tensor:
    parts = [linear.weights[name].double().flatten() for name in linear.names]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _connections(connection: SelfConnection, types: Tensor, dtype):
    """Maps by species and by further attribute, each forwards and backwards."""
    layout = Layout.from_key(connection.layout)
    parts = [connection.weights[name].double().transpose(0, 1).flatten(1) for name in connection.names]
    matrices = torch.cat(parts, dim=1) / sqrt(connection.num_attributes)
    features = types.shape[1]
    by_species, by_attribute = types @ matrices[:features], matrices[features:]
    return both_ways(by_species, layout, dtype), both_ways(by_attribute, layout, dtype)


def both_ways(weights: Tensor, layout: Layout, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights (..., n) of a linear map with its scales, and with the matrix of each irrep transposed in place."""
    scaled = weights.clone()
    for block in layout.blocks:
        scaled[..., block.weight : block.weight + block.mul_in * block.mul_out] *= block.scale
    return scaled.to(dtype).contiguous(), transposed(scaled, layout).to(dtype).contiguous()


class Readout:
    """A ``ScalarMLP`` to one number a row, scaled and shifted by species, with its gradient.

    Args:
        mlp: the network; it sees the first columns of a row.
        scale_shift: in float64.
        species: (N,) of the rows.
    """

    @torch.no_grad()
    def __init__(self, mlp: ScalarMLP, scale_shift: nn.Module, dtype: torch.dtype, species: Tensor):
        pairs = zip(mlp.weights, mlp.scales, strict=True)
        self.weights = [(weight.detach().double() * scale).to(dtype) for weight, scale in pairs]
        self.scale, self.shift = (
            values.double().index_select(0, species) for values in (scale_shift.scale, scale_shift.shift)
        )
        self.width, self.nonlinearity = mlp.dims[0], NONLINEARITIES[mlp.nonlinearity]
        self.is_linear = len(self.weights) == 1

    def __call__(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N,) float64; what ``backward`` needs is kept."""
        self._arguments, value = [], x[:, : self.width]
        for number, weight in enumerate(self.weights):
            if number:
                self._arguments.append(value)
                value = self.nonlinearity.value(value)
            value = value @ weight
        return torch.addcmul(self.shift, value[:, 0].double(), self.scale)

    def backward(self, gradient: Tensor | None = None) -> Tensor:
        """(N, width), times a gradient (N,) by the values, float64."""
        factor = self.scale if gradient is None else self.scale * gradient
        g = factor.to(self.weights[0].dtype)[:, None]
        for number in range(len(self.weights) - 1, -1, -1):
            g = g * self.weights[number].T if g.shape[1] == 1 else g @ self.weights[number].T
            if number:
                g = g * self.nonlinearity.slope(self._arguments[number - 1])
        return g
