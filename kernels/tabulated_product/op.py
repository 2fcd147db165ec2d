"""The convolution with weights from a table, as PyTorch operators with derivatives of any order.

With w[e] = sum_j C[e, j] T[interval(e) + j] (``radial_table``) in the convolution's T(x, Y, w; g) (``tensor_product``),

    U(x, Y, C, T; g) = sum_e <g[destination(e)], TP(x[source(e)], Y[e]; w[e])>

is linear in each argument, and

    tabulated_product                   z = dU/dg
    tabulated_product_backward          dU/dx, dU/dY, dU/dC, dU/dT
    tabulated_product_double_backward   gradients of S = U(a, Y, C, T; g) + U(x, b, C, T; g) + U(x, Y, c, T; g) by g, x
                                        and T, where a, b, c are the gradients that arrive at dU/dx, dU/dY, dU/dC

The last is what training on forces needs. Whatever else is asked for, such as second derivatives by positions or third
derivatives, is composed of the operators of ``tensor_product`` and ``radial_table``, which write the weights down.

Each device serves all of it with three kernels,

    gather(program, edges, interval, T, terms, transposed)
        sum over terms (C, Y, v) of dU(v, Y, C, T; .)/dg, or, transposed, of dU(., Y, C, T; v)/dx
    edge_gradients(program, edges, interval, T, g, (C, Y, v))
        dC = dU(v, Y, ., T; g)/dC  and  dY = dU(v, ., C, T; g)/dY
    table_gradient(program, edges, interval, rows of T, g, terms)
        dT = sum over terms (C, Y, v) of dU(v, Y, C, .; g)/dT
"""

from importlib import import_module

import torch
from torch import Tensor, nn

from ..adjacency import Adjacency
from ..autograd import wanted
from ..operators import operator
from ..radial_table import op as radial_table
from ..radial_table.intervals import Intervals
from ..radial_table.naive import ROWS
from ..tensor_product import op as tensor_product
from ..tensor_product.program import Program

_KERNELS = {"cpu": ".cpu", "cuda": ".triton"}  # device type -> module


def _kernels(tensor: Tensor):
    """The module with the kernels for the tensor's device."""
    if tensor.device.type not in _KERNELS:
        raise NotImplementedError(f"no tensor-product kernels for {tensor.device}; use the backend 'reference'")
    return import_module(_KERNELS[tensor.device.type], __package__)


def _prepared(program: Program, edges: Adjacency, interval: Tensor, table: Tensor, *, g=(), x=(), y=(), c=()):
    """All tensors given, contiguous; kernels trust the shapes that are checked here."""
    num_nodes, num_edges = edges.counts
    kinds = (
        (g, "g", (num_nodes, program.irreps_out.dim)),
        (x, "x", (num_nodes, program.irreps_in.dim)),
        (y, "edge attributes", (num_edges, program.irreps_edge.dim)),
        (c, "coefficients", (num_edges, ROWS)),
        ([table], "table", (max(ROWS, table.shape[0]), program.weight_numel)),
        ([interval], "interval", (num_edges,)),
    )
    for tensors, name, shape in kinds:
        dtype = torch.int64 if name == "interval" else table.dtype
        for tensor in tensors:
            if tensor is not None and (tensor.shape != shape or tensor.dtype != dtype):
                raise ValueError(f"{name}: expected {shape} of {dtype}, got {tuple(tensor.shape)} of {tensor.dtype}")
    # looking at numbers on a GPU would wait for it
    if num_edges and interval.device.type == "cpu":
        first, last = (int(value) for value in interval.aminmax())
        if first < 0 or last + ROWS > table.shape[0]:
            raise ValueError(f"interval: edges read rows {first} ... {last + ROWS - 1} of {table.shape[0]}")
    if table.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the tensor product is for float32 and float64, got {table.dtype}")
    return [None if tensor is None else tensor.contiguous() for tensor in (*g, *x, *y, *c, table, interval)]


@operator("fastlr::tabulated_product")
def tabulated_product(
    x: Tensor, y: Tensor, c: Tensor, table: Tensor, edges: list[Tensor], interval: Tensor, program: str
) -> Tensor:
    """z (N, irreps_out.dim) from x (N, irreps_in.dim), Y (E, irreps_edge.dim), C (E, 6) and T (M + 5, weight_numel)."""
    paths, adjacency = Program.from_key(program), Adjacency(*edges)
    x, y, c, table, interval = _prepared(paths, adjacency, interval, table, x=[x], y=[y], c=[c])
    return _kernels(x).gather(paths, adjacency, interval, table, [(c, y, x)])


@tabulated_product.register_fake
def _(x, y, c, table, edges, interval, program):
    return x.new_empty(edges[2].shape[0] - 1, Program.from_key(program).irreps_out.dim)


