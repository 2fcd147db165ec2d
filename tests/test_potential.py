"""Structures in, predictions out: shapes, order, batches within the memory budget, errors."""

import copy
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from reference import structures
from reference.models import LR_MODELS, graph_of, predict, small_model

import fastlr
from fastlr import Potential, Prediction
from fastlr.engine.steps import Steps
from fastlr.errors import InputError, NonFiniteError
from fastlr.memory import EDGE, WORKSPACE, Counts, available_bytes, list_bytes

KINDS = ["nequip", "lr"]
both_kinds = pytest.mark.parametrize("name", KINDS)


def mixed(name) -> list[Atoms]:
    makers = {**structures.MOLECULES, **structures.CELLS}
    return [make() for make in (makers if name in LR_MODELS else structures.STRUCTURES).values()]


def assert_close(one: Prediction, other: Prediction, tolerance: float = 1e-11):
    for key, value in vars(one).items():
        if key == "charge_solution":  # how the charges were found, which depends on what else is in the batch
            continue
        if value is None:
            assert getattr(other, key) is None, key
        else:
            scale = max(1.0, np.abs(value).max(initial=0.0))
            np.testing.assert_allclose(value, getattr(other, key), rtol=0.0, atol=tolerance * scale, err_msg=key)


@both_kinds
def test_one_structure(name):
    model, atoms = small_model(name), structures.salt()
    expected = predict(model, atoms)
    prediction = Potential(model).predict(atoms)
    assert isinstance(prediction.energy, float)
    assert prediction.energy == pytest.approx(expected["energy"][0], rel=1e-14)
    assert prediction.forces.shape == (8, 3)
    assert prediction.stress.shape == (3, 3)
    assert prediction.dipole is None
    assert prediction.forces.dtype == prediction.stress.dtype == np.float64
    if name == "lr":
        assert prediction.charges.shape == prediction.electronegativities.shape == (8,)
        total = prediction.atomic_energies.sum() + prediction.coulomb_energy
    else:
        assert prediction.charges is prediction.coulomb_energy is prediction.electronegativities is None
        total = prediction.atomic_energies.sum()
    assert total == pytest.approx(prediction.energy, rel=1e-13)


@both_kinds
def test_list_equals_singles(name):
    potential, atoms = Potential(small_model(name)), mixed(name)
    predictions = potential.predict(atoms)
    assert len(predictions) == len(atoms)
    for one, prediction in zip(atoms, predictions, strict=True):
        assert prediction.forces.shape == (len(one), 3)
        assert (prediction.stress is not None) == one.pbc.all()
        assert (prediction.dipole is not None) == (name == "lr" and not one.pbc.any())
        assert_close(prediction, potential.predict(one))
    for prediction, again in zip(potential.iter_predict(atoms), predictions, strict=True):
        assert_close(prediction, again, 0.0)


def test_predictions_own_their_memory():
    """Changing one result must not change another of the batch."""
    first, second = Potential(small_model("nequip")).predict([structures.water()] * 2)
    before = second.forces.copy()
    first.forces[:] = 7.0
    assert (second.forces == before).all()


@both_kinds
def test_empty_list(name):
    assert Potential(small_model(name)).predict([]) == []


def test_without_forces():
    potential = Potential(small_model("lr"))
    prediction = potential.predict(structures.water(), forces=False)
    assert prediction.forces is prediction.stress is None
    full = potential.predict(structures.water())
    assert prediction.energy == full.energy
    assert (prediction.charges == full.charges).all()
    assert (prediction.dipole == full.dipole).all()


def test_charges_reach_the_model():
    potential, cluster = Potential(small_model("lr")), structures.water_cluster()
    water = structures.water()
    assert potential.predict(cluster, charge=-4).charges.sum() == pytest.approx(1.0, abs=1e-12)  # info wins
    totals = [p.charges.sum() for p in potential.predict([cluster, water, water], charge=[None, 2, -1])]
    assert totals == pytest.approx([1.0, 2.0, -1.0], abs=1e-12)
    assert potential.predict([water, water], charge=1.5)[1].charges.sum() == pytest.approx(1.5, abs=1e-12)
    with pytest.raises(InputError, match="2 structures but 1 charges"):
        potential.predict([water, water], charge=[1])


