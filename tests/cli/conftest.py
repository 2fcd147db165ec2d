"""Tiny models and structures as files, and the command line run in this process."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write

from fastlr import Potential
from fastlr.cli import main
from fastlr.models import build_model, parse_config

CONFIG = {
    "species": ["H", "O", "Na", "Cl"],
    "dtype": "float64",
    "r_max": 3.5,
    "num_features": 4,
    "l_max": 1,
    "radial_width": 8,
    "num_layers": 1,
    "avg_num_neighbors": 4.0,
}
CARD = {"trained on": {"data": "nothing [at all]", "structures": 0}, "errors": {"forces": {"mae": 0.125}}}


@pytest.fixture(scope="session")
def model_files(tmp_path_factory) -> dict[str, str]:
    """A file for each kind of model."""
    folder = tmp_path_factory.mktemp("models")
    files = {}
    for kind in ("nequip", "nequip-lr"):
        torch.manual_seed(1)
        extra = {"electronegativity_shifts": {"H": -2.0, "O": 2.0, "Na": -3.0, "Cl": 3.0}} if "lr" in kind else {}
        model = build_model(parse_config({**CONFIG, **extra, "kind": kind}))
        files[kind] = str(folder / f"{kind}.safetensors")
        Potential(model, CARD).save(files[kind])
    return files


@pytest.fixture
def model_file(model_files) -> str:
    return model_files["nequip-lr"]


@pytest.fixture
def water_atoms() -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=3)
    return atoms


@pytest.fixture
def salt_atoms() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.5)
    atoms.rattle(0.1, seed=3)
    return atoms


@pytest.fixture
def water_file(water_atoms, tmp_path) -> Path:
    write(tmp_path / "water.xyz", water_atoms)
    return tmp_path / "water.xyz"


@pytest.fixture
def salt_file(salt_atoms, tmp_path) -> Path:
    write(tmp_path / "salt.extxyz", salt_atoms)
    return tmp_path / "salt.extxyz"


@pytest.fixture
def fastlr(capsys):
    """Runs the command; gives its exit code, stdout and stderr."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return run
