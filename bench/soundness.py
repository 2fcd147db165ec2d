"""What the engine is besides fast: differences from the float64 reference, memory over many steps, its start."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

import fastlr
from fastlr.backends import resolve
from fastlr.checks.inference import box
from fastlr.engine.steps import Steps
from fastlr.models import build_model
from fastlr.models.derivatives import evaluate
from fastlr.potential import Graph, Potential, coulomb_settings

from .models import rock_salt
from .throughput import random_potential
from .timing import resident_bytes

FIRST_ENERGY = "import fastlr; from ase.build import molecule; fastlr.load('aqueous-xtb').predict(molecule('H2O'))"


def accuracy(sizes: dict[int, int] | None = None, say: Callable = print) -> list[dict]:
    """Plans in float32 beside float64 by autograd, with Coulomb sums as fine as the model has them.

    Args:
        sizes: largest degree -> cells of NaCl along each axis, for random NequIP models.
    """
    small = {"num_features": 8, "radial_width": 16, "r_max": 4.5, "avg_num_neighbors": 18.0, "kind": "nequip"}
    cases = []
    for degree, cubes in (sizes or {1: 14, 2: 14, 3: 11}).items():
        potential = random_potential(small | {"species": ["Na", "Cl"], "l_max": degree})
        cases.append((f"NequIP, l_max {degree}, 8 features", potential, rock_salt(cubes)))
    bundled = fastlr.load("aqueous-xtb", backend="cpu")
    cases += [("aqueous-xtb", bundled, box(bundled.species, bundled.config.r_max, count)) for count in (216, 1000)]
    return [_difference(name, potential, atoms, say) for name, potential, atoms in cases]


def _difference(name: str, potential: Potential, atoms, say: Callable) -> dict:
    config = potential.config
    exact = build_model(config.model_copy(update={"dtype": "float64"}), resolve("cpu", dtype=torch.float64))
    wanted = exact.state_dict()
    exact.load_state_dict({key: value.to(wanted[key].dtype) for key, value in potential.model.state_dict().items()})
    graph = Graph.from_atoms(atoms, config.species, config.r_max, coulomb_settings(config))
    expected = evaluate(exact.requires_grad_(False).eval(), graph)
    found = potential.plan.evaluate(potential.graph(atoms))
    energy = float((found["energy"] - expected["energy"]).abs()) / len(atoms)
    force = float((found["forces"] - expected["forces"]).abs().max())
    say(f"{name}, {len(atoms):,} atoms: {energy:.1e} eV/atom, {force:.1e} eV/Å")
    largest = float(expected["forces"].abs().max())
    return {"problem": f"{name}, {len(atoms):,} atoms", "energy_eV_per_atom": energy, "largest_eV_per_A": force,
            "largest_force_eV_per_A": largest, "times": {}}  # fmt: skip


def steady(num_steps: int = 20000, say: Callable = print) -> dict:
    """Resident memory while two molecules of water moves for many steps."""
    from ase.build import molecule

    atoms = molecule("H2O")
    other = atoms.copy()
    other.translate([2.7, 0.4, 0.3])
    atoms += other
    steps, start = Steps(fastlr.load("aqueous-xtb", backend="cpu")), atoms.positions.copy()
    velocity, memory = np.random.default_rng(0).normal(size=start.shape), {}
    for number in range(num_steps + 1):
        atoms.positions = start + 0.1 * np.sin(0.01 * number * velocity)
        steps.predict(atoms)
        if number in (num_steps // 40, num_steps // 2, num_steps):
            memory[number] = resident_bytes()
            say(f"step {number:,}: {memory[number] / 2**20:.1f} MiB")
    return {"problem": f"resident memory over {num_steps:,} steps", "resident_bytes": memory, "times": {}}


def startup(repeats: int = 5, say: Callable = print) -> dict:
    """Seconds of whole processes: PyTorch alone, with fastlr, and a first energy with a warm and a cold cache."""

    def seconds(code: str, cache: str | None = None) -> float:
        environment = os.environ if cache is None else {**os.environ, "FASTLR_CACHE": cache}
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        return time.perf_counter() - start

    codes = {"import torch": "import torch", "import torch, fastlr": "import torch, fastlr"}
    codes["first energy, warm"] = FIRST_ENERGY
    seconds(FIRST_ENERGY)
    found = {name: median(seconds(code) for _ in range(repeats)) for name, code in codes.items()}
    with tempfile.TemporaryDirectory() as cold:
        found["first energy, cold"] = seconds(FIRST_ENERGY, cold)
    for name, value in found.items():
        say(f"{name}: {value:.2f} s")
    return {"problem": "start of a process", "seconds": found, "times": {}}
