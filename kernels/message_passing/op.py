"""The interaction layer for inference as PyTorch operators with derivatives of any order, in one pass over the atoms.

    message_passing_forward     y and gate(y) of ``naive.message_passing``
    message_passing_backward    derivatives of <gate(y), g> by h, x, the further attributes, the harmonics and the place
                                in the radial table

Weights are those of a trained model and have no derivative; second and higher derivatives are left to the
specification. Plans run the same kernels on buffers of their own (``cpu.forward_call``, ``cpu.backward_call``).
"""

from importlib import import_module

import torch
from torch import Tensor

from ..operators import operator
from . import naive
from .shape import EdgeData, LayerShape, LayerWeights

_KERNELS = {"cpu": ".cpu"}  # device type -> module
_LEAVES = 5  # h, x, own attributes, harmonics, place: the first tensors of both operators


def _kernels(tensor: Tensor):
    if tensor.device.type not in _KERNELS:
        raise NotImplementedError(f"no layer kernels for {tensor.device}; use the backend 'reference'")
    return import_module(_KERNELS[tensor.device.type], __package__)


def _prepared(shape: LayerShape, tensors: list[Tensor]):
    """Tensors and weights of a layer as the kernels take them; they trust what is checked here."""
    h, x, own, harmonics, place, begin, end, source, interval, species, *weights = tensors
    n, num_edges, connection = species.shape[0], source.shape[0], shape.connection
    maps = connection.num_weights if connection else 0
    rows = {
        "h": (h, (None if shape.by_species else n, shape.program.irreps_in.dim)),
        "own": (own, (n, shape.num_own)),
        "harmonics": (harmonics, (num_edges, shape.program.irreps_edge.dim)),
        "place": (place, (num_edges,)),
        "table": (weights[0], (None, shape.program.weight_numel)),
        "linear": (weights[1], (shape.linear.num_weights,)),
    }
    if connection:
        rows |= {"x": (x, (n, connection.dim_in)), "connections": (weights[2], (None, maps))}
        rows |= {"own_connections": (weights[3], (shape.num_own, maps))}
    for name, (tensor, wanted) in rows.items():
        wanted = tuple(size if size is not None else found for size, found in zip(wanted, tensor.shape, strict=True))
        if tuple(tensor.shape) != wanted or tensor.dtype != h.dtype:
            raise ValueError(f"{name}: expected {wanted} of {h.dtype}, got {tuple(tensor.shape)} of {tensor.dtype}")
    for name, tensor, size in (("begin", begin, n), ("end", end, n), ("interval", interval, num_edges)):
        if tuple(tensor.shape) != (size,) or tensor.dtype != torch.int64:
            raise ValueError(f"{name}: expected ({size},) of torch.int64, got {tuple(tensor.shape)} of {tensor.dtype}")
    given = (tensor.contiguous() for tensor in tensors)
    h, x, own, harmonics, place, begin, end, source, interval, species, *weights = given
    edges = EdgeData(begin, end, source, harmonics, place, interval)
    return (h, x, own, edges, species), LayerWeights(*weights)


@operator("fastlr::message_passing_forward")
def message_passing_forward(tensors: list[Tensor], shape: str) -> tuple[Tensor, Tensor]:
    """y (N, gate.dim_in) and gate(y) (N, gate.dim_out)."""
    layer = LayerShape.from_key(shape)
    read, weights = _prepared(layer, tensors)
    kernels = _kernels(tensors[0])
    return kernels.forward(layer, kernels.LayerTensors(*read), weights)


@message_passing_forward.register_fake
def _(tensors, shape):
    gate, n = LayerShape.from_key(shape).gate, tensors[9].shape[0]
    return tensors[0].new_empty(n, gate.dim_in), tensors[0].new_empty(n, gate.dim_out)


@operator("fastlr::message_passing_backward")
def message_passing_backward(
    tensors: list[Tensor], y: Tensor, gradient: Tensor, shape: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Derivatives by h, x, the further attributes, the harmonics and the place; that by h is zero by species."""
    layer = LayerShape.from_key(shape)
    read, weights = _prepared(layer, tensors)
    kernels = _kernels(tensors[0])
    found = kernels.backward(layer, kernels.LayerTensors(*read), weights, y.contiguous(), gradient.contiguous())
    return found.h, found.x, found.own, found.harmonics, found.place


@message_passing_backward.register_fake
def _(tensors, y, gradient, shape):
    return tuple(torch.empty_like(tensor) for tensor in tensors[:_LEAVES])


def _setup_forward(ctx, inputs, output):
    tensors, ctx.shape = inputs
    ctx.save_for_backward(*tensors, output[0])


def _of_forward(ctx, by_y, gradient):
    *tensors, y = ctx.saved_tensors
    found = message_passing_backward(tensors, y.detach(), gradient, ctx.shape)
    return [*found, *[None] * (len(tensors) - _LEAVES)], None


def _setup_backward(ctx, inputs, output):
    tensors, _, gradient, ctx.shape = inputs
    ctx.save_for_backward(*tensors, gradient)


def _of_backward(ctx, *probes):
    """By PyTorch, through the specification."""
    *tensors, gradient = ctx.saved_tensors
    with torch.enable_grad():
        leaves = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors[:_LEAVES]]
        gradient = gradient.view_as(gradient) if gradient.requires_grad else gradient.detach().requires_grad_()
        out = _specified([*leaves, *tensors[_LEAVES:]], ctx.shape)
        first = torch.autograd.grad(out, leaves, gradient, create_graph=True, materialize_grads=True)
        total = sum((value * probe).sum() for value, probe in zip(first, probes, strict=True))
        found = torch.autograd.grad(total, [*leaves, gradient], create_graph=True, materialize_grads=True)
    return [*found[:-1], *[None] * (len(tensors) - _LEAVES)], None, found[-1], None


def _specified(tensors: list[Tensor], shape: str) -> Tensor:
    h, x, own, harmonics, place, begin, end, source, interval, species, *weights = tensors
    edges = EdgeData(begin, end, source, harmonics, place, interval)
    return naive.message_passing(h, x, own, edges, species, LayerWeights(*weights), shape)


message_passing_forward.register_autograd(_of_forward, setup_context=_setup_forward)
message_passing_backward.register_autograd(_of_backward, setup_context=_setup_backward)


def message_passing(
    h: Tensor, x: Tensor, own: Tensor, edges: EdgeData, species: Tensor, weights: LayerWeights, shape: str
) -> Tensor:
    """Same result as ``naive.message_passing``, by the kernels of the tensors' device.

    Raises:
        ValueError: a shape or type is wrong, or a weight asks for a gradient, which the kernels do not give.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in weights):
        raise ValueError("weights of the fused layer have no gradient; use the backend 'reference'")
    begin, end, source, harmonics, place, interval = edges
    described = [h, x, own, harmonics, place, begin, end, source, interval, species]
    return message_passing_forward([*described, *weights], shape)[1]
