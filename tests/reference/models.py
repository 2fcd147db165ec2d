"""Small models of every kind, in float64, with weights from a fixed seed."""

import torch

from fastlr.graph import Graph
from fastlr.models import build_model, parse_config
from fastlr.models.derivatives import evaluate
from fastlr.potential import coulomb_settings

from .structures import SPECIES

R_MAX = 3.7

_COMMON = {
    "species": SPECIES,
    "dtype": "float64",
    "r_max": R_MAX,
    "num_layers": 2,
    "num_features": [5, 4, 3],
    "radial_width": 7,
    "num_bessels": 4,
    "avg_num_neighbors": {"H": 6.0, "O": 7.0, "Na": 11.0, "Cl": 9.0},
    "energy_scales": {"H": 0.7, "O": 1.3, "Na": 1.1, "Cl": 0.9},
    "energy_shifts": {"H": -1.2, "O": -3.1, "Na": 0.4, "Cl": -2.3},
}
_LR = _COMMON | {
    "kind": "nequip-lr",
    "num_layers": 1,
    "type_embedding_features": 3,
    # soft and unlike species, so that charges are large and every term of the energy matters
    "hardness": {"H": 5.0, "O": 6.0, "Na": 3.0, "Cl": 4.0},
    "electronegativity_shifts": {"H": -1.0, "O": 2.0, "Na": -3.0, "Cl": 3.0},
}
_INVARIANT = {"l_max": 0, "num_features": 6}

CONFIGS = {
    "nequip": _COMMON | {"kind": "nequip", "readout_depth": 1, "bessel_trainable": True},
    "nequip-no-parity": _COMMON | {"kind": "nequip", "parity": False},
    "nequip-invariant": _COMMON | {"kind": "nequip"} | _INVARIANT,
    "lr": _LR,
    "lr-separate-stacks": _LR | {"reuse_features": False, "num_layers": 2, "charge_encoding": "gaussian"},
    "lr-gaussian-no-site": _LR | {"charge_encoding": "gaussian", "num_charge_bins": 7, "site_energy": False},
    "lr-separate-no-site": _LR | {"reuse_features": False, "site_energy": False},
    "lr-invariant": _LR | {"num_charge_layers": 2} | _INVARIANT,
}
MODELS = list(CONFIGS)
LR_MODELS = [name for name in MODELS if name.startswith("lr")]


def small_model(name: str, **changes) -> torch.nn.Module:
    torch.manual_seed(3)
    return build_model(parse_config(CONFIGS[name] | changes))


def graph_of(model, atoms, charge=None) -> Graph:
    config = model.config
    return Graph.from_atoms(atoms, config.species, config.r_max, coulomb_settings(config), charge)


def predict(model, atoms, charge=None) -> dict:
    """Everything the model says of a batch, as numpy arrays."""
    return {key: value.numpy() for key, value in evaluate(model, graph_of(model, atoms, charge)).items()}


def energies(model, atoms, charge=None):
    with torch.no_grad():
        return model(graph_of(model, atoms, charge))["energy"].numpy()
