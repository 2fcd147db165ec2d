"""Operators made of functions: what PyTorch may do with them."""

import subprocess
import sys

import pytest
import torch
from fastlr.kernels.operators import operator
from torch import Tensor, library


@operator("fastlr_test::scaled")
def scaled(x: Tensor, others: list[Tensor], factor: float, name: str) -> tuple[Tensor, Tensor]:
    """What PyTorch cannot trace: it looks into the memory."""
    assert name == "a name" and isinstance(x.data_ptr(), int)
    return x * factor, sum(others, torch.zeros_like(x)).neg()


@scaled.register_fake
def _(x, others, factor, name):
    return torch.empty_like(x), torch.empty_like(x)


def _setup(ctx, inputs, output):
    _, others, ctx.factor, _ = inputs
    ctx.number = len(others)


scaled.register_autograd(lambda ctx, g, h: (ctx.factor * g, [-h] * ctx.number, None, None), setup_context=_setup)


@operator("fastlr_test::square")
def square(x: Tensor) -> Tensor:
    return x * x


def arguments(requires_grad: bool = True) -> tuple:
    x, *others = (torch.randn(3, dtype=torch.float64, requires_grad=requires_grad) for _ in range(3))
    return x, others, 1.5, "a name"


def test_as_the_function():
    x, others, factor, name = arguments()
    first, second = scaled(x, others, factor, name)
    assert torch.equal(first, 1.5 * x) and torch.equal(second, -(others[0] + others[1]))
    assert torch.autograd.gradcheck(lambda x, *others: scaled(x, list(others), factor, name), (x, *others))
    library.opcheck(scaled.overload, arguments())
    library.opcheck(scaled.overload, arguments(requires_grad=False))


def test_is_opaque_to_the_compiler():
    function = torch.compile(lambda *given: scaled(*given)[0].sum() * 2.0, backend="eager", fullgraph=True)
    given = arguments()
    assert function(*given).item() == pytest.approx(3.0 * given[0].sum().item())
    (gradient,) = torch.autograd.grad(function(*given), given[0])
    assert torch.equal(gradient, torch.full((3,), 3.0, dtype=torch.float64))


def test_without_derivative():
    x = torch.randn(3, requires_grad=True)
    assert torch.equal(square(x), x * x)
    with pytest.raises(NotImplementedError, match="fastlr_test::square has no derivative"):
        square(x).sum().backward()


def test_the_compiler_is_left_alone():
    code = """
import sys, torch
from fastlr.kernels.irreps_linear.layout import Layout
from fastlr.kernels.irreps_linear.op import irreps_linear
x, w = torch.randn(2, 4, requires_grad=True), torch.randn(4, requires_grad=True)
irreps_linear(x, w, Layout.of("1x0e+1x1o", "4x0e+0x1o").key, False).sum().backward()
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
