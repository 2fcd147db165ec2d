"""Which columns the gate activates and scales."""

import json
from dataclasses import dataclass
from functools import cache, cached_property

# Scales that give the activation of a standard normal variable a second moment of one, as e3nn computes them
# (a million samples with seed 0). Written out, so that a model means the same with every version.
SILU_SCALE = 1.6791767923989418
TANH_SCALE = 1.5937334472592695


@dataclass(frozen=True)
class GateLayout:
    """Where the gate finds and leaves its columns. Every column belongs to one entry.

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

    @cached_property
    def key(self) -> str:
        """The layout as text; see ``from_key``."""
        return json.dumps([self.dim_in, self.dim_out, self.scalars, self.gated])

    @staticmethod
    @cache
    def from_key(key: str) -> "GateLayout":
        """The layout with this ``key``."""
        dim_in, dim_out, scalars, gated = json.loads(key)
        return GateLayout(dim_in, dim_out, tuple(map(tuple, scalars)), tuple(map(tuple, gated)))
