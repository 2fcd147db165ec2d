"""Sums over wave vectors for CPUs, in LLVM assembly: structure factors, and the potential that they give.

Lines of constant (n1, n2) and third indices m have their cosines and sines in tables, atoms along the rows: row 2 l of
``line`` is the cosine of line l, row 2 l + 1 its sine, and so are the rows of ``third``. F = (line x) third' holds the
structure factors of x, S(+m) = (cc - ss) + i (sc + cs) and S(-m) = (cc + ss) + i (sc - cs), and the potential is

    phi = sum_rows line (C third),      C_c = [s cc - d ss, s cs + d sc],      C_s = [s sc + d cs, s ss - d cc],

s and d sum and difference of the weights of +m and -m. Both are products of matrices, done in tiles of registers.
"""

from collections.abc import Callable

from llvmlite import ir

from ..llvm import I32, I64, Emitter
from ..native import vector_bytes
from ..threads import BARRIER

_MANY = vector_bytes() == 64  # registers
LINES, THIRDS = (2, 3) if _MANY else (1, 2)  # of a tile of structure factors; two rows each, and two columns
VECTORS = 4 if _MANY else 2  # of atoms in a tile of the potential
DOUBLE = ir.DoubleType()


ROW = 16  # atoms of which a row holds a multiple: lanes of the widest registers


