import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from train_toy import write_run

from fastlr.errors import ConfigError, InputError
from fastlr.pretrained import model_path
from fastlr.train import train
from fastlr.train.config import read_config

GOOD = {"model": {"kind": "nequip-lr"}, "data": {"train": "a.xyz", "validation": ["b.xyz"]}}


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.l_maks=2", "model.l_maks"),
        ("model.r_max=-1", "model.r_max"),
        ("model.kind=mace", "model"),
        ("model.species=[H, Qq]", "species"),
        ("loss.force=1", "loss.force"),
        ("loss.energy=-1", "loss.energy"),
        ("loss={energy: 0, forces: 0}", "loss"),
        ("training.learning_rate=0", "training.learning_rate"),
        ("training.max_time=soon", "training.max_time"),
        ("training.schedule=linear", "training.schedule"),
        ("data.train=[]", "data.train"),
        ("extra=1", "extra"),
        ("training.learning_rate=true", "training.learning_rate"),
        ("training.learning_rate=.inf", "training.learning_rate"),
        ("training.batch_size=true", "training.batch_size"),
        ("training.batch_size=99999999999999999999", "training.batch_size"),
        ("training.max_time=12:30", "training.max_time"),
        ("training.seed={a: 1, a: 2}", "training.seed"),
        ("loss.energy=.nan", "loss.energy"),
        ("model.r_max=true", "model.r_max"),
        ("model.energy_shifts={H: true}", "model.energy_shifts"),
        ("data=", "data"),
        ("model=", "model"),
    ],
)
def test_an_error_names_the_key(override, key):
    with pytest.raises(ConfigError) as error:
        read_config(GOOD, [override])
    assert key in str(error.value)
    assert "\n" not in str(error.value)


def test_an_override_is_given_once():
    with pytest.raises(ConfigError, match=r"training\.seed: is given by two"):
        read_config(GOOD, ["training.seed=1", "training.seed=2"])


def test_empty_sections_are_defaults_and_the_caller_keeps_his_dictionary():
    data = {**GOOD, "loss": None, "training": None, "model": {"kind": "nequip", "energy_shifts": {"H": 1.0}}}
    config = read_config(data, ["training.seed=3", "model.energy_shifts.H=2"])
    assert config.training.seed == 3 and config.loss.energy == 1.0
    assert data["training"] is None and data["model"]["energy_shifts"] == {"H": 1.0}


@pytest.mark.parametrize("text", ["", "[1, 2]", "text", "1: 2"])
def test_what_is_no_configuration(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="sections model, data, loss and training"):
        read_config(tmp_path / "config.yaml")


def test_times_and_species_in_files(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "model: {kind: nequip, species: [N, O, No, Y]}\ndata: {train: a.xyz, validation: b.xyz}\n"
        "training: {max_time: 12:00:00, learning_rate: 1e-3, radial_tables: no}\n"
    )
    config = read_config(tmp_path / "config.yaml")
    assert config.model["species"] == ["N", "O", "No", "Y"]
    assert (config.training.max_time, config.training.learning_rate) == (43200.0, 1e-3)
    assert config.training.radial_tables is False
    assert read_config(config.model_dump()) == config  # a run writes what it reads


def test_paths_arrays_and_tensors_are_plain_data(tmp_path):
    config = read_config(
        {
            "model": {
                "kind": "nequip-lr",
                "species": np.array(["H", "O"]),
                "r_max": np.float32(4.0),
                "energy_shifts": {"H": torch.tensor(1.0), "O": np.array(2)},
            },
            "data": {"train": tmp_path / "a.xyz", "validation": (tmp_path / "b.xyz", "c.xyz"), "test": np.array(["d"])},
            "loss": {"energy": torch.tensor(2.0)},
            "training": {"seed": np.int64(3), "start_from": tmp_path / "m.safetensors"},
        }
    )
    assert config.model["species"] == ["H", "O"] and config.model["energy_shifts"] == {"H": 1.0, "O": 2}
    assert type(config.model["r_max"]) is float and config.loss.energy == 2.0
    assert config.data.train == [str(tmp_path / "a.xyz")] and len(config.data.validation) == 2
    assert config.training.start_from == str(tmp_path / "m.safetensors")
    yaml.safe_dump(config.model_dump())


