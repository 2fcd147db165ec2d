"""fastlr predict: what it writes is what the potential says."""

import numpy as np
import pytest
from ase.io import read, write

import fastlr as package


@pytest.fixture
def mixed_file(water_atoms, salt_atoms, tmp_path):
    ion = water_atoms[:2]
    ion.info["charge"] = -1
    path = tmp_path / "mixed.extxyz"
    write(path, [water_atoms, ion, salt_atoms])
    return path


def test_file_holds_everything_predicted(fastlr, model_file, mixed_file, tmp_path):
    output = tmp_path / "out.extxyz"
    result = fastlr("predict", model_file, mixed_file, "-o", output, "--charge", "+1")
    assert (result.code, result.err) == (0, "")
    assert "3 structures" in result.out
    structures = read(mixed_file, ":")
    structures[2].info["charge"] = 1
    predictions = package.load(model_file).predict(structures, charge=1)
    for frame, prediction, charge in zip(read(output, ":"), predictions, (1, -1, 1), strict=True):
        results = frame.calc.results
        assert frame.info["charge"] == charge
        assert results["energy"] == pytest.approx(prediction.energy, abs=1e-7)
        np.testing.assert_allclose(results["forces"], prediction.forces, atol=1e-7)
        np.testing.assert_allclose(results["charges"], prediction.charges, atol=1e-7)
        np.testing.assert_allclose(frame.arrays["electronegativities"], prediction.electronegativities, atol=1e-7)
        if frame.pbc.all():
            np.testing.assert_allclose(frame.get_stress(voigt=False), prediction.stress, atol=1e-9)
            assert "dipole" not in results
        else:
            np.testing.assert_allclose(results["dipole"], prediction.dipole, atol=1e-7)
            assert "stress" not in results


def test_results_that_the_input_brought_along_are_replaced(fastlr, model_file, water_file, tmp_path):
    first, second = tmp_path / "first.extxyz", tmp_path / "second.extxyz"
    assert fastlr("predict", model_file, water_file, "-o", first).code == 0
    assert fastlr("predict", model_file, first, "-o", second, "--charge", 1).code == 0
    assert second.read_text() == first.read_text()  # the file's own charge wins


def test_table(fastlr, model_files, mixed_file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = fastlr("predict", model_files["nequip-lr"], mixed_file)
    prediction = package.load(model_files["nequip-lr"]).predict(read(mixed_file, 1))
    row = next(line for line in result.out.splitlines() if " HO " in line)
    assert result.code == 0 and "pressure" in result.out
    assert f"{prediction.energy:.6f}" in row and "-1" in row.split()
    assert f"{prediction.charges.min():+.3f} ... {prediction.charges.max():+.3f}" in row
    assert max(map(len, result.out.splitlines())) <= 80
    assert "charges" not in fastlr("predict", model_files["nequip"], mixed_file).out


def test_index(fastlr, model_file, mixed_file):
    table = fastlr("predict", model_file, mixed_file, "--index", "1:").out
    assert "H2O" not in table and [line.split()[:2] for line in table.splitlines() if " HO " in line] == [["1", "HO"]]
    assert "ClNa" in fastlr("predict", model_file, mixed_file, "--index", "-1").out


def test_an_error_leaves_the_earlier_output_alone(fastlr, model_file, mixed_file, water_atoms, tmp_path):
    output, bad = tmp_path / "out.extxyz", tmp_path / "bad.extxyz"
    fastlr("predict", model_file, mixed_file, "-o", output)
    before = output.read_text()
    unusable = water_atoms.copy()
    unusable.symbols[0] = "U"
    write(bad, [water_atoms, unusable])
    assert fastlr("predict", model_file, bad, "-o", output, "--overwrite").code == 2
    assert output.read_text() == before
    assert not list(tmp_path.glob(".*"))


def test_progress_bar_only_on_a_terminal(fastlr, model_file, mixed_file, monkeypatch):
    assert fastlr("predict", model_file, mixed_file).err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    result = fastlr("predict", model_file, mixed_file)
    assert "predicting" in result.err and "3/3" in result.err
    assert "predicting" not in result.out


def test_runs_in_the_other_float_type(fastlr, model_file, water_file, tmp_path):
    energies = []
    for dtype in ("float64", "float32"):
        fastlr("predict", model_file, water_file, "-o", tmp_path / "out.extxyz", "--dtype", dtype, "--overwrite")
        energies.append(read(tmp_path / "out.extxyz").get_potential_energy())
    assert energies[0] != energies[1]
    assert energies[0] == pytest.approx(energies[1], abs=1e-4)
