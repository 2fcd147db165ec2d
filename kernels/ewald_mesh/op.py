"""Gathering from a periodic mesh and spreading to it as PyTorch operators, differentiable to any order.

With the bilinear form S(mesh, c) = sum_i sum_k mesh[k] c_i . jet_i(k) of a jet of order d (see ``naive.py``),

    mesh_gather    dS/dc      mesh_spread    dS/dmesh

and dS/dx_i contracts c_i with a jet of order d + 1 gathered from the mesh: two operators are closed under
differentiation. Kernels do the orders 0, 1 and 2, which second derivatives of energies need; what is beyond is left to
the specification.
"""

from importlib import import_module

import torch
from torch import Tensor

from ..autograd import wanted
from ..operators import operator
from . import naive
from .bins import Bins, segments
from .naive import ORDERS, components, differentiated

HIGHEST = 2  # order of the jets that kernels do

_KERNELS = {"cpu": ".cpu", "cuda": ".triton"}  # device type -> module


def _kernels(tensor: Tensor):
    if tensor.device.type not in _KERNELS:
        raise NotImplementedError(f"no particle-mesh kernels for {tensor.device}; use the backend 'reference'")
    return import_module(_KERNELS[tensor.device.type], __package__)


def _check(x: Tensor, dims: list[int], p: int, order: int = 0, **given: tuple[Tensor, tuple]) -> None:
    """Kernels trust what is checked here; ``given`` maps names to tensors and their expected shapes."""
    if p not in ORDERS:
        raise ValueError(f"splines are of order {ORDERS[0]} to {ORDERS[-1]}, got {p}")
    if order < 0:
        raise ValueError(f"the order of a jet is not negative, got {order}")
    if len(dims) != 3 or min(dims) < p:
        raise ValueError(f"a mesh has three axes of at least p = {p} points, got {tuple(dims)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"particle meshes are for float32 and float64, got {x.dtype}")
    given["x"] = x, (x.shape[0] if x.ndim else "N", 3)
    for name, (tensor, shape) in given.items():
        if tuple(tensor.shape) != shape or tensor.dtype != x.dtype:
            raise ValueError(f"{name}: expected {shape} of {x.dtype}, got {tuple(tensor.shape)} of {tensor.dtype}")


def _check_bins(bins: list[Tensor], x: Tensor, dims: list[int]) -> Bins:
    bins = Bins(*bins)
    shapes = (len(x),), (dims[0] * dims[1] * segments(dims[2]) + 1,), (len(x), 3), (len(x), 3)
    if any(tuple(tensor.shape) != shape for tensor, shape in zip(bins, shapes, strict=True)):
        raise ValueError(f"the bins belong to other atoms than these {len(x)}, or to another mesh than {tuple(dims)}")
    if bins.place.dtype != x.dtype:
        raise ValueError(f"bins: expected places of {x.dtype}, got {bins.place.dtype}")
    return Bins(*(tensor.contiguous() for tensor in bins))


@operator("fastlr::mesh_bins")
def mesh_bins(x: Tensor, dims: list[int], p: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``bins.Bins`` of atoms at mesh coordinates x (N, 3); has no derivative."""
    _check(x, dims, p)
    return tuple(_kernels(x).sort(x.contiguous(), tuple(dims), p))


@mesh_bins.register_fake
def _(x, dims, p):
    integers = x.new_empty(x.shape[0], dtype=torch.int64)
    ptr = integers.new_empty(dims[0] * dims[1] * segments(dims[2]) + 1)
    return integers, ptr, torch.empty_like(x, dtype=torch.int64), torch.empty_like(x)


@operator("fastlr::mesh_gather")
def mesh_gather(mesh: Tensor, x: Tensor, bins: list[Tensor], order: int, p: int) -> Tensor:
    """(N, components) from a mesh (n1, n2, n3), mesh coordinates x (N, 3) and their bins."""
    dims = list(mesh.shape)
    _check(x, dims, p, order, mesh=(mesh, tuple(dims)))
    if order > HIGHEST:
        return naive.gather(mesh, x, order, p)
    return _kernels(x).gather(mesh.contiguous(), _check_bins(bins, x, dims), order, p)


@mesh_gather.register_fake
def _(mesh, x, bins, order, p):
    return x.new_empty(x.shape[0], len(components(order)))


@operator("fastlr::mesh_spread")
def mesh_spread(c: Tensor, x: Tensor, bins: list[Tensor], dims: list[int], order: int, p: int) -> Tensor:
    """A mesh (n1, n2, n3) from c (N, components), mesh coordinates x (N, 3) and their bins."""
    _check(x, dims, p, order, c=(c, (x.shape[0], len(components(max(order, 0))))))
    if order > HIGHEST:
        return naive.spread(c, x, tuple(dims), order, p)
    return _kernels(x).spread(c.contiguous(), _check_bins(bins, x, dims), tuple(dims), order, p)


@mesh_spread.register_fake
def _(c, x, bins, dims, order, p):
    return c.new_empty(dims)


def _by_place(c: Tensor, jet: Tensor, order: int) -> Tensor:
    """dS/dx (N, 3) from c (N, components) of one order and what was gathered of the next."""
    return torch.stack(
        [
            sum(c[:, n] * jet[:, higher[axis]] for n, higher in enumerate(differentiated(order)))
            for axis in range(3)
        ],
        dim=1,
    )  # fmt: skip


def _setup_gather(ctx, inputs, output):
    mesh, x, bins, ctx.order, ctx.p = inputs
    ctx.save_for_backward(mesh, x, *bins)


def _of_gather(ctx, g):
    mesh, x, *bins = ctx.saved_tensors
    order, p = ctx.order, ctx.p
    dmesh = mesh_spread(g, x, bins, list(mesh.shape), order, p) if wanted(ctx, 0) else None
    dx = _by_place(g, mesh_gather(mesh, x, bins, order + 1, p), order) if wanted(ctx, 1) else None
    return dmesh, dx, [None] * len(bins), None, None


def _setup_spread(ctx, inputs, output):
    c, x, bins, _, ctx.order, ctx.p = inputs
    ctx.save_for_backward(c, x, *bins)


def _of_spread(ctx, g):
    c, x, *bins = ctx.saved_tensors
    order, p, dc, dx = ctx.order, ctx.p, None, None
    if wanted(ctx, 1):  # the jet of the next order begins with that of this one
        jet = mesh_gather(g, x, bins, order + 1, p)
        dc, dx = jet[:, : c.shape[1]], _by_place(c, jet, order)
    elif wanted(ctx, 0):
        dc = mesh_gather(g, x, bins, order, p)
    return dc, dx, [None] * len(bins), None, None, None


mesh_gather.register_autograd(_of_gather, setup_context=_setup_gather)
mesh_spread.register_autograd(_of_spread, setup_context=_setup_spread)


def bins_of(x: Tensor, dims: tuple[int, int, int], p: int) -> list[Tensor]:
    """The bins of atoms at x (N, 3), for ``gather`` and ``spread``; they hold as long as x does not change."""
    return list(mesh_bins(x.detach(), list(dims), p))


def gather(mesh: Tensor, x: Tensor, order: int, p: int, bins: list[Tensor] | None = None) -> Tensor:
    """Same result as ``naive.gather``, by the kernels of the tensors' device."""
    return mesh_gather(mesh, x, bins_of(x, mesh.shape, p) if bins is None else bins, order, p)


def spread(
    c: Tensor, x: Tensor, dims: tuple[int, int, int], order: int, p: int, bins: list[Tensor] | None = None
) -> Tensor:
    """Same result as ``naive.spread``, by the kernels of the tensors' device."""
    return mesh_spread(c, x, bins_of(x, dims, p) if bins is None else bins, list(dims), order, p)


MESH = naive.Mesh(gather, spread)


def stencils(x: Tensor, dims: tuple[int, int, int], p: int):
    """``Stencils`` of the tensors' device."""
    _check(x, list(dims), p)
    own = getattr(_kernels(x), "Stencils", Stencils)
    return own(x.detach().contiguous(), tuple(dims), p)


class Stencils:
    """Spreading from and gathering to atoms at x (N, 3) that stay where they are: many times, without derivatives.

    What is returned may be overwritten by the next call. Arguments are contiguous.
    """

    def __init__(self, x: Tensor, dims: tuple[int, int, int], p: int):
        self.dims, self.p, self.kernels = dims, p, _kernels(x)
        self.bins = Bins(*self.kernels.sort(x, dims, p))

    def spread(self, charges: Tensor) -> Tensor:
        """A mesh from charges (N,)."""
        return self.kernels.spread(charges[:, None], self.bins, self.dims, 0, self.p)

    def gather(self, mesh: Tensor) -> Tensor:
        """(N,) from a mesh."""
        return self.kernels.gather(mesh, self.bins, 0, self.p)[:, 0]
