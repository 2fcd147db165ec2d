"""What it takes to load a model and say an energy."""

import subprocess
import sys

import pytest

# what takes long to import, or has no part in it
NOT_NEEDED = ["torch._dynamo", "sympy", "triton", "e3nn", "scipy", "matplotlib", "lightning", "rich", "typer"]


def test_loads_nothing_that_it_does_not_need():
    code = f"""
import sys

import pytest
from ase import Atoms
import fastlr

assert fastlr.load("aqueous-xtb").predict(Atoms("OH2", [(0, 0, 0), (0, 0.76, 0.58), (0, -0.76, 0.58)])).energy < 0
print([name for name in {NOT_NEEDED} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", "True True\n"),
        ("gc.disable()", "False True\n"),
        ("import torch", "True False\n"),  # others may have made objects that are to be collected
    ],
)
def test_what_pytorch_keeps_is_out_of_the_collectors_sight_if_fastlr_imports_it(before: str, expected: str):
    code = (
        f"import gc\n{before}\nimport fastlr\nfastlr.Potential\nprint(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
