"""The linear map of irreps for GPUs: of few atoms, all blocks in one launch; the rest is left to PyTorch.

A program multiplies a tile of rows, each a component of an atom, with some columns of an irrep's matrix, and adds up
what several blocks map to the same columns. What to read and where to write is in small tables, so that one kernel
serves all layouts and numbers of atoms. Of many atoms, launches do not matter, and the libraries behind PyTorch are
hard to beat.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import naive
from .layout import Layout
from .naive import weight_gradient

__all__ = ["apply", "weight_gradient"]

TILE = {"ROWS": 16, "COLUMNS": 32, "INNER": 16}  # what a program makes, and how much of a sum at a time
WARPS = 4
MANY = 32768  # rows


class Tables:
    """What each program does.

    Attributes:
        tasks: (T, 6) int64: components, where the result's columns start, the channels there, the first channel that
            this task does, its first source and the one after its last.
        sources: (S, 3) int64: first column, channels, first weight.
        scales: (S,) of each source.
        most: most components of a task.
        covered: whether all columns of the result belong to a task.
    """

    def __init__(self, layout: Layout, transposed: bool, device: torch.device, dtype: torch.dtype):
        targets = {}
        for block in layout.blocks:
            source, target = (block.start_in, block.mul_in), (block.start_out, block.mul_out)
            if transposed:
                source, target = target, source
            targets.setdefault((*target, block.dim), []).append((*source, block.weight, block.scale))
        tasks, sources = [], []
        for (start, mul, dim), own in targets.items():
            first = len(sources)
            sources += own
            tasks += [(dim, start, mul, column, first, len(sources)) for column in range(0, mul, TILE["COLUMNS"])]
        self.most = max((task[0] for task in tasks), default=0)
        width = layout.dim_in if transposed else layout.dim_out
        self.covered = sum(mul * dim for _, mul, dim in targets) == width
        self.tasks = torch.tensor(tasks, dtype=torch.int64, device=device).reshape(-1, 6)
        self.sources = torch.tensor([s[:3] for s in sources], dtype=torch.int64, device=device).reshape(-1, 3)
        self.scales = torch.tensor([s[3] for s in sources], dtype=dtype, device=device)


tables = cache(Tables)


def apply(x: Tensor, weights: Tensor, layout: Layout, transposed: bool = False) -> Tensor:
    """See ``naive.apply``."""
    known = tables(layout, transposed, x.device, x.dtype)
    rows, width_in = x.shape
    if rows * known.most > MANY:
        return naive.apply(x, weights, layout, transposed)
    width = layout.dim_in if transposed else layout.dim_out
    out = x.new_empty(rows, width) if known.covered else x.new_zeros(rows, width)
    if rows and len(known.tasks):
        linear_kernel[triton.cdiv(rows * known.most, TILE["ROWS"]), len(known.tasks)](
            out, x, weights, known.tasks, known.sources, known.scales, rows, width_in, width,
            TRANSPOSED=transposed, **TILE, num_warps=WARPS,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["num_atoms"])
def linear_kernel(
    out, x, weights, tasks, sources, scales, num_atoms, width_in, width_out,
    TRANSPOSED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """out[n, k, v] = sum over the sources of a task and over u of scale W[u, v] x[n, k, u], or W[v, u] if transposed"""
    task = tasks + tl.program_id(1) * 6
    dim = tl.load(task)
    start_out = tl.load(task + 1)
    mul_out = tl.load(task + 2)
    first = tl.load(task + 4)
    last = tl.load(task + 5)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    v = tl.load(task + 3) + tl.arange(0, COLUMNS)
    inside = row < num_atoms * dim
    n = row // dim
    k = row % dim
    total = tl.zeros([ROWS, COLUMNS], out.dtype.element_ty)
    for number in range(first, last):
        start_in = tl.load(sources + number * 3)
        mul_in = tl.load(sources + number * 3 + 1)
        matrix = weights + tl.load(sources + number * 3 + 2)
        scale = tl.load(scales + number)
        for begin in range(0, mul_in, INNER):
            u = begin + tl.arange(0, INNER)
            place = (n * width_in + start_in + k * mul_in)[:, None] + u[None, :]
            values = tl.load(x + place, mask=inside[:, None] & (u < mul_in)[None, :], other=0.0)
            if TRANSPOSED:
                place = v[None, :] * mul_in + u[:, None]
            else:
                place = u[:, None] * mul_out + v[None, :]
            entries = tl.load(matrix + place, mask=(u < mul_in)[:, None] & (v < mul_out)[None, :], other=0.0)
            total = tl.dot(values, entries * scale, total, input_precision="ieee", out_dtype=out.dtype.element_ty)
    place = (n * width_out + start_out + k * mul_out)[:, None] + v[None, :]
    tl.store(out + place, total, mask=inside[:, None] & (v < mul_out)[None, :])
