import csv
import json
import signal
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

sys.path.insert(0, str(Path(__file__).parent))
from train_toy import write_run

import fastlr
from fastlr.checkpoint import load_checkpoint, read_header
from fastlr.errors import ConfigError, NonFiniteError
from fastlr.train import train
from fastlr.train.data import make_samples, read_frames
from fastlr.train.history import read_rows
from fastlr.train.module import TrainingModule

pytestmark = pytest.mark.filterwarnings("ignore:.*charged structures have dipoles")


def rows(output):
    with (output / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def same_weights(a, b):
    a, b = load_checkpoint(a)[1], load_checkpoint(b)[1]
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of four epochs."""
    directory = tmp_path_factory.mktemp("run")
    config = write_run(directory, max_epochs=4)
    train(config, directory / "out")
    return directory, config


def test_everything_is_written(finished):
    output = finished[0] / "out"
    names = {path.name for path in output.iterdir()}
    assert names == {
        "config.yaml",
        "metrics.csv",
        "learning_curve.png",
        "parity.png",
        "last.ckpt",
        "best.ckpt",
        "model.safetensors",
        "summary.json",
    }
    assert [int(row["epoch"]) for row in read_rows(output / "metrics.csv")] == [1, 2, 3, 4]
    assert json.loads((output / "summary.json").read_text())["epochs"] == 4


def test_the_card_tells_data_and_errors(finished):
    directory, _ = finished
    config, card = read_header(directory / "out" / "model.safetensors")
    assert config.species == ["H", "O"] and config.avg_num_neighbors != 20.0
    assert card["training_data"]["train"]["structures"] == 12
    assert card["training_data"]["train"]["labels"]["stress"] == 6
    assert set(card["errors"]["test"]["families"]) == {"cell", "molecule"}
    assert "torch" in card["trained_with"]

    potential = fastlr.load(directory / "out" / "model.safetensors", backend="reference", device="cpu")
    frames = read_frames([str(directory / "test.extxyz")], "test")
    off = [potential.predict(f.atoms).forces - f.labels["forces"] for f in frames]
    mae = 1e3 * np.abs(np.concatenate(off)).mean()
    assert card["errors"]["test"]["overall"]["forces"]["mae"] == pytest.approx(mae, rel=1e-4)
    off = [(potential.predict(f.atoms).energy - f.labels["energy"]) / len(f.atoms) for f in frames]
    assert card["errors"]["test"]["overall"]["energy"]["mae"] == pytest.approx(1e3 * np.abs(off).mean(), rel=1e-4)
    families = card["errors"]["test"]["families"]
    assert "stress" in families["cell"] and "stress" not in families["molecule"]


def test_the_same_seed_gives_the_same_run(finished, tmp_path):
    directory, config = finished
    train(config, tmp_path / "again", overrides=["training.max_epochs=2"])
    assert rows(tmp_path / "again") == rows(directory / "out")[:2]
    train(config, tmp_path / "other", overrides=["training.max_epochs=1", "training.seed=1"])
    assert rows(tmp_path / "other") != rows(directory / "out")[:1]


def test_a_resumed_run_equals_an_uninterrupted_one(finished, tmp_path):
    directory, config = finished
    train(config, tmp_path / "out", overrides=["training.max_epochs=2"])
    assert not same_weights(tmp_path / "out" / "model.safetensors", directory / "out" / "model.safetensors")
    train(config, tmp_path / "out", resume=True)
    assert rows(tmp_path / "out") == rows(directory / "out")
    assert same_weights(tmp_path / "out" / "model.safetensors", directory / "out" / "model.safetensors")
    last = [torch.load(d / "out" / "last.ckpt", weights_only=True)["state_dict"] for d in (tmp_path, directory)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])


def test_ctrl_c_leaves_a_run_that_resumes(finished, tmp_path, monkeypatch):
    directory, config = finished
    original = TrainingModule.on_train_batch_end

    def interrupt(self, *args):
        if self.current_epoch == 1:
            signal.raise_signal(signal.SIGINT)
        original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=r"after 1 whole epochs.*--resume"):
        patch.setattr(TrainingModule, "on_train_batch_end", interrupt)
        train(config, tmp_path / "out")
    fastlr.load(tmp_path / "out" / "model.safetensors", backend="reference", device="cpu")
    train(config, tmp_path / "out", resume=True)
    assert rows(tmp_path / "out") == rows(directory / "out")


def test_the_exported_model_is_the_average(tmp_path):
    config = write_run(tmp_path, max_epochs=1)
    seen = {}
    original = TrainingModule.on_validation_epoch_end

    def keep(self):
        seen["module"] = self
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "on_validation_epoch_end", keep)
        path = train(config, tmp_path / "out")
    module = seen["module"]
    frames = read_frames([str(tmp_path / "test.extxyz")], "test")
    graph = make_samples(frames, module.model.config)[0].graph
    loaded = fastlr.load(path, device="cpu").model  # on the kernels that it was trained with
    with torch.no_grad():
        energy = loaded(graph)["energy"].item()
        assert energy == pytest.approx(module.ema.model(graph)["energy"].item(), abs=1e-9)
        assert abs(energy - module.model(graph)["energy"].item()) > 1e-6


def test_it_learns(tmp_path):
    config = write_run(tmp_path, train=4, max_epochs=100, learning_rate=0.02, ema=0.9, schedule="cosine")
    config["model"].update(num_features=16, radial_width=32)
    config["loss"] = {"energy": 0.0, "forces": 1.0, "charges": 10.0}
    train(config, tmp_path / "out")
    losses = [row["train_loss"] for row in read_rows(tmp_path / "out" / "metrics.csv")]
    assert losses[-1] < losses[0] / 10


def test_a_loss_that_is_not_finite_stops_at_once(tmp_path, monkeypatch):
    config = write_run(tmp_path, max_epochs=3)
    from fastlr.train import module as module_file

    original = module_file.total_loss
    calls = []

    def poisoned(terms, weights):
        calls.append(1)
        return original(terms, weights) * (float("nan") if len(calls) == 5 else 1.0)  # epoch 2, second batch

    monkeypatch.setattr(module_file, "total_loss", poisoned)
    with pytest.raises(NonFiniteError, match=r"epoch 2, batch 1 .*train\.extxyz, frame \d+"):
        train(config, tmp_path / "out")
    assert len(calls) == 5
    assert torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["epoch"] == 0
    fastlr.load(tmp_path / "out" / "model.safetensors", backend="reference", device="cpu")


def test_going_on_from_a_model(finished, tmp_path):
    """The first step starts at the finished model's weights, with its configuration."""
    directory, config = finished
    start = directory / "out" / "model.safetensors"
    slow = ["training.learning_rate=1e-12", "training.max_epochs=1", f"training.start_from={start}"]
    path = train(config, tmp_path / "out", overrides=slow)
    before, after = load_checkpoint(start), load_checkpoint(path)
    assert after[0] == before[0]
    for name, value in before[1].items():
        torch.testing.assert_close(after[1][name], value, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match=r"model\.r_max: is 2\.5, but the model in training\.start_from"):
        train(config, tmp_path / "other", overrides=[*slow, "model.r_max=2.5"])


def test_constants_an_atom_do_not_change_what_is_learnt(tmp_path):
    """All-electron energies are of 1e5 eV; what is learnt are meV."""
    config = write_run(tmp_path, train=8, max_epochs=2)
    constants = {"H": -13.6, "O": -2041.0e2}
    train(config, tmp_path / "plain")
    for name in ("train", "validation", "test"):
        path = tmp_path / f"{name}.extxyz"
        frames = ase.io.read(path, ":")
        for atoms in frames:
            atoms.calc.results["energy"] += sum(constants[symbol] for symbol in atoms.symbols)
        ase.io.write(path, frames)
    train(config, tmp_path / "shifted")
    for plain, shifted in zip(rows(tmp_path / "plain"), rows(tmp_path / "shifted"), strict=True):
        for key, value in plain.items():
            assert float(shifted[key] or 0) == pytest.approx(float(value or 0), rel=1e-4), key
    errors = [json.loads((tmp_path / run / "summary.json").read_text())["errors"] for run in ("plain", "shifted")]
    overall = [e["test"]["overall"]["energy"]["rmse"] for e in errors]
    assert overall[1] == pytest.approx(overall[0], rel=1e-4)


def test_atoms_alone_and_batches_larger_than_the_data(tmp_path):
    config = write_run(tmp_path, train=2, max_epochs=1, batch_size=100)
    alone = []
    for symbol, charge in (("H", 1), ("O", 0), ("H", 0)):
        atoms = Atoms(symbol, info={"charge": charge})
        atoms.calc = SinglePointCalculator(
            atoms, energy=-1.0, forces=np.zeros((1, 3)), charges=np.full(1, float(charge))
        )
        alone.append(atoms)
    ase.io.write(tmp_path / "train.extxyz", alone)
    config["loss"] = {"energy": 1.0, "forces": 1.0, "charges": 1.0}
    train(config, tmp_path / "out")
    assert np.isfinite(read_rows(tmp_path / "out" / "metrics.csv")[0]["train_loss"])
