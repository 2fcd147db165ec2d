"""What a tensor-product convolution computes, as data: its paths and their coefficients.

Every implementation is made from a ``Program``, so that the mathematics is written down once; the generators of
kernels work on its ``contractions``. Layouts:

    x  (N, sum_i dim_i * mul_i)   node features, blocks of (2l+1, mul): component-major, channel last
    Y  (E, sum_j dim_j)           edge attributes, one channel each
    w  (E, sum_paths mul)         weights, path after path
    z  (N, sum_k dim_k * mul_k)   output, blocks of (2l+1, total mul); paths into one irrep lie side by side
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

from ..irreps import Irreps
from .coupling import nonzero


@dataclass(frozen=True)
class Path:
    """One path x[block1] (x) Y[block2] -> z[block3], with one weight an edge and channel ("uvu")."""

    block1: int  # index into Program.irreps_in
    block2: int  # index into Program.irreps_edge
    block3: int  # index into Program.irreps_out
    l1: int
    l2: int
    l3: int
    mul: int
    channel3: int  # first channel of this path within the output block


class Cost(NamedTuple):
    """Floating-point operations and floats of memory traffic an edge.

    The matrices M(Y), which do not depend on the channel, are not counted; ``backward`` is for all three gradients.
    """

    forward: int
    backward: int
    streamed: int  # read once from memory: w and Y
    gathered: int  # read once for each edge, mostly from a cache: x


@dataclass(frozen=True)
class Block:
    """Where a path finds its components in a row of x or z: component m starts at ``start + m * stride``."""

    start: int
    stride: int
    dim: int

    @property
    def places(self) -> tuple[int, ...]:
        """Where each component starts."""
        return tuple(self.start + m * self.stride for m in range(self.dim))


@dataclass(frozen=True)
class Contraction:
    """A path as a kernel does it: with the matrix M(Y) it makes of the edge attributes, target += w * (M source).

    Attributes:
        source, target: where in x and z (or, transposed, in z and x).
        mul: number of channels.
        weight: the first of its ``mul`` weights in a row of w.
        matrix: (target component, source component) -> ((index into Y, coefficient), ...).
    """

    source: Block
    target: Block
    mul: int
    weight: int
    matrix: dict[tuple[int, int], tuple[tuple[int, float], ...]]


@dataclass(frozen=True)
class Program:
    """All paths from ``irreps_in`` x ``irreps_edge`` to the irreps present in ``filter_out``.

    Paths are ordered by input block, edge block and output degree: the order of NequIP's weights.
    Output channels of one irrep follow the same order; output blocks are sorted.
    """

    irreps_in: Irreps
    irreps_edge: Irreps
    filter_out: Irreps

    def __post_init__(self):
        for name in ("irreps_in", "irreps_edge", "filter_out"):
            object.__setattr__(self, name, Irreps(getattr(self, name)))
        for name in ("irreps_in", "irreps_edge"):
            irreps = [ir for _, ir in getattr(self, name)]
            if len(set(irreps)) != len(irreps):
                raise ValueError(f"{name} lists an irrep twice: {getattr(self, name)}; simplify it first")
        if any(mul != 1 for mul, _ in self.irreps_edge):
            raise ValueError(f"edge irreps must have multiplicity one, got {self.irreps_edge}")

    @property
    def key(self) -> str:
        """The program as text; see ``from_key``."""
        return f"{self.irreps_in} | {self.irreps_edge} | {self.filter_out}"

    @staticmethod
    @cache
    def from_key(key: str) -> "Program":
        """The program with this ``key``."""
        return Program(*key.split(" | "))

    @cached_property
    def _products(self) -> list[tuple]:
        allowed = {ir for _, ir in self.filter_out}
        return [
            (i, j, mul, ir1, ir2, ir3)
            for i, (mul, ir1) in enumerate(self.irreps_in)
            for j, (_, ir2) in enumerate(self.irreps_edge)
            for ir3 in ir1 * ir2
            if ir3 in allowed
        ]

    @cached_property
    def irreps_out(self) -> Irreps:
        """Sorted and simplified irreps of z."""
        return Irreps([(mul, ir3) for _, _, mul, _, _, ir3 in self._products]).sort().simplify()

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        block_of = {ir: k for k, (_, ir) in enumerate(self.irreps_out)}
        filled = [0] * len(block_of)
        paths = []
        for i, j, mul, ir1, ir2, ir3 in self._products:
            k = block_of[ir3]
            paths.append(Path(i, j, k, ir1.l, ir2.l, ir3.l, mul, filled[k]))
            filled[k] += mul
        return tuple(paths)

    @cached_property
    def weight_numel(self) -> int:
        """Number of weights an edge."""
        return sum(path.mul for path in self.paths)

    def contractions(self, transposed: bool = False) -> tuple[Contraction, ...]:
        """The paths with literal coefficients, from x to z or (``transposed``) from z to x."""
        return self._contractions[transposed]

    @cached_property
    def _contractions(self) -> tuple[tuple[Contraction, ...], tuple[Contraction, ...]]:
        x_slices, y_slices, z_slices = (
            irreps.slices() for irreps in (self.irreps_in, self.irreps_edge, self.irreps_out)
        )
        both, weight = ([], []), 0
        for path in self.paths:
            x = Block(x_slices[path.block1].start, path.mul, 2 * path.l1 + 1)
            z = Block(z_slices[path.block3].start + path.channel3, self.irreps_out[path.block3].mul, 2 * path.l3 + 1)
            matrix, transpose = defaultdict(list), defaultdict(list)
            for (i, j, k), coefficient in nonzero(path.l1, path.l2, path.l3).items():
                term = y_slices[path.block2].start + j, coefficient
                matrix[k, i].append(term)
                transpose[i, k].append(term)
            for contractions, source, target, entries in ((both[0], x, z, matrix), (both[1], z, x, transpose)):
                entries = {entry: tuple(terms) for entry, terms in sorted(entries.items())}
                contractions.append(Contraction(source, target, path.mul, weight, entries))
            weight += path.mul
        return tuple(both[0]), tuple(both[1])

    @cached_property
    def cost(self) -> Cost:
        """What the convolution takes an edge, counted from its terms."""
        paths = self.contractions()
        entries = sum(len(path.matrix) * path.mul for path in paths)
        terms = sum(sum(map(len, path.matrix.values())) * path.mul for path in paths)
        rows_in = sum(path.source.dim * path.mul for path in paths)
        rows_out = sum(path.target.dim * path.mul for path in paths)
        edge_sums = sum(len({j for term in path.matrix.values() for j, _ in term}) * path.mul for path in paths)
        return Cost(
            forward=2 * (entries + rows_out),
            backward=2 * (entries + rows_in) + entries + 2 * terms + 4 * edge_sums,
            streamed=self.weight_numel + self.irreps_edge.dim,
            gathered=self.irreps_in.dim,
        )

    def __str__(self) -> str:
        cost = self.cost
        lines = [
            f"{self.irreps_in} x {self.irreps_edge} -> {self.irreps_out}",
            f"an edge: {self.weight_numel} weights; {cost.forward} operations forward, {cost.backward} backward; "
            f"{cost.streamed} floats streamed, {cost.gathered} gathered",
        ]
        for path, contraction in zip(self.paths, self.contractions(), strict=True):
            ir1, ir2, ir3 = (
                irreps[block].ir
                for irreps, block in (
                    (self.irreps_in, path.block1),
                    (self.irreps_edge, path.block2),
                    (self.irreps_out, path.block3),
                )
            )
            lines.append(f"  {path.mul}x{ir1} x {ir2} -> {ir3}, output channels {path.channel3}+")
            for (k, i), terms in contraction.matrix.items():
                combination = " ".join(f"{c:+.6f} Y{j}" for j, c in terms)
                lines.append(f"    z{k} += w x{i} ({combination})")
        return "\n".join(lines)


def numbered(terms: list[tuple]) -> tuple[tuple[tuple[int, ...], ...], list]:
    """Terms (w, Y, v) with each distinct tensor of a kind replaced by its number, and all w, all Y, all v."""
    kinds = [{}, {}, {}]
    numbers = tuple(
        tuple(kind.setdefault(id(tensor), (len(kind), tensor))[0] for kind, tensor in zip(kinds, term, strict=True))
        for term in terms
    )
    return numbers, [tensor for kind in kinds for _, tensor in kind.values()]
