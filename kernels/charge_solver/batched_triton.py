"""Batched projected solves for GPUs: a whole conjugate-gradient iteration in one launch, one program a structure.

The program holds its matrix in registers, so that memory is read once, and nothing returns to the host between steps.
Charges of the right sum are improved along directions of sum zero: with M the diagonal of H and w = M^-1 1, residuals
are shifted by the multiple of 1 that makes w' r = 0, and then the sum of M^-1 r is zero (projected preconditioned
conjugate gradient; Gould, Hribar & Nocedal, SIAM J. Sci. Comput. 23, 1376, 2001). One solve, not one for the charges
and another for the response to their sum.

Products of float32 matrices are made in float32, but for that of the last residual; vectors and numbers are float64.
Charges are then good to about 1e-6 to 1e-5, multipliers of soft systems to 1e-4.

An iteration sees of a matrix what its right-hand side leads it to. Negative curvature on the way is an error, as is a
residual that does not fall, but a matrix with a negative eigenvalue whose vector the right-hand side does not contain,
or whose vector is 1, goes unnoticed: the charges are a minimum for their sum, or a saddle point, all the same.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batched_op import Factor
from .naive import IndefiniteError

LARGEST = 128  # atoms: their matrix fills the registers
BYTES_A_LANE = {torch.float64: 512, torch.float32: 256}  # of the matrix: half of the registers, or a quarter
ALIGNMENT = 16  # of the rows of matrices, in numbers: the compiler then knows that it may load several at once
STEPS_AN_ATOM = 10  # in exact arithmetic, one is enough
# the residual, in the norm of M^-1, beside that of the first guess; and what rounding leaves beside the right-hand side
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6}
ROUNDING = {torch.float64: 1e-15, torch.float32: 1e-7}


def empty_factor(matrix: Tensor) -> list[Tensor]:
    """The tensors that ``factorise`` returns."""
    num_structures, n = matrix.shape[:2]
    stride = (n + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    nothing = matrix.new_empty(0, dtype=torch.int64)
    return [
        matrix.new_empty(num_structures, stride, stride), matrix.new_empty(num_structures, n),
        matrix.new_empty(num_structures), nothing, torch.empty_like(nothing),
    ]  # fmt: skip


def factorise(matrix: Tensor, sizes: Tensor) -> list[Tensor]:
    """The matrices without what stands in their padding, w and its sum; elements must be finite, diagonals positive."""
    num_structures, n = matrix.shape[:2]
    if n > LARGEST:
        raise ValueError(f"the batched charge solver for GPUs is for up to {LARGEST} atoms a structure, got {n}")
    factor = empty_factor(matrix)
    if num_structures:
        prepare_kernel[(num_structures,)](
            *factor[:3], matrix, sizes, n, factor[0].shape[2], ROWS=16, BLOCK=block_size(n), num_warps=4
        )
        _refuse(~(factor[2] > 0.0) & (sizes > 0))
    return factor


def solve(factor: Factor, rhs: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """See ``batched_op.solve``. While a CUDA graph is captured, structures without a solution get NaN instead."""
    charges, multiplier, steps, _ = conjugate_gradient(factor, rhs, total)
    if len(steps):
        _refuse(steps < 0)
    return charges, multiplier


def conjugate_gradient(factor: Factor, rhs: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve, and tell how it went.

    Returns:
        q (B, n) and mu (B,), see ``batched_op.solve``, NaN where the iteration failed; the number of steps (B,) int32,
        -1 where it failed; the norm of the residual |rhs - H q - mu 1| (B,) in eV/e.
    """
    num_structures, n = rhs.shape
    if factor.response.shape != (num_structures, n):
        raise ValueError(f"rhs: {n} columns, but the matrices had {factor.response.shape[1]} rows")
    charges, multiplier, norm = torch.empty_like(rhs), torch.empty_like(total), torch.empty_like(total)
    steps = torch.empty_like(total, dtype=torch.int32)
    if num_structures:
        block = block_size(n)
        cg_kernel[(num_structures,)](
            charges, multiplier, steps, norm, factor.matrix, factor.response, factor.response_sum, factor.sizes, rhs,
            total, n, factor.matrix.shape[2], STEPS_AN_ATOM * n, TOLERANCE[rhs.dtype], ROUNDING[rhs.dtype], BLOCK=block,
            num_warps=warps(block, rhs.dtype), enable_fp_fusion=True,
        )  # fmt: skip
    return charges, multiplier, steps, norm


def block_size(n: int) -> int:
    """Rows and columns of the tile for matrices of ``n`` atoms; nothing else of a batch is known to the compiler."""
    return max(16, triton.next_power_of_2(n))


