"""Which sums of charges are given: those of whole structures, or of their fragments.

The charges q that minimise q'H q / 2 - f'q with C'q = Q satisfy H q + C m = f. A column of C has ones for the atoms of
a structure, or of a fragment: each atom belongs to one of them. With weights w > 0 of the atoms, the projections

    S z = z - w C (C'z / C'w),      S'r = r - C (C'(w r) / C'w)

lead to charges without sums, C'S = 0, and from forces to those without a level, for S'C = 0.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..ewald.system import System


class Constraints(NamedTuple):
    """What is given in place of the charge of each structure, for N atoms and G fragments.

    Attributes:
        fragment: (N,) int64, the fragment of each atom; those of a structure follow one another, in the order of the
            structures, and each has an atom.
        fragment_charge: (G,) e; the charge of a structure is their sum.
    """

    fragment: Tensor
    fragment_charge: Tensor


class Fragments:
    """The fragments of a batch.

    Args:
        fragment: (N,) see ``Constraints``.

    Attributes:
        structure: (G,) of each fragment.
        counts: (B,) fragments of each structure.
        slot: (G,) the number of each fragment in its structure.
    """

    def __init__(self, system: System, fragment: Tensor):
        self.fragment, self.ptr = fragment, system.node_ptr
        count = int(fragment.max()) + 1 if len(fragment) else 0
        self.structure = fragment.new_zeros(count).index_copy(0, fragment, system.batch)
        self.counts = torch.bincount(self.structure, minlength=system.num_structures)
        self.first = self.counts.cumsum(0) - self.counts
        self.slot = torch.arange(count, device=fragment.device) - self.first.index_select(0, self.structure)

    @cached_property
    def bounds(self) -> list[int]:
        """First fragment of each structure, and how many there are."""
        return [*self.first.tolist(), len(self.structure)]

    def of(self, b: int) -> tuple[Tensor, int]:
        """The fragments (n,) of the atoms of structure ``b``, from zero on, and their number."""
        first, last = self.bounds[b : b + 2]
        return self.fragment[int(self.ptr[b]) : int(self.ptr[b + 1])] - first, last - first

    def members(self, system: System) -> Tensor:
        """C (B, n, F) float64, F the largest number of fragments."""
        most = int(self.counts.max()) if len(self.counts) else 0
        slot = self.slot.index_select(0, self.fragment)
        return system.pad(torch.nn.functional.one_hot(slot, max(most, 1)).double())


class Sums:
    """The sums that are given of one structure's charges, and the projections that keep them.

    Args:
        weights: (n,) w.
        fragment: (n,) the fragment of each atom; None for the whole structure.
        count: how many there are, F.

    Attributes:
        sizes: (F,) float64, atoms of each.
    """

    def __init__(self, weights: Tensor, fragment: Tensor | None = None, count: int = 1):
        self.fragment, self.count = fragment, count
        self.sizes, self.weights = self.of(torch.ones_like(weights)), self.of(weights)
        self.shares = weights / self.each(self.weights)

    def of(self, values: Tensor) -> Tensor:
        """(n,) -> (F,): C' values."""
        if self.fragment is None:
            return values.sum(dim=0, keepdim=True)
        return values.new_zeros(self.count).index_add(0, self.fragment, values)

    def each(self, values: Tensor) -> Tensor:
        """(F,) -> (n,), or (1,) for a whole structure: C values."""
        return values if self.fragment is None else values.index_select(0, self.fragment)

    def level(self, values: Tensor) -> Tensor:
        """(n,) -> (F,) averages with weights w."""
        return torch.dot(self.shares, values)[None] if self.fragment is None else self.of(self.shares * values)

    def complete(self, charges: Tensor, total: Tensor) -> None:
        """Give charges (n,) the sums (F,), in place."""
        charges += self.each((total - self.of(charges)) / self.sizes)

    def norm_of_rest(self, values: Tensor, norm: float) -> float:
        """The norm of values (n,), which is ``norm``, without their averages."""
        sums = self.of(values)
        return math.sqrt(max(norm**2 - float(torch.dot(sums, sums / self.sizes)), 0.0))
