"""A team of threads for kernels, which never wait for one that the system has put aside.

A job is a kernel with some shares of its work. Threads, the caller among them, take one share after the other: where no
other thread gets a core, the caller does all of them. Who waits for the next job, or for the last share of this one,
looks for some microseconds and then sleeps. (PyTorch's own OpenMP threads look for milliseconds, and a loop over them
ends only when the last of them has had its turn.)

The threads are Python's, but stay in machine code. A forked process makes threads of its own. On systems without POSIX
threads, kernels run on one.
"""

import ctypes
import os
import platform
import threading
from functools import lru_cache

import numpy as np
import torch

from . import jit

BARRIER = "fastlr_barrier"  # a function without arguments
LOOKS = 1500  # how often a thread looks before it sleeps, ten nanoseconds or more each
PROMPT = 128  # of 256: how many of the last jobs others must have taken part in, for a team to work in step

# Words of the team, those that several threads write to in cache lines of their own.
_WORDS = {
    "epoch": 0, "ticket": 8, "left": 16, "kernel": 24, "arguments": 25, "bounds": 26, "shares": 27, "members": 28,
    "sleepers": 32, "caller_sleeps": 33, "barrier_sleepers": 34, "arrived": 40, "generation": 48, "helped": 56,
    "prompt": 64, "mutex": 72, "job": 88, "done": 104, "step": 120,
}  # fmt: skip
_SIZE = 136
# What a thread does between two looks, which leaves the core to others: declaration and call, by machine
_PAUSE = "declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"
_YIELD = "declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"
_RELAX = {"x86_64": _PAUSE, "amd64": _PAUSE, "aarch64": _YIELD, "arm64": _YIELD}


def count() -> int:
    """How many threads kernels use at most: PyTorch's number, but no more than there are cores for this process."""
    return min(torch.get_num_threads(), _cores())


@lru_cache(None)
def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def run_parallel(kernel, pointer: int, bounds: np.ndarray) -> None:
    """kernel(pointer, bounds[k], bounds[k + 1]) for every k, by as many threads as have time."""
    shares, team = len(bounds) - 1, _team()
    if team is None or not team.lock.acquire(blocking=False):  # another thread of the program uses it
        kernel(pointer, int(bounds[0]), int(bounds[-1]))
        return
    try:
        team.employ(min(shares, count()) - 1)
        team.run(_address(kernel), pointer, bounds.ctypes.data, shares, 0)
    finally:
        team.lock.release()


def run_together(kernel, pointer: int, threads: int) -> None:
    """kernel(pointer, k, n) on n threads at once, k = 0 ... n - 1, which may wait for each other (``BARRIER``).

    n is ``threads``, or one where others have not had time of late: in step, all are as slow as the slowest.
    """
    team = _team() if threads > 1 else None
    if team is None or team.words[_WORDS["prompt"]] < PROMPT or not team.lock.acquire(blocking=False):
        kernel(pointer, 0, 1)
        return
    try:
        team.employ(threads - 1)
        team.run(_address(kernel), pointer, 0, threads, threads)
    finally:
        team.lock.release()


def barrier_address() -> int:
    """Address of ``BARRIER``, in which the threads of ``run_together`` wait for each other."""
    team = _team()
    # one thread alone has nobody to wait for, and never calls it
    return _address(_nobody) if team is None else team.barrier


_nobody = ctypes.CFUNCTYPE(None)(lambda: None)


def _address(function) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value


class _Team:
    """The threads of this process and what they share.

    Attributes:
        run: (kernel, arguments, bounds, shares, members): do a job; ``members`` is zero, or the number of those that
            work in step.
        barrier: address of ``BARRIER``.
        words: state, see ``_WORDS``.
        lock: held while there is a job.
    """

    def __init__(self):
        names = ["fastlr_team_begin", "fastlr_team_run", "fastlr_team_work", BARRIER, "fastlr_team"]
        begin, run, work, self.barrier, state = jit.addresses(jit.object_code(_assembly()), names)
        word = ctypes.c_int64
        ctypes.CFUNCTYPE(None)(begin)()
        self.run = ctypes.CFUNCTYPE(None, *[word] * 5)(run)
        self._work = ctypes.CFUNCTYPE(None, word)(work)
        self.words = np.ctypeslib.as_array((word * _SIZE).from_address(state))
        self.words[_WORDS["prompt"]] = 256
        self.lock, self.size = threading.Lock(), 0

    def employ(self, others: int) -> None:
        """Have at least so many threads besides the caller's."""
        while self.size < others:
            self.size += 1
            threading.Thread(target=self._work, args=(self.size,), daemon=True, name=f"fastlr-{self.size}").start()


