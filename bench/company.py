"""Steps of dynamics in company: beside a second run, with more threads than cores, and how long the longest take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from statistics import median

WARM_UP = 100
# A process that prints the milliseconds of each of a number of steps of water; arguments: atoms, threads, steps
STEPS = """
import json, sys, time
import numpy as np, torch, fastlr
from fastlr.bench.company import water
from fastlr.engine.steps import Steps

count, threads, steps = map(int, sys.argv[1:])
torch.set_num_threads(threads)
atoms, times = water(count), []
runner, start = Steps(fastlr.load("aqueous-xtb", backend="cpu")), atoms.positions.copy()
velocity = np.random.default_rng(0).normal(size=start.shape)
for number in range(steps):
    atoms.positions = start + 0.05 * np.sin(0.01 * number * velocity)
    begin = time.perf_counter()
    runner.predict(atoms)
    times.append(1e3 * (time.perf_counter() - begin))
print(json.dumps(times))
"""
BUSY = "x = 1.0\nwhile True:\n    x = x * 1.0000001 % 7.0"


def water(count: int):
    """A periodic box of so many atoms of water, on a rattled grid."""
    import numpy as np
    from ase import Atoms

    molecules = count // 3
    per_axis = round(molecules ** (1 / 3) + 0.4999)
    spacing = 3.1
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.arange(per_axis)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:molecules]
    shape = np.array([[0.0, 0.0, 0.0], [0.0, 0.76, 0.59], [0.0, -0.76, 0.59]])
    turns = np.linalg.qr(rng.normal(size=(molecules, 3, 3)))[0]
    positions = spacing * places[:, None] + shape @ turns
    return Atoms("OHH" * molecules, positions.reshape(-1, 3), cell=[spacing * per_axis] * 3, pbc=True)


def run_company(count: int = 192, steps: int = 2000, rounds: int = 3, say: Callable = print) -> list[dict]:
    """Median and longest steps of one run alone (on one thread, on all cores, with four threads a core), of two runs at
    once, and of one beside a busy process; all in turn, the best two of three rounds.

    Args:
        count: atoms of water.
        steps: of each run.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cases = {
        "alone, one thread": (1, 1, False),
        "alone": (cores, 1, False),
        "four threads a core": (4 * cores, 1, False),
        "two at once": (cores, 2, False),
        "beside a busy process": (cores, 1, True),
    }
    found = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (threads, runs, is_busy) in cases.items():
            found[name].append(_one(count, threads, steps, runs, is_busy))
    rows = {name: _best(results) for name, results in found.items()}
    for name, row in rows.items():
        say(f"{name}: median {row['median_ms']:.2f} ms, 99.9% within {row['quantile_999_ms']:.2f} ms")
    ratios = {
        "two at once / one thread alone": rows["two at once"]["median_ms"] / rows["alone, one thread"]["median_ms"],
        "four threads a core / best alone": rows["four threads a core"]["median_ms"]
        / min(rows[name]["median_ms"] for name in ("alone", "alone, one thread")),
    }
    for name, value in ratios.items():
        say(f"{name}: {value:.2f}")
    return [{"problem": f"{count} atoms of water: a step", "company": rows, "ratios": ratios, "times": {}}]


def _one(count: int, threads: int, steps: int, runs: int, is_busy: bool) -> tuple[float, float]:
    """Median and 99.9th percentile of the steps of the slowest of some runs, ms."""
    command = [sys.executable, "-c", STEPS, *map(str, (count, threads, steps + WARM_UP))]
    busy = subprocess.Popen([sys.executable, "-c", BUSY]) if is_busy else None
    try:
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(runs)]
        times = [sorted(json.loads(process.communicate()[0])[WARM_UP:]) for process in processes]
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()
    return max(median(each) for each in times), max(each[-1 - len(each) // 1000] for each in times)


def _best(results: list[tuple[float, float]]) -> dict[str, float]:
    """The mean of all rounds but that with the longest steps."""
    kept = sorted(results, key=lambda result: result[1] / result[0])[: max(1, len(results) - 1)]
    return {
        "median_ms": sum(result[0] for result in kept) / len(kept),
        "quantile_999_ms": max(result[1] for result in kept),
    }
