"""What is said of the engine besides its speed is measured."""

import sys

import pytest
from ase.build import bulk
from fastlr.bench import soundness
from fastlr.bench.throughput import random_potential

from fastlr.engine.plan import Plan

TINY = {"kind": "nequip", "species": ["Na", "Cl"], "r_max": 4.0, "num_features": 4, "l_max": 1}


def test_a_wrong_plan_shows(monkeypatch):
    potential, atoms = random_potential(TINY), bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.rattle(0.1, seed=0)
    row = soundness._difference("tiny", potential, atoms, [].append)
    assert 0.0 <= row["energy_eV_per_atom"] < 1e-6
    assert 0.0 < row["largest_eV_per_A"] < 1e-5 < row["largest_force_eV_per_A"]
    original = Plan.evaluate
    monkeypatch.setattr(Plan, "evaluate", lambda *a, **k: {n: 1.01 * v for n, v in original(*a, **k).items()})
    row = soundness._difference("tiny", potential, atoms, [].append)
    assert row["largest_eV_per_A"] == pytest.approx(0.01 * row["largest_force_eV_per_A"], rel=1e-2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its resident memory")
def test_memory_is_read_at_three_steps():
    memory = soundness.steady(40, say=[].append)["resident_bytes"]
    assert list(memory) == [1, 20, 40]
    assert all(value > 1e7 for value in memory.values())


def test_start(monkeypatch):
    monkeypatch.setattr(soundness, "FIRST_ENERGY", "pass")
    found = soundness.startup(repeats=1, say=[].append)["seconds"]
    assert set(found) == {"import torch", "import torch, fastlr", "first energy, warm", "first energy, cold"}
    assert 0.0 < found["first energy, cold"] < found["import torch"]
