"""Charges in float32 are as exact as is said, however soft the atoms and large their electronegativities are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import read
from fastlr.bench import charge_bounds
from fastlr.kernels.charge_solver import naive
from fastlr.kernels.ewald.pair_table import PairTable
from reference import structures
from reference.models import small_model

import fastlr
from fastlr import Potential
from fastlr.constants import COULOMB_CONSTANT
from fastlr.engine.precision import CHARGES, COARSEST, Precision
from fastlr.errors import BackendError
from fastlr.graph import CoulombSettings, Graph

BOX = Path(__file__).parents[2] / "tools" / "data" / "salt-water.extxyz"


def rock_salt(repeat: int):
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(repeat)
    atoms.rattle(0.1, seed=0)
    return atoms


def model_of(hardness: float, spread: float, dtype: str = "float32"):
    shifts = dict(zip(("H", "O", "Na", "Cl"), spread * np.array([-0.9, 0.9, -1.0, 1.0]), strict=True))
    scales = dict(zip(("H", "O", "Na", "Cl"), hardness * np.array([1.8, 2.0, 1.0, 1.5]), strict=True))
    return small_model("lr", dtype=dtype, hardness=scales, electronegativity_shifts=shifts)


def error(potential: Potential, atoms) -> float:
    """The largest, of charges at the electronegativities that the model finds."""
    found, config = potential.predict(atoms), potential.config
    graph = Graph.from_atoms(atoms, config.species, config.r_max, CoulombSettings(tuple(config.widths), 1e-14))
    module, chi = potential.model.equilibration, torch.from_numpy(found.electronegativities)
    hardness = module.hardness.detach().index_select(0, graph.species)
    exact, _, _ = naive.equilibrate(module.system(graph), chi, hardness, graph.charge, COULOMB_CONSTANT)
    return float(np.abs(found.charges - exact.numpy()).max())


@pytest.mark.parametrize("hardness", [0.5, 2.0, 5.0, 12.0])
@pytest.mark.parametrize("spread", [3.0, 30.0])
def test_soft_models_load_and_keep_the_promise(hardness, spread):
    potential = Potential(model_of(hardness, spread))
    ions = structures.water_cluster()
    ions.info["charge"] = -2
    assert max(error(potential, atoms) for atoms in (rock_salt(2), structures.slab(), ions)) <= 2.0 * CHARGES


def test_sums_become_finer_where_forces_need_them(monkeypatch):
    """Large charges whose forces cancel; no sums are fine enough for what is wrong otherwise."""
    problem = charge_bounds.case(23168, 120)
    potential = charge_bounds._potential(problem)
    assert potential.settings.accuracy < Precision.of(potential.model).accuracy
    assert potential.inference_check.forces <= 2e-5
    monkeypatch.setattr(PairTable, "pull", lambda *a, pull=PairTable.pull: tuple(1.001 * part for part in pull(*a)))
    with pytest.raises(BackendError, match="fails the parity check"):
        charge_bounds._potential(problem)


def test_bundled_model_keeps_the_promise():
    potential = fastlr.load("aqueous-xtb", backend="cpu")
    assert potential.config.dtype == "float32"
    for atoms in (rock_salt(3), read(BOX)):
        assert error(potential, atoms) <= CHARGES


def test_what_depends_on_what():
    """Softer atoms and larger electronegativities ask for more; the bundled model is served in float32."""
    precisions = [Precision.of(model_of(hardness, 12.0)) for hardness in (20.0, 8.0, 4.0, 2.0, 1.0)]
    accuracies = [precision.accuracy for precision in precisions]
    assert accuracies[0] == COARSEST
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[4] == pytest.approx(accuracies[3] / 4.0)
    assert [precision.single for precision in precisions] == [True, True, True, False, False]
    assert precisions[4].products > precisions[1].products == 12
    assert Precision.of(model_of(4.0, 24.0)).accuracy == pytest.approx(0.5 * accuracies[2], rel=0.1)
    assert Precision.of(model_of(4.0, 12.0, "float64")) == Precision(0.0, 1e-11, False, 0)
    assert Precision.of(fastlr.load("aqueous-xtb", backend="cpu").model).single
