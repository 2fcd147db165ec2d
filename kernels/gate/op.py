"""The gate as PyTorch operators with derivatives of any order: the third and higher ones by the specification."""

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from ..operators import operator
from . import naive
from .layout import GateLayout

_KERNELS = {"cpu": ".cpu"}  # device type -> module; elsewhere PyTorch does the specification itself
if find_spec("triton") is not None:
    _KERNELS["cuda"] = ".triton"


def gate(x: Tensor, layout: str) -> Tensor:
    """(N, dim_in) -> (N, dim_out) by the kernels of the device, where there are some.

    Args:
        layout: key of a ``GateLayout``.

    Raises:
        ValueError: a wrong shape or float type.
    """
    if x.device.type not in _KERNELS:
        return naive.gate(x, layout)
    return gate_op(x, layout)


def _prepared(layout: str, *tensors: Tensor) -> tuple[GateLayout, list[Tensor]]:
    """The layout, and the tensors contiguous; kernels trust what is checked here."""
    found = GateLayout.from_key(layout)
    rows, dtype = tensors[0].shape[0], tensors[0].dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the gate is for float32 and float64, got {dtype}")
    for tensor, width in zip(tensors, (found.dim_in, found.dim_out, found.dim_in), strict=False):
        if tensor.shape != (rows, width) or tensor.dtype != dtype:
            raise ValueError(
                f"gate: expected ({rows}, {width}) of {dtype}, got {tuple(tensor.shape)} of {tensor.dtype}"
            )
    return found, [tensor.contiguous() for tensor in tensors]


def _kernels(tensor: Tensor):
    return import_module(_KERNELS[tensor.device.type], __package__)


@operator("fastlr::gate")
def gate_op(x: Tensor, layout: str) -> Tensor:
    """(N, dim_in) -> (N, dim_out)."""
    found, (x,) = _prepared(layout, x)
    return _kernels(x).gate(x, found)


@gate_op.register_fake
def _(x, layout):
    return x.new_empty(x.shape[0], GateLayout.from_key(layout).dim_out)


@operator("fastlr::gate_backward")
def gate_backward(x: Tensor, g: Tensor, layout: str) -> Tensor:
    """(N, dim_in), derivative of <gate(x), g> by x."""
    found, (x, g) = _prepared(layout, x, g)
    return _kernels(x).backward(x, g, found)


@gate_backward.register_fake
def _(x, g, layout):
    return x.new_empty(x.shape)


@operator("fastlr::gate_double_backward")
def gate_double_backward(x: Tensor, g: Tensor, v: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """(N, dim_in) and (N, dim_out), derivatives of <gate_backward(x, g), v> by x and g."""
    found, (x, g, v) = _prepared(layout, x, g, v)
    return _kernels(x).double_backward(x, g, v, found)


@gate_double_backward.register_fake
def _(x, g, v, layout):
    return x.new_empty(x.shape), g.new_empty(g.shape)


def _setup(ctx, inputs, output):
    *tensors, ctx.layout = inputs
    ctx.save_for_backward(*tensors)


def _first(ctx, g):
    (x,) = ctx.saved_tensors
    return gate_backward(x, g, ctx.layout), None


def _second(ctx, v):
    x, g = ctx.saved_tensors
    return *gate_double_backward(x, g, v, ctx.layout), None


def _third(ctx, *probes):
    """By PyTorch, through the specification."""
    tensors = ctx.saved_tensors
    with torch.enable_grad():
        x, g, v = own = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors]
        z = naive.gate(x, ctx.layout)
        (dx,) = torch.autograd.grad(z, x, g, create_graph=True)
        pair = torch.autograd.grad(dx, (x, g), v, create_graph=True, materialize_grads=True)
        total = sum((value * probe).sum() for value, probe in zip(pair, probes, strict=True))
        found = torch.autograd.grad(total, own, create_graph=True, materialize_grads=True)
    return *found, None


gate_op.register_autograd(_first, setup_context=_setup)
gate_backward.register_autograd(_second, setup_context=_setup)
gate_double_backward.register_autograd(_third, setup_context=_setup)
