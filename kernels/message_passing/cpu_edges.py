"""Edges for CPUs: from positions to what the layers read, and from their gradients to forces."""

from llvmlite import ir

from ..edge_basis import formulas
from ..edge_basis.formulas import Basis
from ..llvm import I32, I64, Emitter, Lanes, Operations


class Edges(Emitter):
    """The edges within the cutoff of nodes begin ... end - 1, at the front of the place that the list has for them.

    Tensors: positions; list: pointers, source, copy, offset (what the cell adds to a vector); settings: square of the
    cutoff, intervals of the radial table an Å, the last of them; and the results: end of each node's edges, square of
    its shortest vector; of the edges: source, copy, vector, harmonics, place in an interval of the table, interval.
    """

    NAME = "edges"

    def __init__(self, l_max: int, bits: int):
        super().__init__(self.NAME, 64, 14)
        self.narrow, self.basis = bits == 32, Basis(1.0, 2.0, l_max, 0)
        positions, ptr, source, copy, offset, settings, end, shortest = self.tensors[:8]
        self.source_out, self.copy_out, self.vector_out = self.tensors[8:11]
        self.harmonics, self.place, self.interval = self.tensors[11:]
        b = self.builder
        square_cutoff, self.density, self.final = (self.load_float(settings, k) for k in range(3))
        found, least = self.variable(I64), self.variable(self.float)
        with self.loop(self.begin, self.end) as n:
            own = [self.load_float(positions, self.add(self.mul(n, 3), axis)) for axis in range(3)]
            start = self.load_int(ptr, n)
            b.store(start, found)
            b.store(self.float(1e300), least)
            with self.loop(start, self.load_int(ptr, self.add(n, 1))) as edge:
                node, place = self.load_int(source, edge), self.value(found)
                square = self.float(0.0)
                for axis in range(3):
                    there = self.load_float(positions, self.add(self.mul(node, 3), axis))
                    shift = self.load_float(offset, self.add(self.mul(edge, 3), axis))
                    component = b.fadd(b.fsub(there, own[axis]), shift)
                    b.store(component, self.at(self.vector_out, self.add(self.mul(place, 3), axis)))
                    square = b.fadd(square, b.fmul(component, component))
                b.store(node, self.at(self.source_out, place, I64))
                b.store(self.load_int(copy, edge), self.at(self.copy_out, place, I64))
                # an edge beyond the cutoff is overwritten by the next; one that is no number is kept, to be seen
                beyond = b.fcmp_ordered(">=", square, square_cutoff)
                b.store(self.add(place, b.select(beyond, I64(0), I64(1))), found)
                smaller = b.fcmp_ordered("<", square, self.value(least))
                b.store(b.select(smaller, square, self.value(least)), least)
            stop = self.value(found)
            b.store(stop, self.at(end, n, I64))
            b.store(self.value(least), self.at(shortest, n))
            with self.loop(start, stop, self.lanes) as first:
                self.describe(first, self.add(stop, -1))

    def describe(self, first, final) -> None:
        """Harmonics and places of as many edges as there are lanes; the last lanes may do the last edge again."""
        b = self.builder
        rows = [self.minimum(self.add(first, lane), final) for lane in range(self.lanes)]
        v = self._gather(self.vector_out, rows, 3)
        operations = Operations(self)
        square = formulas.dot(v, v)
        scaled = square.call("sqrt") * Lanes(self, self.splat(self.density, self.lanes))
        # what is no number has a place that is none, in some interval
        below = scaled.call("floor").call("maxnum", operations.constant(0.0))
        below = below.call("minnum", Lanes(self, self.splat(self.final, self.lanes)))
        values, _ = formulas.forward(v, [], self.basis, operations)
        for lane, row in enumerate(rows):
            for j, value in enumerate(values):
                self._put(value, lane, self.harmonics, self.add(self.mul(row, len(values)), j))
            self._put(scaled - below, lane, self.place, row)
            number = b.fptosi(b.extract_element(below.value, I32(lane)), I64)
            b.store(number, self.at(self.interval, row, I64))

    def _gather(self, pointer, rows, columns: int, kind=None) -> list[Lanes]:
        result = []
        for column in range(columns):
            value = ir.Constant(self.vector(self.lanes), ir.Undefined)
            for lane, row in enumerate(rows):
                place = self.add(self.mul(row, columns), column)
                scalar = self.builder.load(self.at(pointer, place, kind), typ=kind or self.float)
                scalar = scalar if kind in (None, self.float) else self.builder.fpext(scalar, self.float)
                value = self.builder.insert_element(value, scalar, I32(lane))
            result.append(Lanes(self, value))
        return result

    @property
    def kind(self):
        """The model's float type."""
        return ir.FloatType() if self.narrow else self.float

    def _put(self, value: Lanes, lane: int, pointer, place) -> None:
        scalar = self.builder.extract_element(value.value, I32(lane))
        scalar = self.builder.fptrunc(scalar, self.kind) if self.narrow else scalar
        self.builder.store(scalar, self.at(pointer, place, self.kind))


