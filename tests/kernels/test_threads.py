"""The team of threads: every share once, whoever has time; in step only where others keep up."""

import ctypes
import os
import sys
import threading
import time

import numpy as np
import pytest
import torch
from fastlr.kernels import threads
from fastlr.kernels.threads import _WORDS, run_parallel, run_together

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kernels run on one thread")


@pytest.fixture(autouse=True)
def two_threads(many_cores):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def kernel_of(function):
    """A Python function in the place of machine code."""
    return ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(function)


def share_out(number: int, seconds: float = 0.0) -> list[tuple[int, int, int]]:
    """What was done (begin, end) and by which thread."""
    done = []

    def work(pointer, begin, end):
        if seconds:
            time.sleep(seconds)
        done.append((begin, end, threading.get_ident()))

    run_parallel(kernel_of(work), 0, np.arange(number + 1) * 10)
    return done


@pytest.mark.parametrize("number", [1, 2, 3, 17])
@pytest.mark.parametrize("asked", [1, 2, 5])
def test_every_share_once(number, asked):
    torch.set_num_threads(asked)
    for _ in range(20):
        assert sorted(done[:2] for done in share_out(number)) == [(10 * k, 10 * k + 10) for k in range(number)]


def test_others_help():
    idents = {ident for _ in range(20) for *_, ident in share_out(4, 0.002)}
    assert threading.get_ident() in idents
    assert len(idents) > 1
    assert threads._team().words[_WORDS["prompt"]] > threads.PROMPT


def test_nobody_is_waited_for(monkeypatch):
    """Where the other threads get no time, the caller does all shares, and works alone where it would be in step."""
    team = threads._Team()
    monkeypatch.setattr(threads, "_team", lambda: team)
    monkeypatch.setattr(team, "employ", lambda others: None)
    for _ in range(16):
        done = share_out(3)
        assert [ident for *_, ident in done] == [threading.get_ident()] * 3
    assert team.words[_WORDS["prompt"]] < threads.PROMPT
    members = []
    run_together(kernel_of(lambda pointer, number, size: members.append((number, size))), 0, 2)
    assert members == [(0, 1)]


def test_in_step():
    """Members of a team are there at once."""
    share_out(2)
    threads._team().words[_WORDS["prompt"]] = 256
    for size in (2, 3, 5):
        meeting, members = threading.Barrier(size, timeout=20.0), []

        def work(pointer, number, size, meeting=meeting, members=members):
            meeting.wait()
            members.append((number, size))

        run_together(kernel_of(work), 0, size)
        threads._team().words[_WORDS["prompt"]] = 256
        assert sorted(members) == [(number, size) for number in range(size)]


def test_the_barrier():
    """No thread passes before all have come, time after time."""
    share_out(2)
    barrier = ctypes.CFUNCTYPE(None)(threads.barrier_address())
    for size in (2, 3):
        threads._team().words[_WORDS["prompt"]] = 256
        log = []

        def work(pointer, number, size, log=log):
            for step in range(50):
                if number == step % size:
                    time.sleep(0.0002)  # longer than the others look for
                log.append(step)
                barrier()

        run_together(kernel_of(work), 0, size)
        assert log == sorted(log)
        assert len(log) == 50 * size


def test_callers_do_not_wait_for_each_other():
    """A second thread of the program does its work alone while the team is busy."""
    inside, go_on, found = threading.Event(), threading.Event(), []

    def slow(pointer, begin, end):
        inside.set()
        go_on.wait(20.0)

    kernel = kernel_of(slow)
    other = threading.Thread(target=run_parallel, args=(kernel, 0, np.array([0, 1, 2])))
    other.start()
    inside.wait(20.0)
    found = share_out(2)
    go_on.set()
    other.join(20.0)
    assert [done[:2] for done in found] == [(0, 20)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.skipif(sys.version_info >= (3, 12) and threading.active_count() > 50, reason="too many threads")
@pytest.mark.filterwarnings("ignore:This process")
def test_after_a_fork():
    share_out(4, 0.001)
    child = os.fork()
    if child == 0:
        try:
            good = sorted(done[:2] for done in share_out(3)) == [(0, 10), (10, 20), (20, 30)]
        finally:
            os._exit(0 if good else 1)
    deadline = time.monotonic() + 20.0
    while (status := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if status == (0, 0):
        os.kill(child, 9)
    assert status == (child, 0)


def test_no_more_threads_than_cores(monkeypatch):
    torch.set_num_threads(7)
    assert threads.count() == 7
    monkeypatch.setattr(threads, "_cores", lambda: 2)
    assert threads.count() == 2
    monkeypatch.undo()
    assert 1 <= threads._cores() <= os.cpu_count()