def warps(block: int, dtype: torch.dtype, lanes: int | None = None) -> int:
    """Enough for the matrix to lie in registers, and no more: fewer warps wait less for one another."""
    lanes = lanes or (64 if torch.version.hip else 32)
    return max(1, block * block * dtype.itemsize // (BYTES_A_LANE[dtype] * lanes))


def _refuse(wrong: Tensor) -> None:
    """The one place where the host waits for the device."""
    if wrong.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if bool(wrong.any()):
        raise IndefiniteError(torch.nonzero(wrong).flatten().tolist())


@triton.jit(do_not_specialize=["n"])
def prepare_kernel(out, weights, weight_sums, matrix, sizes, n, stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Matrices with zeros in the padding, w = 1 / diagonal, and its sum, NaN where an element is not as it must be."""
    b = tl.program_id(0).to(tl.int64)
    size = tl.minimum(tl.load(sizes + b), n)
    i = tl.arange(0, BLOCK)
    column = i[None, :]
    diagonal = tl.zeros([BLOCK], matrix.dtype.element_ty)
    faults = tl.zeros([BLOCK], tl.int32)
    for start in range(0, size, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        h = tl.load(matrix + b * n * n + (row * n + column), mask=(row < size) & (column < size), other=0.0)
        place = row * stride + column
        tl.store(out + b * stride * stride + place, h, mask=(row < size) & (column < aligned(size)))
        diagonal += tl.sum(tl.where(row == column, h, 0.0), axis=0)
        faults += tl.sum(tl.where(tl.abs(h) < float("inf"), 0, 1), axis=0)
    inside = i < size
    positive = diagonal > 0.0
    faults += tl.where(inside & ~positive, 1, 0)
    w = tl.where(inside, 1.0 / tl.where(positive, diagonal, 1.0), 0.0)
    tl.store(weights + b * n + i, w, mask=i < n)
    tl.store(weight_sums + b, tl.where(tl.sum(faults, axis=0) == 0, tl.sum(w, axis=0), float("nan")))


@triton.jit(do_not_specialize=["n", "max_steps"])
def cg_kernel(
    charges, multiplier, steps, norms, matrix, weights, weight_sums, sizes, rhs, total, n, stride, max_steps,
    tolerance, rounding, BLOCK: tl.constexpr,
):  # fmt: skip
    """See ``conjugate_gradient``."""
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    size = tl.minimum(tl.load(sizes + b), n)
    inside = i < size
    row, column = i[:, None], i[None, :]
    place = row * stride + column
    h = tl.load(matrix + b * stride * stride + place, mask=(row < size) & (column < aligned(size)), other=0.0)
    w = tl.load(weights + b * n + i, mask=inside, other=0.0).to(tl.float64)
    f = tl.load(rhs + b * n + i, mask=inside, other=0.0).to(tl.float64)
    aim = tl.load(total + b).to(tl.float64)
    sum_w = tl.load(weight_sums + b).to(tl.float64)
    per_w = tl.where(sum_w == 0.0, 0.0, 1.0 / tl.where(sum_w == 0.0, 1.0, sum_w))

    q = w * (aim * per_w)
    r = f - times(h, q)
    scale, shift = sums(w * r * r, w * r)
    r = tl.where(inside, r - shift * per_w, 0.0)
    rest = tl.sum(w * r * r, axis=0)
    enough = tl.maximum(tolerance * tolerance * rest, rounding * rounding * scale)
    p = w * r
    step = 0
    while (rest > enough) & (step < max_steps):
        hp = times(h, p)
        curvature, shift = sums(p * hp, w * hp)
        positive = curvature > 0.0
        alpha = tl.where(positive, rest / tl.where(positive, curvature, 1.0), 0.0)
        q += alpha * p
        r = tl.where(inside, r - alpha * (hp - shift * per_w), 0.0)
        before = rest
        rest = tl.sum(w * r * r, axis=0)
        p = w * r + (rest / before) * p
        step = tl.where(positive, step + 1, max_steps + 1)
    failed = rest > enough
    q += w * ((aim - tl.sum(q, axis=0)) * per_w)
    r = f - exact_times(h, q)
    mu = tl.sum(w * r, axis=0) * per_w
    r = tl.where(inside, r - mu, 0.0)
    bad = tl.where(failed, float("nan"), 0.0)
    tl.store(charges + b * n + i, q + bad, mask=i < n)
    tl.store(multiplier + b, mu + bad)
    tl.store(steps + b, tl.where(failed, -1, step))
    tl.store(norms + b, tl.sqrt(tl.sum(r * r, axis=0)))


@triton.jit
def aligned(size):
    """How much of a row is loaded and stored."""
    return (size + 15) // 16 * 16


@triton.jit
def times(h, p):
    """H p"""
    return tl.sum(h * p.to(h.dtype)[:, None], axis=0).to(tl.float64)


@triton.jit
def exact_times(h, p):
    """H p in float64, for the residuals that count."""
    return tl.sum(h.to(tl.float64) * p[:, None], axis=0)


@triton.jit
def sums(x, y):
    """The sums of two vectors, in one go."""
    return tl.reduce((x, y), 0, _add_both)


@triton.jit
def _add_both(x0, y0, x1, y1):
    return x0 + x1, y0 + y1
