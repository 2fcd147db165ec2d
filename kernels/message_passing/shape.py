"""What an interaction layer computes, as data, for the kernels that do it in one pass."""

import json
from dataclasses import dataclass
from functools import cache, cached_property

from ..irreps_linear.layout import Layout
from ..tensor_product.program import Program

# Scales that give the activation of a standard normal variable a second moment of one, as e3nn computes them
# (a million samples with seed 0). Written out, so that a model means the same with every version.
SILU_SCALE = 1.6791767923989418
TANH_SCALE = 1.5937334472592695


@dataclass(frozen=True)
class GateLayout:
    """Where the gate finds and leaves its columns.

    Attributes:
        dim_in, dim_out: columns.
        scalars: (start in, start out, channels, whether odd): silu of even ones, tanh of odd ones.
        gated: (start of the gates, start in, start out, components, channels): times silu of the gates.
    """

    dim_in: int
    dim_out: int
    scalars: tuple[tuple[int, int, int, bool], ...]
    gated: tuple[tuple[int, int, int, int, int], ...]

    @property
    def activated(self) -> tuple[tuple[int, int, bool], ...]:
        """(start in, channels, whether odd) of everything that passes an activation, gates included."""
        gates = ((gates, mul, False) for gates, _, _, _, mul in self.gated)
        return (*((start, mul, odd) for start, _, mul, odd in self.scalars), *gates)


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
        gate = self.gate
        connection = self.connection and self.connection.key
        rest = [gate.dim_in, gate.dim_out, gate.scalars, gate.gated, connection, self.num_own, self.by_species]
        return json.dumps([self.program.key, self.linear.key, *rest])

    @staticmethod
    @cache
    def from_key(key: str) -> "LayerShape":
        """The shape with this ``key``."""
        program, linear, dim_in, dim_out, scalars, gated, connection, num_own, by_species = json.loads(key)
        gate = GateLayout(dim_in, dim_out, tuple(map(tuple, scalars)), tuple(map(tuple, gated)))
        connection = connection and Layout.from_key(connection)
        return LayerShape(Program.from_key(program), Layout.from_key(linear), gate, connection, num_own, by_species)
