"""Which edges lie in which interval between knots."""

from typing import NamedTuple

import torch
from torch import Tensor


class Intervals(NamedTuple):
    """The edges of each of M intervals (CSR).

    Attributes:
        interval: (E,) int64, the interval of each edge.
        order: (E,) int64, the edges sorted by interval.
        ptr: (M + 1,) int64: edges of interval m are ``order[ptr[m] : ptr[m + 1]]``.
    """

    interval: Tensor
    order: Tensor
    ptr: Tensor

    @staticmethod
    def from_positions(positions: Tensor, num_intervals: int) -> "Intervals":
        """From (E,) lengths in units of the distance between knots."""
        return Intervals.of(interval_of(positions, num_intervals), num_intervals)

    @staticmethod
    def of(interval: Tensor, num_intervals: int) -> "Intervals":
        """From the interval of each edge."""
        ptr = interval.new_zeros(num_intervals + 1)
        torch.cumsum(torch.bincount(interval, minlength=num_intervals), 0, out=ptr[1:])
        return Intervals(interval, torch.argsort(interval, stable=True), ptr)


def interval_of(positions: Tensor, num_intervals: int) -> Tensor:
    """(E,) int64 from lengths in units of the distance between knots; what lies outside joins the first or the last."""
    return positions.detach().floor().clamp(0, num_intervals - 1).long()
