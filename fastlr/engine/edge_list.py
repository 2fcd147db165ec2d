"""Edges shared out among threads, with atoms in an order that keeps neighbours together in memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fastlr.graph import Graph
from fastlr.kernels import cores

EDGES_A_THREAD = 300  # that are worth one
UNSORTED = 2000  # atoms: so many stay in a cache in any order


@dataclass(frozen=True)
class EdgeList:
    """The edges of a graph, for one evaluation after another while only positions change.

    Each share of the nodes is worked on by one thread. What a share adds to nodes at the other end of its edges goes to
    copies of their rows, one for each share that reads them.

    Attributes:
        order: (N,) atom of each row, or None if rows are in the order of atoms.
        bounds: first node of each share, and N.
        ptr: (N + 1,) first edge of each node. source: (E,) node. offset: (E, 3) what the cell adds to its vector, Å.
        copy: (E,) copy of the source. copy_owner: (C,) node of each copy. copy_ptr, copy_number: (N + 1,) and (C,): the
            copies of each node.
        species, batch: (N,) of the rows.
    """

    order: Tensor | None
    bounds: np.ndarray
    ptr: Tensor
    source: Tensor
    offset: Tensor
    copy: Tensor
    copy_owner: Tensor
    copy_ptr: Tensor
    copy_number: Tensor
    species: Tensor
    batch: Tensor

    @property
    def num_nodes(self) -> int:
        return self.ptr.shape[0] - 1

    @property
    def num_edges(self) -> int:
        return self.source.shape[0]

    @property
    def num_copies(self) -> int:
        return self.copy_number.shape[0]

    @staticmethod
    def of(graph: Graph, large: bool = False) -> EdgeList:
        """The edges of ``graph`` shared out among the threads there are.

        Args:
            large: sort and share out the atoms, however few they are.
        """
        n, num_edges = graph.num_nodes, graph.num_edges
        ptr, source, shift = graph.row_ptr, graph.edge_index[1], graph.edge_shift
        species, batch, order = graph.species, graph.batch, None
        if n > UNSORTED or large:
            order = morton_order(graph.positions if graph.listed_at is None else graph.listed_at, graph.batch)
            rank = torch.empty_like(order)
            rank[order] = torch.arange(n)
            counts = (ptr[1:] - ptr[:-1])[order]
            start = ptr[:-1][order]
            ptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
            edges = torch.arange(num_edges) + (start - ptr[:-1]).repeat_interleave(counts)
            source, shift = rank[source[edges]], shift[edges]
            species, batch = species[order], batch[order]
        offset = shift
        if num_edges and graph.pbc.any():
            if graph.num_structures == 1:
                offset = shift @ graph.cell[0]
            else:
                owner = batch.repeat_interleave(ptr[1:] - ptr[:-1])
                offset = (shift[:, None, :] @ graph.cell[owner]).squeeze(1)
        shares = max(1, min(cores.count(), n, num_edges // EDGES_A_THREAD))
        shares = min(n, max(2, shares)) if large and n else shares
        load = ptr.numpy() + np.arange(n + 1)
        bounds = np.searchsorted(load, load[-1] * np.arange(shares + 1) // shares).astype(np.int64)
        bounds[0], bounds[-1] = 0, n
        copies = _copies(ptr, source, bounds)
        return EdgeList(
            order, bounds, ptr.contiguous(), source.contiguous(), offset.contiguous(), *copies,
            species.contiguous(), batch.contiguous(),
        )  # fmt: skip

    def sort(self, values: Tensor) -> Tensor:
        """Of atoms to rows."""
        return values if self.order is None else values.index_select(0, self.order)

    def unsort(self, values: Tensor) -> Tensor:
        """Of rows to atoms."""
        if self.order is None:
            return values
        out = torch.empty_like(values)
        out[self.order] = values
        return out


def _copies(ptr: Tensor, source: Tensor, bounds: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """copy, copy_owner, copy_ptr and copy_number of ``EdgeList``."""
    n = ptr.shape[0] - 1
    if len(bounds) == 2:
        return source.contiguous(), torch.arange(n), torch.arange(n + 1), torch.arange(n)
    copy, owners, total = torch.empty_like(source), [], 0
    for first, last in pairwise(bounds.tolist()):
        edges = slice(int(ptr[first]), int(ptr[last]))
        read = torch.zeros(n, dtype=torch.bool)
        read[source[edges]] = True
        number = read.cumsum(0) + (total - 1)
        copy[edges] = number[source[edges]]
        owners.append(torch.nonzero(read)[:, 0])
        total += len(owners[-1])
    owner = torch.cat(owners)
    counts = torch.bincount(owner, minlength=n)
    return copy, owner, torch.nn.functional.pad(counts.cumsum(0), (1, 0)), torch.argsort(owner, stable=True)


def morton_order(positions: Tensor, batch: Tensor) -> Tensor:
    """(N,) atoms along a curve that fills space, structure after structure (Morton, 1966)."""
    finite = positions.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    corner = finite.min(dim=0).values
    cells = ((finite - corner) / 3.0).long().clamp(max=2**16 - 1)  # Å: a few atoms each
    code = torch.zeros_like(batch)
    for bit in range(16):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    by_code = torch.argsort(code, stable=True)
    return by_code[torch.argsort(batch[by_code], stable=True)]
