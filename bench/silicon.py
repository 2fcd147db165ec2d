"""A foundation model's size of NequIP on diamond silicon, neighbour lists and transfers included, beside ``nequip``.

The published times of nequip on a GPU are for this: preset L with a cutoff of 6 Å, from 8 to 39,304 atoms.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from .nequip_peer import KERNELS, compiled, differences, nequip_data, nequip_preset, with_kernels
from .timing import alternate, over_each, peak_bytes

R_MAX = 6.0
NEIGHBOURS = 46.0
CUBES = {"cpu": (1, 2), "cuda": (1, 5, 10, 17)}  # 8 and 64, or 8, 1,000, 8,000 and 39,304 atoms
TOLERANCE = 1e-5


def silicon(repeat: int) -> Atoms:
    """8 repeat^3 atoms of rattled diamond silicon."""
    atoms = bulk("Si", "diamond", a=5.43, cubic=True).repeat(repeat)
    atoms.rattle(0.05, seed=0)
    return atoms


def run_silicon(
    cubes: Sequence[int] | None = None,
    preset: str = "L",
    device: str = "cpu",
    compile_nequip: bool = True,
    seconds: float = 10.0,
    say: Callable = print,
) -> list[dict]:
    """Energy, forces and stress of a structure that is new each time, as numbers on the host.

    ``nequip`` runs eagerly and compiled ahead of time, and with each library of kernels that it knows and that is
    installed. Forces are checked to 1e-5 in float32, relative, before anything is timed.
    """
    from fastlr.interop.nequip import from_nequip

    model = nequip_preset(preset, ["Si"], R_MAX, NEIGHBOURS).to(device)
    potential = from_nequip(model, device=device)
    contestants = {"nequip": (model, False)}
    libraries = [None, *KERNELS] if device == "cuda" else [None]
    example = nequip_data(silicon(2), ["Si"], R_MAX, device)
    for library in libraries:
        label = " ".join(["nequip", *([library] if library else [])])
        try:
            own = model if library is None else with_kernels(model, library)
        except ImportError as error:
            say(f"{label}: {error}")
            continue
        contestants[label] = own, False
        if compile_nequip:
            say(f"{label}: compiling ahead of time (minutes)")
            contestants[f"{label} compiled"] = compiled(own, example, device), True
    return [_one(silicon(n), contestants, potential, preset, seconds, say) for n in cubes or CUBES[device]]


def _one(atoms: Atoms, contestants: dict, potential, preset: str, seconds: float, say: Callable) -> dict:
    device, runs = potential.device.type, {}
    for label, (model, alone) in contestants.items():

        def by_nequip(model=model, alone=alone):
            data = nequip_data(atoms, ["Si"], R_MAX, device)
            if alone:
                data = {key: value for key, value in data.items() if key not in ("batch", "num_atoms")}
            out = model(data)
            return out["total_energy"].detach().cpu().flatten(), out["forces"].detach().cpu()

        runs[label] = by_nequip

    def by_fastlr():
        prediction = potential.predict(atoms)
        return torch.tensor([prediction.energy]), torch.from_numpy(np.ascontiguousarray(prediction.forces))

    runs["fastlr"] = by_fastlr
    say(f"{len(atoms):,} atoms:")
    expected, errors, peaks = None, {}, {}
    for label, run in list(runs.items()):
        try:
            found = run()
            peaks[label] = peak_bytes(run, device)
        except torch.OutOfMemoryError as error:
            say(f"  {label}: NOT TIMED, {str(error).partition('.')[0]}")
            del runs[label]
            continue
        expected = expected or found
        errors[label] = differences(found, expected, len(atoms))
        if not errors[label]["forces"] <= TOLERANCE:
            say(f"  {label}: NOT TIMED, forces differ by {errors[label]['forces']:.1e}")
            del runs[label]
    times = alternate(runs, device, seconds=seconds, over_each=("fastlr",))
    for label, row in times.items():
        say(f"  {label}: {row['ms']['median']:.3g} ms, {(peaks[label] or 0) / 2**20:.0f} MiB{over_each(row)}")
    return {
        "problem": f"NequIP preset {preset}, r {R_MAX:g} Å: diamond silicon, neighbour list included",
        "nodes": len(atoms),
        "edges": potential.graph(atoms).num_edges,
        "errors": errors,
        "peak_bytes": peaks,
        "times": {"energy, forces, stress": times},
    }
