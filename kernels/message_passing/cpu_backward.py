"""The way back through an interaction layer for CPUs, in one pass over the atoms."""

from collections import defaultdict

from ..gate.cpu_parts import gate_backward
from ..llvm import Emitter, chunk_plan
from ..radial_table.naive import ROWS
from ..tensor_product.program import Contraction
from . import cpu_parts
from .cpu_parts import EdgeTile
from .shape import LayerShape


class Backward(Emitter):
    """From the gradient by gate(y) those by h, by the harmonics and by the place in the radial table, by x through
    the connections, and by the further attributes, for nodes begin ... end - 1; see ``LayerShape``.

    Gradients by rows of h go to copies of the rows, one for each share of the work that reads them, which are added
    up later: no two threads write to the same place. Gradients by the edges are added to what is there.

    Tensors: gradient by gate(y), y; begin, end, source, copy, harmonics, place, interval of the edges; h, table; x,
    species, own attributes; transposed weights of the linear map, of the connections by species and by attribute;
    and the results: by h, by the harmonics, by the place, by x, by the own attributes.
    """

    NAME = "layer_backward"

    def __init__(self, shape: LayerShape, bits: int):
        super().__init__(self.NAME, bits, 22)
        self.shape, program = shape, shape.program
        gradient, y, begin, end = self.tensors[:4]
        self.h, self.table, x, species, own, weights, connections, own_connections = self.tensors[9:17]
        self.h_gradient, self.y_gradient, self.place_gradient, x_gradient, own_gradient = self.tensors[17:]
        z_dim, y_dim, x_dim = program.irreps_out.dim, shape.gate.dim_in, program.irreps_in.dim
        entries = [] if shape.by_species else [c for path in program.contractions() for c in path.matrix.values()]
        self.tile = EdgeTile(self, program, entries, gradients=True)
        self.channel_sums = {}
        self.angular = list(zip(program.irreps_edge.slices(), program.irreps_edge, strict=True))
        together = cpu_parts.nodes_of_tile(z_dim, self.float_bytes)
        z_tile = self.variable(self.float, max(together * z_dim, 1))
        y_tile = self.variable(self.float, together * y_dim)
        x_row = self.variable(self.float, x_dim)
        for pointer, size in ((z_tile, together * z_dim), (y_tile, together * y_dim), (x_row, x_dim)):
            cpu_parts.clear(self, pointer, size)  # there may be columns that no map writes
        with self.loop(self.begin, self.end, together) as first:
            count = self.minimum(self.builder.sub(self.end, first), together)
            with self.loop(0, count) as i:
                node = self.add(first, i)
                row, saved = self.at(y_tile, self.mul(i, y_dim)), self.at(y, self.mul(node, y_dim))
                given = self.at(gradient, self.mul(node, shape.gate.dim_out))
                gate_backward(self, shape.gate, saved, given, row)
                if shape.connection is not None:
                    out = self.at(x_gradient, self.mul(node, x_dim))
                    self.connect(node, row, out, x, species, own, connections, own_connections, own_gradient, x_row)
            rows = [(self.at(y_tile, i * y_dim), self.at(z_tile, i * z_dim)) for i in range(together)]
            cpu_parts.linear(self, shape.linear.transposed(), weights, rows)
            with self.loop(0, count) as i:
                node = self.add(first, i)
                last = self.load_int(end, node)
                z = self.at(z_tile, self.mul(i, z_dim))
                with self.loop(self.load_int(begin, node), last, cpu_parts.TILE) as edge:
                    edges = self.minimum(self.builder.sub(last, edge), cpu_parts.TILE)
                    self.convolve(edge, edges, z)

    def connect(self, node, row, out, x, species, own, connections, own_connections, own_gradient, x_row) -> None:
        """Gradients by x and the attributes through the connections, from that by y."""
        layout, num_own, x_dim = (
            self.shape.connection.transposed(),
            self.shape.num_own,
            self.shape.program.irreps_in.dim,
        )
        cpu_parts.clear(self, out, x_dim)
        matrix = self.at(connections, self.mul(self.load_int(species, node), layout.num_weights))
        cpu_parts.linear(self, layout, matrix, [(row, out)])
        for f in range(num_own):
            place = self.add(self.mul(node, num_own), f)
            cpu_parts.linear(self, layout, self.at(own_connections, f * layout.num_weights), [(row, x_row)])
            share, total = self.load_float(own, place), None
            for start, vectors, width, used in chunk_plan(x_dim, self.lanes):
                sums = self.variable(self.vector(width))
                self.builder.store(self.constant(0.0, width), sums)
                with self.loop(0, vectors) as chunk:
                    column = self.add(start, self.mul(chunk, width))
                    change = self.load(x_row, column, width, used)
                    known = self.load(self.at(x, self.mul(node, x_dim)), column, width, used)
                    self.accumulate(sums, change, known)
                    before = self.load(out, column, width, used)
                    self.store(self.fma(self.splat(share, width), change, before), out, column, used)
                total = self.sum(total, self.reduce(self.value(sums)))
            self.builder.store(total, self.at(own_gradient, place))

    def convolve(self, first, count, z) -> None:
        """Gradients by some edges of a node and by the rows of h that they read, from that by the node's row z."""
        shape, program = self.shape, self.shape.program
        source, copy, harmonics, place, interval = self.tensors[4:9]
        species = self.tensors[12] if shape.by_species else None
        row_dim = program.irreps_in.dim
        self.tile.fill(first, count, source, harmonics, place, interval, copy, species, row_dim)
        blocks = defaultdict(list)  # the paths of each input block
        for path in program.contractions():
            blocks[path.source, path.mul].append(path)
        kinds = sorted({width for _, mul in blocks for _, _, width, _ in chunk_plan(mul, self.lanes)})
        y_dim = program.irreps_edge.dim
        # the harmonic of degree zero is a constant
        wanted = [j for part, (_, ir) in self.angular if ir.l for j in range(part.start, part.stop)]
        sums = {(width, j): self.channel_sum(width, j) for width in kinds for j in (*wanted, y_dim)}
        with self.loop(0, count) as s:
            for (width, _), variable in sums.items():
                self.builder.store(self.constant(0.0, width), variable)
            for (_, mul), paths in blocks.items():
                for start, vectors, width, used in chunk_plan(mul, self.lanes):
                    with self.loop(0, vectors) as chunk:
                        self.block(paths, sums, s, z, self.add(start, self.mul(chunk, width)), width, used)
            edge = self.add(first, s)
            rows = self.at(self.y_gradient, self.mul(edge, y_dim))
            for j in (*wanted, y_dim):
                total = None
                for width in kinds:
                    total = self.sum(total, self.reduce(self.value(sums[width, j])))
                place = self.at(rows, j) if j < y_dim else self.at(self.place_gradient, edge)
                self.builder.store(self.builder.fadd(total, self.builder.load(place, typ=self.float)), place)

    def channel_sum(self, width: int, j: int):
        if (width, j) not in self.channel_sums:
            self.channel_sums[width, j] = self.variable(self.vector(width))
        return self.channel_sums[width, j]

    def block(self, paths: list[Contraction], sums: dict, s, z, channel, width: int, used: int) -> None:
        """All paths of one input block for one edge and one vector of channels."""
        tile, program = self.tile, self.shape.program
        y_dim, wanted = program.irreps_edge.dim, not self.shape.by_species

        def load(row, place):
            return self.load(row, self.add(place, channel), width, used)

        v = self.at(self.h, self.load_int(tile.source, s))
        table = self.at(self.table, self.add(self.load_int(tile.table, s), channel))
        splines, slopes = (
            [tile.spread(rows, j, s, width) for j in range(ROWS)] for rows in (tile.splines, tile.slopes)
        )
        components = [load(v, place) for place in paths[0].source.places]
        h_gradient = [None] * len(components)
        for path in paths:
            g = [load(z, place) for place in path.target.places]
            by_harmonic, by_component = {}, {}
            for (k, i), combination in path.matrix.items():
                product = self.builder.fmul(components[i], g[k])
                for j, coefficient in combination:
                    by_harmonic[j] = self.fma(self.constant(coefficient, width), product, by_harmonic.get(j))
                if wanted:
                    entry = tile.spread(tile.matrix, tile.entries[combination], s, width)
                    by_component[i] = self.fma(entry, g[k], by_component.get(i))
            w, slope = cpu_parts.weight(self, table, splines, path.weight, width, used, program.weight_numel, slopes)
            total = None
            for j, value in by_harmonic.items():
                total = self.fma(tile.spread(tile.y, j, s, width), value, total)
                if (width, j) in sums:
                    self.accumulate(sums[width, j], w, value)
            self.accumulate(sums[width, y_dim], slope, total)
            for i, value in by_component.items():
                h_gradient[i] = self.fma(w, value, h_gradient[i])
        if wanted:
            copies = self.at(self.h_gradient, self.load_int(tile.copy, s))
            for place, value in zip(paths[0].source.places, h_gradient, strict=True):
                if value is not None:
                    total = self.builder.fadd(value, load(copies, place))
                    self.store(total, copies, self.add(place, channel), used)
