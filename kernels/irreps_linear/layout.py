"""Which columns and weights belong to each irrep of a linear map."""

import json
from dataclasses import dataclass, replace
from functools import cache
from math import sqrt

from ..irreps import Irreps


@dataclass(frozen=True)
class Block:
    """An irrep that the input and the output have.

    Attributes:
        dim: components, 2 l + 1.
        mul_in, mul_out: channels.
        start_in, start_out: first column; component-major, channel last.
        weight: where its matrix (mul_in, mul_out) starts among all weights.
    """

    dim: int
    mul_in: int
    mul_out: int
    start_in: int
    start_out: int
    weight: int

    @property
    def scale(self) -> float:
        """1 / sqrt(channels in), so that the map preserves the variance."""
        return 1.0 / sqrt(self.mul_in)


@dataclass(frozen=True)
class Layout:
    """A linear map between irreps.

    Attributes:
        dim_in, dim_out: columns.
        blocks: what is mapped, in the order of the weights; output columns of other irreps are zero, and what several
            blocks map to the same columns is added up.
    """

    dim_in: int
    dim_out: int
    blocks: tuple[Block, ...]

    @property
    def num_weights(self) -> int:
        return sum(block.mul_in * block.mul_out for block in self.blocks)

    @property
    def key(self) -> str:
        """Text from which ``from_key`` makes the layout again."""
        rows = [[b.dim, b.mul_in, b.mul_out, b.start_in, b.start_out, b.weight] for b in self.blocks]
        return json.dumps([self.dim_in, self.dim_out, rows])

    @staticmethod
    @cache
    def from_key(key: str) -> "Layout":
        dim_in, dim_out, rows = json.loads(key)
        return Layout(dim_in, dim_out, tuple(Block(*row) for row in rows))

    @staticmethod
    def of(irreps_in: Irreps, irreps_out: Irreps) -> "Layout":
        """Of irreps that occur once each; blocks in the order of the output."""
        irreps_in, irreps_out = Irreps(irreps_in), Irreps(irreps_out)
        inputs = {ir: (part.start, mul) for part, (mul, ir) in zip(irreps_in.slices(), irreps_in, strict=True)}
        blocks, weight = [], 0
        for part, (mul, ir) in zip(irreps_out.slices(), irreps_out, strict=True):
            start, mul_in = inputs.get(ir, (0, 0))
            if mul_in and mul:
                blocks.append(Block(ir.dim, mul_in, mul, start, part.start, weight))
                weight += mul_in * mul
        return Layout(irreps_in.dim, irreps_out.dim, tuple(blocks))

    def side_by_side(self, copies: int) -> "Layout":
        """The sum of maps of as many inputs, which stand side by side; each has weights of its own."""
        blocks = (
            replace(b, start_in=b.start_in + k * self.dim_in, weight=b.weight + k * self.num_weights)
            for k in range(copies)
            for b in self.blocks
        )
        return Layout(copies * self.dim_in, self.dim_out, tuple(blocks))

    def transposed(self) -> "Layout":
        """The map back, with the weights of each block transposed in place; its scales are those of this map."""
        blocks = (Block(b.dim, b.mul_out, b.mul_in, b.start_out, b.start_in, b.weight) for b in self.blocks)
        return Layout(self.dim_out, self.dim_in, tuple(blocks))
