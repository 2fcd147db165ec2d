"""Atoms sorted by the part of the mesh that they touch, so that kernels find them without a search."""

from typing import NamedTuple

import torch
from torch import Tensor

from .naive import locate

SEGMENT = 32  # points along the last axis in a bin, at least; more than the widest spline touches


class Bins(NamedTuple):
    """The atoms in the order of bins (CSR). A bin is a first point along axes 0 and 1, and a segment of axis 2.

    Attributes:
        order: (N,) int64, the atoms sorted by bin.
        ptr: (n1 n2 segments + 1,) int64: atoms of bin b are ``order[ptr[b] : ptr[b + 1]]``.
        start: (N, 3) int64, the first mesh point that each atom touches, in that order.
        place: (N, 3), where each atom lies within an interval, -1/2 ... 1/2, in that order.
    """

    order: Tensor
    ptr: Tensor
    start: Tensor
    place: Tensor


def segments(n3: int) -> int:
    """Number of segments of the last axis; segment b begins at point ceil(b n3 / segments)."""
    return max(1, n3 // SEGMENT)


def sort(x: Tensor, dims: tuple[int, int, int], p: int) -> Bins:
    """The bins of atoms at mesh coordinates x (N, 3), by PyTorch's own operations."""
    start, place = locate(x, dims, p)
    count = segments(dims[2])
    segment = torch.div(start[:, 2] * count, dims[2], rounding_mode="floor")
    key = (start[:, 0] * dims[1] + start[:, 1]) * count + segment
    key, order = torch.sort(key, stable=True)
    edges = torch.arange(dims[0] * dims[1] * count + 1, device=x.device)
    return Bins(order, torch.searchsorted(key, edges), start.index_select(0, order), place.index_select(0, order))
