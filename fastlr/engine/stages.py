"""The calls of kernels of an edge list and of a stack of layers, bound to their buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr.kernels.message_passing import cost
from fastlr.kernels.message_passing.cost import Cost
from fastlr.kernels.message_passing.cpu import (
    LayerGradients,
    LayerTensors,
    backward_call,
    collect_call,
    edge_forces_call,
    edges_call,
    forward_call,
    mix_call,
)
from fastlr.kernels.message_passing.shape import EdgeData
from fastlr.kernels.native import Call

from .buffers import Buffers
from .edge_list import EdgeList
from .folding import FoldedLayer

OPERATIONS_OF_THREADS = 5e5  # floating-point operations that are worth waking other threads


class Stage(NamedTuple):
    """A step of the plan, with what it has to do at least; None where nobody has counted."""

    name: str
    run: Callable[[], object]
    cost: Cost | None = None


class BoundEdges:
    """From positions to harmonics and places in the radial tables, and from gradients by these to forces.

    Attributes:
        positions: (N, 3) float64, Å, of the rows; to be written to before ``prepare``.
        settings: see ``cpu_edges.Edges``.
    """

    def __init__(self, edges: EdgeList, settings: Tensor, l_max: int, dtype: torch.dtype, buffers: Buffers):
        n, num_edges, num_copies = edges.num_nodes, edges.num_edges, edges.num_copies
        wide, integer, harmonics = torch.float64, torch.int64, (l_max + 1) ** 2

        def new(name, *shape, dtype=dtype):
            return buffers.get(f"edges.{name}", shape, dtype)

        self.edges, self.bounds = edges, edges.bounds
        self.positions = new("positions", n, 3, dtype=wide)
        self.end, self.shortest = new("end", n, dtype=integer), new("shortest", n, dtype=wide)
        self.source, self.copy = new("source", num_edges, dtype=integer), new("copy", num_edges, dtype=integer)
        self.vector = new("vector", num_edges, 3, dtype=wide)
        self.harmonics, self.place = new("harmonics", num_edges, harmonics), new("place", num_edges)
        self.interval = new("interval", num_edges, dtype=integer)
        self.harmonics_gradient = new("harmonics gradient", num_edges, harmonics)
        self.place_gradient = new("place gradient", num_edges)
        self.node_forces, self.virials = new("forces", n, 3, dtype=wide), new("virials", n, 9, dtype=wide)
        self.copy_forces = new("copies of forces", num_copies, 3, dtype=wide)
        self.data = EdgeData(edges.ptr, self.end, self.source, self.harmonics, self.place, self.interval)
        given = self.positions, edges.ptr, edges.source, edges.copy, edges.offset, settings
        self._prepare = edges_call(l_max, *given, self.shortest, self.copy, self.vector, self.data)
        gradients = self.harmonics_gradient, self.place_gradient
        results = self.node_forces, self.virials, self.copy_forces
        self._forces = edge_forces_call(l_max, self.data, self.copy, self.vector, settings, *gradients, *results)
        self._bounds = _worth(self.bounds, self.preparation)

    @property
    def preparation(self) -> Cost:
        """Of ``prepare``: the list is read, and what describes an edge is written."""
        harmonics, itemsize = self.harmonics.shape[1], self.place.element_size()
        count = self.edges.num_edges
        return Cost((20 + 6 * harmonics) * count, count * (88 + (harmonics + 1) * itemsize))

    @property
    def pulling(self) -> Cost:
        """Of ``forces``."""
        harmonics, itemsize = self.harmonics.shape[1], self.place.element_size()
        count = self.edges.num_edges
        return Cost((60 + 12 * harmonics) * count, count * (32 + (harmonics + 1) * itemsize))

    def prepare(self) -> None:
        """Edges within the cutoff for the positions as they are."""
        self._prepare(self._bounds)

    def clear(self) -> None:
        """Gradients to zero, before they are added to."""
        for tensor in (self.harmonics_gradient, self.place_gradient, self.copy_forces):
            tensor.zero_()

    def forces(self) -> Tensor:
        """(N, 3) float64 forces on the rows, from the gradients; ``virials`` hold what each row contributes."""
        self._forces(self._bounds)
        return self.node_forces.index_add_(0, self.edges.copy_owner, self.copy_forces)


class BoundStack:
    """Layers one after another.

    Attributes:
        x: (N, ...) features that the first layer starts from, to be written before ``forward``; None where rows of its
            h go by species.
        own: (N, G) further attributes, to be written before ``forward``.
        out: (N, ...) features after the last layer.
        gradient: (N, ...) by ``out``, to be written before ``backward``; then ``x_gradient`` and ``own_gradient`` are
            those by ``x`` and ``own``.
    """

    def __init__(
        self, name: str, layers: list[FoldedLayer], norm: Tensor, num_own: int, edges: BoundEdges, buffers: Buffers
    ):
        n, num_copies = edges.edges.num_nodes, edges.edges.num_copies
        dtype = layers[0].table.dtype
        species, bounds = edges.edges.species, edges.bounds

        def new(what, *shape):
            return buffers.get(f"{name}.{what}", shape, dtype)

        factors = norm[:, 0].to(dtype).index_select(0, species).contiguous()
        self.own, self._own_gradients = new("own", n, num_own), []
        first = layers[0]
        self.x = None if first.shape.by_species else new("x", n, first.first_layout.dim_in)
        self.forward, self.backward = [], []
        counts = n, edges.edges.num_edges, dtype.itemsize
        x = self.x
        gradient = new("gradient by x", n, first.first_layout.dim_in)
        self.x_gradient = None if self.x is None else gradient
        nothing = torch.zeros(0, dtype=dtype)
        for number, layer in enumerate(layers):
            shape, label = layer.shape, f"{name} {number + 1}"
            y, out = new(f"y{number}", n, shape.gate.dim_in), new(f"x{number + 1}", n, shape.gate.dim_out)
            out_gradient = new(f"gradient by x{number + 1}", n, shape.gate.dim_out)
            own_gradient = new(f"gradient by own{number}", n, shape.num_own)
            if shape.num_own:
                self._own_gradients.append(own_gradient)
            h, h_copies, mixing = layer.h_by_species, nothing, _mixing(layer, *counts[::2])
            if h is None:
                width = layer.first_layout.dim_in
                h, h_copies = new(f"h{number}", n, width), new(f"copies{number}", num_copies, width)
                mix = mix_call(layer.first_layout, h, x, factors, layer.first[0])
                self.forward.append(Stage(f"{label}: mix", _share(mix, bounds, mixing), mixing))
            read = LayerTensors(h, nothing if x is None else x, self.own, edges.data, species)
            call = forward_call(shape, read, layer.weights, y, out)
            work = cost.forward(shape, *counts)
            self.forward.append(Stage(f"{label}: convolution and node update", _share(call, bounds, work), work))

            results = LayerGradients(h_copies, edges.harmonics_gradient, edges.place_gradient, gradient, own_gradient)
            call = backward_call(shape, read, layer.transposed_weights, edges.copy, y, out_gradient, results)
            # the other way round: the last layer comes first, and in each the collection last
            work = cost.backward(shape, *counts)
            back = _cleared(call, bounds, work, h_copies, shape.connection is None, gradient)
            steps = [Stage(f"{label}: backwards", back, work)]
            if layer.first is not None:
                copies = edges.edges.copy_ptr, edges.edges.copy_number, h_copies
                collect = collect_call(layer.first_layout, gradient, *copies, factors, layer.first[1])
                steps.append(Stage(f"{label}: collect", _share(collect, bounds, mixing), mixing))
            self.backward = steps + self.backward
            x, gradient = out, out_gradient
        self.out, self.gradient = x, gradient

    def own_gradient(self) -> Tensor:
        """(N, G), summed over the layers."""
        return sum(self._own_gradients) if self._own_gradients else torch.zeros_like(self.own)


def _mixing(layer: FoldedLayer, nodes: int, itemsize: int) -> Cost:
    layout = layer.first_layout
    return Cost(nodes * cost.linear_operations(layout), nodes * itemsize * (layout.dim_in + layout.dim_out))


def _worth(bounds: np.ndarray, work: Cost) -> np.ndarray:
    """The shares of the threads, or all in one where there is little to do."""
    return bounds if work.operations >= OPERATIONS_OF_THREADS else bounds[[0, -1]]


def _share(call: Call, bounds: np.ndarray, work: Cost) -> Callable[[], None]:
    """``call`` on as many threads as its work is worth."""
    bounds = _worth(bounds, work)
    return lambda: call(bounds)


def _cleared(call: Call, bounds, work: Cost, copies: Tensor, unconnected: bool, gradient: Tensor) -> Callable[[], None]:
    """``call`` after zeroing what it adds to."""
    shared = _share(call, bounds, work)

    def run():
        copies.zero_()
        if unconnected:
            gradient.zero_()
        shared()

    return run
