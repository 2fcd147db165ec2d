"""Times of several contestants, measured in turn so that a noisy machine treats them alike; and their memory."""

import ctypes
import time
from collections.abc import Callable, Collection
from statistics import median, quantiles

import torch

from .machine import synchronize

TURN = 1e-2  # seconds, at least: what a contestant finds in the caches should be its own


def alternate(
    contestants: dict[str, Callable],
    device: str = "cpu",
    seconds: float = 3.0,
    rounds: int = 5,
    over_each: Collection[str] = (),
) -> dict:
    """Median times, and ratios to the first contestant; see ``take_turns``.

    Args:
        over_each: names of contestants that are compared with every other one, too.

    Returns:
        for each name: median time in ms, its quartiles, the number of rounds, and for all but the first the median and
        the quartiles of (time of the first / time of this one), taken round by round: ``speedup``. Those in
        ``over_each`` have the same by the name of every other contestant: ``speedup_over``.
    """
    times = take_turns(contestants, device, seconds, rounds)
    first = next(iter(times), None)
    result = {}
    for name, values in times.items():
        result[name] = {"ms": summary([1e3 * value for value in values]), "rounds": len(values)}
        if name != first:
            result[name]["speedup"] = {"over": first, **_ratios(times[first], values)}
        if name in over_each:
            others = {other: theirs for other, theirs in times.items() if other != name}
            result[name]["speedup_over"] = {other: _ratios(theirs, values) for other, theirs in others.items()}
    return result


def take_turns(
    contestants: dict[str, Callable], device: str = "cpu", seconds: float = 3.0, rounds: int = 5
) -> dict[str, list[float]]:
    """The seconds that a call of each contestant took in each round.

    Each round calls every contestant once, in turn, or so often in a row that a turn lasts ten milliseconds. There are
    at least ``rounds`` rounds and as many as fit into ``seconds``.
    """
    calls = dict.fromkeys(contestants, 1)
    for name, function in contestants.items():
        function()  # compile, tune, allocate
        calls[name] = max(1, int(TURN / max(_time(function, 1, device), 1e-9)))
    times = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    while times and (len(times[next(iter(times))]) < rounds or time.perf_counter() < end):
        for name, function in contestants.items():
            times[name].append(_time(function, calls[name], device))
    return times


def over_each(row: dict) -> str:
    """The medians of ``speedup_over`` in words; nothing where there are none."""
    ratios = [f"{ratio['median']:.2f} over {name}" for name, ratio in row.get("speedup_over", {}).items()]
    return f" (speedup {', '.join(ratios)})" if ratios else ""


def _ratios(theirs: list[float], own: list[float]) -> dict:
    return summary([a / b for a, b in zip(theirs, own, strict=True)])


def _time(function: Callable, calls: int, device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def summary(values: list[float]) -> dict:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4)
    return {"median": median(values), "quartiles": [low, high]}


def peak_bytes(function: Callable, device: str = "cpu") -> int | None:
    """Memory that a call needs on top of what is there before it; None where the system does not tell."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed is not there
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the highest value so far is that of now
        before = _status("VmRSS")
        function()
        return _status("VmHWM") - before
    except (OSError, AttributeError):
        return None


def resident_bytes() -> int:
    """Memory of this process as it is; for Linux."""
    return _status("VmRSS")


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith(key)).split()[1])
