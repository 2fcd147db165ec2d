"""Parts of layer kernels in LLVM assembly: tiles of edges, linear maps of a few rows."""

from collections.abc import Sequence

from ..gate.cpu_parts import vectors
from ..irreps_linear.layout import Layout
from ..llvm import I64, Emitter, chunk_plan
from ..radial_table.naive import ROWS, polynomials
from ..tensor_product.program import Program

TILE = 16  # edges that are made ready together, one a lane


def clear(e: Emitter, pointer, count: int) -> None:
    """Zeros."""
    for column, width, used in vectors(e, count):
        e.store(e.constant(0.0, width), pointer, column, used)


def nodes_of_tile(row_floats: int, float_bytes: int) -> int:
    """Atoms whose rows of so many floats stay together in a cache, at most 8."""
    count = 8
    while count > 1 and count * row_floats * float_bytes > 128 * 1024:
        count //= 2
    return count


class EdgeTile:
    """Up to ``TILE`` edges of one node: where their rows start, and what does not depend on the channel.

    Attributes:
        source: first element of the row of h of each edge.
        copy: the same in the rows that gradients by h are added to; only with ``gradients``.
        table: first element of the interval of each edge in the radial table.
        y: the harmonics; element (j, edge).
        splines: B-splines at each edge; element (j, edge). ``slopes``: their derivatives, only with ``gradients``.
        matrix: entries of M(Y), by the combination of harmonics that they are; element (entry, edge).
    """

    def __init__(self, emitter: Emitter, program: Program, combinations: Sequence, gradients: bool):
        self.emitter, self.program = emitter, program
        self.entries = {}
        for combination in combinations:
            self.entries.setdefault(combination, len(self.entries))
        self.y_dim = program.irreps_edge.dim
        self.source, self.table = emitter.variable(I64, TILE), emitter.variable(I64, TILE)
        self.copy = emitter.variable(I64, TILE) if gradients else None
        self.y = self._floats(self.y_dim)
        self.places = self._floats(1)
        self.splines = self._floats(ROWS)
        self.slopes = self._floats(ROWS) if gradients else None
        self.matrix = self._floats(len(self.entries))

    def _floats(self, rows: int):
        """Zero at the beginning: what no edge has written must be harmless."""
        pointer = self.emitter.variable(self.emitter.float, max(rows, 1) * TILE)
        for row in range(max(rows, 1)):
            self.emitter.store(self.emitter.constant(0.0, TILE), pointer, row * TILE)
        return pointer

    def fill(self, first, count, source, y, place, interval, copy=None, species=None, row_dim: int = 0) -> None:
        """Make the edges first ... first + count - 1 ready.

        Args:
            source, y, place, interval, copy: pointers, for all edges.
            species: of the nodes, where rows of h are by species.
            row_dim: floats in a row of h.
        """
        e = self.emitter
        with e.loop(0, count) as s:
            edge = e.add(first, s)
            node = e.load_int(source, edge)
            if species is not None:
                node = e.load_int(species, node)
            e.builder.store(e.mul(node, row_dim), e.at(self.source, s, I64))
            e.builder.store(e.mul(e.load_int(interval, edge), self.program.weight_numel), e.at(self.table, s, I64))
            if copy is not None:
                e.builder.store(e.mul(e.load_int(copy, edge), row_dim), e.at(self.copy, s, I64))
            e.builder.store(e.load_float(place, edge), e.at(self.places, s))
            row = e.at(y, e.mul(edge, self.y_dim))
            for j in range(self.y_dim):
                e.builder.store(e.load_float(row, j), e.at(self.y, e.add(j * TILE, s)))
        t = e.load(self.places, 0, TILE)
        spline = polynomials().tolist()
        for j in range(ROWS):
            powers = [row[j] for row in spline]
            e.store(self._polynomial(powers, t), self.splines, j * TILE)
            if self.slopes is not None:
                e.store(self._polynomial([k * c for k, c in enumerate(powers)][1:], t), self.slopes, j * TILE)
        for combination, number in self.entries.items():
            value = None
            for j, coefficient in combination:
                value = e.fma(e.constant(coefficient, TILE), e.load(self.y, j * TILE, TILE), value)
            e.store(value, self.matrix, number * TILE)

    def _polynomial(self, powers: list[float], t):
        e = self.emitter
        value = e.constant(powers[-1], TILE)
        for coefficient in reversed(powers[:-1]):
            value = e.fma(value, t, e.constant(coefficient, TILE))
        return value

    def spread(self, pointer, row: int, s, width: int):
        """Element (row, s) of a table with one edge a lane, in all lanes."""
        return self.emitter.broadcast(self.emitter.at(pointer, s), row * TILE, width)


