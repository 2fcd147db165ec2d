"""What it takes to load a model and say an energy."""

import subprocess
import sys

# what takes long to import, or has no part in it
NOT_NEEDED = ["torch._dynamo", "sympy", "triton", "e3nn", "scipy", "matplotlib", "lightning", "rich", "typer"]


def test_loads_nothing_that_it_does_not_need():
    code = f"""
import sys
from ase import Atoms
import fastlr

assert fastlr.load("aqueous-xtb").predict(Atoms("OH2", [(0, 0, 0), (0, 0.76, 0.58), (0, -0.76, 0.58)])).energy < 0
print([name for name in {NOT_NEEDED} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
