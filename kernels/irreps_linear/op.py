"""The linear map of irreps as PyTorch operators with derivatives of any order.

With T(x, W, g) = <apply(x, W), g>, which is linear in each argument,

    irreps_linear             dT/dg, or transposed dT/dx
    irreps_linear_weights     dT/dW

and each is differentiated by the other.
"""

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from ..autograd import wanted
from ..operators import operator
from .layout import Layout

_KERNELS = {"cpu": ".cpu"}  # device type -> module; elsewhere PyTorch does the specification itself
if find_spec("triton") is not None:
    _KERNELS["cuda"] = ".triton"


def _kernels(tensor: Tensor):
    return import_module(_KERNELS.get(tensor.device.type, ".naive"), __package__)


def _check(layout: Layout, weights: Tensor | None, *sides: tuple[Tensor, int]) -> None:
    dtype = sides[0][0].dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the linear map is for float32 and float64, got {dtype}")
    for tensor, width in sides:
        if tensor.ndim != 2 or tensor.shape[1] != width or tensor.dtype != dtype:
            raise ValueError(f"features: expected (N, {width}) of {dtype}, got {tuple(tensor.shape)} of {tensor.dtype}")
        if tensor.shape[0] != sides[0][0].shape[0]:
            raise ValueError(f"features: {tensor.shape[0]} rows, but {sides[0][0].shape[0]} on the other side")
    if weights is not None and (weights.shape != (layout.num_weights,) or weights.dtype != dtype):
        raise ValueError(f"weights: expected ({layout.num_weights},) of {dtype}, got {tuple(weights.shape)}")


@operator("fastlr::irreps_linear")
def irreps_linear(x: Tensor, weights: Tensor, layout: str, transposed: bool) -> Tensor:
    """(N, dim_in) -> (N, dim_out), or transposed."""
    blocks = Layout.from_key(layout)
    _check(blocks, weights, (x, blocks.dim_out if transposed else blocks.dim_in))
    return _kernels(x).apply(x.contiguous(), weights.contiguous(), blocks, transposed)


@irreps_linear.register_fake
def _(x, weights, layout, transposed):
    blocks = Layout.from_key(layout)
    return x.new_empty(x.shape[0], blocks.dim_in if transposed else blocks.dim_out)


@operator("fastlr::irreps_linear_weights")
def irreps_linear_weights(x: Tensor, g: Tensor, layout: str) -> Tensor:
    """(weights,) from x (N, dim_in) and g (N, dim_out)."""
    blocks = Layout.from_key(layout)
    _check(blocks, None, (x, blocks.dim_in), (g, blocks.dim_out))
    return _kernels(x).weight_gradient(x.contiguous(), g.contiguous(), blocks)


@irreps_linear_weights.register_fake
def _(x, g, layout):
    return x.new_empty(Layout.from_key(layout).num_weights)


def _setup_linear(ctx, inputs, output):
    x, weights, ctx.layout, ctx.transposed = inputs
    ctx.save_for_backward(x, weights)


def _of_linear(ctx, g):
    x, weights = ctx.saved_tensors
    dx = irreps_linear(g, weights, ctx.layout, not ctx.transposed) if wanted(ctx, 0) else None
    sides = (g, x) if ctx.transposed else (x, g)
    dw = irreps_linear_weights(*sides, ctx.layout) if wanted(ctx, 1) else None
    return dx, dw, None, None


def _setup_weights(ctx, inputs, output):
    x, g, ctx.layout = inputs
    ctx.save_for_backward(x, g)


def _of_weights(ctx, h):
    x, g = ctx.saved_tensors
    dx = irreps_linear(g, h, ctx.layout, True) if wanted(ctx, 0) else None
    dg = irreps_linear(x, h, ctx.layout, False) if wanted(ctx, 1) else None
    return dx, dg, None


irreps_linear.register_autograd(_of_linear, setup_context=_setup_linear)
irreps_linear_weights.register_autograd(_of_weights, setup_context=_setup_weights)
