"""How the engine's time grows: atoms of one structure, structures of one batch, charges beside a longer cutoff."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from ase import Atoms

from fastlr.models import build_model, parse_config
from fastlr.potential import Potential

from .engine import hexanol
from .models import NEQUIP_LR, rock_salt
from .timing import alternate, peak_bytes, summary, take_turns

NEQUIP = {"kind": "nequip", "species": ["H", "C", "O", "Na", "Cl"], "r_max": 5.0, "avg_num_neighbors": 26.0}
# two layers in all, and charges that make up for the shorter cutoff
SHORT_LR = NEQUIP_LR | {"r_max": 3.0, "num_charge_layers": 1, "num_layers": 1, "avg_num_neighbors": 6.0,
                        "hardness": 8.0, "electronegativity_shifts": {"Na": -3.0, "Cl": 3.0}}  # fmt: skip
SIZES = (5, 8, 12, 16, 23)  # 1,000 to 97,336 atoms
LR_SIZES = (4, 5, 8, 10, 13)  # 512 to 17,576 atoms
STEP = 1e-3  # Å, of differences of the energy
MISSED = 1e-2  # relative error of such differences of energies in float32 from which on a result is wrong


def random_potential(config: dict) -> Potential:
    torch.manual_seed(0)
    return Potential(build_model(parse_config(config)), backend="cpu")


def growth(cubes: Sequence[int] = SIZES, rounds: int = 5, say: Callable = print) -> list[dict]:
    """Energy and forces of NequIP (3 layers, 5 Å) for growing cells of NaCl; microseconds an atom.

    All sizes are timed in turn, so that a machine that slows down or recovers does so for all of them. Before that the
    forces of each are checked along a random direction by differences of the energy.
    """
    runs, results = {}, []
    for n in cubes:
        atoms, potential = rock_salt(n), random_potential(NEQUIP)
        graph = potential.graph(atoms)
        peak = peak_bytes(lambda potential=potential, graph=graph: potential.plan.evaluate(graph))  # and all buffers
        error = checked_force_error(potential, graph)
        runs[len(atoms)] = lambda potential=potential, graph=graph: potential.plan.evaluate(graph)
        results.append(
            {
                "problem": f"NequIP 3 layers, r 5 Å: NaCl, {len(atoms):,} atoms",
                "nodes": len(atoms),
                "edges": graph.num_edges,
                "errors": {"fastlr": {"forces": error}},
                "peak_bytes": {"fastlr": peak},
            }
        )
    times = take_turns(runs, seconds=0.0, rounds=rounds)
    for result in results:
        atoms, found = result["nodes"], times[result["nodes"]]
        row = {"ms": summary([1e3 * value for value in found]), "rounds": len(found)}
        result["microseconds_an_atom"] = 1e3 * row["ms"]["median"] / atoms
        result["times"] = {"energy, forces, stress": {"fastlr": row}}
        mebibytes = (result["peak_bytes"]["fastlr"] or 0) / 2**20
        say(f"NaCl, {atoms:,} atoms: {result['microseconds_an_atom']:.3g} µs an atom, {mebibytes:.0f} MiB")
    return results


def checked_force_error(potential: Potential, graph) -> float:
    """Of the forces along a random direction, relative to what is typical along a direction.

    Raises:
        AssertionError: it is more than ``MISSED``.
    """
    forces = potential.plan.evaluate(graph)["forces"]
    direction = torch.randn(forces.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    after, before = (
        float(potential.plan.evaluate(replace(graph, positions=graph.positions + h * direction))["energy"])
        for h in (STEP, -STEP)
    )
    expected = (before - after) / (2.0 * STEP)
    error = abs(float((forces * direction).sum()) - expected) / float(torch.linalg.vector_norm(forces))
    if not error <= MISSED:
        raise AssertionError(f"{len(forces):,} atoms: forces differ from differences of the energy by {error:.1e}")
    return error


def batch(count: int = 1000, say: Callable = print) -> dict:
    """``predict`` of molecules of 21 atoms, neighbour lists included: one after another, and as one list."""
    potential, molecules = random_potential(NEQUIP), []
    for seed in range(count):
        atoms: Atoms = hexanol()
        atoms.rattle(0.03, seed=seed)
        molecules.append(atoms)

    def one_by_one():
        return [potential.predict(atoms) for atoms in molecules]

    def as_list():
        return potential.predict(molecules)

    error = max(float(np.abs(a.forces - b.forces).max()) for a, b in zip(one_by_one(), as_list(), strict=True))
    if not error <= 1e-5:
        raise AssertionError(f"forces in a batch differ by {error} eV/Å")
    times = alternate({"one by one": one_by_one, "one list": as_list}, seconds=1.0, rounds=3)
    for name, row in times.items():
        say(f"{count:,} molecules, {name}: {row['ms']['median']:.3g} ms")
    return {
        "problem": f"NequIP 3 layers, r 5 Å: {count:,} molecules of 21 atoms, neighbour lists included",
        "nodes": 21 * count,
        "errors": {"one list": {"forces_eV_per_A": error}},
        "times": {"predict": times},
    }


def charges(cubes: Sequence[int] = LR_SIZES, seconds: float = 10.0, say: Callable = print) -> list[dict]:
    """NequIP-LR with 3 Å and two layers, charges and Coulomb sums included, beside NequIP with 5 Å and three."""
    potentials = {"NequIP": random_potential(NEQUIP), "NequIP-LR": random_potential(SHORT_LR)}
    results = []
    for n in cubes:
        atoms, runs = rock_salt(n), {}
        errors = {}
        for name, potential in potentials.items():
            graph = potential.graph(atoms)
            errors[name] = {"forces": checked_force_error(potential, graph)}
            runs[name] = lambda potential=potential, graph=graph: potential.plan.evaluate(graph)
        times = alternate(runs, seconds=seconds)
        say(f"NaCl, {len(atoms):,} atoms: " + ", ".join(f"{k} {v['ms']['median']:.3g} ms" for k, v in times.items()))
        results.append(
            {
                "problem": f"NequIP 3 layers, 5 Å, beside NequIP-LR 1 + 1 layers, 3 Å: NaCl, {len(atoms):,} atoms",
                "nodes": len(atoms),
                "errors": errors,
                "times": {"energy, forces, stress": times},
            }
        )
    return results
