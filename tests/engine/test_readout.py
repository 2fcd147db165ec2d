"""Readouts of the inference plan, and the derivatives of their nonlinearities, against autograd."""

import pytest
import torch

from fastlr.engine.folding import Readout
from fastlr.nn.mlp import ScalarMLP
from fastlr.nn.nonlinearities import NONLINEARITIES
from fastlr.nn.scale_shift import ScaleShift


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", NONLINEARITIES)
def test_slopes(name, dtype):
    x = torch.cat([torch.linspace(-40.0, 40.0, 801), torch.tensor([-1e3, -1e-7, 0.0, 1e-7, 1e3])]).to(dtype)
    x.requires_grad_(True)
    nonlinearity = NONLINEARITIES[name]
    (expected,) = torch.autograd.grad(nonlinearity.value(x).sum(), x)
    found = nonlinearity.slope(x.detach())
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= 32 * torch.finfo(dtype).eps  # what rounds is multiplied by x


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("name", NONLINEARITIES)
def test_values_and_gradients(name, depth):
    mlp = ScalarMLP([5, *[7, 3][:depth], 1], name).double()
    scale_shift = ScaleShift(3, [0.7, 1.3, 2.0], [-1.0, 4.0, 0.5], train_scale=True, train_shift=True)
    species, x = torch.tensor([0, 2, 2, 1]), torch.randn(4, 8).double().requires_grad_(True)
    readout = Readout(mlp, scale_shift, torch.float64, species)
    expected = scale_shift(mlp(x[:, :5])[:, 0], species)
    assert torch.allclose(readout(x.detach()), expected, rtol=1e-14, atol=1e-14)
    for gradient in (None, torch.randn(4).double()):
        weights = torch.ones(4).double() if gradient is None else gradient
        (slopes,) = torch.autograd.grad(expected, x, weights, retain_graph=True)
        assert torch.allclose(readout.backward(gradient), slopes[:, :5], rtol=1e-12, atol=1e-14)
        assert not slopes[:, 5:].any()
