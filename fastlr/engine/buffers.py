"""Memory that is used again from one evaluation to the next."""

from math import prod

import torch
from torch import Tensor


class Buffers:
    """Tensors by name, each a part of memory that grows when more is asked for.

    Memory that is much too large for what is asked is given back.
    """

    MUCH = 64 * 2**20  # bytes

    def __init__(self):
        self._storage: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor with any content; it is only good until the same name is asked for again."""
        size = prod(shape)
        known = self._storage.get(name)
        if known is None or known.dtype != dtype or known.numel() < size or self._wasted(known, size) > self.MUCH:
            known = self._storage[name] = torch.empty(size, dtype=dtype)
        return known[:size].view(shape)

    @staticmethod
    def _wasted(tensor: Tensor, size: int) -> int:
        return (tensor.numel() - 4 * size) * tensor.element_size()

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._storage.values())
