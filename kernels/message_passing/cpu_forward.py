"""An interaction layer for CPUs in one pass over the atoms: what the convolution gives never leaves the cache."""

from collections import defaultdict

from ..gate.cpu_parts import gate, vectors
from ..llvm import Emitter, chunk_plan
from ..radial_table.naive import ROWS
from ..tensor_product.program import Contraction
from . import cpu_parts
from .cpu_parts import EdgeTile
from .shape import LayerShape

MAX_ACCUMULATORS = 16  # rows of output held in registers


class Forward(Emitter):
    """y and gate(y) for nodes begin ... end - 1; see ``LayerShape``.

    Tensors: y, out; begin, end, source, harmonics, place, interval of the edges; h, table; x, species, own attributes;
    weights of the linear map, of the connections by species, and of those by attribute.
    """

    NAME = "layer_forward"

    def __init__(self, shape: LayerShape, bits: int):
        super().__init__(self.NAME, bits, 16)
        self.shape, program = shape, shape.program
        y, out, begin, end, *_ = self.tensors
        self.h, self.table, x, species, own, weights, connections, own_connections = self.tensors[8:]
        z_dim, y_dim, x_dim = program.irreps_out.dim, shape.gate.dim_in, program.irreps_in.dim
        paths = program.contractions()
        self.tile = EdgeTile(self, program, [c for path in paths for c in path.matrix.values()], gradients=False)
        together = cpu_parts.nodes_of_tile(z_dim, self.float_bytes)
        z_tile = self.variable(self.float, max(together * z_dim, 1))
        y_tile = self.variable(self.float, together * y_dim)
        with self.loop(self.begin, self.end, together) as first:
            count = self.minimum(self.builder.sub(self.end, first), together)
            cpu_parts.clear(self, z_tile, together * z_dim)
            cpu_parts.clear(self, y_tile, together * y_dim)  # there may be columns that the map does not write
            with self.loop(0, count) as i:
                node = self.add(first, i)
                last = self.load_int(end, node)
                z = self.at(z_tile, self.mul(i, z_dim))
                with self.loop(self.load_int(begin, node), last, cpu_parts.TILE) as edge:
                    edges = self.minimum(self.builder.sub(last, edge), cpu_parts.TILE)
                    self.convolve(edge, edges, z)
            rows = [(self.at(z_tile, i * z_dim), self.at(y_tile, i * y_dim)) for i in range(together)]
            cpu_parts.linear(self, shape.linear, weights, rows)
            with self.loop(0, count) as i:
                node = self.add(first, i)
                row, x_row = self.at(y_tile, self.mul(i, y_dim)), self.at(x, self.mul(node, x_dim))
                if shape.connection is not None:
                    size = shape.connection.num_weights
                    matrix = self.at(connections, self.mul(self.load_int(species, node), size))
                    cpu_parts.linear(self, shape.connection, matrix, [(x_row, row)], accumulate=True)
                    for f in range(shape.num_own):
                        share = self.load_float(own, self.add(self.mul(node, shape.num_own), f))
                        matrix = self.at(own_connections, f * size)
                        cpu_parts.linear(self, shape.connection, matrix, [(x_row, row)], True, share)
                saved = self.at(y, self.mul(node, y_dim))
                for column, width, used in vectors(self, y_dim):
                    self.store(self.load(row, column, width, used), saved, column, used)
                gate(self, shape.gate, row, self.at(out, self.mul(node, shape.gate.dim_out)))

    def convolve(self, first, count, z) -> None:
        """Add the messages of some edges of a node to its row z."""
        shape, program = self.shape, self.shape.program
        source, harmonics, place, interval = self.tensors[4:8]
        species = self.tensors[11] if shape.by_species else None
        row_dim = program.irreps_in.dim
        self.tile.fill(first, count, source, harmonics, place, interval, species=species, row_dim=row_dim)
        for group in groups(program.contractions()):
            for start, chunks, width, used in chunk_plan(group[0].mul, self.lanes):
                with self.loop(0, chunks) as chunk:
                    self.group(group, z, self.add(start, self.mul(chunk, width)), width, used, count)

    def group(self, paths: list[Contraction], z, channel, width: int, used: int, count) -> None:
        """All paths of a group over a tile of edges, for one vector of channels."""
        tile, sums = self.tile, {}
        for path in paths:
            for place in path.target.places:
                if place not in sums:
                    sums[place] = self.variable(self.vector(width))
                    self.builder.store(self.load(z, self.add(place, channel), width, used), sums[place])
        with self.loop(0, count) as s:
            v = self.at(self.h, self.add(self.load_int(tile.source, s), channel))
            table = self.at(self.table, self.add(self.load_int(tile.table, s), channel))
            splines = [tile.spread(tile.splines, j, s, width) for j in range(ROWS)]
            loaded = {}
            for path in paths:
                product = defaultdict(lambda: None)
                for (k, i), combination in path.matrix.items():
                    place = path.source.places[i]
                    if place not in loaded:
                        loaded[place] = self.load(v, place, width, used)
                    entry = tile.spread(tile.matrix, tile.entries[combination], s, width)
                    product[k] = self.fma(entry, loaded[place], product[k])
                w = cpu_parts.weight(self, table, splines, path.weight, width, used, self.shape.program.weight_numel)
                for k, value in product.items():
                    self.accumulate(sums[path.target.places[k]], w, value)
        for place, accumulator in sums.items():
            self.store(self.value(accumulator), z, self.add(place, channel), used)


def groups(paths) -> list[list[Contraction]]:
    """Paths with the same number of channels whose outputs fit into registers together."""
    result, rows = [], 0
    for path in sorted(paths, key=lambda path: path.mul):
        joins = bool(result) and result[-1][0].mul == path.mul
        if not joins or rows + path.target.dim > MAX_ACCUMULATORS:
            result.append([])
            rows = 0
        result[-1].append(path)
        rows += path.target.dim
    return result
