import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

sys.path.insert(0, str(Path(__file__).parent))
from train_toy import MODEL, frames, teacher

from fastlr.models import parse_config
from fastlr.models.derivatives import evaluate
from fastlr.train.config import LossConfig, TrainingConfig
from fastlr.train.data import Frame, _labels, batch_order, collate, make_samples
from fastlr.train.loss import loss_terms, penalty, residuals, total_loss
from fastlr.train.references import (
    electronegativity_shifts,
    energy_shifts,
    reference_energies,
    representative,
)
from fastlr.train.schedule import Schedule

CONFIG = parse_config({**MODEL, "species": ["H", "O"], "dtype": "float64"})


def samples(count=4, without=()):
    made = []
    for k, atoms in enumerate(frames(count)):
        labels = {name: v for name, v in _labels(atoms, "toy").items() if (k, name) not in without}
        made.append(Frame(atoms, labels, f"toy, frame {k}"))
    return make_samples(made, CONFIG)


def test_reference_energies_are_recovered():
    counts = np.array([[2.0, 1.0, 0.0], [2.0, 2.0, 1.0], [1.0, 1.0, 3.0], [4.0, 1.0, 1.0]])
    true = np.array([-13.0, -430.0, -60.0])
    np.testing.assert_allclose(reference_energies(counts, counts @ true), true, rtol=1e-4)


def test_reference_energies_of_collinear_compositions():
    counts = np.array([[2.0, 1.0], [4.0, 2.0], [16.0, 8.0]])  # only water
    found = reference_energies(counts, counts @ [-13.0, -430.0])
    np.testing.assert_allclose(counts @ found, counts @ [-13.0, -430.0], rtol=1e-6)
    np.testing.assert_allclose(found, [-152.0, -152.0], rtol=1e-6)  # nothing tells H from O: the mean for each


def noisy_compositions(frames=40):
    """(F, S) counts of H and O in equal parts of many frames, and of U, one atom of a hundred in one of them; (F,)
    energies that no references give."""
    rng = np.random.default_rng(0)
    water = rng.integers(1, 20, frames)
    counts = np.stack([2.0 * water, 1.0 * water, np.zeros(frames)], axis=1)
    counts[3] = [66.0, 33.0, 1.0]
    return counts, rng.normal(0.0, 0.1, frames)


def test_constants_an_atom_change_nothing_else():
    counts, noise = noisy_compositions()
    constants = np.array([-13.6, -2041.0, -761000.0])  # all electrons
    left = noise - counts @ reference_energies(counts, noise)
    energies = noise + counts @ constants
    np.testing.assert_allclose(energies - counts @ reference_energies(counts, energies), left, atol=1e-8)
    assert abs(left[3]) < 1e-9  # one frame has the element, which its reference gives
    exact = counts @ constants
    np.testing.assert_allclose(counts @ reference_energies(counts, exact), exact, rtol=1e-13)


def test_references_of_rare_elements_are_those_of_all_structures():
    """The untrained model is evaluated on some structures only, which must have all elements."""
    made = samples(8)
    config = CONFIG.model_copy(update={"species": ["H", "O", "He"]})
    atoms = Atoms("He", positions=[[0.0, 0.0, 0.0]])
    rare = make_samples([Frame(atoms, {"energy": np.array(-79.0)}, "rare")], config)
    constants = {"H": -100.0, "O": -2000.0, "He": 5000.0}
    shifted = [
        replace(
            sample,
            labels={
                "energy": sample.labels["energy"]
                + sum(constants[config.species[k]] for k in sample.graph.species.tolist())
            },
        )
        for sample in (*made, *rare)
    ]
    some = representative([*made[:5], *rare, *made[5:]], 3, most=2)
    assert any(sample is rare[0] for sample in some) and len(some) <= 5
    before = energy_shifts([*made[:5], *rare, *made[5:]], config, seed=0, most=2)
    after = energy_shifts([*shifted[:5], shifted[-1], *shifted[5:-1]], config, seed=0, most=2)
    for symbol, constant in constants.items():
        assert after[symbol] - before[symbol] == pytest.approx(constant, abs=1e-8)


