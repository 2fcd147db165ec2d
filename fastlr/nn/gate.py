"""The gate nonlinearity: scalars pass an activation, other irreps are scaled by activated scalars."""

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from .linear import unique_irreps

# Scales that give the activation of a standard normal variable a second moment of one, as e3nn computes them
# (a million samples with seed 0). Written out, so that a model means the same with every version.
SILU_SCALE = 1.6791767923989418
TANH_SCALE = 1.5937334472592695


class Gate(nn.Module):
    """Even scalars: silu. Odd scalars: tanh. An l > 0 channel: multiplied by silu of its own even scalar.

    Args:
        irreps_out: irreps that the layer shall have; scalars first.

    ``irreps_in`` holds the scalars, one more even scalar (the gate) for each l > 0 channel, and the gated irreps,
    sorted as e3nn sorts irreps. Even scalars come before the gates; gates follow the order of ``irreps_out``.
    """

    def __init__(self, irreps_out):
        super().__init__()
        irreps_out = Irreps(irreps_out)
        self.scalars = Irreps([(mul, ir) for mul, ir in irreps_out if ir.l == 0])
        self.gated = Irreps([(mul, ir) for mul, ir in irreps_out if ir.l > 0])
        self.irreps_out = unique_irreps(self.scalars + self.gated)
        gates = Irreps([(mul, "0e") for mul, _ in self.gated])
        self.irreps_in = unique_irreps((self.scalars + gates + self.gated).sort().irreps)
        self.slices = {ir: block for block, (_, ir) in zip(self.irreps_in.slices(), self.irreps_in, strict=True)}

    def forward(self, x: Tensor) -> Tensor:
        """(N, irreps_in.dim) -> (N, irreps_out.dim)."""
        out = []
        gate_start = self.slices[Irreps("0e")[0].ir].start
        for mul, ir in self.scalars:
            block = x[:, self.slices[ir].start : self.slices[ir].start + mul]
            if ir.p == 1:
                out.append(torch.nn.functional.silu(block) * SILU_SCALE)
                gate_start += mul
            else:
                out.append(torch.tanh(block) * TANH_SCALE)
        for mul, ir in self.gated:
            gate = torch.nn.functional.silu(x[:, gate_start : gate_start + mul]) * SILU_SCALE
            gate_start += mul
            block = x[:, self.slices[ir]].reshape(-1, ir.dim, mul)
            out.append((block * gate[:, None, :]).view(-1, ir.dim * mul))
        return torch.cat(out, dim=1)
