"""fastlr profile."""

import json

import pytest
from ase.io import write
from reference import structures


@pytest.fixture(autouse=True)
def quick_limits(monkeypatch):
    limits = {"copy_GB_per_s": 20.0, "float32_GFLOP_per_s": 100.0}
    monkeypatch.setattr("fastlr.bench.machine.limits", lambda device="cpu": limits)
    monkeypatch.setenv("COLUMNS", "160")


def test_stages_and_trace(fastlr, model_file, tmp_path):
    trace = tmp_path / "trace.json"
    result = fastlr("profile", model_file, "--atoms", "20", "--steps", "3", "-o", str(trace))
    assert result.code == 0
    assert "27 atoms" in result.out
    for words in ("evaluation", "between stages", "charge equilibration", "forces and virial", "GFLOP/s", "ns/day"):
        assert words in result.out
    assert len(json.loads(trace.read_text())["traceEvents"]) % 3 == 0


def test_a_structure_of_ones_own(fastlr, model_file, tmp_path):
    write(tmp_path / "water.xyz", structures.water())
    result = fastlr("profile", model_file, str(tmp_path / "water.xyz"), "--steps", "2")
    assert result.code == 0
    assert ": 3 atoms" in result.out


def test_without_a_plan(fastlr, model_file, tmp_path):
    trace = tmp_path / "trace.json"
    result = fastlr("profile", model_file, "--atoms", "8", "--steps", "1", "--backend", "reference", "-o", str(trace))
    assert result.code == 0
    assert "no inference plan: it is made of kernels for CPUs, and the backend is 'reference'" in result.out
    assert "aten::" in result.out
    assert json.loads(trace.read_text())["traceEvents"]


def test_a_file_that_cannot_be_read(fastlr, model_file, tmp_path):
    result = fastlr("profile", model_file, str(tmp_path / "none.xyz"))
    assert result.code == 2
    assert "none.xyz: no such file" in result.err
