"""Per-species scale and shift in float64."""

import torch
from torch import Tensor, nn


class ScaleShift(nn.Module):
    """y_i = scale[species_i] x_i + shift[species_i], in float64 whatever the model's float type is."""

    def __init__(self, num_species: int, scale: list[float], shift: list[float], train_scale: bool, train_shift: bool):
        super().__init__()
        for name, values, trainable in (("scale", scale, train_scale), ("shift", shift, train_shift)):
            values = torch.tensor(values, dtype=torch.float64).expand(num_species).clone()
            if trainable:
                setattr(self, name, nn.Parameter(values))
            else:
                self.register_buffer(name, values)

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        """(N,) of any float type, (N,) species indices -> (N,) float64."""
        return x.double() * self.scale.index_select(0, species) + self.shift.index_select(0, species)
