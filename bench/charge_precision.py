"""How exact charges and forces are in float32: of the bundled model, and of others that differ from it in hardness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.io import read
from fastlr.kernels.charge_solver import naive

from fastlr.checkpoint import load_checkpoint
from fastlr.checks.inference import reference_of
from fastlr.constants import COULOMB_CONSTANT
from fastlr.graph import CoulombSettings, Graph
from fastlr.models import build_model
from fastlr.models.derivatives import evaluate
from fastlr.potential import Potential
from fastlr.pretrained import model_path

from .charge_bounds import EXACT
from .models import rock_salt

BOX = Path(__file__).parents[1] / "tools" / "data" / "salt-water.extxyz"
HARDNESS = (None, 5.0, 2.0, 0.5)  # eV/e^2, of all species; None is what the model has learned


def structures() -> dict[str, Atoms]:
    """Rattled rock salt, salt water, and that as a cluster with a charge."""
    box = read(BOX)
    cluster = box.copy()
    cluster.pbc, cluster.info["charge"] = False, 1
    return {"rattled NaCl, 216 atoms": rock_salt(3), "salt water, 196 atoms": box, "the same, a cluster of +1": cluster}


def precision(hardness: Sequence[float | None] = HARDNESS, say: Callable[[str], None] = print) -> list[dict]:
    """Largest errors of charges, beside those that are exact for the same electronegativities, and of forces, beside
    those of the model in float64."""
    return [row for value in hardness for row in _of_model(value, say)]


def _of_model(hardness: float | None, say: Callable[[str], None]) -> list[dict]:
    config, state, _ = load_checkpoint(model_path("aqueous-xtb"))
    if hardness is not None:
        state["equilibration.log_hardness"].fill_(float(np.log(hardness)))
    model = build_model(config)
    model.load_state_dict(state)
    potential, rows = Potential(model, backend="cpu"), []
    exact = reference_of(model)
    for name, atoms in structures().items():
        found = potential.predict(atoms)
        graph = Graph.from_atoms(atoms, config.species, config.r_max, CoulombSettings(tuple(config.widths), EXACT))
        module, chi = model.equilibration, torch.from_numpy(found.electronegativities)
        own = module.hardness.detach().index_select(0, graph.species)
        charges, _, _ = naive.equilibrate(module.system(graph), chi, own, graph.charge, COULOMB_CONSTANT)
        forces = evaluate(exact, graph)["forces"].numpy()
        label = "aqueous-xtb" if hardness is None else f"aqueous-xtb with J = {hardness:g} eV/e^2"
        row = {
            "problem": f"{label}: {name}",
            "largest_charge_error_e": float(np.abs(found.charges - charges.numpy()).max()),
            "largest_charge_e": float(np.abs(found.charges).max()),
            "largest_force_error_eV_per_A": float(np.abs(found.forces - forces).max()),
            "largest_force_eV_per_A": float(np.abs(forces).max()),
            "bound_e": found.charge_solution.error_bound if found.charge_solution else None,
            "times": {},
        }  # fmt: skip
        relative = row["largest_force_error_eV_per_A"] / row["largest_force_eV_per_A"]
        say(f"{row['problem']}: {row['largest_charge_error_e']:.1e} e, {relative:.1e} of the largest force")
        rows.append(row)
    return rows
