"""The tensor-product convolution as PyTorch operators: devices, fake tensors, and derivatives of any order.

With T(x, Y, w; g) = sum_e <g[dst(e)], TP(x[src(e)], Y[e]; w[e])>, which is linear in each argument,

    tensor_product                   z = dT/dg
    tensor_product_backward          dT/dx, dT/dY, dT/dw
    tensor_product_double_backward   gradients of S = T(a, Y, w; g) + T(x, b, w; g) + T(x, Y, c; g) by g, x, Y and w,
                                     where a, b, c are the gradients that arrive at dT/dx, dT/dY, dT/dw

and the derivative of the last is a sum of the first two.
"""

from functools import cache
from importlib import import_module

import torch
from torch import Tensor, nn

from ..adjacency import Adjacency
from .program import Program

_MODULES = {"cpu": ".cpu"}


@cache
def program_of(key: str) -> Program:
    """The program that ``key_of`` wrote."""
    return Program(*key.split(" | "))


def key_of(program: Program) -> str:
    """A program as text: what an exported graph keeps of it."""
    return f"{program.irreps_in} | {program.irreps_edge} | {program.filter_out}"


def _implementation(tensor: Tensor):
    """The module with the kernels for the tensor's device."""
    if tensor.device.type not in _MODULES:
        raise NotImplementedError(f"no tensor-product kernels for {tensor.device}; use the backend 'reference'")
    return import_module(_MODULES[tensor.device.type], __package__)


@torch.library.custom_op("fastlr::tensor_product", mutates_args=())
def tensor_product(x: Tensor, y: Tensor, w: Tensor, edges: list[Tensor], program: str) -> Tensor:
    """z (N, irreps_out.dim) from x (N, irreps_in.dim), Y (E, irreps_edge.dim) and w (E, weight_numel)."""
    x, y, w = (tensor.contiguous() for tensor in (x, y, w))
    return _implementation(x).forward(program_of(program), Adjacency(*edges), x, y, w)


@tensor_product.register_fake
def _(x, y, w, edges, program):
    return x.new_empty(edges[2].shape[0] - 1, program_of(program).irreps_out.dim)


@torch.library.custom_op("fastlr::tensor_product_backward", mutates_args=())
def tensor_product_backward(
    g: Tensor, x: Tensor, y: Tensor, w: Tensor, edges: list[Tensor], program: str, need_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dT/dx (empty unless ``need_x``), dT/dY and dT/dw."""
    g, x, y, w = (tensor.contiguous() for tensor in (g, x, y, w))
    return _implementation(x).backward(program_of(program), Adjacency(*edges), g, x, y, w, need_x)


@tensor_product_backward.register_fake
def _(g, x, y, w, edges, program, need_x):
    dx = x.new_empty(x.shape) if need_x else x.new_empty(0)
    return dx, y.new_empty(y.shape), w.new_empty(w.shape)


@torch.library.custom_op("fastlr::tensor_product_double_backward", mutates_args=())
def tensor_product_double_backward(
    a: Tensor | None,
    b: Tensor,
    c: Tensor,
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor,
    edges: list[Tensor],
    program: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of S by g, x, Y and w; ``a`` is None where it is zero."""
    a = None if a is None else a.contiguous()
    b, c, g, x, y, w = (tensor.contiguous() for tensor in (b, c, g, x, y, w))
    return _implementation(x).double_backward(program_of(program), Adjacency(*edges), a, b, c, g, x, y, w)


@tensor_product_double_backward.register_fake
def _(a, b, c, g, x, y, w, edges, program):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (g, x, y, w))


def _save(ctx, inputs, tensors: int):
    """Keep the differentiable inputs and what does not depend on them."""
    *_, edges, program = inputs
    ctx.num_edge_tensors, ctx.program = len(edges), program
    ctx.save_for_backward(*inputs[:tensors], *edges)


def _saved(ctx):
    saved = ctx.saved_tensors
    split = len(saved) - ctx.num_edge_tensors
    return saved[:split], list(saved[split:])


def _setup_forward(ctx, inputs, output):
    _save(ctx, inputs, 3)


def _forward_derivative(ctx, g):
    (x, y, w), edges = _saved(ctx)
    need_x = ctx.needs_input_grad[0]
    dx, dy, dw = tensor_product_backward(g, x, y, w, edges, ctx.program, need_x)
    return dx if need_x else None, dy, dw, [None] * len(edges), None


def _setup_backward(ctx, inputs, output):
    _save(ctx, inputs[:-1], 4)
    ctx.need_x = inputs[-1]


def _backward_derivative(ctx, a, b, c):
    (g, x, y, w), edges = _saved(ctx)
    a = a if ctx.need_x else None
    return *tensor_product_double_backward(a, b, c, g, x, y, w, edges, ctx.program), [None] * len(edges), None, None


def _setup_double_backward(ctx, inputs, output):
    _save(ctx, inputs, 7)


def _double_backward_derivative(ctx, dg, dx, dy, dw):
    saved, edges = _saved(ctx)
    names = ("a", "b", "c", "g", "x", "y", "w")
    values = dict(zip((*names, "dg", "dx", "dy", "dw"), (*saved, dg, dx, dy, dw), strict=True))
    sums = dict.fromkeys(values)
    # the change of S along (dg, dx, dy, dw) is a sum of T's, and each gives its four gradients
    for x, y, w, g in _CHANGE_OF_S:
        arguments = [values[name] for name in (x, y, w)]
        if arguments[0] is None:  # a
            continue
        gradients = tensor_product_backward(values[g], *arguments, edges, ctx.program, True)
        gradients = (*gradients, tensor_product(*arguments, edges, ctx.program))
        for name, gradient in zip((x, y, w, g), gradients, strict=True):
            sums[name] = gradient if sums[name] is None else sums[name] + gradient
    return *(sums[name] for name in names), [None] * len(edges), None


# x, Y, w and g of each T
_CHANGE_OF_S = (
    ("a", "dy", "w", "g"), ("a", "y", "dw", "g"), ("a", "y", "w", "dg"),
    ("dx", "b", "w", "g"), ("x", "b", "dw", "g"), ("x", "b", "w", "dg"),
    ("dx", "y", "c", "g"), ("x", "dy", "c", "g"), ("x", "y", "c", "dg"),
)  # fmt: skip


tensor_product.register_autograd(_forward_derivative, setup_context=_setup_forward)
tensor_product_backward.register_autograd(_backward_derivative, setup_context=_setup_backward)
tensor_product_double_backward.register_autograd(_double_backward_derivative, setup_context=_setup_double_backward)


class FusedConvolution(nn.Module):
    """Same signature and results as ``NaiveConvolution``, by the kernels of the tensors' device."""

    def __init__(self, program: Program):
        super().__init__()
        self.program = program
        self.key = key_of(program)

    def forward(self, x: Tensor, edge_attributes: Tensor, weights: Tensor, edges: Adjacency) -> Tensor:
        """See ``NaiveConvolution.forward``."""
        return tensor_product(x, edge_attributes, weights, list(edges), self.key)
