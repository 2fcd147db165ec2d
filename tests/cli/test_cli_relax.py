"""fastlr relax: converged, not converged, and cells."""

import signal

import numpy as np
import pytest
from ase.io import read

from fastlr import Potential


@pytest.mark.parametrize("optimizer", ["fire", "bfgs", "lbfgs"])
def test_each_optimizer_lowers_the_largest_force(fastlr, model_files, water_file, tmp_path, optimizer):
    output = tmp_path / "out.extxyz"
    start = fastlr("relax", model_files["nequip"], water_file, "-o", output, "--steps", 0)
    before = read(output)
    forces = np.linalg.norm(before.get_forces(), axis=1).max()
    assert start.code == 1
    options = ["--fmax", 0.7 * forces, "--optimizer", optimizer, "--overwrite"]
    result = fastlr("relax", model_files["nequip"], water_file, "-o", output, *options)
    after = read(output)
    assert result.code == 0 and "converged after" in result.out and result.err == ""
    assert np.linalg.norm(after.get_forces(), axis=1).max() < 0.7 * forces
    assert after.get_potential_energy() < before.get_potential_energy()


def test_not_converged_is_exit_code_1_and_written(fastlr, model_file, water_file, tmp_path):
    output = tmp_path / "out.extxyz"
    result = fastlr("relax", model_file, water_file, "-o", output, "--steps", 2, "--fmax", 1e-12, "--charge", "1")
    assert result.code == 1
    assert result.err == "not converged: forces above fmax = 1e-12 eV/Å after 2 steps\n"
    frame = read(output)
    assert frame.get_charges().sum() == pytest.approx(1) and frame.info["charge"] == 1
    assert not np.allclose(frame.positions, read(water_file).positions)


def test_cell(fastlr, model_file, salt_file, water_file, tmp_path):
    output = tmp_path / "out.extxyz"
    common = ["-o", output, "--steps", 2, "--fmax", 1e-12, "--overwrite"]
    assert fastlr("relax", model_file, salt_file, *common).code == 1
    assert read(output).get_volume() == pytest.approx(read(salt_file).get_volume(), rel=1e-9)
    assert fastlr("relax", model_file, salt_file, *common, "--cell").code == 1
    assert abs(read(output).get_volume() / read(salt_file).get_volume() - 1) > 1e-6
    result = fastlr("relax", model_file, water_file, *common, "--cell")
    assert result.code == 2 and "periodic in three directions" in result.err


def test_option_faults(fastlr, model_file, water_file, tmp_path):
    for options, part in ((["--optimizer", "magic"], "fire, bfgs, lbfgs"), (["--fmax", "nan"], "fmax must be")):
        result = fastlr("relax", model_file, water_file, "-o", tmp_path / "out.xyz", *options)
        assert result.code == 2 and part in result.err and result.err.count("\n") == 1


def test_a_signal_stops_between_steps_and_writes(fastlr, model_file, water_file, tmp_path, monkeypatch):
    left, evaluate = [4], Potential.evaluate

    def evaluate_and_signal(self, *arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
        return evaluate(self, *arguments, **options)

    monkeypatch.setattr(Potential, "evaluate", evaluate_and_signal)
    output = tmp_path / "out.extxyz"
    result = fastlr("relax", model_file, water_file, "-o", output, "--fmax", 1e-12)
    assert result.code == 130 and result.err == f"stopped after 3 steps; start from {output} to go on\n"
    assert not np.allclose(read(output).positions, read(water_file).positions)
