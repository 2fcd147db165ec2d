"""The inference engine beside the ``nequip`` package on the same weights: one molecule, and cells of growing size."""

from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms

from .models import NEQUIP, rock_salt
from .nequip_peer import compiled, differences, nequip_data, nequip_model
from .timing import alternate, over_each, peak_bytes

SPECIES = ["H", "C", "O", "Na", "Cl"]
R_MAX = 5.0
CUBES = (4, 10)  # 512 and 8,000 atoms
TOLERANCE = 1e-5


def hexanol() -> Atoms:
    """1-Hexanol, 21 atoms: a zigzag chain with tetrahedral angles, rattled."""
    bond, half = 1.53, np.deg2rad(112.0) / 2.0
    symbols, places = [], []
    for k in range(7):  # six carbons and the oxygen
        place = np.array([k * bond * np.sin(half), (k % 2) * bond * np.cos(half), 0.0])
        symbols.append("C" if k < 6 else "O")
        places.append(place)
        up = -1.0 if k % 2 == 0 else 1.0
        if k < 6:
            for side in (-1.0, 1.0):
                symbols.append("H")
                places.append(place + 1.09 * np.array([0.0, up * 0.58, side * 0.81]))
    ends = [("H", places[0] + 1.09 * np.array([-0.85, 0.53, 0.0]))]
    ends.append(("H", places[-1] + 0.97 * np.array([0.81, 0.58, 0.0])))
    symbols += [symbol for symbol, _ in ends]
    places += [place for _, place in ends]
    atoms = Atoms(symbols, places)
    atoms.rattle(0.03, seed=0)
    return atoms


def run_engine(
    cubes: Sequence[int] = CUBES, compile_nequip: bool = True, seconds: float = 20.0, say: Callable = print
) -> list[dict]:
    """Energy, forces and stress by ``nequip``, eager and compiled ahead of time, and by fastlr; neighbour list given.

    Forces and energies are checked to 1e-5 in float32 before anything is timed.
    """
    from fastlr.interop.nequip import from_nequip

    model = nequip_model(SPECIES, R_MAX, 26.0, **NEQUIP)
    small = rock_salt(2)
    potential = from_nequip(model, backend="cpu")
    contestants = {"nequip": model}
    if compile_nequip:
        say("compiling nequip's model ahead of time (minutes)")
        contestants["nequip compiled"] = compiled(model, nequip_data(small, SPECIES, R_MAX))
    results = []
    for name, atoms in [("1-hexanol", hexanol()), *((f"NaCl, {8 * n**3:,} atoms", rock_salt(n)) for n in cubes)]:
        say(f"{name}:")
        results.append(_one(name, atoms, contestants, potential, seconds, say))
    return results


def _one(name: str, atoms: Atoms, contestants: dict, potential, seconds: float, say: Callable) -> dict:
    data = nequip_data(atoms, SPECIES, R_MAX)
    alone = {key: value for key, value in data.items() if key not in ("batch", "num_atoms")}
    graph = potential.graph(atoms)
    runs = {}
    for label, model in contestants.items():
        inputs = data if label == "nequip" else alone

        def by_nequip(model=model, inputs=inputs):
            out = model(dict(inputs))
            return out["total_energy"].detach().flatten(), out["forces"].detach()

        runs[label] = by_nequip

    def by_plan():
        out = potential.plan.evaluate(graph)
        return out["energy"], out["forces"]

    runs["fastlr"] = by_plan
    expected, errors, peaks = None, {}, {}
    for label, run in list(runs.items()):
        peaks[label] = peak_bytes(run)
        found = run()
        expected = expected or found
        errors[label] = differences(found, expected, len(atoms))
        if not errors[label]["forces"] <= TOLERANCE:
            say(f"  {label}: NOT TIMED, forces differ by {errors[label]['forces']:.1e}")
            del runs[label]
    times = alternate(runs, seconds=seconds, over_each=("fastlr",))
    for label, row in times.items():
        say(f"  {label}: {row['ms']['median']:.3g} ms, {(peaks[label] or 0) / 2**20:.0f} MiB{over_each(row)}")
    stages = [stage for stage in potential.plan.stages() if stage.cost is not None]
    return {
        "problem": f"NequIP 3 layers, l_max 2, 32 features, r {R_MAX:g} Å: {name}",
        "nodes": len(atoms),
        "edges": int(data["edge_index"].shape[1]),
        "errors": errors,
        "peak_bytes": peaks,
        "floor": {
            "evaluation_bytes": sum(stage.cost.num_bytes for stage in stages),
            "evaluation_operations": sum(stage.cost.operations for stage in stages),
        },
        "times": {"energy, forces, stress": times},
    }
