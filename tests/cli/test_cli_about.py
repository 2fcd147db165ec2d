"""The command itself: help, version, info, doctor, interruption, defects."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastlr as package
from fastlr import Potential
from fastlr.backends import BACKENDS, OPERATIONS
from fastlr.checks.operations import check_backend
from fastlr.errors import BackendError


def test_version_and_help(fastlr):
    assert fastlr("--version").out == f"fastlr {package.__version__}\n"
    for arguments in ([], ["--help"]):
        result = fastlr(*arguments)
        assert result.code == 0
        assert all(command in result.out for command in ("predict", "md", "relax", "info", "doctor"))


def test_help_does_not_import_torch():
    code = "import sys; from fastlr.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_installed_command(model_file, tmp_path):
    """Exit code and streams as a shell sees them."""
    command = [sys.executable, "-c", "import sys; from fastlr.cli import main; sys.exit(main())"]
    result = subprocess.run(
        [*command, "predict", model_file, "missing.xyz"], capture_output=True, text=True, cwd=tmp_path, env=os.environ
    )
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "error: missing.xyz: no such file\n")


def test_ctrl_c(fastlr, model_file, water_file, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Potential, "iter_predict", interrupted)
    result = fastlr("predict", model_file, water_file)
    assert (result.code, result.err) == (130, "interrupted\n")


def test_defects_keep_their_traceback(fastlr, model_file, water_file, monkeypatch):
    monkeypatch.setattr(Potential, "iter_predict", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fastlr("predict", model_file, water_file)


def test_info_of_a_model(fastlr, model_file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = fastlr("info", model_file)
    lines = [line.split() for line in result.out.splitlines()]
    parameters = sum(p.numel() for p in package.load(model_file).model.parameters())
    assert result.code == 0
    for line in (
        ["kind", "nequip-lr"],
        ["species", "H", "O", "Na", "Cl"],
        ["parameters", f"{parameters:,}"],
        ["energy", "eV"],
        ["r", "max", "3.5"],
        ["data", "nothing", "[at", "all]"],
        ["mae", "0.125"],
    ):
        assert line in lines


def test_info_lists_bundled_models(fastlr, model_file, tmp_path, monkeypatch):
    monkeypatch.setattr("fastlr.pretrained._FOLDER", tmp_path)
    assert "no models" in fastlr("info").out
    (tmp_path / "bundled.safetensors").write_bytes(Path(model_file).read_bytes())
    result = fastlr("info")
    assert result.code == 0 and "bundled" in result.out and "H O Na Cl" in result.out
    assert fastlr("info", "bundled").code == 0


def test_doctor(fastlr, monkeypatch):
    def check(name, device="cpu", dtype=None):
        if name == "cuequivariance":
            raise BackendError("is off by one")
        return check_backend(name, device, dtype)

    monkeypatch.setattr("fastlr.checks.operations.check_backend", check)
    monkeypatch.setenv("COLUMNS", "200")
    result = fastlr("doctor")
    assert result.code == 0
    rows = {line.split()[0]: line for line in result.out.splitlines() if line.split()}
    assert torch.__version__ in rows["torch"]
    assert f"{torch.get_num_threads()} threads" in result.out
    number = float(rows["reference"].split()[1])  # float32 against float64: rounding, but not nothing
    assert 0 < number < 1e-5
    assert all(operation in rows for operation in OPERATIONS)
    for name, backend in BACKENDS.items():
        assert name in rows
        why_not = backend.obstacle(torch.device("cpu"), torch.float32)
        if why_not:
            assert why_not in rows[name]
        elif name == "cuequivariance":
            assert "fails" in rows[name] and "is off by one" in rows[name]