@lru_cache(None)
def _team() -> _Team | None:
    if os.name != "posix":
        return None
    return _Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_team.cache_clear)


def _assembly() -> str:
    """The team in LLVM assembly.

    A ticket holds the number of the job and the next share of it, so that a thread that comes late takes no share of
    another job. Whoever goes to sleep counts itself among the sleepers first and looks once more; whoever changes
    what is waited for looks for sleepers afterwards: one of them sees the other.
    """
    declaration, pause = _RELAX.get(platform.machine().lower(), ("", ""))
    word = {
        name: f"getelementptr inbounds ([{_SIZE} x i64], ptr @fastlr_team, i64 0, i64 {k})"
        for name, k in _WORDS.items()
    }

    def load(name: str, where: str, order: str = "seq_cst") -> str:
        return f"%{name} = load atomic i64, ptr {word[where]} {order}, align 8"

    def store(value: str, where: str) -> str:
        return f"store atomic i64 {value}, ptr {word[where]} seq_cst, align 8"

    def wake(label: str, sleepers: str, condition: str, then: str) -> str:
        """If there are sleepers, wake them."""
        return f"""
  {load(f"{label}_s", sleepers)}
  %{label}_any = icmp ne i64 %{label}_s, 0
  br i1 %{label}_any, label %{label}_wake, label %{then}
{label}_wake:
  call i32 @pthread_mutex_lock(ptr {word["mutex"]})
  call i32 @pthread_cond_broadcast(ptr {word[condition]})
  call i32 @pthread_mutex_unlock(ptr {word["mutex"]})
  br label %{then}
"""

    def wait(label: str, where: str, until: str, sleepers: str, condition: str, then: str) -> str:
        """Look, then sleep, until a word has another value than it has; ``until`` compares %value."""
        return f"""
  br label %{label}_look
{label}_look:
  %{label}_n = phi i64 [ 0, %{label} ], [ %{label}_more, %{label}_relax ]
  {load(f"{label}_v", where)}
  %{label}_ok = {until.replace("%value", f"%{label}_v")}
  br i1 %{label}_ok, label %{then}, label %{label}_relax
{label}_relax:
  {pause}
  %{label}_more = add i64 %{label}_n, 1
  %{label}_tired = icmp sge i64 %{label}_more, {LOOKS}
  br i1 %{label}_tired, label %{label}_lie, label %{label}_look
{label}_lie:
  call i32 @pthread_mutex_lock(ptr {word["mutex"]})
  atomicrmw add ptr {word[sleepers]}, i64 1 seq_cst
  br label %{label}_again
{label}_again:
  {load(f"{label}_w", where)}
  %{label}_up = {until.replace("%value", f"%{label}_w")}
  br i1 %{label}_up, label %{label}_rise, label %{label}_sleep
{label}_sleep:
  call i32 @pthread_cond_wait(ptr {word[condition]}, ptr {word["mutex"]})
  br label %{label}_again
{label}_rise:
  atomicrmw sub ptr {word[sleepers]}, i64 1 seq_cst
  call i32 @pthread_mutex_unlock(ptr {word["mutex"]})
  br label %{then}
"""

    return f"""
@fastlr_team = global [{_SIZE} x i64] zeroinitializer, align 128
{declaration}
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)

define void @fastlr_team_begin() {{
  call i32 @pthread_mutex_init(ptr {word["mutex"]}, ptr null)
  call i32 @pthread_cond_init(ptr {word["job"]}, ptr null)
  call i32 @pthread_cond_init(ptr {word["done"]}, ptr null)
  call i32 @pthread_cond_init(ptr {word["step"]}, ptr null)
  ret void
}}

define void @fastlr_team_run(i64 %kernel, i64 %arguments, i64 %bounds, i64 %shares, i64 %members) {{
entry:
  store i64 %kernel, ptr {word["kernel"]}
  store i64 %arguments, ptr {word["arguments"]}
  store i64 %bounds, ptr {word["bounds"]}
  store i64 %shares, ptr {word["shares"]}
  store i64 %members, ptr {word["members"]}
  store i64 0, ptr {word["helped"]}
  {store("%shares", "left")}
  {load("last", "epoch")}
  %epoch = add i64 %last, 1
  %ticket = shl i64 %epoch, 32
  {store("%ticket", "ticket")}
  {store("%epoch", "epoch")}
  {wake("call", "sleepers", "job", "begin")}
begin:
  call void @take(i64 %epoch, i64 0)
  br label %end
end:
  {wait("end", "left", "icmp eq i64 %value, 0", "caller_sleeps", "done", "finish")}
finish:
  {load("helped", "helped")}
  %alone = icmp eq i64 %helped, 0
  %gain = select i1 %alone, i64 0, i64 32
  %known = load i64, ptr {word["prompt"]}
  %faded = lshr i64 %known, 3
  %rest = sub i64 %known, %faded
  %prompt = add i64 %rest, %gain
  store i64 %prompt, ptr {word["prompt"]}
  ret void
}}

define internal void @take(i64 %epoch, i64 %other) {{
entry:
  br label %head
head:
  {load("ticket", "ticket")}
  %owner = lshr i64 %ticket, 32
  %same = icmp eq i64 %owner, %epoch
  br i1 %same, label %mine, label %out
mine:
  %share = and i64 %ticket, 4294967295
  {load("shares", "shares")}
  %some = icmp slt i64 %share, %shares
  br i1 %some, label %claim, label %out
claim:
  %following = add i64 %ticket, 1
  %pair = cmpxchg ptr {word["ticket"]}, i64 %ticket, i64 %following seq_cst seq_cst
  %won = extractvalue {{ i64, i1 }} %pair, 1
  br i1 %won, label %work, label %head
work:
  %code = load i64, ptr {word["kernel"]}
  %kernel = inttoptr i64 %code to ptr
  %arguments = load i64, ptr {word["arguments"]}
  %members = load i64, ptr {word["members"]}
  %in_step = icmp ne i64 %members, 0
  br i1 %in_step, label %member, label %range
member:
  call void %kernel(i64 %arguments, i64 %share, i64 %members)
  br label %done
range:
  %table = load i64, ptr {word["bounds"]}
  %bounds = inttoptr i64 %table to ptr
  %from = getelementptr i64, ptr %bounds, i64 %share
  %first = load i64, ptr %from
  %to = getelementptr i64, ptr %from, i64 1
  %last = load i64, ptr %to
  call void %kernel(i64 %arguments, i64 %first, i64 %last)
  br label %done
done:
  atomicrmw add ptr {word["helped"]}, i64 %other seq_cst
  %before = atomicrmw sub ptr {word["left"]}, i64 1 seq_cst
  %final = icmp eq i64 %before, 1
  br i1 %final, label %tell, label %head
tell:
  {wake("tell", "caller_sleeps", "done", "out")}
out:
  ret void
}}

define void @fastlr_team_work(i64 %number) {{
entry:
  br label %rest
rest:
  %seen = phi i64 [ 0, %entry ], [ %epoch, %begin ]
  {wait("rest", "epoch", "icmp ne i64 %value, %seen", "sleepers", "job", "begin")}
begin:
  {load("epoch", "epoch")}
  call void @take(i64 %epoch, i64 1)
  br label %rest
}}

define void @{BARRIER}() {{
entry:
  {load("generation", "generation")}
  %members = load i64, ptr {word["members"]}
  %before = atomicrmw add ptr {word["arrived"]}, i64 1 seq_cst
  %arrived = add i64 %before, 1
  %all = icmp eq i64 %arrived, %members
  br i1 %all, label %open, label %stay
open:
  {store("0", "arrived")}
  %next = add i64 %generation, 1
  {store("%next", "generation")}
  {wake("open", "barrier_sleepers", "step", "out")}
stay:
  {wait("stay", "generation", "icmp ne i64 %value, %generation", "barrier_sleepers", "step", "out")}
out:
  ret void
}}
"""
