"""The tensor-product convolution for CPUs: LLVM assembly made from a ``Program``.

Two kernels serve the convolution and all its derivatives (see ``op.py``). Both walk the edges of a node and keep one
vector of channels in each register.

``Gather`` reads M(Y), the matrix that a path makes of Y, from a table: it does not depend on the channel, so it is
computed once an edge, for a tile of edges at a time with one edge a lane, and then broadcast. The outputs of as many
paths as fit stay in registers while the edges of the tile pass by.
"""

from collections import defaultdict
from functools import cache

import torch
from llvmlite import ir
from torch import Tensor

from ..adjacency import Adjacency
from ..llvm import I64, Emitter, chunk_plan
from ..native import compiled, launch
from .program import Contraction, Program, numbered

TILE = 16  # edges whose matrices are made together
MAX_ACCUMULATORS = 18  # rows of output held in registers


def gather(program: Program, edges: Adjacency, terms: list, transposed: bool = False) -> Tensor:
    """See ``op.gather``."""
    numbers, operands = numbered(terms)
    ptr, edge, node = edges.columns if transposed else edges.rows
    out = terms[0][2].new_empty(ptr.shape[0] - 1, (program.irreps_in if transposed else program.irreps_out).dim)
    if not program.paths:
        return out.zero_()
    launch(_compiled(Gather, program, numbers, out.dtype, transposed), [out, ptr, edge, node, *operands], ptr)
    return out


def edge_gradients(
    program: Program, edges: Adjacency, g: Tensor, terms: list, need_y: bool = True
) -> tuple[Tensor, Tensor]:
    """See ``op.edge_gradients``."""
    numbers, operands = numbered(terms)
    w, y, _ = terms[0]
    dw, dy = torch.empty_like(w), torch.empty_like(y) if need_y else y.new_empty(0)
    if not program.paths:
        return dw, dy.zero_()
    kernel = _compiled(EdgeGradients, program, numbers, g.dtype, need_y)
    launch(kernel, [dw, dy, *edges.rows, g, *operands], edges.row_ptr)
    return dw, dy


@cache
def _compiled(kernel: type["Kernel"], program: Program, terms: tuple, dtype: torch.dtype, *options):
    bits = torch.finfo(dtype).bits
    recipe = f"{program.key} {terms} {bits} {options}"
    return compiled(kernel.NAME, recipe, lambda: kernel(program, terms, bits, *options).source())


class Kernel(Emitter):
    """A kernel that takes its own tensors and then all w, all Y and all v that its terms number.

    Args:
        terms: (index of w, index of Y, index of v), one for each product to be summed.
    """

    NAME: str
    OWN_TENSORS: int

    def __init__(self, program: Program, terms: tuple[tuple[int, int, int], ...], bits: int):
        counts = [1 + max(numbers) for numbers in zip(*terms, strict=True)]
        super().__init__(self.NAME, bits, self.OWN_TENSORS + sum(counts))
        self.program, self.terms = program, terms
        own, rest = self.tensors[: self.OWN_TENSORS], self.tensors[self.OWN_TENSORS :]
        self.own = own
        self.w, self.y, self.v = rest[: counts[0]], rest[counts[0] : counts[0] + counts[1]], rest[-counts[2] :]
        self.w_dim, self.y_dim = program.weight_numel, program.irreps_edge.dim


