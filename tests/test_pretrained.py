"""Every bundled model is small, described, and as accurate as its card says."""

import json
import re
from pathlib import Path

import pytest

import fastlr
from fastlr.checkpoint import load_checkpoint
from fastlr.pretrained import model_path

ROOT = Path(__file__).parents[1]
MODELS = fastlr.available_models()


def test_there_is_one():
    assert "aqueous-xtb" in MODELS


@pytest.mark.parametrize("name", MODELS)
def test_small_and_described(name):
    path = model_path(name)
    assert path.stat().st_size <= 2**20
    _, _, card = load_checkpoint(path)
    assert card["training_data"]["train"]["structures"] > 0
    written = path.with_suffix(".md").read_text()
    for heading in ("Trained on", "Errors", "Limits"):
        assert heading in written


@pytest.mark.parametrize("name", MODELS)
def test_nothing_tells_where_it_was_made(name):
    """No path of the machine on which a model was trained."""
    config, _, card = load_checkpoint(model_path(name))
    assert not re.findall(r'"(?:/|~|[A-Za-z]:\\\\)[^"]*"', json.dumps([config.model_dump(), card]))


@pytest.mark.parametrize("name", MODELS)
def test_numbers_in_the_texts_are_those_of_the_card(name):
    """Each row of the tables, family by family, in the model card; the overall row in the README too."""
    errors = load_checkpoint(model_path(name))[2]["errors"]["test"]
    written = model_path(name).with_suffix(".md").read_text()
    committed = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())["errors"]["test"]
    assert committed == errors
    for family, table in {"all": errors["overall"], **errors["families"]}.items():
        cells = [f"{table[key]['rmse']:.1f}" for key in ("energy", "forces", "charges")]
        row = re.escape(f"| {family} |") + r"[^\n]*" + re.escape("| " + " | ".join(cells) + " |")
        assert re.search(row, written), (family, cells)
        if family == "all":
            assert re.search(row, (ROOT / "README.md").read_text()), cells


def test_errors_of_aqueous_xtb_on_frames_never_trained_on():
    """Predict the test set through the public interface: the errors are those of the card."""
    import numpy as np
    from ase.io import read

    frames = read(ROOT / "tools" / "data" / "aqueous-xtb" / "test.extxyz.xz", ":")
    potential = fastlr.load("aqueous-xtb", device="cpu")
    predictions = potential.predict(frames)
    energy, force, charge = [], [], []
    for frame, prediction in zip(frames, predictions, strict=True):
        energy.append((prediction.energy - frame.get_potential_energy()) / len(frame))
        force.append((prediction.forces - frame.get_forces()).ravel())
        charge.append(prediction.charges - frame.get_charges())
    found = [1e3 * np.sqrt(np.mean(np.square(np.hstack(r)))) for r in (energy, force, charge)]
    errors = potential.card["errors"]["test"]["overall"]
    expected = [errors[key]["rmse"] for key in ("energy", "forces", "charges")]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