def weight(emitter: Emitter, table, factors: Sequence, place, width: int, used: int, stride: int, others=None):
    """Interpolate a vector of weights: sum_j factors[j] T[j]; and with ``others`` in the place of ``factors``."""
    total = other = None
    for j, factor in enumerate(factors):
        values = emitter.load(table, emitter.add(place, j * stride), width, used)
        total = emitter.fma(factor, values, total)
        if others is not None:
            other = emitter.fma(others[j], values, other)
    return total if others is None else (total, other)


def linear(
    emitter: Emitter,
    layout: Layout,
    weights,
    rows: Sequence[tuple],
    accumulate: bool = False,
    factor=None,
) -> None:
    """out[k, v] (+)= factor sum_u W[u, v] x[k, u] for each irrep.

    Args:
        weights: pointer to the matrices of all irreps, scales included.
        rows: (pointer to x, pointer to out) of each row.
        accumulate: add to what is there. Columns that no irrep writes are left alone.
        factor: scalar.
    """
    e = emitter
    most = 12 if e.lanes * e.float_bytes == 64 else 6
    for block in layout.blocks:
        for group in _groups(rows, max(1, most // block.dim)):
            count = len(group) * block.dim
            for start, chunks, width, used in chunk_plan(block.mul_out, e.lanes):
                together = max(1, min(chunks, 2 * most // count))
                whole, rest = divmod(chunks, together)
                for first, pieces, number in ((0, whole, together), (whole * together, 1 if rest else 0, rest)):
                    if not pieces:
                        continue
                    with e.loop(0, pieces) as piece:
                        column = e.add(start + first * width, e.mul(piece, number * width))
                        parts = [(v * width, width, used) for v in range(number)]
                        _piece(e, block, weights, group, column, parts, accumulate, factor)


def _groups(rows: Sequence, size: int) -> list:
    return [rows[k : k + size] for k in range(0, len(rows), size)]


def _piece(e: Emitter, block, weights, rows, column, parts, accumulate: bool, factor) -> None:
    sums = {}
    for r in range(len(rows)):
        for k in range(block.dim):
            for p, (_, width, _) in enumerate(parts):
                sums[r, k, p] = e.variable(e.vector(width))
                e.builder.store(e.constant(0.0, width), sums[r, k, p])
    with e.loop(0, block.mul_in) as u:
        place = e.add(e.add(e.mul(u, block.mul_out), block.weight), column)
        columns = [e.load(weights, e.add(place, offset), width, used) for offset, width, used in parts]
        for r, (x, _) in enumerate(rows):
            for k in range(block.dim):
                value = e.load_float(x, e.add(u, block.start_in + k * block.mul_in))
                for p, (_, width, _) in enumerate(parts):
                    e.accumulate(sums[r, k, p], columns[p], e.splat(value, width))
    for (r, k, p), variable in sums.items():
        offset, width, used = parts[p]
        out, place = rows[r][1], e.add(column, block.start_out + k * block.mul_out + offset)
        value = e.value(variable)
        if factor is not None:
            value = e.builder.fmul(value, e.splat(factor, width))
        if accumulate:
            value = e.builder.fadd(value, e.load(out, place, width, used))
        e.store(value, out, place, used)
