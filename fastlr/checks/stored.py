"""Results of the reference, which take long and never change, kept on disk beside the machine code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import fastlr
import fastlr.kernels
from fastlr.kernels import cache as files


def stored(name: str, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What ``compute`` returns, from disk if this package's sources and PyTorch have computed it before.

    Args:
        name: of what is computed, the first part of the file's name.
        key: text that determines the result, besides the sources.
    """
    digest = hashlib.sha256(f"{_sources()} {torch.__version__} {key}".encode()).hexdigest()[:24]
    file = f"{name}_{digest}.safetensors"
    content = files.read(file)
    if content is not None:
        try:
            return load(content)
        except SafetensorError:
            pass
    found = {key: value.detach().cpu().contiguous() for key, value in compute().items()}
    files.write(file, save(found))
    return found


def fingerprint(model: torch.nn.Module) -> str:
    """Text that identifies a model's configuration and weights."""
    digest = hashlib.sha256(json.dumps(model.config.model_dump(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@cache
def _sources() -> str:
    """The text of this package, as a hash: any change may change results."""
    digest = hashlib.sha256()
    for package in (fastlr, fastlr.kernels):
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
