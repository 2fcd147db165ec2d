"""Whether a Cholesky factorisation has found a factor."""

import torch
from torch import Tensor


def positive_definite(factor: Tensor, info: Tensor) -> Tensor:
    """(B,) bool from what ``torch.linalg.cholesky_ex`` returns, factors (B, n, n) and info (B,).

    LAPACK compares pivots with zero, which a NaN passes in some builds (OpenBLAS): info is then 0 for a factor of NaN.
    """
    return (info == 0) & torch.isfinite(factor.diagonal(dim1=-2, dim2=-1)).all(dim=-1)
