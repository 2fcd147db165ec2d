"""Tensors that never change, made once for each device."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keep what ``make`` returns for the same arguments; but not what only stands for a tensor while PyTorch traces."""
    known: dict[tuple, Tensor] = {}

    @wraps(make)
    def find(*arguments) -> Tensor:
        if arguments in known:
            return known[arguments]
        with torch.inference_mode(False):  # for they may be asked for derivatives later
            tensor = make(*arguments)
        if type(tensor) is Tensor:
            known[arguments] = tensor
        return tensor

    return find
