"""The gate nonlinearity: scalars pass an activation, other irreps are scaled by activated scalars."""

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fastlr.kernels.message_passing.shape import SILU_SCALE, TANH_SCALE

from .linear import split, unique_irreps


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

    def forward(self, x: Tensor) -> Tensor:
        """(N, irreps_in.dim) -> (N, irreps_out.dim)."""
        parts = {ir: part for (_, ir), part in zip(self.irreps_in, split(x, self.irreps_in), strict=True)}
        even = Irreps("0e")[0].ir
        out = []
        if even in parts:  # silu serves even scalars and gates alike
            number = sum(mul for mul, ir in self.scalars if ir == even)
            sizes = [number, *(mul for mul, _ in self.gated)]
            scalars, *gates = (torch.nn.functional.silu(parts[even]) * SILU_SCALE).split(sizes, dim=1)
        for _, ir in self.scalars:
            out.append(scalars if ir == even else torch.tanh(parts[ir]) * TANH_SCALE)
        for number, (mul, ir) in enumerate(self.gated):
            block = parts[ir].reshape(-1, ir.dim, mul)
            out.append((block * gates[number][:, None, :]).view(-1, ir.dim * mul))
        return torch.cat(out, dim=1)
