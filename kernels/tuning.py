"""Which of a few launches of a Triton kernel is fastest on this GPU: measured once, then remembered on disk."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from .native import cache_directory

_chosen: dict[tuple[str, str], int] = {}


def fastest(kernel, choices: list, run: Callable, device: torch.device):
    """The choice with the smallest median time of ``run(choice)``; the first where there is nothing to measure.

    The answer is kept under the hash of the kernel's text, the choices and the GPU's name, so it holds for every
    number of atoms and edges.
    """
    if len(choices) == 1 or device.type != "cuda":
        return choices[0]
    name = torch.cuda.get_device_name(device)
    key = hashlib.sha256(f"{kernel.text}{choices}{name}".encode()).hexdigest()[:24]
    if (key, name) not in _chosen:
        path = cache_directory() / f"tuned_{key}.json"
        _chosen[key, name] = _read(path, len(choices))
        if _chosen[key, name] is None:
            _chosen[key, name] = _measure(choices, run)
            _write(path, {"gpu": name, "choices": [str(choice) for choice in choices], "fastest": _chosen[key, name]})
    return choices[_chosen[key, name]]


def _measure(choices: list, run: Callable) -> int:
    from triton.testing import do_bench

    times = [do_bench(lambda choice=choice: run(choice), warmup=5, rep=25, return_mode="median") for choice in choices]
    return times.index(min(times))


def _read(path: Path, count: int) -> int | None:
    try:
        number = json.loads(path.read_text())["fastest"]
    except (OSError, ValueError, KeyError):
        return None
    return number if number in range(count) else None


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(content, file)
    os.replace(file.name, path)
