"""Which of a few launches of a Triton kernel is fastest on this GPU: measured once, then remembered on disk."""

import hashlib
import json
from collections.abc import Callable

import torch

from . import cache

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
        number = _known(f"tuned_{key}.json", len(choices))
        if number is None:
            number = _measure(choices, run)
            record = {"gpu": name, "choices": [str(choice) for choice in choices], "fastest": number}
            cache.write(f"tuned_{key}.json", json.dumps(record).encode())
        _chosen[key, name] = number
    return choices[_chosen[key, name]]


def _measure(choices: list, run: Callable) -> int:
    from triton.testing import do_bench

    times = [do_bench(lambda choice=choice: run(choice), warmup=5, rep=25, return_mode="median") for choice in choices]
    return times.index(min(times))


def _known(name: str, count: int) -> int | None:
    content = cache.read(name)
    number = json.loads(content)["fastest"] if content else None
    return number if number in range(count) else None
