"""Running a kernel on several threads without getting in the way of PyTorch's, or of other programs.

PyTorch on CPUs shares its loops among an OpenMP team whose threads look for more work for a while after each loop. A
second set of threads would compete with them for the same cores, so kernels run on that very team where its runtime can
be found, and on a thread pool where it cannot. After a fork the team's threads are gone: a forked process runs on one
thread (see ``forks``), whatever it asks for.

A loop shared among threads ends when the last of them has had its turn. Where other programs keep the cores busy, that
takes milliseconds, whatever there is to do. So the caller notes how long it waits for the others, and works alone for a
while where that is more than they save (``cores.Solitude``).
"""

import ctypes
import os
import platform
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from string import Template

import numpy as np
import torch

from . import jit
from .cores import solitude

_MEMBER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_nobody = _MEMBER(lambda _: None)
_process = os.getpid()
BARRIER = "fastlr_barrier"  # a function without arguments
LOOKS = 2000  # how often a thread looks at the barrier before it sleeps, ten nanoseconds or more each

# What each member of a team does: the shares number k, k + size of the team, ... (a team may be smaller than asked); or
# its part of a kernel that knows of the team. The first member tells when it is done.
_TRAMPOLINE = """
@fastlr_team = global [48 x i64] zeroinitializer, align 64
declare i32 @clock_gettime(i32, ptr)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)

define void @fastlr_begin() {
  call i32 @pthread_mutex_init(ptr $mutex, ptr null)
  call i32 @pthread_cond_init(ptr $condition, ptr null)
  ret void
}

define void @fastlr_barrier() {
entry:
  %generation = load atomic i64, ptr $generation seq_cst, align 8
  %members = load i64, ptr $members
  %before = atomicrmw add ptr $arrived, i64 1 seq_cst
  %arrived = add i64 %before, 1
  %all = icmp eq i64 %arrived, %members
  br i1 %all, label %open, label %look
open:
  store atomic i64 0, ptr $arrived seq_cst, align 8
  %next = add i64 %generation, 1
  store atomic i64 %next, ptr $generation seq_cst, align 8
  %asleep = load atomic i64, ptr $sleepers seq_cst, align 8
  %any = icmp ne i64 %asleep, 0
  br i1 %any, label %wake, label %out
wake:
  call i32 @pthread_mutex_lock(ptr $mutex)
  call i32 @pthread_cond_broadcast(ptr $condition)
  call i32 @pthread_mutex_unlock(ptr $mutex)
  br label %out
look:
  %looks = phi i64 [ 0, %entry ], [ %more, %again ]
  %seen = load atomic i64, ptr $generation seq_cst, align 8
  %is_open = icmp ne i64 %seen, %generation
  br i1 %is_open, label %out, label %again
again:
  $pause
  %more = add i64 %looks, 1
  %tired = icmp sge i64 %more, $looks
  br i1 %tired, label %lie, label %look
lie:  ; whoever goes to sleep counts itself first and looks once more; whoever opens looks for sleepers afterwards
  %since = call i64 @now(i32 $clock)
  call i32 @pthread_mutex_lock(ptr $mutex)
  atomicrmw add ptr $sleepers, i64 1 seq_cst
  br label %check
check:
  %now = load atomic i64, ptr $generation seq_cst, align 8
  %up = icmp ne i64 %now, %generation
  br i1 %up, label %rise, label %sleep
sleep:
  call i32 @pthread_cond_wait(ptr $condition, ptr $mutex)
  br label %check
rise:
  atomicrmw sub ptr $sleepers, i64 1 seq_cst
  call i32 @pthread_mutex_unlock(ptr $mutex)
  %until = call i64 @now(i32 $clock)
  %while = sub i64 %until, %since
  atomicrmw add ptr $slept, i64 %while seq_cst
  br label %out
out:
  ret void
}

define internal i64 @now(i32 %clock) {
  %time = alloca [2 x i64]
  call i32 @clock_gettime(i32 %clock, ptr %time)
  %seconds = load i64, ptr %time
  %p = getelementptr i64, ptr %time, i64 1
  %rest = load i64, ptr %p
  %whole = mul i64 %seconds, 1000000000
  %sum = add i64 %whole, %rest
  ret i64 %sum
}

; how late a member was when it began, and became while its core did other things
define internal void @note(i64 %called, i64 %worked) {
  %end = call i64 @now(i32 $clock)
  %own = call i64 @now(i32 $own_clock)
  %whole = sub i64 %end, %called
  %used = sub i64 %own, %worked
  %late = sub i64 %whole, %used
  atomicrmw max ptr $late, i64 %late seq_cst
  ret void
}

define void @fastlr_together(ptr %data) {
  %kernel = load ptr, ptr %data
  %p1 = getelementptr i64, ptr %data, i64 1
  %arguments = load ptr, ptr %p1
  %p3 = getelementptr i64, ptr %data, i64 3
  %number_of = load ptr, ptr %p3
  %number = call i32 %number_of()
  %k = sext i32 %number to i64
  %p5 = getelementptr i64, ptr %data, i64 5
  %size_of = load ptr, ptr %p5
  %size = call i32 %size_of()
  %team = sext i32 %size to i64
  store atomic i64 %team, ptr $members seq_cst, align 8
  call void %kernel(ptr %arguments, i64 %k, i64 %team)
  ret void
}

define void @fastlr_member(ptr %data) {
entry:
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
  %p6 = getelementptr i64, ptr %data, i64 6
  %called = load i64, ptr %p6
  %worked = call i64 @now(i32 $own_clock)
  br label %head
head:
  %share = phi i64 [ %k, %entry ], [ %next, %body ]
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
  call void @note(i64 %called, i64 %worked)
  ret void
}
"""
# Words of the team, those that several threads write to in cache lines of their own
_WORDS = {"arrived": 0, "generation": 8, "members": 16, "sleepers": 17, "slept": 18, "late": 19, "mutex": 24}
_WORDS["condition"] = 36
# What a thread does between two looks, which leaves the core to others: declaration and call, by machine
_PAUSE = "declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"
_YIELD = "declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"
_RELAX = {"x86_64": _PAUSE, "amd64": _PAUSE, "aarch64": _YIELD, "arm64": _YIELD}


