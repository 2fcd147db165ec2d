"""The specification of an interaction layer for inference, and of what is around it, in plain PyTorch.

Scales are part of the weights, and the radial network is a table (see ``shape.LayerShape`` for the equations, and
``tensor_product``, ``radial_table``, ``irreps_linear`` and ``gate`` for the parts). All of it is differentiable any
number of times by autograd; the kernels' backward passes are the gradients of these functions.
"""

from functools import cache

import torch
from torch import Tensor

from ..adjacency import Adjacency
from ..edge_basis.naive import spherical_harmonics
from ..gate.naive import gate
from ..irreps_linear.layout import Layout
from ..irreps_linear.naive import matrices
from ..radial_table.intervals import interval_of
from ..radial_table.naive import interpolate, spline_coefficients
from ..tensor_product.naive import NaiveConvolution
from ..tensor_product.program import Program
from .shape import EdgeData, LayerShape, LayerWeights


def message_passing(
    h: Tensor, x: Tensor, own: Tensor, edges: EdgeData, species: Tensor, weights: LayerWeights, shape: str
) -> Tensor:
    """One layer after its first linear map: gate(linear(convolution(h)) + sum_f s_f connection_f(x)).

    Args:
        h: (N, irreps_in.dim), or a row for each species where the shape is ``by_species``.
        x: (N, dim_in of the connection) input of the layer; not read without a connection.
        own: (N, num_own) further attributes.
        edges: what the convolution reads; the harmonic of degree zero counts as a constant.
        species: (N,) int64.
        weights: of the layer.
        shape: key of a ``LayerShape``.

    Returns:
        (N, gate.dim_out).
    """
    return gate(before_gate(h, x, own, edges, species, weights, shape), LayerShape.from_key(shape).gate.key)


def before_gate(h, x, own, edges: EdgeData, species, weights: LayerWeights, shape: str) -> Tensor:
    """(N, gate.dim_in), the argument of the gate; arguments as of ``message_passing``."""
    shape = LayerShape.from_key(shape)
    destination, kept = entries(edges.begin, edges.end)
    source = edges.source.index_select(0, kept)
    num_nodes = edges.begin.shape[0]
    rows = h.index_select(0, species) if shape.by_species else h
    coefficients = spline_coefficients(edges.place.index_select(0, kept))
    w = interpolate(coefficients, weights.table, edges.interval.index_select(0, kept))
    convolution = _convolution(shape.program.key, h.device)
    adjacency = Adjacency.from_edges(torch.stack([destination, source]), num_nodes)
    harmonics = [  # that of degree zero is a constant
        values.detach() if ir.l == 0 else values
        for values, (_, ir) in zip(
            edges.harmonics.index_select(0, kept).split([ir.dim for _, ir in shape.program.irreps_edge], dim=1),
            shape.program.irreps_edge,
            strict=True,
        )
    ]
    y = linear_map(convolution(rows, torch.cat(harmonics, dim=1), w, adjacency), weights.linear, shape.linear)
    if shape.connection is None:
        return y
    for number, row in enumerate(weights.connections):  # one map a species
        mapped = linear_map(x, row, shape.connection)
        y = y + torch.where((species == number)[:, None], mapped, 0.0)
    for f in range(shape.num_own):
        y = y + own[:, f : f + 1] * linear_map(x, weights.own_connections[f], shape.connection)
    return y


@cache
def _convolution(program: str, device: torch.device) -> NaiveConvolution:
    return NaiveConvolution(Program.from_key(program)).to(device)


def linear_map(x: Tensor, weights: Tensor, layout: Layout) -> Tensor:
    """z[n, k, v] = sum_u W[u, v] x[n, k, u] for each irrep: (N, dim_in) -> (N, dim_out), scales in the weights."""
    out = x.new_zeros(x.shape[0], layout.dim_out)
    for block, matrix in matrices(weights, layout):
        rows = x[:, block.start_in : block.start_in + block.dim * block.mul_in].reshape(-1, block.mul_in)
        columns = slice(block.start_out, block.start_out + block.dim * block.mul_out)
        out[:, columns] += (rows @ matrix).view(-1, block.dim * block.mul_out)
    return out


def mix(x: Tensor, factors: Tensor, weights: Tensor, layout: Layout) -> Tensor:
    """(N, dim_out): the map in front of the convolution, times a factor (N,) of each node."""
    return factors[:, None] * linear_map(x, weights, layout)


def edge_data(
    positions: Tensor, ptr: Tensor, source: Tensor, offset: Tensor, r_max: float, num_intervals: int, l_max: int
) -> tuple[Tensor, Tensor, EdgeData]:
    """Edges within the cutoff and what layers read of them; differentiable in the positions.

    Args:
        positions: (N, 3) Å.
        ptr: (N + 1,) first entry of each node in the list.
        source: (E,) node at the other end. offset: (E, 3) Å, what the cell adds to the vector.
        r_max: cutoff, Å. num_intervals: of the radial tables.
        l_max: largest degree of the harmonics.

    Returns:
        kept (E',) entries of the list that are shorter than the cutoff, their vectors (E', 3), and the rest of them.
    """
    destination, every = entries(ptr[:-1], ptr[1:])
    vectors = positions.index_select(0, source) - positions.index_select(0, destination) + offset
    kept = every[(vectors.detach() ** 2).sum(dim=1) < r_max**2]
    vectors, destination = vectors[kept], destination[kept]
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    scaled = lengths * (num_intervals / r_max)
    interval = interval_of(scaled, num_intervals)
    ends = torch.bincount(destination, minlength=len(ptr) - 1).cumsum(0)
    begins = torch.nn.functional.pad(ends, (1, 0))[:-1]
    harmonics = spherical_harmonics(vectors / lengths[:, None], l_max)
    return kept, vectors, EdgeData(begins, ends, source[kept], harmonics, scaled - interval, interval)


def entries(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The node of each entry and the entries begin[n] ... end[n] - 1 of all nodes, node after node."""
    counts = end - begin
    node = torch.repeat_interleave(torch.arange(len(counts), device=begin.device), counts)
    before = counts.cumsum(0) - counts
    return node, torch.arange(len(node), device=begin.device) + (begin - before).index_select(0, node)