def row_length(num_atoms: int) -> int:
    """An odd multiple, so that rows begin in different sets of the cache."""
    rows = -(-num_atoms // ROW)
    return ROW * (rows + 1 - rows % 2)


class Team(Emitter):
    """A kernel that several threads run together: ``begin`` is the number of one, ``end`` how many there are."""

    def share(self, count):
        """This thread's part of a range."""
        return [self.builder.sdiv(self.mul(count, at), self.end) for at in (self.begin, self.add(self.begin, 1))]

    def every(self, count):
        """This thread's of ``count`` pieces of work that shrink: every so many."""
        return self.loop(self.begin, count, self.end)

    def barrier(self) -> None:
        """Wait for the others."""
        b = self.builder
        with b.if_then(b.icmp_signed(">", self.end, I64(1))):
            b.call(self._declare(BARRIER, ir.FunctionType(ir.VoidType(), [])), [])

    # The iteration's own vectors are in float64, as many at a time as the tables have in a register.

    def wide(self, pointer, index):
        kind = ir.VectorType(DOUBLE, self.lanes)
        return self.builder.load(self.at(pointer, index, DOUBLE), typ=kind, align=8)

    def store_wide(self, value, pointer, index) -> None:
        self.builder.store(value, self.at(pointer, index, DOUBLE), align=8)

    def scalar(self, pointer, index):
        return self.builder.load(self.at(pointer, index, DOUBLE), typ=DOUBLE)

    def all_lanes(self, scalar):
        """A double in all lanes."""
        kind = ir.VectorType(scalar.type, self.lanes)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [I32(0)] * self.lanes)
        return self.builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)

    def narrow(self, value):
        return value if self.float_bytes == 8 else self.builder.fptrunc(value, self.vector(self.lanes))

    def widen(self, value):
        return value if self.float_bytes == 8 else self.builder.fpext(value, ir.VectorType(DOUBLE, self.lanes))

    def turned(self, c, s, cosine, sine):
        """(c + i s) (cosine + i sine)"""
        b = self.builder
        return (
            b.fsub(b.fmul(c, cosine), b.fmul(s, sine), flags=("contract",)),
            b.fadd(b.fmul(s, cosine), b.fmul(c, sine), flags=("contract",)),
        )

    def powers(self, cosine, sine, count, keep: Callable) -> None:
        """``keep(number, c, s)`` with cosine and sine of the multiples 0 ... count - 1 of a phase."""
        now = [self.variable(cosine.type) for _ in range(2)]
        for variable, value in zip(now, (1.0, 0.0), strict=True):
            self.builder.store(self.all_lanes(DOUBLE(value)), variable)
        with self.loop(0, count) as number:
            c, s = (self.value(variable) for variable in now)
            keep(number, c, s)
            for variable, value in zip(now, self.turned(c, s, cosine, sine), strict=True):
                self.builder.store(value, variable)

    def zeros(self, count: int):
        """Variables that hold vectors of zeros."""
        variables = [self.variable(self.vector(self.lanes)) for _ in range(count)]
        for variable in variables:
            self.builder.store(self.constant(0.0, self.lanes), variable)
        return variables

    def totals(self, vectors: list) -> list:
        """The sum of the lanes of each vector: two vectors become one until a lane holds a whole sum."""
        b, count, segments = self.builder, len(vectors), 1
        width = self.lanes
        while width > 1:
            if len(vectors) % 2:
                vectors = [*vectors, vectors[-1]]
            half = width // 2
            lower = [s * width + k for s in range(2 * segments) for k in range(half)]
            picks = [ir.Constant(ir.VectorType(I32, self.lanes), [I32(k + d) for k in lower]) for d in (0, half)]
            vectors = [
                b.fadd(*(b.shuffle_vector(first, second, pick) for pick in picks))
                for first, second in zip(vectors[::2], vectors[1::2], strict=True)
            ]
            width, segments = half, 2 * segments
        return [b.extract_element(vectors[k // self.lanes], I32(k % self.lanes)) for k in range(count)]


class WaveParts(Team):
    """Kernels with tables of ``stride`` atoms a row and ``columns`` columns of coefficients."""

    def structure_factors(self, x, line, third, stride, tiles, extent, finish: Callable) -> None:
        """``finish(line, m, cc, cs, sc, ss)`` for this thread's share of the lines.

        Args:
            x: charges, in the tables' type.
            tiles: number of tiles of ``LINES`` lines.
            extent: (tiles,) how many blocks of ``THIRDS`` third indices the lines of each have.
        """
        rows, columns, lanes = 2 * LINES, 2 * THIRDS, self.lanes
        with self.every(tiles) as tile, self.loop(0, self.load_int(extent, tile)) as block:
            sums = [self.zeros(columns) for _ in range(rows)]
            with self.loop(0, stride, lanes) as atom:
                charges = self.load(x, atom, lanes)
                lines = [
                    self.builder.fmul(self._of(line, self.add(self.mul(tile, rows), r), stride, atom), charges)
                    for r in range(rows)
                ]
                for c in range(columns):
                    column = self._of(third, self.add(self.mul(block, columns), c), stride, atom)
                    for r in range(rows):
                        self.accumulate(sums[r][c], lines[r], column)
            found = self.totals([self.value(variable) for row in sums for variable in row])
            for own in range(LINES):
                for m in range(THIRDS):
                    cosine, sine = 2 * own * columns + 2 * m, (2 * own + 1) * columns + 2 * m
                    finish(
                        self.add(self.mul(tile, LINES), own),
                        self.add(self.mul(block, THIRDS), m),
                        *(found[k] for k in (cosine, cosine + 1, sine, sine + 1)),
                    )

    def pairs(self, both, apart, number, m, cc, cs, sc, ss, thirds):
        """C of line ``number`` and third index ``m``, two of C_c and two of C_s, from structure factors and the weights
        (lines, thirds)."""
        b, at = self.builder, self.add(self.mul(number, thirds), m)
        s, d = self.load_float(both, at), self.load_float(apart, at)
        first, second = ((b.fmul(s, x), b.fmul(d, y)) for x, y in ((cc, ss), (cs, sc)))
        third, fourth = ((b.fmul(s, x), b.fmul(d, y)) for x, y in ((sc, cs), (ss, cc)))
        return (b.fsub(*first), b.fadd(*second)), (b.fadd(*third), b.fsub(*fourth))

    def coefficients(self, out, both, apart, thirds) -> Callable:
        """What finishes ``structure_factors`` with C (lines, 2, 2 thirds)."""
        b, width = self.builder, self.mul(thirds, 2)

        def finish(number, m, *found):
            for k, pair in enumerate(self.pairs(both, apart, number, m, *found, thirds)):
                place = self.add(self.mul(self.add(self.mul(number, 2), k), width), self.mul(m, 2))
                for side, value in enumerate(pair):
                    b.store(value, self.at(out, self.add(place, side)))

        return finish

    def potential(self, coefficients, line, third, stride, tiles, extent, thirds, finish: Callable, span) -> None:
        """``finish(first atom, phi)`` for the atoms of the vectors first ... last - 1, which are the ``span``."""
        begin, end = span
        rest = self.builder.sub(end, self.builder.srem(self.builder.sub(end, begin), I64(VECTORS)))
        for first, last, vectors in ((begin, rest, VECTORS), (rest, end, 1)):
            with self.loop(first, last, vectors) as vector:
                atoms = [self.mul(self.add(vector, v), self.lanes) for v in range(vectors)]
                sums = self.zeros(vectors)
                with self.loop(0, tiles) as tile:
                    rows = [self.add(self.mul(tile, 2 * LINES), r) for r in range(2 * LINES)]
                    fields = [self.zeros(vectors) for _ in rows]
                    with self.loop(0, self.mul(self.load_int(extent, tile), 2 * THIRDS)) as column:
                        known = [self._of(third, column, stride, atom) for atom in atoms]
                        for row, field in zip(rows, fields, strict=True):
                            place = self.add(self.mul(row, self.mul(thirds, 2)), column)
                            factor = self.broadcast(coefficients, place, self.lanes)
                            for variable, value in zip(field, known, strict=True):
                                self.accumulate(variable, factor, value)
                    for row, field in zip(rows, fields, strict=True):
                        for variable, total, atom in zip(field, sums, atoms, strict=True):
                            self.accumulate(total, self._of(line, row, stride, atom), self.value(variable))
                for atom, total in zip(atoms, sums, strict=True):
                    finish(atom, self.value(total))

    def _of(self, table, row, stride, atom):
        """A vector of a row."""
        return self.load(table, self.add(self.mul(row, stride), atom), self.lanes)