class TestMemoryBudget:
    @staticmethod
    def count_batches(monkeypatch) -> list[int]:
        sizes = []
        evaluate = Potential.evaluate

        def counted(self, graph, *arguments, **options):
            sizes.append(graph.num_structures)
            return evaluate(self, graph, *arguments, **options)

        monkeypatch.setattr(Potential, "evaluate", counted)
        return sizes

    @both_kinds
    def test_chunks_give_the_same(self, name, monkeypatch):
        model, atoms = small_model(name), mixed(name)
        whole = Potential(model).predict(atoms)
        potential = Potential(model)
        largest = max(potential._memory.bytes_of(Counts.of(graph_of(model, one))) for one in atoms)
        potential.memory_budget = WORKSPACE + 1.3 * (largest - WORKSPACE)
        sizes = self.count_batches(monkeypatch)
        chunks = potential.predict(atoms)
        assert sum(sizes) == len(atoms)
        assert len(sizes) > 1
        assert max(sizes) > 1
        for one, other in zip(chunks, whole, strict=True):
            assert_close(one, other)

    @both_kinds
    def test_too_small(self, name):
        potential = Potential(small_model(name), memory_budget=WORKSPACE + 5e3)
        with pytest.raises(InputError, match=r"structure 1 \(8 atoms\) needs about .* GiB, but the memory budget is"):
            potential.predict([structures.isolated_atom(), structures.salt()])

    def test_zero_is_no_default(self):
        with pytest.raises(InputError, match="memory budget is 0 GiB"):
            Potential(small_model("nequip"), memory_budget=0).predict(structures.water())

    @both_kinds
    def test_lists_that_do_not_fit_are_not_made(self, name):
        """A long cutoff in a large cell, or one given in other units: refused by the density alone."""
        potential = Potential(small_model(name, r_max=20.0), backend="reference")
        start = time.monotonic()
        for atoms in (structures.salt() * (40, 40, 40), structures.salt() * (12, 12, 12)):
            if len(atoms) < 20_000:
                atoms.set_cell(0.1 * atoms.cell.array, scale_atoms=True)
            for asked in (potential, Steps(potential)):
                with pytest.raises(InputError, match=r"to list the neighbours within 20 Å takes about .* GiB, and"):
                    asked.predict(atoms)
        assert time.monotonic() - start < 5.0

    @pytest.mark.parametrize("r_max", [5.0, 9.0])
    @pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, False, False)])
    def test_lists_are_estimated_by_the_density(self, r_max, pbc):
        atoms = structures.salt() * 5
        atoms.pbc = pbc
        edges = graph_of(small_model("nequip", r_max=r_max), atoms).num_edges
        assert 0.3 < list_bytes(atoms, r_max) / (EDGE * edges) < 1.3

    def test_available_memory(self):
        assert 1e6 < available_bytes(torch.device("cpu")) < 1e15

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    @both_kinds
    @pytest.mark.parametrize("backend", ["reference", "auto"])
    def test_estimate_is_not_below_the_peak(self, name, backend):
        """In a process of its own, whose peak is not that of the tests before."""
        repeat = {"reference": (3, 3, 3), "auto": (8, 8, 8)}[backend]
        script = f"""
import re, sys
sys.path.insert(0, {str(__file__).rpartition("/")[0]!r})
from reference import structures
from reference.models import graph_of, small_model
from fastlr import Potential
model = small_model({name!r}, num_features=8, radial_width=32)
potential = Potential(model, backend={backend!r})
potential.predict(structures.salt())
graph = graph_of(model, structures.salt() * {repeat})
def memory(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))
open("/proc/self/clear_refs", "w").write("5")  # start the peak anew
before = memory("VmRSS")
potential.evaluate(graph, [structures.salt()])
from fastlr.memory import Counts
print(memory("VmHWM") - before)
print(potential._memory.bytes_of(Counts.of(graph)))
"""
        out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        peak, estimate = (float(line) for line in out.split())
        assert peak > 3e6  # the case is large enough to be seen
        assert peak <= estimate < 20.0 * peak


@both_kinds
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda potential: pickle.loads(pickle.dumps(potential))])
def test_copies_predict_the_same(name, backend, duplicate):
    """As those make who hand a calculator to several images or processes."""
    potential = Potential(small_model(name), backend=backend)
    expected = potential.predict(structures.salt())
    other = duplicate(potential)
    assert_close(other.predict(structures.salt()), expected, 0.0)
    if potential.plan is not None:
        assert other.plan is not potential.plan
        assert other.plan.model is other.model is not potential.model


def test_faults_name_the_structure():
    potential = Potential(small_model("lr"))
    bad = structures.water()
    bad.positions[2, 0] = np.nan
    with pytest.raises(InputError, match=r"structure 2 \(H2O\): the position of atom 2"):
        potential.predict([structures.water(), structures.salt(), bad])
    with pytest.raises(InputError, match=r"structure 1 .*periodic in one direction"):
        potential.predict([structures.water(), structures.wire()])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "structures must be ASE Atoms, one or a list, got None"),
        (5, "structures must be ASE Atoms, one or a list, got 5"),
        ("file.xyz", r"the name of a file: give ase.io.read\('file.xyz', ':'\)"),
        (Path("file.xyz"), r"the name of a file: give ase.io.read\('file.xyz', ':'\)"),
        ([structures.water(), None], "structure 1: structures must be ASE Atoms, one or a list, got None"),
        (["a.xyz"], "structure 0: structures must be ASE Atoms, one or a list, got 'a.xyz'"),
    ],
    ids=str,
)
def test_what_is_no_structure(given, said):
    potential = Potential(small_model("nequip"))
    with pytest.raises(InputError, match=said):
        potential.predict(given)
    with pytest.raises(InputError, match=said):
        potential.iter_predict(given)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_loading_draws_no_random_numbers(backend):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    fastlr.load("aqueous-xtb", backend=backend).predict(structures.water())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_not_finite_is_an_error():
    model = small_model("nequip")
    with torch.no_grad():
        model.readout.weights[-1].fill_(torch.inf)
    with pytest.raises(NonFiniteError, match=r"structure 0 \(H2O\)"):
        Potential(model).predict([structures.water()])


def test_save_and_load(tmp_path):
    import fastlr

    potential = Potential(small_model("lr"), {"name": "x"})
    potential.save(tmp_path / "x.safetensors")
    again = fastlr.load(tmp_path / "x.safetensors")
    assert again.card == {"name": "x"}
    assert again.species == structures.SPECIES
    assert again.has_charges
    assert_close(again.predict(structures.water()), potential.predict(structures.water()), 0.0)
    with pytest.raises(InputError, match="dtype must be"):
        fastlr.load(tmp_path / "x.safetensors", dtype="float16")


def test_model_is_not_trained_by_predicting():
    potential = Potential(small_model("lr"))
    potential.predict(structures.water())
    assert not any(p.requires_grad for p in potential.model.parameters())
    assert not potential.model.training
