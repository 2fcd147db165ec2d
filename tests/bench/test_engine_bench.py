"""Benchmarks of the engine check what they time."""

from importlib.util import find_spec

import numpy as np
import pytest
from fastlr.bench import engine, nequip_peer, silicon, throughput
from fastlr.bench.nequip_peer import nequip_preset, with_kernels

from fastlr.checks.inference import InferenceCheck
from fastlr.engine.plan import Plan

needs_nequip = pytest.mark.skipif(find_spec("nequip") is None, reason="nequip is not installed")


def test_hexanol():
    atoms = engine.hexanol()
    assert atoms.get_chemical_formula() == "C6H14O"
    distances = atoms.get_all_distances()[np.triu_indices(21, 1)]
    assert 0.85 < distances.min() < 1.1
    assert (distances < 1.7).sum() == 20  # bonds of a chain


@needs_nequip
def test_engine_beside_nequip(monkeypatch):
    said = []
    results = engine.run_engine([1], compile_nequip=False, seconds=0.0, say=said.append)
    assert [result["nodes"] for result in results] == [21, 8]
    for result in results:
        assert set(result["times"]["energy, forces, stress"]) == {"nequip", "fastlr"}
        assert result["errors"]["fastlr"]["forces"] < 1e-5
        assert result["floor"]["evaluation_operations"] > 1e5

    original = Plan.evaluate

    def wrong(self, graph, **options):
        out = original(self, graph, **options)
        return out | {"forces": out["forces"] * 1.001}

    monkeypatch.setattr("fastlr.potential.check_inference", lambda *arguments: InferenceCheck(0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(Plan, "evaluate", wrong)
    results = engine.run_engine([], compile_nequip=False, seconds=0.0, say=said.append)
    assert set(results[0]["times"]["energy, forces, stress"]) == {"nequip"}
    assert any("fastlr: NOT TIMED" in line for line in said)


@needs_nequip
def test_silicon(monkeypatch):
    said = []
    (result,) = silicon.run_silicon([1], "S", compile_nequip=False, seconds=0.0, say=said.append)
    assert result["nodes"] == 8
    assert set(result["times"]["energy, forces, stress"]) == {"nequip", "fastlr"}
    assert result["errors"]["fastlr"]["forces"] < 1e-5
    assert 40 < result["edges"] / 8 < 50
    monkeypatch.setattr(silicon, "TOLERANCE", -1.0)
    (result,) = silicon.run_silicon([1], "S", compile_nequip=False, seconds=0.0, say=said.append)
    assert not result["times"]["energy, forces, stress"]
    assert any("fastlr: NOT TIMED" in line for line in said)


@needs_nequip
def test_kernels_that_are_not_there(monkeypatch):
    monkeypatch.setitem(
        nequip_peer.KERNELS, "openequivariance", ("a_package_that_nobody_has", "enable_OpenEquivariance")
    )
    with pytest.raises(ImportError, match="a_package_that_nobody_has is not installed"):
        with_kernels(nequip_preset("S", ["Si"], 4.0, 10.0), "openequivariance")


def test_throughput(monkeypatch):
    monkeypatch.setattr(throughput, "NEQUIP", throughput.NEQUIP | {"num_features": 4, "l_max": 1})
    monkeypatch.setattr(throughput, "SHORT_LR", throughput.SHORT_LR | {"num_features": 4, "l_max": 1})
    say = [].append
    (grown,) = throughput.growth([1], rounds=2, say=say)
    assert grown["nodes"] == 8
    assert grown["microseconds_an_atom"] > 0.0
    assert 0.0 <= grown["errors"]["fastlr"]["forces"] < 1e-3
    result = throughput.batch(5, say=say)
    assert set(result["times"]["predict"]) == {"one by one", "one list"}
    (result,) = throughput.charges([1], seconds=0.0, say=say)
    assert set(result["times"]["energy, forces, stress"]) == {"NequIP", "NequIP-LR"}
    assert all(0.0 <= row["forces"] < 1e-3 for row in result["errors"].values())


def test_throughput_of_wrong_forces_is_not_measured(monkeypatch):
    monkeypatch.setattr(throughput, "NEQUIP", throughput.NEQUIP | {"num_features": 4, "l_max": 1})
    original = Plan.evaluate

    def wrong(self, graph, **options):
        out = original(self, graph, **options)
        return out | {"forces": 1.1 * out["forces"]}

    potential = throughput.random_potential(throughput.NEQUIP)
    graph = potential.graph(throughput.rock_salt(1))
    monkeypatch.setattr(Plan, "evaluate", wrong)
    with pytest.raises(AssertionError, match="forces differ"):
        throughput.checked_force_error(potential, graph)
