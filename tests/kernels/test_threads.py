"""The team of threads: every share once, whoever has time; in step only where others keep up."""

import ctypes
import os
import threading
import time

import numpy as np
import pytest
import torch
from fastlr.kernels import cores, threads
from fastlr.kernels.cores import solitude
from fastlr.kernels.threads import run_parallel, run_together
from reference.forked import in_child, needs_fork

pytestmark = pytest.mark.skipif(threads._team() is None, reason="PyTorch has no OpenMP team here")


@pytest.fixture(autouse=True)
def two_threads(many_cores, monkeypatch):
    """However busy the machine is: nobody is late."""
    monkeypatch.setattr(cores, "NOTHING", 1e9)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    solitude.until = 0.0
    yield
    solitude.until = 0.0
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
    assert len(idents) > 1


def test_in_step():
    """Members of a team are there at once."""
    for size in (2, 3, 5):
        meeting, members = threading.Barrier(size, timeout=20.0), []

        def work(pointer, number, size, meeting=meeting, members=members):
            meeting.wait()
            members.append((number, size))

        run_together(kernel_of(work), 0, size)
        assert sorted(members) == [(number, size) for number in range(size)]


@pytest.mark.parametrize("in_step", [True, False])
def test_alone_where_others_do_not_keep_up(in_step, monkeypatch):
    """For a while, and longer each time."""
    team, caller, members = threads._team(), threading.get_ident(), []
    monkeypatch.setattr(cores, "NOTHING", 3e-4)
    monkeypatch.setattr(cores, "ALONE", 0.05)
    monkeypatch.setattr(solitude, "_known_at", -100.0)
    barrier = ctypes.CFUNCTYPE(None)(team.barrier)

    def late(pointer, number, size):
        members.append(threading.get_ident())
        for _ in range(4 if in_step and size > 1 else 0):
            time.sleep(0.0 if threading.get_ident() == caller else 0.01)
            barrier()
        if not in_step:
            time.sleep(0.0 if threading.get_ident() == caller else 0.01)

    def run() -> bool:
        """Whether others took part."""
        members.clear()
        if in_step:
            run_together(kernel_of(late), 0, 2)
        else:
            run_parallel(kernel_of(late), 0, np.arange(3))
        return len(set(members)) == 2

    assert [run() for _ in range(3)] == [True, False, False]
    time.sleep(0.06)
    assert run()
    assert solitude.until > time.monotonic() + 0.06


@pytest.mark.parametrize(
    ("jobs", "threads", "wanted"),
    [
        ([(1e-4, 0.0)] * 100, 2, False),
        ([(4e-3, 3.9e-3)], 2, True),
        ([(4e-4, 2.9e-4)], 2, False),  # nothing
        ([(1e-3, 0.0)] * 20 + [(6e-3, 5e-3)], 2, False),  # once, after much that was gained
        ([(1e-3, 0.0)] * 20 + [(6e-3, 5e-3)] * 6, 2, True),
        ([(2e-2, 5e-3)] * 20, 2, False),  # less than is gained
        ([(2e-2, 1.2e-2)], 2, True),
        ([(2e-2, 1.2e-2)] * 20, 8, False),
    ],
)
def test_alone_where_more_is_lost_than_gained(jobs, threads, wanted, monkeypatch):
    monkeypatch.setattr(cores, "NOTHING", 3e-4)
    solitude = cores.Solitude()
    for seconds, late in jobs:
        assert not solitude.is_wanted
        solitude.shared(seconds, late, threads)
    assert solitude.is_wanted == wanted


def test_torch_shares_nothing():
    torch.set_num_threads(3)
    with cores.torch_on_one_thread():
        assert torch.get_num_threads() == 1
        assert cores.count() == 3
        with cores.torch_on_all_threads():
            assert torch.get_num_threads() in (1, 3)
        with cores.torch_on_one_thread():
            assert cores.count() == 3
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_the_barrier():
    """No thread passes before all have come, time after time."""
    barrier = ctypes.CFUNCTYPE(None)(threads.barrier_address())
    for size in (2, 3):
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


def test_one_team_in_step_at_a_time():
    """A second thread of the program does such work alone while the barrier is in use."""
    inside, go_on = threading.Event(), threading.Event()

    def slow(pointer, number, size):
        inside.set()
        go_on.wait(20.0)

    kernel = kernel_of(slow)
    other = threading.Thread(target=run_together, args=(kernel, 0, 2))
    other.start()
    inside.wait(20.0)
    found = []
    run_together(kernel_of(lambda pointer, number, size: found.append((number, size))), 0, 2)
    go_on.set()
    other.join(20.0)
    assert found == [(0, 1)]


@needs_fork
@pytest.mark.filterwarnings("ignore:This process")
def test_after_a_fork():
    share_out(4, 0.001)
    in_child(lambda: share_out(3) == [(0, 30, threading.get_ident())], seconds=20.0)


def test_no_more_threads_than_cores(monkeypatch):
    torch.set_num_threads(7)
    assert cores.count() == 7
    monkeypatch.setattr(cores, "_cores", lambda: 2)
    assert cores.count() == 2
    monkeypatch.undo()
    assert 1 <= cores._cores() <= os.cpu_count()
