"""The gate: activations to second order, and all derivatives of the whole against the specification."""

import numpy as np
import pytest
import torch
from e3nn.o3 import Irreps
from fastlr.kernels.gate import cpu_parts, naive, op
from fastlr.kernels.gate.layout import SILU_SCALE, TANH_SCALE, GateLayout
from fastlr.kernels.llvm import Emitter
from fastlr.kernels.native import Call, compiled
from torch import library

from fastlr.nn.gate import Gate

ARGUMENTS = torch.cat([
    torch.linspace(-30.0, 30.0, 4001, dtype=torch.float64),
    torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e-8, -1e-5, 1e-3, -1e-3, 90.0, -90.0, 1e4, -1e4, 3e37, -3e37]).double(),
])  # fmt: skip


class _Activation(Emitter):
    def __init__(self, bits: int, odd: bool, order: int):
        super().__init__("activation_test", bits, 2)
        with self.loop(self.begin, self.end) as block:
            place = self.mul(block, self.lanes)
            value = cpu_parts.activation(self, self.load(self.tensors[1], place, self.lanes), odd, order)
            self.store(value, self.tensors[0], place)


def assert_as_exact_as_it_gets(found, x, odd: bool, order: int) -> None:
    """An activation or a derivative of it, beside PyTorch in float64."""
    exact = x.double()
    if order == 2 and not odd:  # silu'' is even, and on this side PyTorch loses no digits
        exact = -exact.abs()
    exact.requires_grad_(True)
    expected = torch.tanh(exact) * TANH_SCALE if odd else torch.nn.functional.silu(exact) * SILU_SCALE
    for _ in range(order):
        (expected,) = torch.autograd.grad(expected.sum(), exact, create_graph=True)
    expected = expected.detach()
    digits = {torch.float64: 6e-16, torch.float32: 3e-7}[x.dtype]
    # where the result is next to nothing beside the argument, e^-x has lost digits of x; slopes are added to others
    size = expected.abs() + (1.0 if order else x.double().abs().clamp(max=1.0) * digits)
    assert ((found.double() - expected).abs() <= 4.0 * digits * size + 1e-36).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("order", [0, 1, 2], ids=["value", "slope", "bend"])
@pytest.mark.parametrize("odd", [False, True], ids=["silu", "tanh"])
def test_activations(odd, order, dtype):
    """As exact as the float type for all arguments, small and large."""
    bits = torch.finfo(dtype).bits
    kernel = compiled("activation_test", f"{bits} {odd} {order}", lambda: _Activation(bits, odd, order).source())
    x = torch.nn.functional.pad(ARGUMENTS, (0, -len(ARGUMENTS) % 16)).to(dtype)
    out = torch.full_like(x, torch.nan)
    Call(kernel, [out, x])(np.array([0, len(x) // Emitter("lanes", bits, 0).lanes]))
    assert_as_exact_as_it_gets(out, x, odd, order)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("odd", [False, True], ids=["silu", "tanh"])
def test_activations_of_a_row(odd, dtype, device):
    """The same of each target's own kernels, and where tanh changes from one formula to another."""
    on = torch.device("cuda" if device == "cuda" else "cpu")
    x = torch.cat([ARGUMENTS, torch.linspace(-0.12, 0.12, 301, dtype=torch.float64)]).to(dtype)[None].to(on)
    layout = GateLayout(x.shape[1], x.shape[1], ((0, 0, x.shape[1], odd),), ()).key
    one = torch.ones_like(x)
    bend, slope = op.gate_double_backward(x, one, one, layout)
    assert torch.equal(slope, op.gate_backward(x, one, layout))
    for order, found in enumerate((op.gate(x, layout), slope, bend)):
        assert_as_exact_as_it_gets(found, x, odd, order)


TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6}
HIDDEN = {
    "scalars": "5x0e", "odd scalars": "3x0e+33x0o", "unequal": "7x0e+4x0o+33x1o+16x1e+5x2e", "no scalars": "3x1o+2x2e",
    "wide": "64x0e+64x1o+32x2e",
}  # fmt: skip


def derivatives(function, tensors, probes) -> list[torch.Tensor]:
    """z, its gradient, the gradients of that, and of those."""
    x, g, v = (tensor.clone().requires_grad_(True) for tensor in tensors)
    z = function(x)
    (dx,) = torch.autograd.grad(z, x, g, create_graph=True)
    second = torch.autograd.grad(dx, (x, g), v, create_graph=True)
    total = sum((value * probe).sum() for value, probe in zip(second, probes, strict=True))
    return [z, dx, *second, *torch.autograd.grad(total, (x, g, v))]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("rows", [0, 1, 7, 130])
@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
def test_all_derivatives(hidden, rows, dtype, device):
    """To third order, of probes of zero mean; on the columns that ``Gate`` makes."""
    on = torch.device("cuda" if device == "cuda" else "cpu")
    rows = min(rows, 9) if device == "interpreter" else rows  # each by a program of its own
    layout = Gate(Irreps(hidden)).layout
    assert GateLayout.from_key(layout.key) == layout
    tensors = [
        torch.randn(rows, width, dtype=dtype, device=on) for width in (layout.dim_in, layout.dim_out, layout.dim_in)
    ]
    probes = [torch.randn_like(tensor) for tensor in tensors[:2]]
    found = derivatives(lambda x: op.gate(x, layout.key), tensors, probes)
    exact = ([tensor.double() for tensor in group] for group in (tensors, probes))
    expected = derivatives(lambda x: naive.gate(x, layout.key), *exact)
    for number, (value, reference) in enumerate(zip(found, expected, strict=True)):
        assert value.dtype == dtype
        assert value.shape == reference.shape
        error = torch.linalg.vector_norm(value.double() - reference)
        assert error <= TOLERANCE[dtype] * torch.linalg.vector_norm(reference), number


def test_same_bits_on_any_number_of_threads():
    layout, results = Gate(Irreps(HIDDEN["wide"])).layout, []
    x, g, v = (torch.randn(500, width) for width in (layout.dim_in, layout.dim_out, layout.dim_in))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([op.gate(x, layout.key), *op.gate_double_backward(x, g, v, layout.key)])
    torch.set_num_threads(1)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_finite_differences_and_opcheck():
    layout = Gate(Irreps("2x0e+1x0o+2x1o")).layout
    shapes = (3, layout.dim_in), (3, layout.dim_out), (3, layout.dim_in)
    x, g, v = (torch.randn(shape).double().requires_grad_(True) for shape in shapes)
    assert torch.autograd.gradcheck(lambda x: op.gate(x, layout.key), x)
    assert torch.autograd.gradgradcheck(lambda x: op.gate(x, layout.key), x)
    assert torch.autograd.gradgradcheck(lambda x, g: op.gate_backward(x, g, layout.key), (x, g))
    library.opcheck(op.gate_op.overload, (x, layout.key))
    library.opcheck(op.gate_backward.overload, (x, g, layout.key))
    library.opcheck(op.gate_double_backward.overload, (x, g, v, layout.key))


def test_wrong_inputs():
    layout = Gate(Irreps("2x0e+2x1o")).layout
    with pytest.raises(ValueError, match=r"gate: expected \(4, 10\)"):
        op.gate(torch.randn(4, 9), layout.key)
    with pytest.raises(ValueError, match="float32 and float64"):
        op.gate(torch.randn(4, 10).half(), layout.key)
    with pytest.raises(ValueError, match=r"gate: expected \(4, 8\)"):
        op.gate_backward(torch.randn(4, 10), torch.randn(3, 8), layout.key)
