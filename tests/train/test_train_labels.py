"""Labels that are absent, have another name or contradict their structure are refused or told, before training."""

import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
from train_toy import frames, write_run

from fastlr.errors import ConfigError, InputError
from fastlr.train.config import read_config
from fastlr.train.preparation import load_data
from fastlr.train.progress import Progress
from fastlr.train.record import digest_of_samples

TRAIN = frames(8)


def relabel(atoms, **labels):
    """Labels of a structure changed, those that are None removed."""
    results = {**atoms.calc.results, **labels}
    atoms.calc = SinglePointCalculator(atoms, **{key: value for key, value in results.items() if value is not None})


def hide(atoms, *names):
    """Labels under the names that data sets for other programs give them."""
    for name in names:
        where = atoms.arrays if name == "forces" else atoms.info
        where[f"REF_{name}"] = atoms.calc.results[name]
    relabel(atoms, **dict.fromkeys(names))


@pytest.fixture
def load(tmp_path):
    """Loads the toy sets, one of them changed; gives what ``load_data`` does and what was said."""

    def run(change=lambda k, atoms: None, which="train", overrides=(), **loss):
        config = write_run(tmp_path, train=0)
        sets = {"train": TRAIN, "validation": frames(4, 1), "test": frames(4, 2)}
        for name, members in sets.items():
            chosen = [atoms.copy() for atoms in members]
            for k, (atoms, original) in enumerate(zip(chosen, members, strict=True)):
                atoms.calc = SinglePointCalculator(atoms, **original.calc.results)
                if name == which:
                    change(k, atoms)
            ase.io.write(tmp_path / f"{name}.extxyz", chosen)
        config["loss"].update(loss)
        with (tmp_path / "said").open("w", encoding="utf-8") as file:
            progress = Progress(Console(file=file, width=1000), 1)
            loaded = load_data(read_config(config, list(overrides)), progress, lambda: None)
        return *loaded, (tmp_path / "said").read_text(encoding="utf-8")

    return run


def test_how_many_labels_each_set_has_is_said(load):
    said = load(lambda k, atoms: relabel(atoms, energy=None, free_energy=-1.0) if k == 3 else None, "test", energy=0)[
        -1
    ]
    assert "train: 8 structures; with labels: energy 8, forces 8, stress 4, charges 8, dipole 4\n" in said
    assert "test: 4 structures; with labels: energy 3, forces 4" in said
    assert "not read: results['free_energy'] 1\n" in said


def test_labels_under_another_name(load):
    with pytest.raises(ConfigError, match=r"loss\.energy: .*info: .*REF_energy.*arrays: REF_forces"):
        load(lambda k, atoms: hide(atoms, "energy", "forces"))
    with pytest.raises(ConfigError, match=r"data\.train: 7 of 8 .*'forces' but arrays\['REF_forces'\].*frame 1\)"):
        load(lambda k, atoms: hide(atoms, "forces") if k else None)
    with pytest.raises(ConfigError, match=r"data\.validation: 1 of 4 .*'energy' but info\['REF_energy'\].*frame 2\)"):
        load(lambda k, atoms: hide(atoms, "energy") if k == 2 else None, "validation")
    assert "energy 7" in load(lambda k, atoms: hide(atoms, "energy") if k == 2 else None, energy=0)[-1]


@pytest.mark.parametrize(
    "name",
    [
        "config_energy_weight",
        "energy_uncertainty",
        "energy_sigma",
        "EnergyError",
        "energystd",
        "kinetic_energy",
        "var_E_energy",
    ],
)
def test_numbers_about_labels_are_no_renamed_labels(load, name):
    """They are told as not read; so are such columns of forces."""

    def change(k, atoms):
        if k == 2:
            relabel(atoms, energy=None, forces=None)
            atoms.info[name] = 0.5
            atoms.arrays["forces_std"] = np.ones((len(atoms), 3))

    said = load(change)[-1]
    assert "energy 7, forces 7" in said and f"not read: info['{name}'] 1, arrays['forces_std'] 1\n" in said


def test_a_set_without_labels(load):
    for which in ("validation", "test"):
        with pytest.raises(ConfigError, match=rf"data\.{which}: no structure has a label that counts.*info: charge"):
            load(lambda k, atoms: setattr(atoms, "calc", None), which)
    said = load(lambda k, atoms: relabel(atoms, stress=None), "validation")[-1]
    assert "warning: no validation structure has the label stress and the best epoch is chosen without it" in said


def test_charges_add_up_to_the_total_charge(load):
    with pytest.raises(InputError, match=r"train\.extxyz, frame 0: .* charge labels add up to 1 e, but it states no"):
        load(lambda k, atoms: atoms.info.pop("charge"))
    load(lambda k, atoms: relabel(atoms, charges=atoms.calc.results["charges"] + 0.002))
    with pytest.raises(InputError, match=r"frame 5: the charge labels add up to 0\.05 e"):
        load(lambda k, atoms: relabel(atoms, charges=atoms.calc.results["charges"] + 0.01) if k == 5 else None)

    def fragments(k, atoms):
        del atoms.info["charge"]
        atoms.arrays["fragment"] = np.arange(len(atoms)) // 3
        charges = np.bincount(atoms.arrays["fragment"], weights=atoms.calc.results["charges"])
        atoms.info["fragment_charge"] = charges + (np.array([0.5, -0.5, 0.0])[: len(charges)] if k == 2 else 0.0)

    with pytest.raises(InputError, match=r"frame 2: the charge labels of fragment 0 add up to .*fragment_charge"):
        load(fragments)