def _assembly() -> str:
    place = "getelementptr inbounds ([48 x i64], ptr @fastlr_team, i64 0, i64 {})"
    declaration, pause = _RELAX.get(platform.machine().lower(), ("", ""))
    values = {name: place.format(k) for name, k in _WORDS.items()}
    values |= {"looks": LOOKS, "pause": pause}
    values |= {"clock": getattr(time, "CLOCK_MONOTONIC", 1), "own_clock": getattr(time, "CLOCK_THREAD_CPUTIME_ID", 3)}
    return Template(_TRAMPOLINE).substitute(values) + declaration


def run_parallel(kernel, pointer: int, bounds: np.ndarray) -> None:
    """kernel(pointer, bounds[k], bounds[k + 1]) for every k, each on a thread of its own, or all on the caller's."""
    shares = len(bounds) - 1
    if shares == 1 or os.getpid() != _process:
        kernel(pointer, int(bounds[0]), int(bounds[-1]))
        return
    team = _team()
    if team is None:
        _run_in_pool(kernel, pointer, bounds.tolist())
    elif solitude.is_wanted:
        kernel(pointer, int(bounds[0]), int(bounds[-1]))
    else:
        team.run(team.sharing, kernel, pointer, bounds.ctypes.data, shares, shares)


def run_together(kernel, pointer: int, threads: int) -> None:
    """kernel(pointer, k, n) on n <= ``threads`` threads at once, k = 0 ... n - 1, which may wait for each other
    (``BARRIER``)."""
    team = _team() if threads > 1 and os.getpid() == _process else None
    if team is None or solitude.is_wanted or not team.lock.acquire(blocking=False):  # there is one barrier
        kernel(pointer, 0, 1)
        return
    try:
        team.run(team.together, kernel, pointer, 0, threads, threads)
    finally:
        team.lock.release()


def barrier_address() -> int:
    """Address of ``BARRIER``, in which the threads of ``run_together`` wait for each other."""
    team = _team()
    # one thread alone has nobody to wait for, and never calls it
    return _address(_nobody) if team is None else team.barrier


def _address(function) -> int:
    return ctypes.c_void_p.from_buffer(function).value


class _Team:
    """The OpenMP runtime that PyTorch has loaded.

    Args:
        library: the runtime.

    Attributes:
        sharing, together: addresses of what members do.
        barrier: address of ``BARRIER``.
        lock: held while threads wait for each other.

    Raises:
        AttributeError: the runtime cannot start a team this way.
    """

    def __init__(self, library: ctypes.CDLL):
        self._start = library.GOMP_parallel
        self._start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._start.restype = None
        self._number_of, self._size_of = map(_address, (library.omp_get_thread_num, library.omp_get_num_threads))
        names, assembly = ("fastlr_begin", "fastlr_member", "fastlr_together", BARRIER, "fastlr_team"), _assembly()
        addresses = jit.cached(jit.stamped("fastlr_team", assembly), lambda: assembly, names)
        begin, self.sharing, self.together, self.barrier, words = addresses
        ctypes.CFUNCTYPE(None)(begin)()
        self._slept, self._late = (ctypes.c_int64.from_address(words + 8 * _WORDS[name]) for name in ("slept", "late"))
        self.lock = threading.Lock()

    def run(self, member: int, kernel, pointer: int, bounds: int, shares: int, threads: int) -> None:
        """Start a team on a job, and note how its members did."""
        self._slept.value = self._late.value = 0
        called = time.monotonic_ns()
        data = np.array(
            [_address(kernel), pointer, bounds, self._number_of, shares, self._size_of, called], dtype=np.int64
        )
        self._start(member, data.ctypes.data, threads, 0)
        # for want of a core the slowest member was that late, or the others slept so long in front of barriers
        late = max(self._late.value, self._slept.value // (threads - 1))
        solitude.shared(1e-9 * (time.monotonic_ns() - called), 1e-9 * late, threads)


@lru_cache(None)
def _team() -> _Team | None:
    path = _loaded_runtime()
    if path is None:
        return None
    try:
        return _Team(ctypes.CDLL(path))
    except AttributeError:
        return None


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
