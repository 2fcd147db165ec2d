"""What the layer kernels have to do: floating-point operations and bytes between memory and the caches.

Rows that are gathered again and again are counted once, as if caches held them; tables and weights not at all.
"""

from typing import NamedTuple

from ..irreps_linear.layout import Layout
from ..radial_table.naive import ROWS
from .shape import LayerShape


class Cost(NamedTuple):
    """Floating-point operations and bytes of memory traffic."""

    operations: float
    num_bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.operations + other.operations, self.num_bytes + other.num_bytes)


def linear_operations(layout: Layout) -> int:
    """Of a linear map, a row."""
    return sum(2 * block.dim * block.mul_in * block.mul_out for block in layout.blocks)


def forward(shape: LayerShape, nodes: int, edges: int, itemsize: int) -> Cost:
    """Of ``cpu_forward.Forward``."""
    paths = shape.program.contractions()
    entries = sum(len(path.matrix) * path.mul for path in paths)
    rows = sum(path.target.dim * path.mul for path in paths)
    per_edge = 2 * entries + 2 * rows + 2 * ROWS * shape.program.weight_numel
    described = (shape.program.irreps_edge.dim + 1) * itemsize + 16
    h = 0 if shape.by_species else shape.program.irreps_in.dim
    per_node = (h + shape.gate.dim_in + shape.gate.dim_out) * itemsize + 24
    if shape.connection is not None:
        per_node += shape.program.irreps_in.dim * itemsize
    return Cost(edges * per_edge + nodes * _node_operations(shape), edges * described + nodes * per_node)


def backward(shape: LayerShape, nodes: int, edges: int, itemsize: int) -> Cost:
    """Of ``cpu_backward.Backward``."""
    program = shape.program
    paths, per_edge = program.contractions(), 2 * 2 * ROWS * program.weight_numel
    for path in paths:
        entries, terms = len(path.matrix), sum(map(len, path.matrix.values()))
        harmonics = len({j for combination in path.matrix.values() for j, _ in combination})
        # products of x and g, the sums of them for each harmonic, w times these, and the slope
        per_edge += path.mul * (entries + 2 * terms + 4 * harmonics + 2)
        if not shape.by_species:
            per_edge += path.mul * (2 * entries + 2 * path.source.dim)
    described = (3 * program.irreps_edge.dim + 3) * itemsize + 24
    width = 0 if shape.by_species else program.irreps_in.dim
    per_node = (2 * width + shape.gate.dim_in + shape.gate.dim_out) * itemsize + 24
    if shape.connection is not None:
        per_node += 2 * program.irreps_in.dim * itemsize
    return Cost(edges * per_edge + nodes * _node_operations(shape), edges * described + nodes * per_node)


def _node_operations(shape: LayerShape) -> int:
    total = linear_operations(shape.linear)
    if shape.connection is not None:
        total += (1 + shape.num_own) * linear_operations(shape.connection)
    return total