class Forces(Edges):
    """Gradients by the edge vectors, and what each node gets of them, for nodes begin ... end - 1.

    The gradient by the vector of an edge pulls at its destination and, the other way, at its source: at a copy of it,
    as in ``cpu_backward``.

    Tensors: begin, end, copy, vector of the edges; settings as above; gradients by harmonics and place; results: force
    on each node as a destination, sum of vector x gradient of its edges (9), force on the copies (added to).
    """

    NAME = "edge_forces"

    def __init__(self, l_max: int, bits: int):
        Emitter.__init__(self, self.NAME, 64, 10)
        self.narrow, self.basis = bits == 32, Basis(1.0, 2.0, l_max, 0)
        begin, end, copy, vector, settings, by_harmonic, by_place, forces, virials, copies = self.tensors
        b = self.builder
        density = Lanes(self, self.splat(self.load_float(settings, 1), self.lanes))
        total, virial = ([self.variable(self.float) for _ in range(n)] for n in (3, 9))
        with self.loop(self.begin, self.end) as n:
            for variable in (*total, *virial):
                b.store(self.float(0.0), variable)
            stop = self.load_int(end, n)
            final = self.add(stop, -1)
            with self.loop(self.load_int(begin, n), stop, self.lanes) as first:
                rows = [self.minimum(self.add(first, lane), final) for lane in range(self.lanes)]
                v = self._gather(vector, rows, 3)
                g = self._gather(by_harmonic, rows, self.basis.num_harmonics, self.kind)
                (slope,) = self._gather(by_place, rows, 1, self.kind)
                gradient = formulas.backward(v, [], g, [], self.basis, Operations(self))
                inverse = Operations(self).rsqrt(formulas.dot(v, v))
                gradient = [part + slope * density * inverse * along for part, along in zip(gradient, v, strict=True)]
                for lane in range(self.lanes):
                    edge = self.add(first, lane)
                    real = b.icmp_signed("<", edge, stop)
                    with b.if_then(real):
                        parts = [b.extract_element(part.value, I32(lane)) for part in gradient]
                        along = [b.extract_element(part.value, I32(lane)) for part in v]
                        row = self.mul(self.load_int(copy, edge), 3)
                        for axis, part in enumerate(parts):
                            b.store(b.fadd(self.value(total[axis]), part), total[axis])
                            place = self.at(copies, self.add(row, axis))
                            b.store(b.fsub(b.load(place, typ=self.float), part), place)
                            for other, component in enumerate(along):
                                entry = virial[3 * other + axis]
                                b.store(b.fadd(self.value(entry), b.fmul(component, part)), entry)
            for variables, pointer in ((total, forces), (virial, virials)):
                for column, variable in enumerate(variables):
                    place = self.at(pointer, self.add(self.mul(n, len(variables)), column))
                    b.store(self.value(variable), place)
