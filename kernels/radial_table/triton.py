"""Interpolation from tables for GPUs.

One program an edge and block of columns, or, for the gradient of the table, one program a row and block of columns,
which walks the edges of the six intervals that read the row. Nothing is scattered and no atomics are needed.
"""

import triton
import triton.language as tl
from torch import Tensor

from .intervals import Intervals
from .naive import ROWS

BLOCK = 128


def values(coefficients: Tensor, table: Tensor, intervals: Intervals) -> Tensor:
    """See ``op.values``."""
    num_edges, width = coefficients.shape[0], table.shape[1]
    out = table.new_empty(num_edges, width)
    if num_edges and width:
        grid = (num_edges, triton.cdiv(width, BLOCK))
        values_kernel[grid](out, coefficients, table, intervals.interval, width, ROWS=ROWS, BLOCK=BLOCK, num_warps=4)
    return out


def coefficients_gradient(gradient: Tensor, table: Tensor, intervals: Intervals) -> Tensor:
    """See ``op.coefficients_gradient``."""
    num_edges, width = gradient.shape
    out = gradient.new_empty(num_edges, ROWS)
    if num_edges:
        coefficients_kernel[(num_edges,)](
            out, gradient, table, intervals.interval, width, ROWS=ROWS, BLOCK=BLOCK, num_warps=1
        )
    return out


def rows_gradient(coefficients: Tensor, gradient: Tensor, intervals: Intervals) -> Tensor:
    """See ``op.rows_gradient``."""
    num_intervals, width = intervals.ptr.shape[0] - 1, gradient.shape[1]
    out = gradient.new_empty(num_intervals + ROWS - 1, width)
    if width:
        grid = (out.shape[0], triton.cdiv(width, BLOCK))
        rows_kernel[grid](
            out, coefficients, gradient, intervals.order, intervals.ptr, num_intervals, width,
            ROWS=ROWS, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return out


@triton.jit
def values_kernel(out, coefficients, table, interval, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out[e] = sum_j C[e, j] T[interval(e) + j]"""
    e = tl.program_id(0).to(tl.int64)
    u = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = u < width
    row = table + tl.load(interval + e).to(tl.int64) * width + u
    total = tl.zeros([BLOCK], out.dtype.element_ty)
    for j in tl.static_range(ROWS):
        total += tl.load(coefficients + e * ROWS + j) * tl.load(row + j * width, mask=inside, other=0.0)
    tl.store(out + e * width + u, total, mask=inside)


@triton.jit
def coefficients_kernel(out, gradient, table, interval, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out[e, j] = <T[interval(e) + j], g[e]>"""
    e = tl.program_id(0).to(tl.int64)
    row = table + tl.load(interval + e).to(tl.int64) * width
    for j in tl.static_range(ROWS):
        total = tl.zeros([BLOCK], out.dtype.element_ty)
        for start in range(0, width, BLOCK):
            u = start + tl.arange(0, BLOCK)
            g = tl.load(gradient + e * width + u, mask=u < width, other=0.0)
            total += g * tl.load(row + j * width + u, mask=u < width, other=0.0)
        tl.store(out + e * ROWS + j, tl.sum(total, axis=0))


@triton.jit
def rows_kernel(out, coefficients, gradient, order, ptr, num_intervals, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out[k] = sum over the edges e and j with interval(e) + j = k of C[e, j] g[e]"""
    k = tl.program_id(0)
    u = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = u < width
    total = tl.zeros([BLOCK], out.dtype.element_ty)
    for j in tl.static_range(ROWS):
        m = k - j
        here = (m >= 0) & (m < num_intervals)
        first = tl.load(ptr + m, mask=here, other=0)
        last = tl.load(ptr + m + 1, mask=here, other=0)
        for index in range(first, last):
            e = tl.load(order + index).to(tl.int64)
            factor = tl.load(coefficients + e * ROWS + j)
            total += factor * tl.load(gradient + e * width + u, mask=inside, other=0.0)
    tl.store(out + k.to(tl.int64) * width + u, total, mask=inside)
