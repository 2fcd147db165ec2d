"""Projected solves for many small structures as PyTorch operators: devices, fake tensors, derivatives of any order.

``factorise`` prepares the matrices H, ``solve`` gives the charges q and multipliers mu of

    | H   1 | | q  |   | rhs   |
    | 1'  0 | | mu | = | total |

The matrix on the left is symmetric and the solve linear in (rhs, total), so the derivative of ``solve`` is ``solve``.
Derivatives by H follow from charges and adjoint charges (see ``naive.py``) and are no business of this file.

On CPUs the kernels factorise. GPUs iterate: see ``batched_triton`` for what "positive definite" means there.
"""

from functools import partial
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from ..operators import operator

_KERNELS = {"cpu": ".batched_cpu", "cuda": ".batched_triton"}  # device type -> module


class Factor(NamedTuple):
    """What ``solve`` needs to know of the matrices; only the kernels of its device can read it.

    Attributes:
        matrix: the Cholesky factors on CPUs, the matrices themselves on GPUs.
        response: H^-1 1 on CPUs, the preconditioner times 1 on GPUs.
        response_sum: (B,) the sum of that over the atoms of each structure.
        order, work: how structures are grouped.
        sizes: (B,) number of atoms.
    """

    matrix: Tensor
    response: Tensor
    response_sum: Tensor
    order: Tensor
    work: Tensor
    sizes: Tensor


def _kernels(tensor: Tensor):
    if tensor.device.type not in _KERNELS:
        raise NotImplementedError(f"no charge-solver kernels for {tensor.device}; use the backend 'reference'")
    return import_module(_KERNELS[tensor.device.type], __package__)


def _check(name: str, tensor: Tensor, shape: tuple, dtype: torch.dtype) -> Tensor:
    """The tensor, contiguous; kernels trust what is checked here."""
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(f"{name}: expected {tuple(shape)} of {dtype}, got {tuple(tensor.shape)} of {tensor.dtype}")
    return tensor.contiguous()


@operator("fastlr::charge_factorise")
def charge_factorise(matrix: Tensor, sizes: Tensor) -> list[Tensor]:
    """All of a ``Factor`` but the sizes, from H (B, n, n) and the sizes (B,)."""
    if matrix.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the charge solver is for float32 and float64, got {matrix.dtype}")
    num_structures, n = matrix.shape[0], matrix.shape[-1]
    matrix = _check("matrix", matrix, (num_structures, n, n), matrix.dtype)
    sizes = _check("sizes", sizes, (num_structures,), torch.int64)
    return _kernels(matrix).factorise(matrix, sizes)


@partial(charge_factorise.register_fake, by_device=True)
def _(matrix, sizes):
    return _kernels(matrix).empty_factor(matrix)


@operator("fastlr::charge_solve")
def charge_solve(factor: list[Tensor], rhs: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """q (B, n) and mu (B,) from a ``Factor``, rhs (B, n) and total (B,)."""
    factor = Factor(*factor)
    num_structures, dtype = factor.sizes.shape[0], factor.matrix.dtype
    rhs = _check("rhs", rhs, (num_structures, rhs.shape[-1]), dtype)
    total = _check("total", total, (num_structures,), dtype)
    return _kernels(rhs).solve(factor, rhs, total)


@charge_solve.register_fake
def _(factor, rhs, total):
    return rhs.new_empty(rhs.shape), total.new_empty(total.shape)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[0])


def _derivative(ctx, grad_charges, grad_multiplier):
    factor = list(ctx.saved_tensors)
    return [None] * len(factor), *charge_solve(factor, grad_charges, grad_multiplier)


charge_solve.register_autograd(_derivative, setup_context=_setup)


def factorise(matrix: Tensor, sizes: Tensor) -> Factor:
    """Prepare the solves with some matrices.

    Args:
        matrix: (B, n, n) symmetric H in eV/e^2, float64 or float32. Rows and columns at and beyond ``sizes[b]`` are
            ignored, whatever stands there. Not differentiated.
        sizes: (B,) int64 number of atoms, 0 ... n.

    Raises:
        IndefiniteError: some H is not positive definite or not finite. On GPUs only the elements are looked at here;
            what more there is to find comes out in ``solve``.
        ValueError: a shape, type or size is wrong.
    """
    return Factor(*charge_factorise(matrix.detach(), sizes), sizes)


def solve(factor: Factor, rhs: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Charges and multipliers; differentiable in ``rhs`` and ``total`` to any order.

    Args:
        rhs: (B, n) in eV/e, minus the electronegativities; ignored at and beyond the sizes.
        total: (B,) sum of the charges, e.

    Returns:
        q (B, n) e, zero at and beyond the sizes; mu (B,) eV/e, zero for structures without atoms.

    Raises:
        IndefiniteError: on GPUs, the iteration met negative curvature or did not converge.
        ValueError: a shape or type is wrong.
    """
    return charge_solve(list(factor), rhs, total)
