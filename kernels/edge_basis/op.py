"""The edge basis as PyTorch operators: devices, fake tensors, and derivatives of any order.

``edge_basis`` gives Y and R of each edge vector, ``edge_basis_backward`` the gradient of phi = sum g_Y Y + sum g_R R by
the vectors, and ``edge_basis_double_backward`` the gradients of h . grad phi, where h is what arrives at that gradient.
Vectors are float64 and all arithmetic is; Y and R are rounded to the model's float type at the end.
"""

from importlib import import_module

import torch
from torch import Tensor

from ..operators import operator
from . import formulas
from .formulas import Basis

_KERNELS = {"cpu": ".cpu", "cuda": ".triton"}  # device type -> module


def _kernels(tensor: Tensor):
    if tensor.device.type not in _KERNELS:
        raise NotImplementedError(f"no edge-basis kernels for {tensor.device}; use the backend 'reference'")
    return import_module(_KERNELS[tensor.device.type], __package__)


def _prepared(vectors: Tensor, roots: Tensor, basis: Basis, *gradients: Tensor) -> list[Tensor]:
    """All tensors, contiguous; kernels trust what is checked here."""
    num_edges = vectors.shape[0]
    if vectors.shape != (num_edges, 3) or vectors.dtype != torch.float64:
        raise ValueError(f"vectors: expected (E, 3) of float64, got {tuple(vectors.shape)} of {vectors.dtype}")
    if roots.shape != (basis.num_bessels,) or roots.dtype != torch.float64:
        raise ValueError(f"roots: expected ({basis.num_bessels},) of float64, got {tuple(roots.shape)}")
    columns = (basis.num_harmonics, basis.num_bessels, 3)
    for gradient, width in zip(gradients, columns, strict=False):
        if gradient.shape != (num_edges, width):
            raise ValueError(f"gradient: expected {(num_edges, width)}, got {tuple(gradient.shape)}")
    return [tensor.contiguous() for tensor in (vectors, roots, *gradients)]


@operator("fastlr::edge_basis")
def edge_basis_op(
    vectors: Tensor, roots: Tensor, r_max: float, p: float, l_max: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Y (E, (l_max + 1)^2) and R (E, len(roots)) from edge vectors (E, 3)."""
    basis = Basis(r_max, p, l_max, roots.shape[0])
    vectors, roots = _prepared(vectors, roots, basis)
    return _kernels(vectors).forward(vectors, roots, basis, dtype)


@edge_basis_op.register_fake
def _(vectors, roots, r_max, p, l_max, dtype):
    num_edges = vectors.shape[0]
    return (
        vectors.new_empty(num_edges, (l_max + 1) ** 2, dtype=dtype),
        vectors.new_empty(num_edges, roots.shape[0], dtype=dtype),
    )


@operator("fastlr::edge_basis_backward")
def edge_basis_backward(
    g_angular: Tensor, g_radial: Tensor, vectors: Tensor, roots: Tensor, r_max: float, p: float, l_max: int
) -> Tensor:
    """d phi / d vectors, (E, 3) float64."""
    basis = Basis(r_max, p, l_max, roots.shape[0])
    vectors, roots, g_angular, g_radial = _prepared(vectors, roots, basis, g_angular, g_radial)
    return _kernels(vectors).backward(vectors, roots, g_angular, g_radial, basis)


@edge_basis_backward.register_fake
def _(g_angular, g_radial, vectors, roots, r_max, p, l_max):
    return vectors.new_empty(vectors.shape)


@operator("fastlr::edge_basis_double_backward")
def edge_basis_double_backward(
    h: Tensor, g_angular: Tensor, g_radial: Tensor, vectors: Tensor, roots: Tensor, r_max: float, p: float, l_max: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of h . grad phi by g_angular, g_radial and vectors."""
    basis = Basis(r_max, p, l_max, roots.shape[0])
    vectors, roots, g_angular, g_radial, h = _prepared(vectors, roots, basis, g_angular, g_radial, h)
    return _kernels(vectors).double_backward(vectors, roots, g_angular, g_radial, h, basis)


@edge_basis_double_backward.register_fake
def _(h, g_angular, g_radial, vectors, roots, r_max, p, l_max):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (g_angular, g_radial, vectors))


def _setup(ctx, inputs, output):
    """Keep all tensors and the numbers that follow them."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.numbers = inputs[len(tensors) :]


def _derivative(ctx, g_angular, g_radial):
    vectors, roots = ctx.saved_tensors
    *numbers, _ = ctx.numbers
    return edge_basis_backward(g_angular, g_radial, vectors, roots, *numbers), None, None, None, None, None


def _second_derivative(ctx, h):
    g_angular, g_radial, vectors, roots = ctx.saved_tensors
    gradients = edge_basis_double_backward(h, g_angular, g_radial, vectors, roots, *ctx.numbers)
    return *gradients, None, None, None, None


def _third_derivative(ctx, *gradients):
    """By PyTorch, through the formulas."""
    h, g_angular, g_radial, vectors, roots = ctx.saved_tensors
    r_max, p, l_max = ctx.numbers
    basis = Basis(r_max, p, l_max, roots.shape[0])
    inputs = h, g_angular, g_radial, vectors
    with torch.enable_grad():
        columns = [tensor.double().unbind(1) for tensor in (vectors, g_angular, g_radial, h)]
        v, *rest = columns
        results = formulas.double_backward(v, roots.unbind(), *rest, basis, _TorchOperations(vectors))
        total = sum(
            (gradient * value).sum()
            for group, column in zip(gradients, results, strict=True)
            for gradient, value in zip(group.unbind(1), column, strict=True)
        )
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        found = iter(torch.autograd.grad(total, wanted, create_graph=True, materialize_grads=True))
    return *(next(found) if tensor.requires_grad else None for tensor in inputs), None, None, None, None


class _TorchOperations:
    """What ``formulas`` asks of a target."""

    def __init__(self, like: Tensor):
        self.like = like

    def constant(self, value: float) -> Tensor:
        return self.like.new_full((self.like.shape[0],), value)

    def rsqrt(self, x: Tensor) -> Tensor:
        return x.rsqrt()

    def power(self, x: Tensor, exponent: float) -> Tensor:
        return x**exponent

    def floor(self, x: Tensor) -> Tensor:
        return torch.floor(x)

    def step(self, x: Tensor) -> Tensor:
        return (x < 1.0).to(x.dtype)


edge_basis_op.register_autograd(_derivative, setup_context=_setup)
edge_basis_backward.register_autograd(_second_derivative, setup_context=_setup)
edge_basis_double_backward.register_autograd(_third_derivative, setup_context=_setup)


def edge_basis(
    vectors: Tensor, r_max: float, roots: Tensor, p: float, l_max: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Same results as ``naive.edge_basis``, by the kernels of the tensors' device.

    Raises:
        ValueError: a shape or float type is wrong, or ``roots`` ask for a gradient, which the kernels do not give.
    """
    if roots.requires_grad and torch.is_grad_enabled():
        raise ValueError("trained Bessel roots need the edge basis of the backend 'reference'")
    return edge_basis_op(vectors, roots, float(r_max), float(p), l_max, dtype)
