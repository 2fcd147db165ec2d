"""The scaling of the charge solver is measured on charges and forces that are right."""

import json
import math

import pytest
from fastlr.bench import scaling
from fastlr.bench.scaling import Crystal, exponent, run_scaling

from fastlr.cli import main


def test_exponents_are_of_large_systems():
    times = {1_000: [7.0, 1.0], 10_000: [2.0, 3.0], 20_000: [2.0 * 2**1.25, 3.0 * 2.0], 40_000: [2.0 * 4**1.25, 12.0]}
    found = exponent(times)  # of rounds with 1.25 and 1.0, whatever the machine's speed in each
    assert found["median"] == pytest.approx(1.125)
    assert found["quartiles"] == sorted(found["quartiles"])
    assert exponent({atoms: times[atoms] for atoms in (1_000, 10_000)}) is None


@pytest.mark.parametrize("hardness", [0.3, 0.05])
def test_one_size(hardness):
    [result, closing] = run_scaling([2], [hardness], seconds=0.0, rounds=2, say=lambda line: None)
    assert result["atoms"] == 64
    assert result["relative_errors"]["charges"] < 1e-6
    assert result["relative_errors"]["forces"] < 1e-5
    assert all(0 < count < 100 for count in result["iterations"].values())
    assert set(result["times"]) == {"charges", "charges, energy and forces"}
    assert all(rows["fastlr"]["rounds"] == 2 for rows in result["times"].values())
    assert result["table_bytes"] > 5 * result["entries"]
    assert set(closing["exponents"].values()) == {None}


def wrong_charges(self, memory=None):
    charges, energy, forces = right(self, memory)
    return (1.0 + 2.0 * scaling.MISSED) * charges, energy, forces


def wrong_forces(self, memory=None):
    charges, energy, forces = right(self, memory)
    return charges, energy, 2.0 * forces


def no_number(self, memory=None):
    charges, energy, forces = right(self, memory)
    return charges, energy, math.nan * forces


right = Crystal.forces


@pytest.mark.parametrize("wrong", [wrong_charges, wrong_forces, no_number])
def test_what_is_wrong_is_not_timed(wrong, monkeypatch):
    monkeypatch.setattr(Crystal, "forces", wrong)
    lines = []
    result, closing = run_scaling([1], seconds=0.0, say=lines.append)
    assert result["times"] == {}
    assert set(closing["exponents"].values()) == {None}
    assert "  NOT TIMED" in lines


def test_from_the_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "fastlr.bench.machine.limits", lambda device: {"copy_GB_per_s": 20.0, "float32_GFLOP_per_s": 100.0}
    )
    monkeypatch.setattr(scaling, "LARGE", 8)
    output = tmp_path / "scaling.json"
    command = ["bench", "scaling", "--repeat", "1", "--repeat", "2", "--hardness", "0.3", "--hardness", "0.05"]
    assert main([*command, "--seconds", "0", "-o", str(output)]) == 0
    results = json.loads(output.read_text())["results"]
    assert [result.get("atoms") for result in results] == 2 * [8, 64, None]
    fitted = results[-1]["exponents"]
    assert set(fitted) == {"charges", "charges, energy and forces"}
    assert all(len(value["quartiles"]) == 2 for value in fitted.values())
    assert "time ~ N^" in (text := capsys.readouterr().out)
    assert "| NaCl, 64 atoms, J = 0.05 a.u. | charges |" in text
