"""Times of several contestants, measured in turn so that a noisy machine treats them alike."""

import time
from collections.abc import Callable
from statistics import median, quantiles

from .machine import synchronize


def alternate(contestants: dict[str, Callable], device: str = "cpu", seconds: float = 3.0, rounds: int = 5) -> dict:
    """Median times, and ratios to the first contestant.

    Each round calls every contestant once, in turn, or so often in a row that a turn lasts a millisecond. There are
    at least ``rounds`` rounds and as many as fit into ``seconds``.

    Returns:
        for each name: median time in ms, its quartiles, the number of rounds, and for all but the first the median and
        the quartiles of (time of the first / time of this one), taken round by round.
    """
    calls = dict.fromkeys(contestants, 1)
    for name, function in contestants.items():
        function()  # compile, tune, allocate
        calls[name] = max(1, int(1e-3 / max(_time(function, 1, device), 1e-9)))
    times = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    while len(times[next(iter(times))]) < rounds or time.perf_counter() < end:
        for name, function in contestants.items():
            times[name].append(_time(function, calls[name], device))
    first = next(iter(times))
    result = {}
    for name, values in times.items():
        result[name] = {"ms": _summary([1e3 * value for value in values]), "rounds": len(values)}
        if name != first:
            ratios = [a / b for a, b in zip(times[first], values, strict=True)]
            result[name]["speedup"] = {"over": first, **_summary(ratios)}
    return result


def _time(function: Callable, calls: int, device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def _summary(values: list[float]) -> dict:
    low, _, high = quantiles(values, n=4)
    return {"median": median(values), "quartiles": [low, high]}