class Gather(Kernel):
    """out[n] = sum over the edges e of node n and the terms (w, Y, v) of w[e] (M(Y[e]) v[node(e)])."""

    NAME, OWN_TENSORS = "gather", 4

    def __init__(self, program: Program, terms: tuple, bits: int, transposed: bool):
        super().__init__(program, terms, bits)
        out, ptr, edge, node = self.own
        dims = program.irreps_in.dim, program.irreps_out.dim
        v_dim, out_dim = dims[::-1] if transposed else dims
        paths = program.contractions(transposed)
        self.entries = {}  # the distinct entries of all matrices, and their places in a table
        for path in paths:
            for combination in path.matrix.values():
                self.entries.setdefault(combination, len(self.entries))
        self.w_offset, self.w_ahead, self.v_offset = (self.variable(I64, TILE) for _ in range(3))
        y_tiles = [self.variable(self.float, self.y_dim * TILE) for _ in self.y]
        self.tables = [self.variable(self.float, len(self.entries) * TILE) for _ in self.y]

        final = self.add(self.load_int(ptr, self.end), -1)
        with self.loop(self.begin, self.end) as n:
            row = self.at(out, self.mul(n, out_dim))
            with self.loop(0, out_dim) as column:
                self.builder.store(ir.Constant(self.float, 0.0), self.at(row, column))
            last = self.load_int(ptr, self.add(n, 1))
            with self.loop(self.load_int(ptr, n), last, TILE) as first:
                count = self.minimum(self.builder.sub(last, first), TILE)
                with self.loop(0, count) as s:
                    index = self.add(first, s)
                    edge_id = self.load_int(edge, index)
                    ahead = self.load_int(edge, self.minimum(self.add(index, TILE), final))
                    source = self.load_int(node, edge_id)
                    for offsets, value, dim in (
                        (self.w_offset, edge_id, self.w_dim),
                        (self.w_ahead, ahead, self.w_dim),
                        (self.v_offset, source, v_dim),
                    ):
                        self.builder.store(self.mul(value, dim), self.at(offsets, s, I64))
                    for tensor, tile in zip(self.y, y_tiles, strict=True):
                        attributes = self.at(tensor, self.mul(edge_id, self.y_dim))
                        for j in range(self.y_dim):
                            self.builder.store(self.load_float(attributes, j), self.at(tile, self.add(j * TILE, s)))
                for tile, table in zip(y_tiles, self.tables, strict=True):
                    self.fill_table(tile, table)
                for group in _groups(paths):
                    for start, vectors, width, used in chunk_plan(group[0].mul, self.lanes):
                        with self.loop(0, vectors) as chunk:
                            self.group(group, row, self.add(start, self.mul(chunk, width)), width, used, count)

    def fill_table(self, tile, table) -> None:
        """The entries of M(Y) for the edges of a tile, one edge a lane."""
        for combination, place in self.entries.items():
            value = None
            for j, coefficient in combination:
                value = self.fma(self.constant(coefficient, TILE), self.load(tile, j * TILE, TILE), value)
            self.store(value, table, place * TILE)

    def group(self, paths: list[Contraction], row, channel, width: int, used: int, count) -> None:
        """All paths of a group over a tile of edges, for one vector of channels."""
        sums = {}  # place of a row of channels in ``row`` -> its accumulator
        for path in paths:
            for place in path.target.places:
                if place not in sums:
                    sums[place] = self.variable(self.vector(width))
                    self.builder.store(self.load(row, self.add(place, channel), width, used), sums[place])
        with self.loop(0, count) as s:
            w_rows, coming, v_rows = (
                [self.at(tensor, self.add(self.load_int(offsets, s), channel)) for tensor in tensors]
                for tensors, offsets in ((self.w, self.w_offset), (self.w, self.w_ahead), (self.v, self.v_offset))
            )
            tables = [self.at(table, s) for table in self.tables]
            loaded = {}  # components of v that paths share
            for path in paths:
                products = defaultdict(dict)  # w -> {component: M v, summed over the terms with this w}
                for w, y, v in self.terms:
                    for (k, i), combination in path.matrix.items():
                        place = path.source.places[i]
                        if (v, place) not in loaded:
                            loaded[v, place] = self.load(v_rows[v], place, width, used)
                        entry = self.broadcast(tables[y], self.entries[combination] * TILE, width)
                        products[w][k] = self.fma(entry, loaded[v, place], products[w].get(k))
                for w, components in products.items():
                    weight = self.load(w_rows[w], path.weight, width, used)
                    self.prefetch(coming[w], path.weight)  # the weights are what comes from far
                    for k, value in components.items():
                        self.accumulate(sums[path.target.places[k]], weight, value)
        for place, accumulator in sums.items():
            self.store(self.value(accumulator), row, self.add(place, channel), used)


