"""Exponential moving average of weights: smoother than the last step, and what is validated and exported."""

from copy import deepcopy

import torch
from torch import nn


class AveragedModel(nn.Module):
    """A copy of a model whose weights follow it: average <- decay average + (1 - decay) weights.

    The decay grows with the number of steps, min(decay, (1 + n) / (10 + n)), so that the start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.decay = decay
        self.model = deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow ``model`` after optimizer step number ``step`` (from 1)."""
        keep = min(self.decay, (1.0 + step) / (10.0 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1.0 - keep)
