"""The tensor-product convolution as PyTorch operators: devices, fake tensors, and derivatives of any order.

With T(x, Y, w; g) = sum_e <g[destination(e)], TP(x[source(e)], Y[e]; w[e])>, which is linear in each argument,

    tensor_product                   z = dT/dg
    tensor_product_backward          dT/dx, dT/dY, dT/dw
    tensor_product_double_backward   gradients of S = T(a, Y, w; g) + T(x, b, w; g) + T(x, Y, c; g) by g, x, Y and w,
                                     where a, b, c are the gradients that arrive at dT/dx, dT/dY, dT/dw

and the derivative of the last is a sum of the first two. Each device serves all of it with two kernels,

    gather(program, edges, terms, transposed)
        sum over terms (w, Y, v) of dT(v, Y, w; .)/dg, or, transposed, of dT(., Y, w; v)/dx
    edge_gradients(program, edges, g, terms, need_y)
        dw = sum over terms (w, Y, v) of dT(v, Y, .; g)/dw,  and dY = sum over terms of dT(v, ., w; g)/dY, or nothing
"""

from importlib import import_module

import torch
from torch import Tensor, nn

from ..adjacency import Adjacency
from ..autograd import wanted
from ..operators import operator
from .program import Program

_KERNELS = {"cpu": ".cpu", "cuda": ".triton"}  # device type -> module


def _kernels(tensor: Tensor):
    """The module with the kernels for the tensor's device."""
    if tensor.device.type not in _KERNELS:
        raise NotImplementedError(f"no tensor-product kernels for {tensor.device}; use the backend 'reference'")
    return import_module(_KERNELS[tensor.device.type], __package__)


def _prepared(program: Program, edges: Adjacency, *, g=(), x=(), y=(), w=()) -> list[Tensor | None]:
    """All tensors given, contiguous; kernels trust the shapes that are checked here."""
    num_nodes, num_edges = edges.counts
    kinds = (
        (g, "g", (num_nodes, program.irreps_out.dim)),
        (x, "x", (num_nodes, program.irreps_in.dim)),
        (y, "edge attributes", (num_edges, program.irreps_edge.dim)),
        (w, "weights", (num_edges, program.weight_numel)),
    )
    dtype = y[0].dtype
    for tensors, name, shape in kinds:
        for tensor in tensors:
            if tensor is not None and (tensor.shape != shape or tensor.dtype != dtype):
                raise ValueError(f"{name}: expected {shape} of {dtype}, got {tuple(tensor.shape)} of {tensor.dtype}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the tensor product is for float32 and float64, got {dtype}")
    return [None if tensor is None else tensor.contiguous() for tensor in (*g, *x, *y, *w)]


@operator("fastlr::tensor_product")
def tensor_product(x: Tensor, y: Tensor, w: Tensor, edges: list[Tensor], program: str) -> Tensor:
    """z (N, irreps_out.dim) from x (N, irreps_in.dim), Y (E, irreps_edge.dim) and w (E, weight_numel)."""
    paths, adjacency = Program.from_key(program), Adjacency(*edges)
    x, y, w = _prepared(paths, adjacency, x=[x], y=[y], w=[w])
    return _kernels(x).gather(paths, adjacency, [(w, y, x)])


@tensor_product.register_fake
def _(x, y, w, edges, program):
    return x.new_empty(edges[2].shape[0] - 1, Program.from_key(program).irreps_out.dim)


