"""The linear map in front of a convolution for CPUs, forwards and, with all copies of a row added up, backwards."""

from ..gate.cpu_parts import vectors
from ..irreps_linear.layout import Layout
from ..llvm import Emitter
from . import cpu_parts


class Mix(Emitter):
    """out[n] = f[n] A x[n], for nodes begin ... end - 1. Tensors: out, x, factors, weights."""

    NAME = "mix"

    def __init__(self, layout: Layout, bits: int):
        super().__init__(self.NAME, bits, 4)
        out, x, factors, weights = self.tensors
        together = cpu_parts.nodes_of_tile(layout.dim_out, self.float_bytes)
        tile = self.variable(self.float, together * layout.dim_out)
        cpu_parts.clear(self, tile, together * layout.dim_out)
        with self.loop(self.begin, self.end, together) as first:
            final = self.add(self.end, -1)  # the last rows may be done again
            nodes = [self.minimum(self.add(first, i), final) for i in range(together)]
            rows = [
                (self.at(x, self.mul(node, layout.dim_in)), self.at(tile, i * layout.dim_out))
                for i, node in enumerate(nodes)
            ]
            cpu_parts.linear(self, layout, weights, rows)
            with self.loop(0, self.minimum(self.builder.sub(self.end, first), together)) as i:
                node, row = self.add(first, i), self.at(tile, self.mul(i, layout.dim_out))
                factor = self.load_float(factors, node)
                target = self.at(out, self.mul(node, layout.dim_out))
                for column, width, used in vectors(self, layout.dim_out):
                    value = self.builder.fmul(self.load(row, column, width, used), self.splat(factor, width))
                    self.store(value, target, column, used)


class Collect(Emitter):
    """out[n] += f[n] A' (sum of the copies of row n), for nodes begin ... end - 1.

    Tensors: out; pointers and numbers of the copies of each node; copies; factors; transposed weights.
    """

    NAME = "collect"

    def __init__(self, layout: Layout, bits: int):
        super().__init__(self.NAME, bits, 6)
        columns = layout.dim_in
        out, ptr, numbers, copies, factors, weights = self.tensors
        together = cpu_parts.nodes_of_tile(columns, self.float_bytes)
        tile = self.variable(self.float, together * columns)
        result = self.variable(self.float, together * columns)
        cpu_parts.clear(self, tile, together * columns)
        cpu_parts.clear(self, result, together * columns)
        with self.loop(self.begin, self.end, together) as first:
            count = self.minimum(self.builder.sub(self.end, first), together)
            with self.loop(0, count) as i:
                node, row = self.add(first, i), self.at(tile, self.mul(i, columns))
                cpu_parts.clear(self, row, columns)
                with self.loop(self.load_int(ptr, node), self.load_int(ptr, self.add(node, 1))) as index:
                    copy = self.at(copies, self.mul(self.load_int(numbers, index), columns))
                    self.add_row(copy, row, columns, None)
            rows = [(self.at(tile, i * columns), self.at(result, i * columns)) for i in range(together)]
            cpu_parts.linear(self, layout.transposed(), weights, rows)
            with self.loop(0, count) as i:
                node = self.add(first, i)
                target = self.at(out, self.mul(node, columns))
                self.add_row(self.at(result, self.mul(i, columns)), target, columns, self.load_float(factors, node))

    def add_row(self, source, target, columns: int, factor) -> None:
        """target += factor * source"""
        for column, width, used in vectors(self, columns):
            value, before = self.load(source, column, width, used), self.load(target, column, width, used)
            if factor is None:
                total = self.builder.fadd(value, before)
            else:
                total = self.fma(self.splat(factor, width), value, before)
            self.store(total, target, column, used)