@pytest.mark.parametrize(
    ("section", "value", "match"),
    [
        ("model", {"kind": "nequip-lr", "energy_shifts": np.array([1.0, 2.0])}, "model.energy_shifts: "),
        ("model", {"kind": "nequip-lr", "r_max": np.array([4.0])}, "model.r_max: .* valid number"),
        ("model", np.array([1]), "model: "),
        ("data", {"train": "", "validation": "b"}, "data.train.0: "),
        ("data", {"train": [3], "validation": "b"}, "data.train.0: .*, got 3"),
        ("training", {"batch_size": np.True_}, "training.batch_size: is true"),
    ],
)
def test_other_values_in_dictionaries(section, value, match):
    with pytest.raises(ConfigError, match=match):
        read_config({**GOOD, section: value})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"output": 5}, "output: must be the name of a folder, got 5"),
        ({"output": ""}, "output: must be the name of a folder, got ''"),
        ({"output": "a\0b"}, "output: must be the name of a folder"),
        ({"output": b"a"}, "output: must be the name of a folder"),
        ({"overrides": [3]}, "overrides: must be a list"),
        ({"overrides": "training.seed=1"}, "overrides: must be a list"),
        ({"overrides": 3}, "overrides: must be a list"),
        ({"console": "x"}, "console must be a rich.console.Console"),
        ({"resume": "no"}, "resume must be True or False"),
    ],
)
def test_other_arguments_that_are_none(tmp_path, arguments, match):
    with pytest.raises((ConfigError, InputError), match=match):
        train(GOOD, **{"output": tmp_path / "out"} | arguments)
    assert not list(tmp_path.iterdir())


def test_missing_section():
    with pytest.raises(ConfigError, match="data"):
        read_config({"model": {"kind": "nequip"}})


def test_charges_need_a_model_with_charges():
    with pytest.raises(ConfigError, match=r"loss\.charges"):
        read_config(GOOD, ["model.kind=nequip", "loss.charges=1"])


def test_paths_start_at_the_file_and_overrides_win(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    config = read_config(path, ["training.max_time=01:30:00", "loss.stress=2.5"])
    assert config.data.train == [str(tmp_path / "a.xyz")]
    assert config.training.max_time == 5400 and config.loss.stress == 2.5
    assert read_config(path, ["training.max_time=90"]).training.max_time == 5400


@pytest.mark.parametrize("name", ["aqueous-xtb", "own.safetensors"])
def test_a_run_starts_from_a_bundled_model_or_a_file(tmp_path, name):
    """A bundled name is one here as everywhere; anything else is a file beside the configuration."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    expected = model_path(name) or tmp_path.resolve() / name
    assert read_config(path, [f"training.start_from={name}"]).training.start_from == str(expected)


def test_refusals_before_training(tmp_path):
    config = write_run(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.train"):
        train(config, tmp_path / "out", overrides=["data.train=nowhere.xyz"])
    with pytest.raises(InputError, match=r"train\.extxyz, frame 0: .*element O"):
        train(config, tmp_path / "out", overrides=["model.species=[H]"])
    text = (tmp_path / "train.extxyz").read_text()
    (tmp_path / "train.extxyz").write_text(text.replace(":charge:R:1", ":other:R:1"))
    with pytest.raises(ConfigError, match=r"loss\.charges"):
        train(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(ConfigError, match="not empty"):
        train(config, tmp_path / "out")
    with pytest.raises(ConfigError, match="no run to resume"):
        train(config, tmp_path / "out", resume=True)


def test_examples_for_readers_are_valid():
    root = Path(__file__).parents[2]
    example = (root / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    assert read_config(yaml.safe_load(example)).loss.charges == 10
    assert read_config(root / "fastlr" / "pretrained" / "aqueous-xtb.yaml").model["species"] == ["H", "O", "Na", "Cl"]
