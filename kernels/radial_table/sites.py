"""Tables from values at the sites: the equations of ``naive.site_weights`` solved by blocks, in time that grows with M.

A site is read from six consecutive rows, so the matrix A of the equations A T = v is a band. Cut into blocks of
``BLOCK`` rows it is block tridiagonal, with L, D and U left of, on and right of the diagonal, and is factorised by

    S_1 = D_1,   S_k = D_k - L_k S_(k-1)^-1 U_(k-1)

(Golub and Van Loan, Matrix Computations, section 4.5). It is totally positive, so that no pivoting is needed between
blocks (de Boor and Pinkus, Numer. Math. 27, 485, 1977).
"""

import torch
from torch import Tensor

from ..constants import constant
from ..cores import torch_on_one_thread
from .naive import DEGREE, collocation

BLOCK = 64


@torch_on_one_thread()  # a hundred small products: sharing each takes longer, and far longer on busy cores
def rows_from_values(values: Tensor) -> Tensor:
    """The table (M + 5, F) whose interpolation equals ``values`` (M + 5, F), float64, at the sites; differentiable."""
    factors = _factors(values.shape[0] - DEGREE, values.device)
    padding = factors.shape[0] * BLOCK - values.shape[0]
    blocks = torch.nn.functional.pad(values, (0, 0, 0, padding)).unflatten(0, (-1, BLOCK))
    rows = []
    for block, (inverse, left, _) in zip(blocks, factors, strict=True):
        rows.append(inverse @ (block - left @ rows[-1] if rows else block))
    for k in range(len(rows) - 2, -1, -1):
        rows[k] = rows[k] - factors[k, 2] @ rows[k + 1]
    return torch.cat(rows)[: values.shape[0]]


@constant
def site_weights(num_intervals: int, device: torch.device | str = "cpu") -> Tensor:
    """(M + 5, M + 5) float64, the same as a matrix: for small tables that are made again and again."""
    return rows_from_values(torch.eye(num_intervals + DEGREE, dtype=torch.float64)).to(device)


@constant
def _factors(num_intervals: int, device: torch.device | str = "cpu") -> Tensor:
    """(blocks, 3, BLOCK, BLOCK): S^-1, L and S^-1 U of each block of rows; the last is filled up with the identity."""
    columns, entries = collocation(num_intervals)
    count = -(-len(columns) // BLOCK)
    row = torch.arange(count * BLOCK)
    window = torch.zeros(count * BLOCK, 3 * BLOCK, dtype=torch.float64)  # of the columns of three blocks
    window[row, BLOCK + row % BLOCK] = (row >= len(columns)).double()
    window[: len(columns)].scatter_(1, columns + (BLOCK - row[: len(columns), None] // BLOCK * BLOCK), entries)
    factors, carried = [], torch.zeros(BLOCK, BLOCK, dtype=torch.float64)
    for block in window.unflatten(0, (count, BLOCK)):
        left, diagonal, right = block.split(BLOCK, dim=1)
        inverse = torch.linalg.inv(diagonal - left @ carried)
        carried = inverse @ right
        factors.append(torch.stack([inverse, left, carried]))
    return torch.stack(factors).to(device)
