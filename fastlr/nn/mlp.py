"""Plain multilayer perceptron on invariants, as in NequIP's radial network and readouts."""

from collections.abc import Callable
from itertools import pairwise
from math import sqrt

from torch import Tensor, nn

from .initial import uniform
from .nonlinearities import NONLINEARITIES


class ScalarMLP(nn.Module):
    """Bias-free layers with a nonlinearity between them; variance-preserving scales are applied in the forward pass.

    Weights are drawn uniformly with unit variance; layer i is scaled by gain_i / sqrt(fan in), gain 1 for the
    first layer and sqrt(2) after a nonlinearity.

    Args:
        dims: widths of input, hidden layers and output.
        nonlinearity: a name in ``NONLINEARITIES``.
    """

    def __init__(self, dims: list[int], nonlinearity: str = "silu"):
        super().__init__()
        self.dims, self.nonlinearity = list(dims), nonlinearity
        self.weights = nn.ParameterList(nn.Parameter(uniform(n_in, n_out)) for n_in, n_out in pairwise(self.dims))
        self.scales = [sqrt(2.0 if i else 1.0) / sqrt(n_in) for i, n_in in enumerate(self.dims[:-1])]

    def forward(self, x: Tensor, mix: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(N, dims[0]) -> (N, dims[-1]), computed in the float type of ``x``.

        Args:
            mix: a linear map of the rows, the same for all columns, to be applied to the result.
        """
        for i, (weight, scale) in enumerate(zip(self.weights, self.scales, strict=True)):
            if i:
                x = NONLINEARITIES[self.nonlinearity].value(x)
            if mix is not None and i == len(self.scales) - 1:
                x = mix(x)  # before the last map, which is linear and the widest
            x = x @ (weight.to(x.dtype) * scale)
        return x
