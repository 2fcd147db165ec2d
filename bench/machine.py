"""What a result was measured on: hardware, versions, and the machine's own limits."""

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

import torch

PACKAGES = (
    "torch", "triton", "e3nn", "llvmlite", "numpy", "nequip", "mace-torch", "cuequivariance-torch",
    "cuequivariance-ops-torch-cu12", "openequivariance", "vesin",
)  # fmt: skip


def describe(device: str = "cpu") -> dict:
    """Hardware and the versions of all packages that may matter."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine |= {"gpu": properties.name, "gpu_memory_GiB": round(properties.total_memory / 2**30, 1)}
        machine["cuda"] = torch.version.cuda
    return machine


def commit() -> str | None:
    """The commit of these sources, with "-dirty" where they have been changed since; None outside a repository."""
    call = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def limits(device: str = "cpu") -> dict:
    """Bandwidth of copying a large tensor (bytes read and written) and operations of a large float32 matrix product."""
    source = torch.ones(2**26 if device == "cpu" else 2**30, device=device)
    target = torch.empty_like(source)
    side = 2048 if device == "cpu" else 8192
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    copy = _shortest(lambda: target.copy_(source), device)
    product = _shortest(lambda: a @ b, device)
    return {
        "copy_GB_per_s": 2 * source.numel() * source.element_size() / copy / 1e9,
        "float32_GFLOP_per_s": 2 * side**3 / product / 1e9,
    }


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _shortest(function, device: str, repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
