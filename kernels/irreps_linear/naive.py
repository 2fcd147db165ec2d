"""The specification of the linear map of irreps in plain PyTorch.

z[n, k, v] = sum_u W[u, v] x[n, k, u] / sqrt(channels in), for each irrep, as e3nn's ``Linear``.
"""

import torch
from torch import Tensor

from .layout import Layout


def irreps_linear(x: Tensor, weights: Tensor, layout: str, transposed: bool) -> Tensor:
    """(N, dim_in) -> (N, dim_out), or transposed.

    Args:
        weights: (weights,), a matrix (channels in, channels out) for each irrep.
        layout: key of a ``Layout``.
    """
    return apply(x, weights, Layout.from_key(layout), transposed)


def apply(x: Tensor, weights: Tensor, layout: Layout, transposed: bool = False) -> Tensor:
    """(N, dim_in) -> (N, dim_out), or transposed (N, dim_out) -> (N, dim_in)."""
    out = x.new_zeros(x.shape[0], layout.dim_in if transposed else layout.dim_out)
    for block, matrix in matrices(weights, layout):
        sides = (block.start_in, block.mul_in), (block.start_out, block.mul_out)
        (start, mul), (start_out, mul_out) = reversed(sides) if transposed else sides
        rows = x[:, start : start + block.dim * mul].reshape(-1, mul)
        values = rows @ (matrix.T if transposed else matrix) * block.scale
        out[:, start_out : start_out + block.dim * mul_out] += values.view(-1, block.dim * mul_out)
    return out


def weight_gradient(x: Tensor, g: Tensor, layout: Layout) -> Tensor:
    """(weights,) derivative of <apply(x, W), g> by W."""
    parts = []
    for block in layout.blocks:
        rows = x[:, block.start_in : block.start_in + block.dim * block.mul_in].reshape(-1, block.mul_in)
        others = g[:, block.start_out : block.start_out + block.dim * block.mul_out].reshape(-1, block.mul_out)
        parts.append((rows.T @ others * block.scale).flatten())
    return torch.cat(parts) if parts else x.new_zeros(0)


def transposed(weights: Tensor, layout: Layout) -> Tensor:
    """Weights (..., weights) with the matrix of each block transposed in place: those of ``layout.transposed()``."""
    out = weights.clone()
    for block in layout.blocks:
        own = slice(block.weight, block.weight + block.mul_in * block.mul_out)
        square = weights[..., own].unflatten(-1, (block.mul_in, block.mul_out))
        out[..., own] = square.transpose(-1, -2).flatten(-2)
    return out


def matrices(weights: Tensor, layout: Layout):
    """Each block with its matrix (mul_in, mul_out)."""
    for block in layout.blocks:
        size = block.mul_in * block.mul_out
        yield block, weights[block.weight : block.weight + size].view(block.mul_in, block.mul_out)
