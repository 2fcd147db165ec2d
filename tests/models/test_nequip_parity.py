"""Energies, forces and stress agree with the ``nequip`` package on the same weights."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from fastlr.errors import ConfigError

pytest.importorskip("nequip")

from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state

from fastlr.interop.nequip import from_nequip

R_MAX = 4.0
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}  # relative


@pytest.fixture(scope="module", autouse=True)
def _global_state():
    set_global_state()
    torch.set_default_dtype(torch.float64)  # which nequip does the first time only
    yield
    torch.set_default_dtype(torch.float32)


def nequip_model(species, dtype, **options):
    options = {"num_layers": 3, "l_max": 2, "parity": True, "num_features": 6, "radial_mlp_width": 16} | options
    scales = {symbol: 0.7 + 0.3 * k for k, symbol in enumerate(species)}
    shifts = {symbol: -1.0 - k for k, symbol in enumerate(species)}
    return NequIPGNNModel(
        seed=7,
        model_dtype=dtype,
        r_max=R_MAX,
        type_names=species,
        avg_num_neighbors=options.pop("avg_num_neighbors", 11.0),
        per_type_energy_scales=scales,
        per_type_energy_shifts=shifts,
        **options,
    )


def nequip_predict(model, species, atoms):
    data = from_ase(atoms)
    data = ChemicalSpeciesToAtomTypeMapper(model_type_names=species)(data)
    data = NeighborListTransform(r_max=R_MAX)(data)
    out = model(AtomicDataDict.with_batch_(data))
    stress = out["stress"][0] if "stress" in out and atoms.pbc.all() else None
    return (
        out["total_energy"].item(),
        out["forces"].detach().numpy(),
        None if stress is None else stress.detach().numpy(),
    )


def structure(kind: str, species: list[str]) -> Atoms:
    if kind == "molecular":
        atoms = molecule("C6H6")
        atoms.symbols = [species[k % len(species)] for k in range(len(atoms))]
        atoms.rattle(0.1, seed=1)
        return atoms
    atoms = bulk("NaCl", "rocksalt", a=5.0).repeat((2, 1, 1))
    atoms.symbols = [species[k % len(species)] for k in range(len(atoms))]
    atoms.rattle(0.2, seed=2)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * np.arange(9).reshape(3, 3) / 8), scale_atoms=True)
    return atoms


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("species", [["C"], ["Na", "Cl"]], ids=["one-species", "two-species"])
@pytest.mark.parametrize("parity", [True, False], ids=["parity", "no-parity"])
@pytest.mark.parametrize("l_max", [1, 2, 3])
def test_same_weights_same_answers(l_max, parity, species, dtype):
    model = nequip_model(species, dtype, l_max=l_max, parity=parity)
    potential = from_nequip(model, backend="reference", device="cpu")
    # remove the shifts from the comparison: they must agree, but would hide errors of the network
    shift = {symbol: -1.0 - k for k, symbol in enumerate(species)}
    for kind in ("periodic", "molecular"):
        atoms = structure(kind, species)
        energy, forces, stress = nequip_predict(model, species, atoms)
        ours = potential.predict(atoms)
        offset = sum(shift[symbol] for symbol in atoms.symbols)
        tolerance = TOLERANCE[dtype]
        scale = np.abs(ours.atomic_energies - [shift[symbol] for symbol in atoms.symbols]).sum()
        assert abs((ours.energy - offset) - (energy - offset)) <= tolerance * scale
        assert np.linalg.norm(ours.forces - forces) <= tolerance * np.linalg.norm(forces)
        assert np.linalg.norm(forces) > 1e-3
        if kind == "periodic":
            assert np.linalg.norm(ours.stress - stress) <= tolerance * np.linalg.norm(stress)
        else:
            assert ours.stress is None


@pytest.mark.parametrize(
    "options",
    [
        {"num_features": [8, 4, 2]},
        {"type_embed_num_features": 5},
        {"num_layers": 1},
        {"l_max": 0, "num_features": 6},
        {"radial_mlp_depth": 2},
        {"readout_mlp_hidden_layers_depth": 2, "readout_mlp_hidden_layers_width": 7},
        {"num_bessels": 5, "polynomial_cutoff_p": 4},
        {"bessel_trainable": True},
        {"avg_num_neighbors": {"Na": 10.0, "Cl": 14.0}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options(options):
    species = ["Na", "Cl"]
    model = nequip_model(species, "float64", **options)
    potential = from_nequip(model, backend="reference", device="cpu")
    atoms = structure("periodic", species)
    energy, forces, stress = nequip_predict(model, species, atoms)
    ours = potential.predict(atoms)
    assert ours.energy == pytest.approx(energy, rel=1e-10)
    assert np.linalg.norm(ours.forces - forces) <= 1e-10 * np.linalg.norm(forces)
    assert np.linalg.norm(ours.stress - stress) <= 1e-10 * np.linalg.norm(stress)


def test_saved_model_is_the_same(tmp_path):
    import fastlr

    species = ["Na", "Cl"]
    potential = from_nequip(nequip_model(species, "float64"), backend="reference", device="cpu")
    potential.save(tmp_path / "model.safetensors")
    atoms = structure("periodic", species)
    loaded = fastlr.load(tmp_path / "model.safetensors", backend="reference", device="cpu")
    assert loaded.predict(atoms).energy == potential.predict(atoms).energy


def test_refuses_what_it_does_not_know():
    cutoffs = nequip_model(["Na", "Cl"], "float64", per_edge_type_cutoff={"Na": 3.0})
    with pytest.raises(ConfigError, match="per_edge_type_cutoff"):
        from_nequip(cutoffs)
    with pytest.raises(ConfigError, match="no NequIP energy model"):
        from_nequip(torch.nn.Linear(2, 2))
    zbl = nequip_model(
        ["Na", "Cl"],
        "float64",
        pair_potential={
            "_target_": "nequip.nn.pair_potential.ZBL",
            "units": "metal",
            "chemical_species": ["Na", "Cl"],
        },
    )
    with pytest.raises(ConfigError, match="pair_potential"):
        from_nequip(zbl)
