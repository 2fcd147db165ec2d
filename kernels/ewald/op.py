"""The real-space sum over pairs of Gaussian charges as PyTorch operators, differentiable to second order.

``coulomb_pairs`` gives phi_i = sum_j f(d_ij) q_j over the entries of a pair list, ``coulomb_pairs_gradient`` the
derivatives of u' A q by positions, squared widths and cells, and ``coulomb_pairs_change`` the derivatives of the latter
along a direction. See ``formulas.py``; everything is float64.
"""

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from ..autograd import wanted
from ..operators import operator
from .pair_list import PairList

BLOCK = 1 << 17  # entries that are looked at together
_KERNELS = {"cpu": ".cpu", "cuda": ".triton"}  # device type -> module


def _kernels(tensor: Tensor):
    if tensor.device.type not in _KERNELS:
        raise NotImplementedError(f"no Coulomb kernels for {tensor.device}; use the backend 'reference'")
    return import_module(_KERNELS[tensor.device.type], __package__)


def _prepared(pairs: list[Tensor], beta: Tensor, **given: Tensor) -> list[Tensor]:
    """All tensors given, contiguous; kernels trust what is checked here."""
    num_nodes, num_structures = pairs[0].shape[0] - 1, beta.shape[0]
    shapes = {
        "charges": (num_nodes,),
        "widths": (num_nodes,),
        "positions": (num_nodes, 3),
        "cell": (num_structures, 3, 3),
    }
    for name, tensor in given.items():
        shape = shapes[name.split("_")[0]]
        if tensor.shape != shape or tensor.dtype != torch.float64:
            raise ValueError(f"{name}: expected {shape} of float64, got {tuple(tensor.shape)} of {tensor.dtype}")
    return [tensor.contiguous() for tensor in given.values()]


@operator("fastlr::coulomb_pairs")
def coulomb_pairs(q: Tensor, x: Tensor, a: Tensor, cell: Tensor, beta: Tensor, pairs: list[Tensor]) -> Tensor:
    """phi (N,) from charges q (N,), positions x (N, 3), squared widths a (N,), cell (B, 3, 3) and beta (B,)."""
    q, x, a, cell = _prepared(pairs, beta, charges=q, positions=x, widths=a, cell=cell)
    return _kernels(x).potential(q, x, a, cell, beta.contiguous(), PairList(*pairs))


@coulomb_pairs.register_fake
def _(q, x, a, cell, beta, pairs):
    return torch.empty_like(q)


