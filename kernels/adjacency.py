"""Which edges meet at which node, from both ends."""

from typing import NamedTuple

import torch
from torch import Tensor


class Adjacency(NamedTuple):
    """Edges in any order, with the lists of those that end and those that start at each of N nodes (CSR).

    Attributes:
        destination, source: (E,) nodes of each edge.
        row_ptr, row_edge: (N + 1,) and (E,): edges into node n are ``row_edge[row_ptr[n] : row_ptr[n + 1]]``.
        col_ptr, col_edge: the same for edges out of node n.
    """

    destination: Tensor
    source: Tensor
    row_ptr: Tensor
    row_edge: Tensor
    col_ptr: Tensor
    col_edge: Tensor

    @staticmethod
    def from_edges(edge_index: Tensor, num_nodes: int) -> "Adjacency":
        """From (2, E) int64 destinations and sources in any order."""
        destination, source = edge_index[0].contiguous(), edge_index[1].contiguous()
        return Adjacency(destination, source, *_lists(destination, num_nodes), *_lists(source, num_nodes))

    @property
    def counts(self) -> tuple[int, int]:
        """Nodes and edges.

        Raises:
            ValueError: a list does not have as many entries as there are edges, or nodes and one.
        """
        nodes, edges = self.row_ptr.shape[0] - 1, self.source.shape[0]
        for name, length in zip(self._fields, (edges, edges, nodes + 1, edges, nodes + 1, edges), strict=True):
            if getattr(self, name).shape != (length,):
                raise ValueError(f"adjacency: {name} has {tuple(getattr(self, name).shape)} entries, not ({length},)")
        return nodes, edges

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """The edges into each node: pointers, edges, and the node at the other end of every edge."""
        return self.row_ptr, self.row_edge, self.source

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """The edges out of each node, likewise."""
        return self.col_ptr, self.col_edge, self.destination

    def to(self, device) -> "Adjacency":
        """All tensors on ``device``."""
        return Adjacency(*(tensor.to(device) for tensor in self))


def _lists(nodes: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    ptr = nodes.new_zeros(num_nodes + 1)
    torch.cumsum(torch.bincount(nodes, minlength=num_nodes), 0, out=ptr[1:])
    return ptr, torch.argsort(nodes, stable=True)
