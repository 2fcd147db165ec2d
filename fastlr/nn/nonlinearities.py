"""Nonlinearities between the layers of readouts, with their derivatives."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_THRESHOLD = 20.0  # from which on PyTorch's softplus is the identity


class Nonlinearity(NamedTuple):
    """A function of each number, and its derivative."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _silu_slope(x: Tensor) -> Tensor:
    logistic = torch.sigmoid(x)
    return logistic * (1.0 + x * (1.0 - logistic))


def _mish_slope(x: Tensor) -> Tensor:
    tanh = torch.tanh(functional.softplus(x))
    return tanh + x * (1.0 - tanh * tanh) * torch.sigmoid(x)


def _gelu_slope(x: Tensor) -> Tensor:
    return torch.special.ndtr(x) + x * torch.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _tanh_slope(x: Tensor) -> Tensor:
    return 1.0 - torch.tanh(x) ** 2


def _sigmoid_slope(x: Tensor) -> Tensor:
    logistic = torch.sigmoid(x)
    return logistic * (1.0 - logistic)


def _softplus_slope(x: Tensor) -> Tensor:
    return torch.where(x > _THRESHOLD, 1.0, torch.sigmoid(x))


def _shifted_softplus(x: Tensor) -> Tensor:
    return functional.softplus(x) - math.log(2.0)


NONLINEARITIES = {
    "silu": Nonlinearity(functional.silu, _silu_slope),
    "mish": Nonlinearity(functional.mish, _mish_slope),
    "gelu": Nonlinearity(functional.gelu, _gelu_slope),
    "tanh": Nonlinearity(torch.tanh, _tanh_slope),
    "ssp": Nonlinearity(_shifted_softplus, _softplus_slope),
    "sigmoid": Nonlinearity(torch.sigmoid, _sigmoid_slope),
    "softplus": Nonlinearity(functional.softplus, _softplus_slope),
}
