"""Charges as node attributes."""

import torch
from torch import Tensor, nn


class ChargeEncoding(nn.Module):
    """The charge itself ("scalar"), or its overlap with Gaussian bins from -charge_range to +charge_range e."""

    def __init__(self, kind: str, num_bins: int, charge_range: float):
        super().__init__()
        self.kind = kind
        self.num_features = 1 if kind == "scalar" else num_bins
        self.spacing = 2.0 * charge_range / (num_bins - 1)
        self.register_buffer("centres", torch.linspace(-charge_range, charge_range, num_bins), persistent=False)

    def forward(self, charges: Tensor) -> Tensor:
        """(N,) e -> (N, num_features)."""
        if self.kind == "scalar":
            return charges[:, None]
        return torch.exp(-0.5 * ((charges[:, None] - self.centres) / self.spacing) ** 2)
