"""The gate nonlinearity: scalars pass an activation, other irreps are scaled by activated scalars."""

from torch import Tensor, nn

from fastlr.backends import Operations, resolve
from fastlr.kernels.gate.layout import GateLayout
from fastlr.kernels.irreps import Irreps

from .linear import unique_irreps


class Gate(nn.Module):
    """Even scalars: silu. Odd scalars: tanh. An l > 0 channel: multiplied by silu of its own even scalar.

    Args:
        irreps_out: irreps that the layer shall have; scalars first.
        operations: the kernels in use (default: the specification).

    ``irreps_in`` holds the scalars, one more even scalar (the gate) for each l > 0 channel, and the gated irreps,
    sorted. Even scalars come before the gates; gates follow the order of ``irreps_out``.
    """

    def __init__(self, irreps_out, operations: Operations | None = None):
        super().__init__()
        self.operations = operations or resolve("reference")
        irreps_out = Irreps(irreps_out)
        self.scalars = Irreps([(mul, ir) for mul, ir in irreps_out if ir.l == 0])
        self.gated = Irreps([(mul, ir) for mul, ir in irreps_out if ir.l > 0])
        self.irreps_out = unique_irreps(self.scalars + self.gated)
        gates = Irreps([(mul, "0e") for mul, _ in self.gated])
        self.irreps_in = unique_irreps((self.scalars + gates + self.gated).sort())
        self.layout = self._layout()

    def _layout(self) -> GateLayout:
        start = {ir: part.start for part, (_, ir) in zip(self.irreps_in.slices(), self.irreps_in, strict=True)}
        scalars, gated, out, even = [], [], 0, 0
        for mul, ir in self.scalars:
            scalars.append((start[ir], out, mul, ir.p == -1))
            out += mul
            even += mul if ir.p == 1 else 0
        gates = even + next((first for ir, first in start.items() if ir.l == 0 and ir.p == 1), 0)
        for mul, ir in self.gated:
            gated.append((gates, start[ir], out, ir.dim, mul))
            gates += mul
            out += ir.dim * mul
        return GateLayout(self.irreps_in.dim, self.irreps_out.dim, tuple(scalars), tuple(gated))

    def forward(self, x: Tensor) -> Tensor:
        """(N, irreps_in.dim) -> (N, irreps_out.dim)."""
        return self.operations.gate(x, self.layout.key)