def _groups(paths) -> list[list[Contraction]]:
    """Paths with the same number of channels whose outputs fit into registers together."""
    groups, rows = [], 0
    for path in sorted(paths, key=lambda path: path.mul):
        joins = bool(groups) and groups[-1][0].mul == path.mul
        need = 0 if joins and groups[-1][-1].target == path.target else path.target.dim
        if not joins or rows + need > MAX_ACCUMULATORS:
            groups.append([])
            rows, need = 0, path.target.dim
        groups[-1].append(path)
        rows += need
    return groups


class EdgeGradients(Kernel):
    """For each edge e of node n, with S_j[u] = sum_ik c_ijk v[node(e), i, u] g[n, k, u] and over the terms (w, Y, v):

    dw[e, u] = sum of sum_j Y[e, j] S_j[u]   and   dY[e, j] = sum of sum_u w[e, u] S_j[u].
    """

    NAME, OWN_TENSORS = "edge_gradients", 6

    def __init__(self, program: Program, terms: tuple, bits: int, need_y: bool):
        super().__init__(program, terms, bits)
        self.need_y = need_y
        dw, dy, ptr, edge, node, g = self.own
        blocks = defaultdict(list)  # the paths of each input block
        for path in program.contractions():
            blocks[path.source, path.mul].append(path)
        widths = {width for _, mul in blocks for _, _, width, _ in chunk_plan(mul, self.lanes)}
        sums = {(width, j): self.variable(self.vector(width)) for width in widths for j in range(self.y_dim)}

        with self.loop(self.begin, self.end) as n:
            self.g_row = self.at(g, self.mul(n, program.irreps_out.dim))
            with self.loop(self.load_int(ptr, n), self.load_int(ptr, self.add(n, 1))) as index:
                edge_id = self.load_int(edge, index)
                w_offset, y_offset = self.mul(edge_id, self.w_dim), self.mul(edge_id, self.y_dim)
                v_offset = self.mul(self.load_int(node, edge_id), program.irreps_in.dim)
                self.dw_row = self.at(dw, w_offset)
                self.w_rows, self.y_rows, self.v_rows = (
                    [self.at(tensor, offset) for tensor in tensors]
                    for tensors, offset in ((self.w, w_offset), (self.y, y_offset), (self.v, v_offset))
                )
                for (width, _), accumulator in sums.items():
                    self.builder.store(self.constant(0.0, width), accumulator)
                for (_, mul), paths in blocks.items():
                    for start, vectors, width, used in chunk_plan(mul, self.lanes):
                        with self.loop(0, vectors) as chunk:
                            self.block(paths, sums, self.add(start, self.mul(chunk, width)), width, used)
                for j in range(self.y_dim if need_y else 0):
                    total = None
                    for width in sorted(widths):
                        total = self.sum(total, self.reduce(self.value(sums[width, j])))
                    self.builder.store(total, self.at(self.at(dy, y_offset), j))

    def block(self, paths: list[Contraction], sums: dict, channel, width: int, used: int) -> None:
        """All paths of one input block for one edge and one vector of channels."""

        def load(row, place):
            return self.load(row, self.add(place, channel), width, used)

        v = {number: [load(self.v_rows[number], place) for place in paths[0].source.places]
             for number in sorted({number for _, _, number in self.terms})}  # fmt: skip
        for path in paths:
            gradient = [load(self.g_row, place) for place in path.target.places]
            s = {}  # number of v -> {j: S_j}
            for number, components in v.items():
                s[number] = {}
                for (k, i), combination in path.matrix.items():
                    product = self.builder.fmul(components[i], gradient[k])
                    for j, coefficient in combination:
                        s[number][j] = self.fma(self.constant(coefficient, width), product, s[number].get(j))
            used_weights = {w for w, _, _ in self.terms} if self.need_y else ()
            weights = {number: load(self.w_rows[number], path.weight) for number in used_weights}
            total = None
            for w, y, number in self.terms:
                for j, value in s[number].items():
                    total = self.fma(self.broadcast(self.y_rows[y], j, width), value, total)
                    if self.need_y:
                        self.accumulate(sums[width, j], weights[w], value)
            self.store(total, self.dw_row, self.add(path.weight, channel), used)
