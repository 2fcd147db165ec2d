"""Whether a model is still the one that something was made of: its weights, layers and settings."""

from __future__ import annotations

import ctypes
import hashlib
import os
from functools import cache
from itertools import chain
from operator import attrgetter

import torch
from torch import nn

_version = attrgetter("_version")
WINDOW, MOST = 2**16, 2**22  # bytes
SETTINGS = (bool, int, float, str, tuple)


class Watch:
    """Notices what is done to a model behind the back of its user.

    Nobody can change a model that nobody has. Once it was handed out, a look takes some twenty microseconds: PyTorch's
    counters tell of weights that were written to, moved, or replaced, and for what is written past them (through
    ``.data`` or NumPy) on a CPU, as many bytes as ``WINDOW`` are compared with a copy, in turn where there are more.
    The first look after the model was handed out compares everything, on GPUs too.

    Args:
        model: ``NequIP`` or ``NequIPLR``.
        handed_out: whether somebody else has it.
    """

    def __init__(self, model: nn.Module, handed_out: bool = False):
        self._model, self._handed_out, self._compare = model, handed_out, False
        self._tables = [
            table for part in model.modules() for table in (part._parameters, part._buffers, part._modules) if table
        ]
        self._members = self._found_members()
        self._tensors = [member for member in self._members if isinstance(member, torch.Tensor)]
        self._operations = model.operations
        self._marks, self._digest = self._found_marks(), _digest(model)
        self._pieces: list[_Pieces] = []  # made when somebody else has the model
        self._turn = 0

    def __reduce__(self):
        """Places in memory belong to a process."""
        return Watch, (self._model, self._handed_out)

    def hand_out(self) -> nn.Module:
        """The model, for others."""
        self._handed_out = self._compare = True
        return self._model

    @property
    def is_handed_out(self) -> bool:
        return self._handed_out

    def has_seen_change(self, thorough: bool = False) -> bool:
        """Whether the model differs from what it was.

        Args:
            thorough: compare ``MOST`` bytes in place of ``WINDOW``.
        """
        if not self._handed_out:
            return False
        if self._compare:
            if _digest(self._model) != self._digest:
                return True
            self._compare = False
            self._pieces = self._pieces or _Pieces.of(self._tensors)
        if self._model.operations is not self._operations or self._found_marks() != self._marks:
            return True
        if not _are_same(self._found_members(), self._members):
            return True
        count = min(len(self._pieces), MOST // WINDOW if thorough else 1)
        self._turn += count
        return any(self._pieces[(self._turn - k) % len(self._pieces)].differ() for k in range(count))

    def _found_members(self) -> list:
        return list(chain.from_iterable(map(dict.values, self._tables)))

    def _found_marks(self) -> list[int]:
        return [*map(_version, self._tensors), *map(torch.Tensor.data_ptr, self._tensors)]


class _Pieces:
    """Memory beside a copy of it, as many bytes as ``WINDOW`` at most."""

    def __init__(self, tensors: list[torch.Tensor]):
        self._copies = [tensor.clone() for tensor in tensors]
        self._places = [[tensor.data_ptr() for tensor in each] for each in (tensors, self._copies)]
        self._sizes = [tensor.nbytes for tensor in tensors]

    @staticmethod
    def of(tensors: list[torch.Tensor]) -> list[_Pieces]:
        """Those of all tensors on the CPU."""
        parts, windows, filled = [], [], WINDOW
        for tensor in tensors:
            if tensor.device.type == "cpu" and tensor.is_contiguous():
                parts += tensor.detach().view(-1).view(torch.uint8).split(WINDOW)
        for part in parts:
            if filled + part.nbytes > WINDOW:
                windows.append([])
                filled = 0
            windows[-1].append(part)
            filled += part.nbytes
        return [_Pieces(window) for window in windows]

    def differ(self) -> bool:
        return any(map(_memcmp(), *self._places, self._sizes))


@cache
def _memcmp():
    function = (ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)).memcmp
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_int
    return function


def _are_same(some: list, others: list) -> bool:
    try:
        return some == others  # objects that are the same are not looked into
    except RuntimeError:  # a tensor has been replaced by another
        return False


def _digest(model: nn.Module) -> str:
    """A digest of configuration, weights and settings of all layers."""
    digest = hashlib.sha256(model.config.model_dump_json().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for name, part in model.named_modules():
        settings = {
            key: value for key, value in vars(part).items() if isinstance(value, SETTINGS) and key != "training"
        }
        digest.update(f"{name} {settings}".encode())
    return digest.hexdigest()