@operator("fastlr::tensor_product_backward")
def tensor_product_backward(
    g: Tensor, x: Tensor, y: Tensor, w: Tensor, edges: list[Tensor], program: str, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dT/dx (empty unless ``need_x``), dT/dY (empty unless ``need_y``) and dT/dw."""
    paths, adjacency = Program.from_key(program), Adjacency(*edges)
    g, x, y, w = _prepared(paths, adjacency, g=[g], x=[x], y=[y], w=[w])
    kernels = _kernels(x)
    dx = kernels.gather(paths, adjacency, [(w, y, g)], transposed=True) if need_x else x.new_empty(0)
    dw, dy = kernels.edge_gradients(paths, adjacency, g, [(w, y, x)], need_y)
    return dx, dy, dw


@tensor_product_backward.register_fake
def _(g, x, y, w, edges, program, need_x, need_y):
    dx = x.new_empty(x.shape) if need_x else x.new_empty(0)
    return dx, y.new_empty(y.shape) if need_y else y.new_empty(0), w.new_empty(w.shape)


@operator("fastlr::tensor_product_double_backward")
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
    need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of S by g, x, Y (empty unless ``need_y``) and w; ``a`` is None where it is zero."""
    paths, adjacency = Program.from_key(program), Adjacency(*edges)
    g, x, a, y, b, w, c = _prepared(paths, adjacency, g=[g], x=[x, a], y=[y, b], w=[w, c])
    kernels, with_a = _kernels(x), [] if a is None else [(w, y, a)]
    dg = kernels.gather(paths, adjacency, [*with_a, (w, b, x), (c, y, x)])
    dx = kernels.gather(paths, adjacency, [(w, b, g), (c, y, g)], transposed=True)
    # by Y: T(a, Y, w; g) + T(x, Y, c; g), and by w: T(a, Y, w; g) + T(x, b, w; g)
    dw, dy = kernels.edge_gradients(paths, adjacency, g, [*with_a, (c, b, x)], need_y)
    return dg, dx, dy, dw


@tensor_product_double_backward.register_fake
def _(a, b, c, g, x, y, w, edges, program, need_y):
    dg, dx, dy, dw = (tensor.new_empty(tensor.shape) for tensor in (g, x, y, w))
    return dg, dx, dy if need_y else y.new_empty(0), dw


def _save(ctx, inputs, tensors: int, options: int = 0):
    """Keep the differentiable inputs and what does not depend on them; ``options`` come last."""
    ctx.options = inputs[len(inputs) - options :]
    *_, edges, program = inputs[: len(inputs) - options]
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
    need_x, need_y = wanted(ctx, 0), wanted(ctx, 1)
    dx, dy, dw = tensor_product_backward(g, x, y, w, edges, ctx.program, need_x, need_y)
    return dx if need_x else None, dy if need_y else None, dw, [None] * len(edges), None


def _setup_backward(ctx, inputs, output):
    _save(ctx, inputs, 4, options=2)


def _backward_derivative(ctx, a, b, c):
    (g, x, y, w), edges = _saved(ctx)
    need_x, had_y = ctx.options
    need_y = wanted(ctx, 2)
    a, b = a if need_x else None, b if had_y else torch.zeros_like(y)
    dg, dx, dy, dw = tensor_product_double_backward(a, b, c, g, x, y, w, edges, ctx.program, need_y)
    return dg, dx, dy if need_y else None, dw, [None] * len(edges), None, None, None


def _setup_double_backward(ctx, inputs, output):
    _save(ctx, inputs, 7, options=1)


def _double_backward_derivative(ctx, dg, dx, dy, dw):
    saved, edges = _saved(ctx)
    names = ("a", "b", "c", "g", "x", "y", "w")
    values = dict(zip((*names, "dg", "dx", "dy", "dw"), (*saved, dg, dx, dy, dw), strict=True))
    if not ctx.options[0]:
        values["dy"] = None
    sums = dict.fromkeys(values)
    # the change of S along (dg, dx, dy, dw) is a sum of T's, and each gives its four gradients
    for x, y, w, g in _CHANGE_OF_S:
        arguments = [values[name] for name in (x, y, w)]
        if any(argument is None for argument in arguments):  # a, or dY that was not asked for
            continue
        gradients = tensor_product_backward(values[g], *arguments, edges, ctx.program, True, True)
        gradients = (*gradients, tensor_product(*arguments, edges, ctx.program))
        for name, gradient in zip((x, y, w, g), gradients, strict=True):
            sums[name] = gradient if sums[name] is None else sums[name] + gradient
    return *(sums[name] for name in names), [None] * len(edges), None, None


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
        self.key = program.key

    def forward(self, x: Tensor, edge_attributes: Tensor, weights: Tensor, edges: Adjacency) -> Tensor:
        """See ``NaiveConvolution.forward``."""
        return tensor_product(x, edge_attributes, weights, list(edges), self.key)