def test_reference_electronegativities_give_the_charges():
    """With a constant chi a species, as in the teacher before its network speaks, the shifts are found exactly."""
    model = teacher().model
    made = samples(6)
    chi = torch.tensor([0.0, 6.0], dtype=torch.float64)
    labelled = []
    with torch.no_grad():
        for sample in made:
            q = model.equilibration(sample.graph, chi[sample.graph.species])["charges"]
            labelled.append(replace(sample, labels={"charges": q}))
    found = electronegativity_shifts(labelled, model.config)
    assert found["O"] - found["H"] == pytest.approx(6.0, rel=1e-6)


def test_loss_by_hand_with_missing_labels():
    made = samples(4, without={(0, "energy"), (2, "forces"), (3, "charges")})
    batch = collate(made, [2, 0, 3, 1])
    model = teacher().model
    model.scale_shift.shift += 0.3  # predictions that are off
    out = evaluate(model, batch.graph)
    config = LossConfig(energy=2.0, forces=3.0, stress=5.0, charges=7.0, dipole=11.0)
    loss = float(total_loss(loss_terms(residuals(out, batch), config), config))

    expected, squares = 0.0, {}
    for sample in made:
        single = evaluate(model, sample.graph)
        for name, value in sample.labels.items():
            predicted = single[name] if name in ("forces", "charges") else single[name][0]
            r = (predicted - value).numpy() / (sample.graph.num_nodes if name == "energy" else 1)
            squares.setdefault(name, []).extend((r**2).ravel())
    assert {name: len(rows) for name, rows in squares.items()} == {
        "energy": 3,
        "forces": 3 * (4 + 5 + 7),
        "stress": 18,
        "charges": 4 + 5 + 6,
        "dipole": 6,
    }
    for name, rows in squares.items():
        expected += config.weights[name] * np.mean(rows)
    assert squares["energy"][0] == pytest.approx(0.09)
    assert loss == pytest.approx(expected, rel=1e-10)


def test_huber_penalty():
    r = torch.tensor([0.5, -1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(penalty(r, 1.0), torch.tensor([0.25, 1.0, 5.0], dtype=torch.float64))


def test_gradients_stay_finite_when_molecules_and_cells_share_a_batch():
    model = teacher().model.requires_grad_(True)
    batch = collate(samples(4), [0, 1, 2, 3])
    config = LossConfig(stress=1.0)
    out = evaluate(model, batch.graph, create_graph=True)
    total_loss(loss_terms(residuals(out, batch), config), config).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_batches_hold_each_sample_once_and_similar_sizes():
    sizes = np.random.default_rng(0).integers(1, 100, 200)
    order = batch_order(sizes, 8, 300, seed=1, epoch=0)
    assert sorted(k for batch in order for k in batch) == list(range(200))
    assert all(len(b) <= 8 and sizes[b].sum() <= 300 for b in order)
    shuffled = np.random.default_rng(1).permutation(200).reshape(-1, 8)
    spread = np.mean([np.ptp(sizes[b]) for b in order])
    assert spread < 0.5 * np.mean([np.ptp(sizes[b]) for b in shuffled])
    assert order == batch_order(sizes, 8, 300, seed=1, epoch=0)
    assert order != batch_order(sizes, 8, 300, seed=1, epoch=1)
    assert order != batch_order(sizes, 8, 300, seed=2, epoch=0)


def test_schedules():
    cosine = Schedule(TrainingConfig(learning_rate=1.0, warmup_steps=3, final_learning_rate=0.1))
    assert [cosine.rate(step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert cosine.rate(9, 0.5) == pytest.approx(0.55) and cosine.rate(9, 1.0) == pytest.approx(0.1)
    plateau = Schedule(
        TrainingConfig(learning_rate=1.0, warmup_steps=0, schedule="plateau", plateau_patience=2, plateau_factor=0.5)
    )
    for loss in (1.0, 0.9, 0.95):
        plateau.validated(loss)
    assert plateau.rate(0, 0.9) == 1.0
    plateau.validated(0.95)
    assert plateau.rate(0, 0.9) == 0.5
