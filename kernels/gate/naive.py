"""The specification of the gate in plain PyTorch.

Even scalars pass silu, odd ones tanh, both scaled to keep a second moment of one; a channel of l > 0 is multiplied by
silu of an even scalar of its own. As e3nn's ``Gate``.
"""

import torch
from torch import Tensor

from .layout import SILU_SCALE, TANH_SCALE, GateLayout


def gate(x: Tensor, layout: str) -> Tensor:
    """(N, dim_in) -> (N, dim_out); ``layout`` is the key of a ``GateLayout``."""
    parts, layout = {}, GateLayout.from_key(layout)
    for start_in, start_out, mul, odd in layout.scalars:
        columns = x[:, start_in : start_in + mul]
        parts[start_out] = torch.tanh(columns) * TANH_SCALE if odd else torch.nn.functional.silu(columns) * SILU_SCALE
    for gates, start_in, start_out, dim, mul in layout.gated:
        factor = torch.nn.functional.silu(x[:, gates : gates + mul]) * SILU_SCALE
        block = x[:, start_in : start_in + dim * mul].reshape(-1, dim, mul)
        parts[start_out] = (block * factor[:, None, :]).reshape(-1, dim * mul)
    return torch.cat([parts[start] for start in sorted(parts)], dim=1) if parts else x.new_zeros(x.shape[0], 0)
