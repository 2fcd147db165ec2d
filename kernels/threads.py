"""Running a kernel on several threads without getting in the way of PyTorch's.

PyTorch on CPUs shares its loops among an OpenMP team whose threads spin for a while after each loop. A second set of
threads would compete with them for the same cores, so kernels run on that very team where its runtime can be found,
and on a thread pool where it cannot. After a fork the team's threads are gone: a forked process runs on one thread.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from . import jit

_MEMBER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_nobody = _MEMBER(lambda _: None)
_process = os.getpid()
BARRIER = "fastlr_barrier"  # a function without arguments

# What each member of a team does: the shares number k, k + size of the team, ... (a team may be smaller than asked); or
# its part of a kernel that knows of the team.
_TRAMPOLINE = """
define void @fastlr_together(ptr %data) {
  %kernel = load ptr, ptr %data
  %p1 = getelementptr i64, ptr %data, i64 1
  %arguments = load ptr, ptr %p1
  %p2 = getelementptr i64, ptr %data, i64 2
  %number_of = load ptr, ptr %p2
  %number = call i32 %number_of()
  %k = sext i32 %number to i64
  %p3 = getelementptr i64, ptr %data, i64 3
  %size_of = load ptr, ptr %p3
  %size = call i32 %size_of()
  %team = sext i32 %size to i64
  call void %kernel(ptr %arguments, i64 %k, i64 %team)
  ret void
}
define void @fastlr_member(ptr %data) {
  %kernel = load ptr, ptr %data
  %p1 = getelementptr i64, ptr %data, i64 1
  %arguments = load ptr, ptr %p1
  %p2 = getelementptr i64, ptr %data, i64 2
  %bounds = load ptr, ptr %p2
  %p3 = getelementptr i64, ptr %data, i64 3
  %number_of = load ptr, ptr %p3
  %number = call i32 %number_of()
  %k = sext i32 %number to i64
  %p4 = getelementptr i64, ptr %data, i64 4
  %shares = load i64, ptr %p4
  %p5 = getelementptr i64, ptr %data, i64 5
  %size_of = load ptr, ptr %p5
  %size = call i32 %size_of()
  %team = sext i32 %size to i64
  br label %head
head:
  %share = phi i64 [ %k, %0 ], [ %next, %body ]
  %more = icmp slt i64 %share, %shares
  br i1 %more, label %body, label %done
body:
  %b = getelementptr i64, ptr %bounds, i64 %share
  %begin = load i64, ptr %b
  %following = add i64 %share, 1
  %e = getelementptr i64, ptr %bounds, i64 %following
  %end = load i64, ptr %e
  call void %kernel(ptr %arguments, i64 %begin, i64 %end)
  %next = add i64 %share, %team
  br label %head
done:
  ret void
}
"""


def run_parallel(kernel, pointer: int, bounds: np.ndarray) -> None:
    """kernel(pointer, bounds[k], bounds[k + 1]) for every k, each on a thread of its own."""
    shares = len(bounds) - 1
    if os.getpid() != _process:
        kernel(pointer, int(bounds[0]), int(bounds[-1]))
        return
    team = _team()
    if team is None:
        _run_in_pool(kernel, pointer, bounds.tolist())
        return
    data = np.array(
        [_address(kernel), pointer, bounds.ctypes.data, team.number_of, shares, team.size_of], dtype=np.int64
    )
    team.start(team.sharing, data.ctypes.data, shares, 0)


def run_together(kernel, pointer: int, threads: int) -> None:
    """kernel(pointer, k, n) on n <= ``threads`` threads at once, k = 0 ... n - 1, which may wait for each other
    (``BARRIER``)."""
    team = _team() if threads > 1 and os.getpid() == _process else None
    if team is None:
        kernel(pointer, 0, 1)
        return
    data = np.array([_address(kernel), pointer, team.number_of, team.size_of], dtype=np.int64)
    team.start(team.together, data.ctypes.data, threads, 0)


def barrier_address() -> int:
    """Address of ``BARRIER``, in which the threads of ``run_together`` wait for each other."""
    team = _team()
    # one thread alone has nobody to wait for, and never calls it
    return _address(_nobody) if team is None else team.barrier


def _address(function) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value


class _Team(NamedTuple):
    """The OpenMP runtime that PyTorch has loaded, by addresses.

    Attributes:
        start: starts a team on a trampoline.
        number_of, size_of, barrier: tell a member's number and the team's size, and let all wait for all.
        sharing, together: trampolines.
    """

    start: object
    number_of: int
    size_of: int
    barrier: int
    sharing: int
    together: int


@lru_cache(None)
def _team() -> _Team | None:
    path = _loaded_runtime()
    if path is None:
        return None
    library = ctypes.CDLL(path)
    try:
        start = library.GOMP_parallel
        functions = [library.omp_get_thread_num, library.omp_get_num_threads, library.GOMP_barrier]
    except AttributeError:
        return None
    start.argtypes, start.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    trampolines = jit.addresses(jit.object_code(_TRAMPOLINE), ["fastlr_member", "fastlr_together"])
    return _Team(start, *map(_address, functions), *trampolines)


def _loaded_runtime() -> str | None:
    try:
        with open("/proc/self/maps", encoding="utf-8") as file:
            paths = {line.split()[-1] for line in file if "/" in line}
    except OSError:  # not Linux
        return _runtime_beside_torch()
    names = [path for path in sorted(paths) if _is_runtime(path)]
    # two runtimes in one process: PyTorch's own is the one beside it
    return next((path for path in names if "torch" in path), names[0] if names else None)


def _is_runtime(path: str) -> bool:
    return os.path.basename(path).startswith(("libgomp", "libiomp5", "libomp"))


def _runtime_beside_torch() -> str | None:
    """The one that PyTorch brings along, if it is loaded: another would be a team of its own."""
    for path in sorted((Path(torch.__file__).parent / "lib").iterdir()):
        if _is_runtime(path.name):
            with suppress(OSError):
                ctypes.CDLL(str(path), mode=getattr(os, "RTLD_NOLOAD", 0) | ctypes.DEFAULT_MODE)
                return str(path)
    return None


@lru_cache(None)
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="fastlr")


def _run_in_pool(kernel, pointer: int, bounds: list[int]) -> None:
    others = [
        _pool(len(bounds) - 2).submit(kernel, pointer, bounds[k], bounds[k + 1]) for k in range(1, len(bounds) - 1)
    ]
    kernel(pointer, bounds[0], bounds[1])
    for other in others:
        other.result()
