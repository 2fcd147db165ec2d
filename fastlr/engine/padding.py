"""Graphs of a few sizes only: atoms and edges without effect fill them up."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastlr.graph import Graph

EDGES_AN_ATOM = 64  # at most, between atoms that fill up
LEAST = 16


class Sizes(NamedTuple):
    """Of a padded graph: atoms, edges and structures."""

    nodes: int
    edges: int
    structures: int

    @staticmethod
    def of(graph: Graph) -> Sizes:
        """The least that hold a graph; of atoms and edges there are eight from one power of two to the next."""
        edges = _rounded(graph.num_edges)
        between = -(-(edges - graph.num_edges) // EDGES_AN_ATOM)
        return Sizes(_rounded(graph.num_nodes + 2 + between), edges, graph.num_structures + 1)


def _rounded(count: int) -> int:
    step = max(LEAST, 1 << max(count.bit_length() - 4, 0))
    return max(step, -(-count // step) * step)


def padded(graph: Graph, sizes: Sizes, r_max: float) -> Graph:
    """The graph with one more structure, a molecule of atoms so far apart that none of its edges is within the cutoff.

    Its atoms come in pairs, between which the additional edges are. Coulomb tables are left out.
    """
    n, num_edges = graph.num_nodes, graph.num_edges
    more, more_edges = sizes.nodes - n, sizes.edges - num_edges
    of_pairs = _shared(more_edges // 2, more // 2)  # from the first atom of each pair to the second, and as many back
    counts = torch.zeros(more, dtype=torch.int64)
    counts[: 2 * len(of_pairs)] = of_pairs.repeat_interleave(2)
    ends = counts.cumsum(0)
    destination = torch.repeat_interleave(torch.arange(more), counts)
    # the k-th edge into an atom is the reverse of the k-th one into the other atom of its pair
    before = ends - counts
    partner = destination ^ 1
    reverse = torch.arange(more_edges) - before[destination] + before[partner]
    place = torch.arange(more, dtype=torch.float64) * (2.0 * r_max)
    return Graph(
        positions=torch.cat([graph.positions, torch.nn.functional.pad(place[:, None], (0, 2))]),
        species=_joined(graph.species, torch.zeros(more)),
        batch=_joined(graph.batch, torch.full((more,), graph.num_structures)),
        node_ptr=_joined(graph.node_ptr, torch.tensor([sizes.nodes])),
        cell=torch.cat([graph.cell, torch.eye(3, dtype=torch.float64)[None]]),
        pbc=torch.cat([graph.pbc, torch.zeros(1, 3, dtype=torch.bool)]),
        charge=torch.cat([graph.charge, torch.zeros(1, dtype=torch.float64)]),
        edge_index=torch.cat([graph.edge_index, n + torch.stack([destination, partner])], dim=1),
        edge_shift=torch.cat([graph.edge_shift, torch.zeros(more_edges, 3, dtype=torch.float64)]),
        row_ptr=_joined(graph.row_ptr, num_edges + ends),
        reverse_edge=_joined(graph.reverse_edge, num_edges + reverse),
    )


def _shared(total: int, shares: int) -> Tensor:
    """(shares,) whole numbers, as equal as may be."""
    return (torch.arange(1, shares + 1) * total) // shares - (torch.arange(shares) * total) // shares


def _joined(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b.to(a.dtype)])
