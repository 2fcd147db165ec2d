"""Initial weights: drawn, or only of the right shape where no more is wanted."""

from contextlib import contextmanager
from contextvars import ContextVar
from math import sqrt

import torch
from torch import Tensor

_drawn: ContextVar[bool] = ContextVar("drawn", default=True)


@contextmanager
def shapes_alone():
    """Have weights made inside take no memory: all numbers of a tensor are one and the same zero."""
    token = _drawn.set(False)
    try:
        yield
    finally:
        _drawn.reset(token)


def normal(*shape: int) -> Tensor:
    """Numbers of zero mean and unit variance."""
    return torch.randn(shape) if _drawn.get() else torch.zeros(()).expand(shape)


def uniform(*shape: int) -> Tensor:
    """The same, drawn uniformly."""
    return (torch.rand(shape) * 2.0 - 1.0) * sqrt(3.0) if _drawn.get() else torch.zeros(()).expand(shape)
