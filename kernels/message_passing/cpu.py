"""The layer kernels for this CPU, each bound to the tensors that it works on."""

from functools import cache
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from ..irreps_linear.layout import Layout
from ..irreps_linear.naive import transposed
from ..native import Call, compiled, shares
from .shape import EdgeData, LayerShape, LayerWeights

# name -> module, class, and what makes its first argument from text
_KERNELS = {
    "layer_forward": ("cpu_forward", "Forward", LayerShape.from_key),
    "layer_backward": ("cpu_backward", "Backward", LayerShape.from_key),
    "mix": ("cpu_collect", "Mix", Layout.from_key),
    "collect": ("cpu_collect", "Collect", Layout.from_key),
    "edges": ("cpu_edges", "Edges", int),
    "edge_forces": ("cpu_edges", "Forces", int),
}


@cache
def kernel(name: str, key: str, bits: int):
    """The machine code of a kernel; what writes its assembly is imported only if it is not on disk.

    Args:
        name: of the kernel, which its class has as ``NAME``.
        key: of a ``LayerShape``, of the ``Layout`` of a linear map, or the largest degree of the harmonics, as text.
        bits: of the model's float type.
    """
    module, kind, parsed = _KERNELS[name]

    def source() -> str:
        return getattr(import_module(f".{module}", __package__), kind)(parsed(key), bits).source()

    return compiled(name, f"{key} {bits}", source)


class LayerTensors(NamedTuple):
    """What a layer reads, forwards and back; see ``naive.message_passing``."""

    h: Tensor
    x: Tensor
    own: Tensor
    edges: EdgeData
    species: Tensor


class LayerGradients(NamedTuple):
    """Where the backward pass leaves its results.

    Attributes:
        h: (copies of rows, ...), added to; see ``copy`` of ``backward_call``. Not written to where h is by species.
        harmonics, place: of the edges, added to.
        x: (N, ...), and own: (N, num_own), written where there is a connection.
    """

    h: Tensor
    harmonics: Tensor
    place: Tensor
    x: Tensor
    own: Tensor


def forward_call(shape: LayerShape, read: LayerTensors, weights: LayerWeights, y: Tensor, out: Tensor) -> Call:
    """The layer, with its argument of the gate y (N, gate.dim_in) and its result out (N, gate.dim_out)."""
    edges = read.edges
    tensors = [y, out, *edges, read.h, weights.table, read.x, read.species, read.own, *weights[1:]]
    return Call(kernel("layer_forward", shape.key, _bits(y)), tensors)


def backward_call(
    shape: LayerShape,
    read: LayerTensors,
    weights: LayerWeights,
    copy: Tensor,
    y: Tensor,
    gradient: Tensor,
    results: LayerGradients,
) -> Call:
    """From the gradient (N, gate.dim_out) by the layer's result those by what it reads.

    Args:
        weights: with the matrices of all maps transposed.
        copy: (E,) int64, row of ``results.h`` that gets the gradient by h of each edge's source.
        y: as the forward pass has left it.
    """
    begin, end, source, *described = read.edges
    tensors = [gradient, y, begin, end, source, copy, *described, read.h, weights.table]
    tensors += [read.x, read.species, read.own, *weights[1:], *results]
    return Call(kernel("layer_backward", shape.key, _bits(y)), tensors)


def mix_call(layout: Layout, out: Tensor, x: Tensor, factors: Tensor, weights: Tensor) -> Call:
    """out = ``naive.mix``."""
    return Call(kernel("mix", layout.key, _bits(out)), [out, x, factors, weights])


def collect_call(
    layout: Layout, gradient: Tensor, ptr: Tensor, number: Tensor, copies: Tensor, factors: Tensor, weights: Tensor
) -> Call:
    """Add to gradient (N, dim_in), by x, what the gradients by copies of the rows of ``mix`` make of it.

    Args:
        ptr, number: (N + 1,) and (C,) int64, the copies of each node (CSR).
        weights: with the matrices of all irreps transposed.
    """
    return Call(kernel("collect", layout.key, _bits(gradient)), [gradient, ptr, number, copies, factors, weights])


def edges_call(
    l_max: int,
    positions: Tensor,
    ptr: Tensor,
    source: Tensor,
    copy: Tensor,
    offset: Tensor,
    settings: Tensor,
    shortest: Tensor,
    copy_out: Tensor,
    vector: Tensor,
    edges: EdgeData,
) -> Call:
    """The edges of a list within the cutoff, at the front of the place that the list has for each node.

    Args:
        positions: (N, 3) float64, Å.
        ptr: (N + 1,) int64; source, copy: (E,) int64; offset: (E, 3) float64, Å. The list, see ``naive.edge_data``;
            ``copy`` is a number that goes with each entry.
        settings: (3,) float64, the square of the cutoff, intervals of the radial table an Å, and the last interval.
        shortest: (N,) float64, the square of the shortest vector of each node; vector: (E, 3) float64; copy_out: (E,)
            int64; edges: results of the edges that are kept.
    """
    given = [positions, ptr, source, copy, offset, settings, edges.end, shortest]
    results = [edges.source, copy_out, vector, edges.harmonics, edges.place, edges.interval]
    return Call(kernel("edges", str(l_max), _bits(edges.harmonics)), [*given, *results])


def edge_forces_call(
    l_max: int,
    edges: EdgeData,
    copy: Tensor,
    vector: Tensor,
    settings: Tensor,
    by_harmonics: Tensor,
    by_place: Tensor,
    forces: Tensor,
    virials: Tensor,
    copy_forces: Tensor,
) -> Call:
    """Forces from the gradients by harmonics and places of the edges.

    Args:
        copy, vector, settings: as ``edges_call`` has left them.
        by_harmonics, by_place: (E, ...) and (E,) gradients.
        forces: (N, 3) float64, on each node from the edges into it; virials: (N, 9) float64, sums of vector x gradient
            of these; copy_forces: (C, 3) float64, forces on the copies of their sources, added to.
    """
    given = [edges.begin, edges.end, copy, vector, settings, by_harmonics, by_place]
    return Call(kernel("edge_forces", str(l_max), _bits(by_place)), [*given, forces, virials, copy_forces])


def forward(shape: LayerShape, read: LayerTensors, weights: LayerWeights) -> tuple[Tensor, Tensor]:
    """y and out of ``forward_call``."""
    n = read.species.shape[0]
    y, out = (read.h.new_empty(n, width) for width in (shape.gate.dim_in, shape.gate.dim_out))
    forward_call(shape, read, weights, y, out)(shares(n, minimum_work=32))
    return y, out


def backward(
    shape: LayerShape, read: LayerTensors, weights: LayerWeights, y: Tensor, gradient: Tensor
) -> LayerGradients:
    """Gradients by h, harmonics, place, x and the further attributes, on one thread."""
    results = LayerGradients(
        *(torch.zeros_like(t) for t in (read.h, read.edges.harmonics, read.edges.place, read.x, read.own))
    )
    turned = weights._replace(linear=transposed(weights.linear, shape.linear))
    if shape.connection is not None:
        maps = (transposed(each, shape.connection) for each in weights[2:])
        turned = LayerWeights(turned.table, turned.linear, *maps)
    call = backward_call(shape, read, turned, read.edges.source, y, gradient, results)
    call(shares(read.species.shape[0], 1 << 60))
    return results


def _bits(tensor: Tensor) -> int:
    return torch.finfo(tensor.dtype).bits
