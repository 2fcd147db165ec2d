"""Whether a model is still the one that something was made of: its weights, layers and settings."""

from __future__ import annotations

import hashlib
from itertools import chain
from operator import attrgetter

import torch
from torch import nn

_version = attrgetter("_version")
SETTINGS = (bool, int, float, str, tuple)


class Watch:
    """Notices what is done to a model behind the back of its user.

    Nobody can change a model that nobody has. Once it was handed out, a look takes some microseconds: weights that were
    written to by operations of PyTorch, moved, or replaced. The first look after it was handed out compares every
    number. What is written past PyTorch's counters later on (through ``.data`` or NumPy) is not seen.

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

    def has_seen_change(self) -> bool:
        """Whether the model differs from what it was."""
        if not self._handed_out:
            return False
        if self._compare:
            if _digest(self._model) != self._digest:
                return True
            self._compare = False
        if self._model.operations is not self._operations or self._found_marks() != self._marks:
            return True
        return not _are_same(self._found_members(), self._members)

    def _found_members(self) -> list:
        return list(chain.from_iterable(map(dict.values, self._tables)))

    def _found_marks(self) -> list[int]:
        return [*map(_version, self._tensors), *map(torch.Tensor.data_ptr, self._tensors)]


def _are_same(some: list, others: list) -> bool:
    try:
        return some == others  # objects that are the same are not looked into
    except RuntimeError:  # a tensor has been replaced by another
        return False


def _digest(model: nn.Module) -> str:
    """Text that identifies configuration, weights and settings of all layers."""
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