@operator("fastlr::coulomb_pairs_gradient")
def coulomb_pairs_gradient(
    u: Tensor, q: Tensor, x: Tensor, a: Tensor, cell: Tensor, beta: Tensor, pairs: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of u' A q by x (N, 3), a (N,) and cell (B, 3, 3)."""
    u, q, x, a, cell = _prepared(pairs, beta, charges_u=u, charges_q=q, positions=x, widths=a, cell=cell)
    pairs = PairList(*pairs)
    dx, da, dcell = _kernels(x).gradient(u, q, x, a, cell, beta.contiguous(), pairs)
    return dx, da, _by_structure(dcell, cell, pairs)


@coulomb_pairs_gradient.register_fake
def _(u, q, x, a, cell, beta, pairs):
    return torch.empty_like(x), torch.empty_like(a), torch.empty_like(cell)


@operator("fastlr::coulomb_pairs_change")
def coulomb_pairs_change(
    dx: Tensor,
    da: Tensor,
    dcell: Tensor,
    u: Tensor,
    q: Tensor,
    x: Tensor,
    a: Tensor,
    cell: Tensor,
    beta: Tensor,
    pairs: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of <(dx, da, dcell), gradient> by u, q, x, a and cell."""
    given = {"positions_dx": dx, "widths_da": da, "cell_d": dcell}
    given |= {"charges_u": u, "charges_q": q, "positions": x, "widths": a, "cell": cell}
    dx, da, dcell, u, q, x, a, cell = _prepared(pairs, beta, **given)
    pairs = PairList(*pairs)
    *rest, by_cell = _kernels(x).change(dx, da, dcell, u, q, x, a, cell, beta.contiguous(), pairs)
    return *rest, _by_structure(by_cell, cell, pairs)


@coulomb_pairs_change.register_fake
def _(dx, da, dcell, u, q, x, a, cell, beta, pairs):
    return tuple(torch.empty_like(tensor) for tensor in (u, q, x, a, cell))


def _by_structure(rows: Tensor, cell: Tensor, pairs: PairList) -> Tensor:
    """(N, 9) -> (B, 3, 3), summed over the atoms of each structure."""
    return torch.zeros_like(cell).view(-1, 9).index_add_(0, pairs.batch, rows).view_as(cell)


def _setup(ctx, inputs, output):
    *tensors, pairs = inputs
    ctx.save_for_backward(*tensors, *pairs)


def _of_potential(ctx, u):
    *tensors, beta = ctx.saved_tensors[:5]
    pairs = list(ctx.saved_tensors[5:])
    q, x, a, cell = tensors
    dq = coulomb_pairs(u, x, a, cell, beta, pairs) if wanted(ctx, 0) else None
    rest = [None] * 3
    if any(wanted(ctx, k) for k in (1, 2, 3)):
        rest = coulomb_pairs_gradient(u, q, x, a, cell, beta, pairs)
    return dq, *rest, None, [None] * len(pairs)


def _of_gradient(ctx, dx, da, dcell):
    *tensors, beta = ctx.saved_tensors[:6]
    pairs = list(ctx.saved_tensors[6:])
    return *coulomb_pairs_change(dx, da, dcell, *tensors, beta, pairs), None, [None] * len(pairs)


coulomb_pairs.register_autograd(_of_potential, setup_context=_setup)
coulomb_pairs_gradient.register_autograd(_of_gradient, setup_context=_setup)


def pair_values(x: Tensor, a: Tensor, cell: Tensor, beta: Tensor, pairs: PairList) -> Tensor:
    """f (P,) of each entry, without a derivative."""
    x, a, cell = (tensor.detach().contiguous() for tensor in (x, a, cell))
    return _kernels(x).values(x, a, cell, beta.contiguous(), pairs)


def pair_pull(
    u: Tensor, q: Tensor, x: Tensor, a: Tensor | None, cell: Tensor, beta: Tensor, pairs: PairList
) -> tuple[Tensor, Tensor, Tensor]:
    """phi (N,) of the charges q, and the derivatives of u' A q by x (N, 3) and cell (B, 3, 3); without derivatives.

    Point charges have no a.
    """
    given = {"charges_u": u, "charges_q": q, "positions": x, "cell": cell} | ({} if a is None else {"widths": a})
    u, q, x, cell, *_ = _prepared(list(pairs), beta, **given)
    phi, dx, rows = _kernels(x).pull(u, q, x, a if a is None else a.contiguous(), cell, beta.contiguous(), pairs)
    return phi, dx, _by_structure(rows, cell, pairs)


def pair_product(values: Tensor, q: Tensor, pairs: PairList) -> Tensor:
    """sum_j f q_j (N,) from the values f (P,) of ``pair_values`` and charges q (N,), without a derivative."""
    return _kernels(q).product(values, q.contiguous(), pairs)


def largest_row(values: Callable[[slice], Tensor], ptr: Tensor) -> float:
    """The largest sum of absolute values over a row of a pair list; zero without one.

    Args:
        values: those of some entries; they are asked for a block of rows at a time, so that not all are there at once.
    """
    largest, last, ends = 0.0, 0, len(ptr) - 1
    while last < ends:
        first = last
        last = max(first + 1, int(torch.searchsorted(ptr, ptr[first] + BLOCK, right=True)) - 1)
        own = ptr[first : last + 1]
        entries = slice(int(own[0]), int(own[-1]))
        before = torch.nn.functional.pad(values(entries).abs().cumsum(0, dtype=torch.float64), (1, 0))
        largest = max(largest, float(before.index_select(0, own - own[0]).diff().max()))
    return largest
