"""Models taken over are compared with their source: what differs is refused, whatever it is."""

import numpy as np
import pytest
import torch
from ase.data import chemical_symbols
from reference.models import small_model

from fastlr.errors import ConfigError
from fastlr.graph import Graph
from fastlr.interop.proof import TOLERANCE, Evaluation, probes, require_agreement
from fastlr.models.derivatives import evaluate
from fastlr.models.reference import reference_of

TIGHT = TOLERANCE[torch.float64]


def source_of(model, change=lambda atoms, evaluation: evaluation):
    """A model of ours in place of one of another package."""
    model = reference_of(model)

    def source(atoms) -> Evaluation:
        out = evaluate(model, Graph.from_atoms(atoms, model.config.species, model.config.r_max))
        found = Evaluation(out["energy"].item(), out["forces"].numpy(), out["stress"][0].numpy())
        return change(atoms, found)

    return source


def test_the_same_model_agrees():
    shifts = {"energy_shifts": {"H": -13.6, "O": -2e3, "Na": -4e3, "Cl": -1e4}}
    model, single = small_model("nequip", **shifts), small_model("nequip", dtype="float32", **shifts)
    require_agreement(source_of(model), model, "other", TIGHT)
    require_agreement(source_of(model), single, "other", TOLERANCE[torch.float32])


@torch.no_grad()
@pytest.mark.parametrize(
    "part",
    [
        "type_embedding.weight",
        "stack.layers.0.radial_network.weights.1",
        "stack.layers.1.linear_2.weights.0e",
        "stack.layers.1.self_connection.weights.0e",
        "edge_embedding.roots",
        "readout.weights.0",
        "scale_shift.scale",
        "scale_shift.shift",
        "stack.norm",
    ],
)
def test_one_different_number_is_refused(part):
    model, other = small_model("nequip"), small_model("nequip")
    tensor = other.state_dict()[part].flatten()
    tensor[len(tensor) // 2] *= 1.001
    with pytest.raises(ConfigError, match="differs from the other model that it was taken from") as error:
        require_agreement(source_of(other), model, "other", TIGHT)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"species": ["O", "H", "Na", "Cl"]},
        {"r_max": 3.71},
        {"cutoff_p": 7.0},
        {"readout_nonlinearity": "mish"},
        {"energy_shifts": {"H": -1.2, "O": -3.1, "Na": 0.4, "Cl": -2.3001}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_setting_is_refused(changes):
    model, other = small_model("nequip"), small_model("nequip", **changes)
    with pytest.raises(ConfigError, match="differs"):
        require_agreement(source_of(other), model, "other", TOLERANCE[torch.float32])


def _sign_of_stress(atoms, found):
    return found._replace(stress=-found.stress)


def _nothing_in_cells(atoms, found):
    return found._replace(forces=0.0 * found.forces) if atoms.pbc.all() else found


def _another_element_alone(atoms, found):
    return found._replace(energy=found.energy + 1e-6) if str(atoms.symbols) == "Na" else found


def _beyond_the_cutoff(atoms, found):
    far = len(atoms) == 2 and atoms.get_distance(0, 1) > 3.7
    return found._replace(forces=found.forces + 1e-9) if far else found


@pytest.mark.parametrize(
    "change",
    [_sign_of_stress, _nothing_in_cells, _another_element_alone, _beyond_the_cutoff],
    ids=lambda change: change.__name__.strip("_"),
)
def test_another_answer_is_refused(change):
    model = small_model("nequip")
    with pytest.raises(ConfigError, match="differs"):
        require_agreement(source_of(model, change), model, "other", TIGHT)


def test_what_is_not_finite_proves_nothing():
    model = small_model("nequip")
    with pytest.raises(ConfigError, match="are not finite"):
        require_agreement(source_of(model, lambda atoms, e: e._replace(forces=e.forces * np.nan)), model, "other", 1.0)
    source, broken = source_of(model), small_model("nequip")
    with torch.no_grad():
        broken.scale_shift.scale.mul_(np.nan)
    with pytest.raises(ConfigError, match="differs"):
        require_agreement(source, broken, "other", 1.0)
    found = source_of(model, lambda atoms, e: e._replace(stress=e.stress * np.nan))
    with pytest.raises(ConfigError, match="differs"):
        require_agreement(found, model, "other", 1.0)


def test_without_stress():
    model = small_model("nequip")
    require_agreement(source_of(model, lambda atoms, e: e._replace(stress=None)), model, "other", TIGHT)


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_probes_have_all_species_and_distances(count):
    species, r_max = chemical_symbols[1:31], 5.0
    found = list(probes(species[:count], r_max).values())
    assert [atoms.symbols[0] for atoms in found[:count]] == species[:count]
    assert {symbol for atoms in found if len(atoms) == 12 for symbol in atoms.symbols} == set(species[:count])
    pairs = [atoms.get_distance(0, 1) for atoms in found if len(atoms) == 2]
    assert min(pairs) < 0.2 * r_max
    assert any(0.9 * r_max < distance < r_max for distance in pairs)
    assert max(pairs) > r_max
    cells = [atoms for atoms in found if atoms.pbc.all()]
    assert cells
    assert all(np.linalg.norm(atoms.cell.array, axis=1).max() < r_max for atoms in cells)
    again = list(probes(species[:count], r_max).values())
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(found, again, strict=True))
