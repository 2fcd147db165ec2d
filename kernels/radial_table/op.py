"""Interpolation from tables as PyTorch operators: devices, fake tensors, and derivatives of any order.

With the trilinear form S(C, T, g) = sum_e sum_j C[e, j] <T[interval(e) + j], g[e]>,

    radial_table_values         w  = dS/dg
    radial_table_coefficients   dC = dS/dC
    radial_table_rows           dT = dS/dT

and each of the three is differentiated by the other two.
"""

from importlib import import_module

import torch
from torch import Tensor

from ..autograd import wanted
from ..operators import operator
from .intervals import Intervals
from .naive import ROWS

_KERNELS = {"cpu": ".cpu", "cuda": ".triton"}  # device type -> module


def _kernels(tensor: Tensor):
    if tensor.device.type not in _KERNELS:
        raise NotImplementedError(f"no radial-table kernels for {tensor.device}; use the backend 'reference'")
    return import_module(_KERNELS[tensor.device.type], __package__)


def _prepared(intervals: list[Tensor], **given: Tensor) -> list[Tensor]:
    """All tensors given, contiguous; kernels trust what is checked here."""
    num_edges, num_rows = intervals[0].shape[0], intervals[2].shape[0] - 1 + ROWS - 1
    shapes = {"coefficients": (num_edges, ROWS), "table": (num_rows, None), "gradient": (num_edges, None)}
    dtype = next(iter(given.values())).dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"radial tables are for float32 and float64, got {dtype}")
    for name, tensor in given.items():
        rows, columns = shapes[name]
        wrong = tensor.ndim != 2 or tensor.shape[0] != rows or (columns and tensor.shape[1] != columns)
        if wrong or tensor.dtype != dtype:
            raise ValueError(
                f"{name}: expected ({rows}, {columns or 'F'}) of {dtype}, got {tuple(tensor.shape)} of {tensor.dtype}"
            )
    if {"table", "gradient"} <= set(given) and given["table"].shape[1] != given["gradient"].shape[1]:
        raise ValueError(f"table and gradient have {given['table'].shape[1]} and {given['gradient'].shape[1]} columns")
    return [tensor.contiguous() for tensor in given.values()]


@operator("fastlr::radial_table_values")
def values(coefficients: Tensor, table: Tensor, intervals: list[Tensor]) -> Tensor:
    """w (E, F) from C (E, 6) and T (M + 5, F)."""
    coefficients, table = _prepared(intervals, coefficients=coefficients, table=table)
    return _kernels(table).values(coefficients, table, Intervals(*intervals))


@values.register_fake
def _(coefficients, table, intervals):
    return table.new_empty(coefficients.shape[0], table.shape[1])


@operator("fastlr::radial_table_coefficients")
def coefficients_gradient(gradient: Tensor, table: Tensor, intervals: list[Tensor]) -> Tensor:
    """dC (E, 6) from g (E, F) and T (M + 5, F)."""
    gradient, table = _prepared(intervals, gradient=gradient, table=table)
    return _kernels(table).coefficients_gradient(gradient, table, Intervals(*intervals))


@coefficients_gradient.register_fake
def _(gradient, table, intervals):
    return gradient.new_empty(gradient.shape[0], ROWS)


@operator("fastlr::radial_table_rows")
def rows_gradient(coefficients: Tensor, gradient: Tensor, intervals: list[Tensor]) -> Tensor:
    """dT (M + 5, F) from C (E, 6) and g (E, F)."""
    coefficients, gradient = _prepared(intervals, coefficients=coefficients, gradient=gradient)
    return _kernels(gradient).rows_gradient(coefficients, gradient, Intervals(*intervals))


@rows_gradient.register_fake
def _(coefficients, gradient, intervals):
    return gradient.new_empty(intervals[2].shape[0] - 1 + ROWS - 1, gradient.shape[1])


def _setup(ctx, inputs, output):
    first, second, intervals = inputs
    ctx.save_for_backward(first, second, *intervals)


def _saved(ctx):
    first, second, *intervals = ctx.saved_tensors
    return first, second, intervals, [None] * len(intervals)


def _of_values(ctx, g):
    coefficients, table, intervals, no = _saved(ctx)
    return (
        coefficients_gradient(g, table, intervals) if wanted(ctx, 0) else None,
        rows_gradient(coefficients, g, intervals) if wanted(ctx, 1) else None,
        no,
    )


def _of_coefficients(ctx, h):
    gradient, table, intervals, no = _saved(ctx)
    return (
        values(h, table, intervals) if wanted(ctx, 0) else None,
        rows_gradient(h, gradient, intervals) if wanted(ctx, 1) else None,
        no,
    )


def _of_rows(ctx, h):
    coefficients, gradient, intervals, no = _saved(ctx)
    return (
        coefficients_gradient(gradient, h, intervals) if wanted(ctx, 0) else None,
        values(coefficients, h, intervals) if wanted(ctx, 1) else None,
        no,
    )


values.register_autograd(_of_values, setup_context=_setup)
coefficients_gradient.register_autograd(_of_coefficients, setup_context=_setup)
rows_gradient.register_autograd(_of_rows, setup_context=_setup)


def interpolate(coefficients: Tensor, table: Tensor, interval: Tensor) -> Tensor:
    """Same result as ``naive.interpolate`` of six rows, by the kernels of the tensors' device.

    Raises:
        ValueError: a shape or float type is wrong.
    """
    return values(coefficients, table, list(Intervals.of(interval, table.shape[0] - (ROWS - 1))))
