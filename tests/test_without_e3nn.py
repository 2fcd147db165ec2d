"""What a model file means does not depend on e3nn: neither on its version nor on whether it is there."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import e3nn  # noqa: F401 (so that it is there in this process)
import pytest
from reference import structures
from reference.models import small_model

import fastlr
from fastlr.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[1]

NONE_THERE = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "e3nn":
            raise ImportError("e3nn must not be imported")

sys.meta_path.insert(0, Refused())
"""

# signs of the couplings as before version 0.5 of e3nn
OLD_SIGNS = """
import e3nn.o3
from reference.e3nn_signs import OPPOSITE

known = e3nn.o3.wigner_3j
e3nn.o3.wigner_3j = lambda *degrees, **options: known(*degrees, **options) * (-1.0 if degrees in OPPOSITE else 1.0)
"""

PREDICT = """
import json, sys
import torch
from reference import structures

import fastlr

torch.set_num_threads(1)
results = [fastlr.load(name, backend=backend).predict(structures.water()) for name, backend in json.loads(sys.argv[1])]
print(json.dumps([[float(result.energy), result.forces.tolist()] for result in results]))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The bundled model, and one deep enough for every kind of coupling: (name or path, backend)."""
    path = tmp_path_factory.mktemp("models") / "deep.safetensors"
    model = small_model("nequip", num_layers=4, num_features=2, l_max=2, parity=True)
    save_checkpoint(path, model.config, model.state_dict(), {})
    return [("aqueous-xtb", "auto"), (str(path), "reference")]


@pytest.fixture(scope="module")
def expected(models):
    results = [fastlr.load(name, backend=backend).predict(structures.water()) for name, backend in models]
    return [[float(result.energy), result.forces.tolist()] for result in results]


@pytest.mark.parametrize("situation", [NONE_THERE, OLD_SIGNS], ids=["not there", "old signs"])
def test_same_energies_and_forces(models, expected, situation):
    """To the last digit."""
    command = [sys.executable, "-c", situation + PREDICT, json.dumps(models)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_no_file_imports_it():
    """Nor anything else of it, also where an import waits for its function to be called."""
    files = [*(ROOT / "fastlr").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    assert len(files) > 100
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.partition(".")[0] == "e3nn"], file
