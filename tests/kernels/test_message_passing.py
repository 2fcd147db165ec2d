"""Parts of the layer kernels: activations, layouts that survive as text."""

import numpy as np
import pytest
import torch
from fastlr.kernels.llvm import Emitter
from fastlr.kernels.message_passing import cpu_parts
from fastlr.kernels.message_passing.shape import SILU_SCALE, TANH_SCALE, LayerShape
from fastlr.kernels.native import Call, compiled
from reference.models import small_model

from fastlr.engine.folding import fold_layers
from fastlr.engine.pruning import SCALAR, prune

ARGUMENTS = torch.cat([
    torch.linspace(-30.0, 30.0, 4001, dtype=torch.float64),
    torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e-8, -1e-5, 1e-3, -1e-3, 90.0, -90.0, 1e4, -1e4, 3e37, -3e37]).double(),
])  # fmt: skip


class _Activation(Emitter):
    def __init__(self, bits: int, odd: bool, slope: bool):
        super().__init__("activation_test", bits, 2)
        with self.loop(self.begin, self.end) as block:
            place = self.mul(block, self.lanes)
            value = cpu_parts.activation(self, self.load(self.tensors[1], place, self.lanes), odd, slope)
            self.store(value, self.tensors[0], place)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("slope", [False, True], ids=["value", "slope"])
@pytest.mark.parametrize("odd", [False, True], ids=["silu", "tanh"])
def test_activations(odd, slope, dtype):
    """As exact as the float type for all arguments, small and large."""
    bits = torch.finfo(dtype).bits
    kernel = compiled("activation_test", f"{bits} {odd} {slope}", lambda: _Activation(bits, odd, slope).source())
    x = torch.nn.functional.pad(ARGUMENTS, (0, -len(ARGUMENTS) % 16)).to(dtype)
    out = torch.full_like(x, torch.nan)
    Call(kernel, [out, x])(np.array([0, len(x) // Emitter("lanes", bits, 0).lanes]))
    exact = x.double().requires_grad_(True)
    expected = torch.tanh(exact) * TANH_SCALE if odd else torch.nn.functional.silu(exact) * SILU_SCALE
    if slope:
        (expected,) = torch.autograd.grad(expected.sum(), exact)
    expected = expected.detach()
    digits = {torch.float64: 6e-16, torch.float32: 3e-7}[dtype]
    # where the result is next to nothing beside the argument, e^-x has lost digits of x; slopes are added to others
    size = expected.abs() + (1.0 if slope else x.double().abs().clamp(max=1.0) * digits)
    assert ((out.double() - expected).abs() <= 4.0 * digits * size + 1e-36).all()


@pytest.mark.parametrize("name", ["nequip", "lr", "lr-separate-stacks"])
def test_shapes_are_the_same_from_their_text(name):
    model = small_model(name)
    stack = model.stack if name == "nequip" else model.energy_stack
    layers, _ = prune(stack, {SCALAR})
    types = model.type_embedding.weight
    for layer in fold_layers(layers, stack.norm, model.edge_embedding, 8, types, torch.float64, name == "nequip"):
        assert LayerShape.from_key(layer.shape.key) == layer.shape