def test_labels_that_cannot_be(load):
    for labels, part in (
        ({"energy": "None of it"}, "frame 1: energy is 'None of it', no number"),
        ({"forces": np.full((5, 3), 1e9)}, r"frame 1: forces of 1e\+09 eV/Å"),
        ({"stress": np.full(6, 1e4)}, r"frame 1: stress of 1e\+04 eV/Å\^3"),
    ):
        with pytest.raises(InputError, match=part):
            load(lambda k, atoms, labels=labels: relabel(atoms, **labels) if k == 1 else None)
    assert "energy 7" in load(lambda k, atoms: relabel(atoms, energy="None") if k == 1 else None)[-1]
    with pytest.raises(ConfigError, match=r"loss\.energy: all labels 'energy' of data\.train are exactly zero"):
        load(lambda k, atoms: relabel(atoms, energy=0.0))
    with pytest.raises(ConfigError, match=r"loss\.forces: all labels 'forces' of data\.validation are exactly zero"):
        load(lambda k, atoms: relabel(atoms, forces=np.zeros((len(atoms), 3))), "validation")

    def at_a_potential(k, atoms):
        del atoms.info["charge"]
        atoms.info["chemical_potential"] = -3.0

    with pytest.raises(InputError, match="frame 0: states a chemical potential"):
        load(at_a_potential)


def test_forces_that_do_not_add_up_to_zero_are_told(load):
    def fix(k, atoms):
        if k == 4:
            relabel(atoms, forces=atoms.calc.results["forces"] + [0.5, 0.0, 0.0])

    assert "warning: train: forces of 1 of 8 structures do not add up to zero" in (said := load(fix)[-1])
    assert "by up to 2 eV/Å" in said and "frame 4)" in said
    assert "add up to zero" not in load()[-1]


def test_species_without_training_data(load):
    with pytest.raises(ConfigError, match=r"model\.species: no training structure has Na;"):
        load(overrides=["model.species=[H, O, Na]"])
    with pytest.raises(InputError, match=r"validation\.extxyz, frame 2: has Na, which no training structure has"):
        load(lambda k, atoms: atoms.symbols.__setitem__(0, "Na") if k == 2 else None, "validation")

    def sodium(k, atoms):
        if k == 2:
            atoms.symbols[0] = "Na"
            relabel(atoms, energy=None)

    assert "warning: no training structure with Na has an energy" in load(sodium)[-1]


def test_structures_of_the_training_set_in_others_are_counted(load, tmp_path):
    assert load()[2] == {"train": 0, "validation": 0, "test": 0}

    def of_train(k, atoms):
        if k < 2:
            atoms.positions, atoms.numbers = TRAIN[k].positions, TRAIN[k].numbers
            atoms.info["charge"], atoms.cell = TRAIN[k].info["charge"], TRAIN[k].cell
            relabel(atoms, **TRAIN[k].calc.results)

    overlap, said = load(of_train, "validation")[2:]
    assert overlap == {"train": 0, "validation": 2, "test": 0}
    assert "warning: validation: 2 of 4 structures are in the training set, too" in said
    paths = f"data.train=[{tmp_path}/train.extxyz, {tmp_path}/train.extxyz]"
    assert load(overrides=[paths])[2]["train"] == 8


def test_a_frame_without_atoms_is_called_that(tmp_path):
    path = tmp_path / "empty.extxyz"
    ase.io.write(path, [TRAIN[0], Atoms(), TRAIN[1]])
    config = write_run(tmp_path, train=2)
    config["data"]["train"] = str(path)
    with pytest.raises(InputError, match=r"empty\.extxyz, frame 1: has no atoms"):
        load_data(read_config(config), Progress(Console(quiet=True), 1), lambda: None)


def test_without_a_console_warnings_are_pythons():
    with pytest.warns(UserWarning, match="mind this"):
        Progress(None, 1).warn("mind this")


def test_digests_tell_structures_conditions_labels_and_order(load):
    first = load()[0]["train"]
    assert digest_of_samples(first) == digest_of_samples(load()[0]["train"])
    assert digest_of_samples(first) != digest_of_samples(first[::-1])

    def nudge(k, atoms):
        if k == 7:
            atoms.positions[0, 0] += 1e-7

    def other_label(k, atoms):
        if k == 7:
            relabel(atoms, energy=atoms.calc.results["energy"] + 1e-7)

    def field(k, atoms):
        if k == 6:
            atoms.info["electric_field"] = np.array([0.0, 0.0, 1e-3])

    for change in (nudge, other_label, field):
        assert digest_of_samples(load(change)[0]["train"]) != digest_of_samples(first)
