"""Processes that are forked while threads exist, work or have worked: right answers within seconds, and no harm."""

import multiprocessing
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from fastlr.kernels import cores, forks, jit, native
from reference import structures
from reference.forked import in_child, needs_fork
from reference.models import small_model

from fastlr import Potential

pytestmark = [
    needs_fork,
    pytest.mark.filterwarnings("ignore:This process"),
]
BACKENDS = ["auto", "reference"]


@pytest.fixture
def two_threads(many_cores):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def shared_work() -> float:
    """Of PyTorch, on all its threads."""
    return float(torch.ones(700, 700).matmul(torch.ones(700, 700)).exp().sum())


def large(kind="lr", backend="auto"):
    """A potential and a structure that are worth two threads."""
    atoms = structures.salt() * ((3, 3, 3) if backend == "auto" else 1)
    return Potential(small_model(kind, num_features=8, radial_width=16), backend=backend), atoms


def agrees(potential, atoms, expected) -> bool:
    found = potential.predict(atoms)
    return abs(found.energy - expected.energy) < 1e-9 and np.abs(found.forces - expected.forces).max() < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_work_on_two_threads(two_threads, backend):
    """In the child, in its child, and in the parent, which goes on with two threads and the same bits."""
    potential, atoms = large(backend=backend)
    expected, slab = potential.predict(atoms), potential.predict(structures.slab())
    shared_work()

    def check() -> bool:
        shared_work()
        alone = torch.get_num_threads() == cores.count() == 1
        return alone and agrees(potential, atoms, expected) and agrees(potential, structures.slab(), slab)

    def check_deeper() -> bool:
        in_child(check)
        return check()

    in_child(check_deeper)
    assert torch.get_num_threads() == cores.count() == 2
    again = potential.predict(atoms)
    assert again.energy == expected.energy and (again.forces == expected.forces).all()


def test_while_another_thread_evaluates(two_threads):
    """With the potential that the child goes on with, and in the middle of its buffers."""
    potential, atoms = large()
    expected, stop = potential.predict(atoms), threading.Event()

    def work():
        while not stop.is_set():
            potential.predict(atoms)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            in_child(lambda: agrees(potential, atoms, expected))
    finally:
        stop.set()
        thread.join(20.0)
    assert agrees(potential, atoms, expected)


def test_what_is_new_in_the_child(two_threads):
    """Models and kernels that were not there before."""
    shared_work()
    expected = Potential(small_model("nequip", num_features=3), backend="reference").predict(structures.salt())
    in_child(lambda: agrees(Potential(small_model("nequip", num_features=3)), structures.salt(), expected))


def predicted(potential, atoms):
    return potential.predict(atoms).energy


class Structures(torch.utils.data.Dataset):
    def __init__(self, potential, atoms):
        self.potential, self.atoms = potential, atoms

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return predicted(self.potential, self.atoms)


def test_pools_and_data_loaders(two_threads):
    potential, atoms = large()
    expected = pytest.approx(potential.predict(atoms).energy, abs=1e-9)
    shared_work()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = [pool.apply_async(predicted, (potential, atoms)) for _ in range(4)]
        assert [result.get(timeout=20.0) for result in results] == [expected] * 4
    loader = torch.utils.data.DataLoader(
        Structures(potential, atoms), num_workers=2, timeout=20.0, multiprocessing_context="fork"
    )
    assert [value.item() for value in loader] == [expected] * 4


def test_before_any_work():
    """As servers do: a model is loaded, and processes are forked that use it."""
    code = """
import os
import fastlr
from ase.build import molecule
potential = fastlr.load("aqueous-xtb", device="cpu")
child = os.fork()
energy = potential.predict(molecule("H2O")).energy
if child == 0:
    os._exit(0 if energy < 0.0 else 1)
assert os.waitpid(child, 0) == (child, 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60.0)


@pytest.mark.parametrize("lock", [native._lock, jit._lock], ids=["kernels", "compiler"])
def test_forks_wait_for_the_compiler(lock):
    """The child finds it free."""
    held, free = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            free.wait(20.0)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20.0)
    timer = threading.Timer(0.2, free.set)
    timer.start()
    start = time.monotonic()
    in_child(lambda: lock.acquire(timeout=1.0))
    assert time.monotonic() - start > 0.1
    thread.join(20.0)
    assert lock.acquire(timeout=1.0)
    lock.release()


def test_locks_are_open_in_the_child():
    lock = forks.Lock()
    with lock:
        in_child(lambda: lock.__enter__() is None)
    with lock:
        pass
