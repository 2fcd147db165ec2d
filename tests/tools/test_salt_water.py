"""The demo leaves what it promises, and the bundled model conserves energy in its box."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

TOOL = Path(__file__).parents[2] / "tools" / "salt_water.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("salt_water", TOOL)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOL.parent)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def output(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    arguments = ["--steps", "60", "--equilibration", "4", "--interval", "4", "--output", str(folder)]
    assert demo.main(arguments) == 0
    return folder


def test_the_start_is_the_promised_box(demo):
    atoms = read(demo.START)
    counts = {symbol: int((atoms.symbols == symbol).sum()) for symbol in ("O", "H", "Na", "Cl")}
    assert counts["O"] >= 64
    assert counts["H"] == 2 * counts["O"]
    assert counts["Na"] == counts["Cl"] >= 1
    assert atoms.pbc.all()


def test_trajectory_picture_and_summary(output):
    frames = read(output / "trajectory.extxyz", ":")
    assert len(frames) == 16
    for frame in (frames[0], frames[-1]):
        charges = frame.get_charges()
        assert abs(charges.sum()) < 1e-4  # as rounded in the file
        assert charges[frame.symbols == "O"].mean() < -0.4
        assert charges[frame.symbols == "H"].mean() > 0.2
    assert (output / "salt-water.png").stat().st_size > 20_000
    summary = json.loads((output / "summary.json").read_text())
    assert summary["steps"] == 60
    assert np.isfinite(summary["drift_meV_per_atom_per_ps"])


def test_energy_is_conserved(output):
    """Velocity Verlet at 0.5 fs lets the energy of flexible water swing by some hundredths of a meV an atom."""
    log = np.genfromtxt(output / "trajectory.csv", delimiter=",", names=True)
    atoms = len(read(output / "trajectory.extxyz"))
    deviation = (log["total_eV"] - log["total_eV"].mean()) / atoms * 1000
    assert np.abs(deviation).max() < 0.5
    exchanged = np.ptp(log["kinetic_eV"]) / atoms * 1000
    assert exchanged > 4 * np.ptp(deviation)  # kinetic and potential energy do change, and cancel


def test_errors_are_one_line(demo, tmp_path, capsys):
    assert demo.main(["--model", "no-such-model", "--output", str(tmp_path)]) == 2
    assert "no bundled model" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text("precious")
    assert demo.main(["--output", str(tmp_path)]) == 2
    assert "summary.json: exists; give another name, or --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--wrong", 2), ("--steps=x", 2)])
def test_options_are_looked_at_before_anything_is_installed(tmp_path, option, code):
    environment = {**os.environ, "FASTLR_VENV": str(tmp_path / "venv"), "PYTHON": sys.executable}
    done = subprocess.run([TOOL.parent / "demo", option], env=environment, capture_output=True, text=True)
    assert done.returncode == code and "usage: tools/demo" in (done.stderr if code else done.stdout)
    assert not (tmp_path / "venv").exists()


def test_radial_distribution_of_an_ideal_gas_is_one(demo):
    rng = np.random.default_rng(0)
    from ase import Atoms

    frames = [Atoms("O200", positions=rng.uniform(0, 12, (200, 3)), cell=[12] * 3, pbc=True) for _ in range(20)]
    r, g = demo.radial_distribution(frames, "O")
    assert r[-1] < 6.0
    assert abs(g[r > 2].mean() - 1) < 0.02
