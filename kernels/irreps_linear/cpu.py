"""The linear map of irreps for CPUs: LLVM assembly in which all irreps of a few atoms pass the same loop.

A library's matrix product would be called once an irrep, on rows that have to be gathered first.
"""

from functools import cache

import torch
from llvmlite import ir
from torch import Tensor

from ..llvm import Emitter, chunk_plan
from ..native import compiled, launch
from .layout import Block, Layout

ROWS = 6  # of the result held in registers at a time, two vectors of each
VECTORS = 2


def apply(x: Tensor, weights: Tensor, layout: Layout, transposed: bool) -> Tensor:
    """See ``op.irreps_linear``."""
    out = x.new_empty(x.shape[0], layout.dim_in if transposed else layout.dim_out)
    if transposed:
        weights = weights.index_select(0, _transposition(layout))
    launch(_compiled(_Apply, layout, x.dtype, transposed), [out, x, weights], x.shape[0], minimum_work=32)
    return out


def weight_gradient(x: Tensor, g: Tensor, layout: Layout) -> Tensor:
    """See ``op.irreps_linear_weights``."""
    out = x.new_empty(layout.num_weights)
    if layout.blocks:
        rows = torch.tensor([x.shape[0]])
        units = sum(-(-block.mul_in // ROWS) for block in layout.blocks)
        least = 1 if x.shape[0] > 32 else units
        launch(_compiled(_WeightGradient, layout, x.dtype), [out, x, g, rows], units, minimum_work=least)
    return out


@cache
def _transposition(layout: Layout) -> Tensor:
    """(weights,) which weight stands where when the matrix of each block is transposed in place."""
    parts = []
    for block in layout.blocks:
        numbers = block.weight + torch.arange(block.mul_in * block.mul_out)
        parts.append(numbers.view(block.mul_in, block.mul_out).T.flatten())
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


@cache
def _compiled(kernel, layout: Layout, dtype: torch.dtype, *options):
    bits = torch.finfo(dtype).bits
    return compiled(kernel.NAME, f"{layout.key} {bits} {options}", lambda: kernel(layout, bits, *options).source())


def _pieces(mul: int, lanes: int) -> list[tuple[int, int, list[tuple[int, int, int]]]]:
    """Columns in pieces of a few vectors: (first column, how many pieces follow each other, vectors of each), where a
    vector is (offset, lanes, lanes in use)."""
    result = []
    for start, vectors, width, used in chunk_plan(mul, lanes):
        whole, rest = divmod(vectors, VECTORS)
        if whole:
            result.append((start, whole, [(v * width, width, used) for v in range(VECTORS)]))
        if rest:
            first = start + whole * VECTORS * width
            result.append((first, 1, [(v * width, width, used) for v in range(rest)]))
    return result


class _Apply(Emitter):
    """out[n, k, v] = scale sum_u W[u, v] x[n, k, u] for atoms begin ... end - 1; the last may be done again."""

    NAME = "irreps_linear"

    def __init__(self, layout: Layout, bits: int, transposed: bool):
        super().__init__(self.NAME, bits, 3)
        scales = {block.weight: block.scale for block in layout.blocks}
        layout = layout.transposed() if transposed else layout
        self.zero_others(layout)
        groups = {}  # of blocks that are added up
        for block in layout.blocks:
            groups.setdefault(block.start_out, []).append(block)
        for blocks in groups.values():
            atoms, block = max(1, ROWS // blocks[0].dim), blocks[0]
            with self.loop(self.begin, self.end, atoms) as first:
                final = self.add(self.end, -1)
                rows = [self.minimum(self.add(first, number), final) for number in range(atoms)]
                places_in = [self.mul(row, layout.dim_in) for row in rows]
                places_out = [self.add(self.mul(row, layout.dim_out), block.start_out) for row in rows]
                for start, pieces, vectors in _pieces(block.mul_out, self.lanes):
                    with self.loop(0, pieces) as piece:
                        column = self.add(start, self.mul(piece, len(vectors) * vectors[0][1]))
                        self.piece(blocks, column, vectors, places_in, places_out, scales[block.weight])

    def zero_others(self, layout: Layout) -> None:
        """Columns that no block writes."""
        out = self.tensors[0]
        covered = sorted((b.start_out, b.start_out + b.dim * b.mul_out) for b in layout.blocks)
        edges = [0, *(edge for pair in covered for edge in pair), layout.dim_out]
        gaps = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
        if gaps:
            with self.loop(self.begin, self.end) as n:
                for start, stop in gaps:
                    with self.loop(start, stop) as column:
                        place = self.at(out, self.add(self.mul(n, layout.dim_out), column))
                        self.builder.store(ir.Constant(self.float, 0.0), place)

    def piece(self, blocks: list[Block], column, vectors, places_in, places_out, scale: float) -> None:
        out, x, weights = self.tensors
        sums, block = {}, blocks[0]
        for number in range(len(places_in)):
            for k in range(block.dim):
                for v, (_, width, _) in enumerate(vectors):
                    sums[number, k, v] = self.variable(self.vector(width))
                    self.builder.store(self.constant(0.0, width), sums[number, k, v])
        for block in blocks:
            with self.loop(0, block.mul_in) as u:
                row = self.add(self.add(self.mul(u, block.mul_out), block.weight), column)
                columns = [self.load(weights, self.add(row, offset), width, used) for offset, width, used in vectors]
                for number, place in enumerate(places_in):
                    for k in range(block.dim):
                        value = self.load_float(x, self.add(self.add(place, block.start_in + k * block.mul_in), u))
                        for v, (_, width, _) in enumerate(vectors):
                            self.accumulate(sums[number, k, v], columns[v], self.splat(value, width))
        for (number, k, v), variable in sums.items():
            offset, width, used = vectors[v]
            place = self.add(self.add(places_out[number], k * block.mul_out + offset), column)
            self.store(self.builder.fmul(self.value(variable), self.constant(scale, width)), out, place, used)


class _WeightGradient(Emitter):
    """out[u, v] = scale sum over atoms n and components k of x[n, k, u] g[n, k, v], a few rows u at a time.

    Rows begin ... end - 1 of this kernel are groups of rows of the blocks' matrices, one block after another.
    """

    NAME = "irreps_linear_weights"

    def __init__(self, layout: Layout, bits: int):
        super().__init__(self.NAME, bits, 4)
        self.layout = layout
        lengths = self.tensors[3]
        num_atoms = self.load_int(lengths, 0)
        first_unit = 0
        for block in layout.blocks:
            units = -(-block.mul_in // ROWS)
            rows = min(ROWS, block.mul_in)
            start = self.maximum(self.begin, first_unit)
            stop = self.minimum(self.end, first_unit + units)
            with self.loop(start, stop) as unit:
                # the last group may do some rows again
                first = self.minimum(self.mul(self.add(unit, -first_unit), ROWS), block.mul_in - rows)
                for column, pieces, vectors in _pieces(block.mul_out, self.lanes):
                    with self.loop(0, pieces) as piece:
                        place = self.add(column, self.mul(piece, len(vectors) * vectors[0][1]))
                        self.piece(block, first, rows, place, vectors, num_atoms)
            first_unit += units

    def maximum(self, a, b):
        return self.builder.select(self.builder.icmp_signed(">", a, self.integer(b)), a, self.integer(b))

    def piece(self, block: Block, first, rows: int, column, vectors, num_atoms) -> None:
        out, x, g, _ = self.tensors
        sums = [[self.variable(self.vector(width)) for _, width, _ in vectors] for _ in range(rows)]
        for row in sums:
            for variable, (_, width, _) in zip(row, vectors, strict=True):
                self.builder.store(self.constant(0.0, width), variable)
        with self.loop(0, num_atoms) as n:
            x_place = self.add(self.add(self.mul(n, self.layout.dim_in), block.start_in), first)
            g_place = self.add(self.add(self.mul(n, self.layout.dim_out), block.start_out), column)
            for k in range(block.dim):
                values = [
                    self.load(g, self.add(g_place, k * block.mul_out + offset), width, used)
                    for offset, width, used in vectors
                ]
                for u, row in enumerate(sums):
                    factor = self.load_float(x, self.add(x_place, k * block.mul_in + u))
                    for variable, value in zip(row, values, strict=True):
                        self.accumulate(variable, value, self.splat(factor, value.type.count))
        for u, row in enumerate(sums):
            place = self.add(self.add(self.mul(self.add(first, u), block.mul_out), block.weight), column)
            for variable, (offset, width, used) in zip(row, vectors, strict=True):
                value = self.builder.fmul(self.value(variable), self.constant(block.scale, width))
                self.store(value, out, self.add(place, offset), used)