@operator("fastlr::tabulated_product_backward")
def tabulated_product_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    c: Tensor,
    table: Tensor,
    edges: list[Tensor],
    interval: Tensor,
    program: str,
    need_x: bool,
    need_edges: bool,
    need_table: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dU/dx, dU/dY, dU/dC and dU/dT; those that are not needed are empty, and the two of edges go together."""
    paths, adjacency = Program.from_key(program), Adjacency(*edges)
    g, x, y, c, table, interval = _prepared(paths, adjacency, interval, table, g=[g], x=[x], y=[y], c=[c])
    kernels, (dx, dy, dc, dt) = _kernels(x), (x.new_empty(0) for _ in range(4))
    if need_x:
        dx = kernels.gather(paths, adjacency, interval, table, [(c, y, g)], transposed=True)
    if need_edges:
        dc, dy = kernels.edge_gradients(paths, adjacency, interval, table, g, (c, y, x))
    if need_table:
        dt = kernels.table_gradient(paths, adjacency, interval, table.shape[0], g, [(c, y, x)])
    return dx, dy, dc, dt


@tabulated_product_backward.register_fake
def _(g, x, y, c, table, edges, interval, program, need_x, need_edges, need_table):
    needs = need_x, need_edges, need_edges, need_table
    return tuple(
        t.new_empty(t.shape) if need else x.new_empty(0) for t, need in zip((x, y, c, table), needs, strict=True)
    )


@operator("fastlr::tabulated_product_double_backward")
def tabulated_product_double_backward(
    a: Tensor | None,
    b: Tensor,
    c_change: Tensor,
    g: Tensor,
    x: Tensor,
    y: Tensor,
    c: Tensor,
    table: Tensor,
    edges: list[Tensor],
    interval: Tensor,
    program: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of S by g, x and T; ``a`` is None where it is zero."""
    paths, adjacency = Program.from_key(program), Adjacency(*edges)
    g, x, a, y, b, c, s, table, interval = _prepared(
        paths, adjacency, interval, table, g=[g], x=[x, a], y=[y, b], c=[c, c_change]
    )
    kernels, terms = _kernels(x), [(c, b, x), (s, y, x)]
    terms = terms if a is None else [(c, y, a), *terms]
    dg = kernels.gather(paths, adjacency, interval, table, terms)
    dx = kernels.gather(paths, adjacency, interval, table, [(c, b, g), (s, y, g)], transposed=True)
    return dg, dx, kernels.table_gradient(paths, adjacency, interval, table.shape[0], g, terms)


@tabulated_product_double_backward.register_fake
def _(a, b, c_change, g, x, y, c, table, edges, interval, program):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (g, x, table))


def _setup_forward(ctx, inputs, output):
    *tensors, edges, interval, program = inputs
    ctx.num_tensors, ctx.program = len(tensors), program
    ctx.save_for_backward(*tensors, interval, *edges)


def _setup_backward(ctx, inputs, output):
    ctx.needs = inputs[-3:]
    _setup_forward(ctx, inputs[:-3], output)


def _saved(ctx):
    saved, count = ctx.saved_tensors, ctx.num_tensors
    return saved[:count], list(saved[count + 1 :]), saved[count]


def _forward_derivative(ctx, g):
    tensors, edges, interval = _saved(ctx)
    need_x, need_y, need_c, need_table = (wanted(ctx, k) for k in range(4))
    dx, dy, dc, dt = tabulated_product_backward(
        g, *tensors, edges, interval, ctx.program, need_x, need_y or need_c, need_table
    )
    gradients = [dx if need_x else None, dy if need_y else None, dc if need_c else None, dt if need_table else None]
    return *gradients, [None] * len(edges), None, None


def _backward_derivative(ctx, *changes):
    tensors, edges, interval = _saved(ctx)
    need_x, need_edges, need_table = ctx.needs
    changes = [
        change if need else None
        for change, need in zip(changes, (need_x, need_edges, need_edges, need_table), strict=True)
    ]
    needed = [wanted(ctx, k) for k in range(5)]
    _, need_of_x, need_of_y, need_of_c, _ = needed
    if need_edges and not (need_table or need_of_y or need_of_c or torch.is_grad_enabled()):
        dg, dx, dt = tabulated_product_double_backward(*changes[:3], *tensors, edges, interval, ctx.program)
        gradients = [dg, dx if need_of_x else None, None, None, dt]
    else:
        gradients = _composed(changes, tensors, needed, edges, interval, ctx.program)
    return *gradients, [None] * len(edges), None, None, None, None, None


def _composed(changes, tensors, needed, edges, interval, program) -> list[Tensor | None]:
    """Gradients of the backward pass by other operators, which have derivatives of any order."""
    create_graph = torch.is_grad_enabled()
    intervals = list(Intervals.of(interval, tensors[-1].shape[0] - (ROWS - 1)))
    with torch.enable_grad():
        # as tensors of their own, none of which is made of another
        g, x, y, c, table = leaves = [tensor.view_as(tensor) for tensor in tensors]
        weights = radial_table.values(c, table, intervals)
        asked = [change is not None for change in changes]
        dx, dy, dw = tensor_product.tensor_product_backward(g, x, y, weights, edges, program, *asked[:2])
        dc = radial_table.coefficients_gradient(dw, table, intervals) if asked[2] else None
        dt = radial_table.rows_gradient(c, dw, intervals) if asked[3] else None
        outputs = [(value, changes[k]) for k, value in enumerate((dx, dy, dc, dt)) if asked[k]]
    places = [k for k, need in enumerate(needed) if need]
    found = torch.autograd.grad(
        [value for value, _ in outputs],
        [leaves[k] for k in places],
        [change for _, change in outputs],
        create_graph=create_graph,
        allow_unused=True,
    )
    gradients = [None] * len(leaves)
    for place, gradient in zip(places, found, strict=True):
        gradients[place] = gradient
    return gradients


tabulated_product.register_autograd(_forward_derivative, setup_context=_setup_forward)
tabulated_product_backward.register_autograd(_backward_derivative, setup_context=_setup_backward)


class TabulatedConvolution(nn.Module):
    """Same signature and results as ``NaiveTabulatedConvolution``, by the kernels of the tensors' device."""

    def __init__(self, program: Program):
        super().__init__()
        self.key = program.key

    def forward(
        self,
        x: Tensor,
        edge_attributes: Tensor,
        coefficients: Tensor,
        table: Tensor,
        interval: Tensor,
        edges: Adjacency,
    ) -> Tensor:
        """See ``NaiveTabulatedConvolution.forward``."""
        return tabulated_product(x, edge_attributes, coefficients, table, list(edges), interval, self.key)
