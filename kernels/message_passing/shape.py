"""What an interaction layer computes, as data, for the kernels that do it in one pass."""

import json
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

from torch import Tensor

from ..gate.layout import GateLayout
from ..irreps_linear.layout import Layout
from ..tensor_product.program import Program


@dataclass(frozen=True)
class LayerShape:
    """A NequIP interaction layer (``fastlr.nn.interaction``) after its first linear map.

        y = linear(convolution(h)) + sum_f s_f connection_f(x),   out = gate(y)

    with a map of its own for each species (f = 0, s = 1) and one for each further attribute s_f that an atom has.

    Attributes:
        program: of the convolution.
        linear: the map after it.
        gate: the nonlinearity.
        connection: the maps of the layer's input, or None.
        num_own: number of further attributes.
        by_species: whether h has a row for each species instead of each atom; no gradient by h is then wanted.
    """

    program: Program
    linear: Layout
    gate: GateLayout
    connection: Layout | None
    num_own: int
    by_species: bool

    @cached_property
    def key(self) -> str:
        """The shape as text; see ``from_key``."""
        connection = self.connection and self.connection.key
        parts = self.program.key, self.linear.key, self.gate.key, connection
        return json.dumps([*parts, self.num_own, self.by_species])

    @staticmethod
    @cache
    def from_key(key: str) -> "LayerShape":
        """The shape with this ``key``."""
        program, linear, gate, connection, num_own, by_species = json.loads(key)
        program, linear, gate = Program.from_key(program), Layout.from_key(linear), GateLayout.from_key(gate)
        return LayerShape(program, linear, gate, connection and Layout.from_key(connection), num_own, by_species)


class LayerWeights(NamedTuple):
    """Weights of a layer, with all scales.

    Attributes:
        table: (M + 5, weights of the convolution), the radial network; see ``radial_table/naive.py``.
        linear: (weights of ``LayerShape.linear``,).
        connections: (species, weights of ``LayerShape.connection``). own_connections: (num_own, the same).
    """

    table: Tensor
    linear: Tensor
    connections: Tensor
    own_connections: Tensor


class EdgeData(NamedTuple):
    """What a layer reads of the edges into each of N nodes.

    Attributes:
        begin, end: (N,) int64, the edges of node n are begin[n] ... end[n] - 1; what lies between is not read.
        source: (E,) int64, the node at the other end.
        harmonics: (E, irreps_edge.dim).
        place: (E,) where the length lies within its interval of the radial table, 0 ... 1.
        interval: (E,) int64, the interval.
    """

    begin: Tensor
    end: Tensor
    source: Tensor
    harmonics: Tensor
    place: Tensor
    interval: Tensor
