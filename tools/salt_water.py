"""Molecular dynamics of salt water with a bundled model: equilibrate, run at constant energy, draw what came out.

Starts from an equilibrated box (``tools/data/salt-water.extxyz``), warms it up with Langevin dynamics, then runs
NVE. Leaves a trajectory with charges, a summary, and one picture: energy drift, charges by species, O-O radial
distribution.
"""

import json
import os
import platform
import sys
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.io import read, write
from ase.md.velocitydistribution import Stationary
from demo_options import parse
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import fastlr
from fastlr.files import check_writable
from fastlr.simulation.dynamics import MDSettings, run_md

DATA = Path(__file__).parent / "data" / "aqueous-xtb"
START = DATA.parent / "salt-water.extxyz"


def prepare(potential, args) -> None:
    """Make the starting box: the largest structure of the test set, brought to the temperature asked for."""
    atoms = max(read(DATA / "test.extxyz.xz", ":"), key=len)
    atoms = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    settings = MDSettings(args.equilibration, ensemble="nvt", temperature=args.temperature, seed=args.seed)
    dynamics(atoms, potential, settings, output / "prepare.extxyz", "preparation")
    Stationary(atoms)
    atoms.wrap()
    write(START, atoms, columns=["symbols", "positions", "momenta"], write_results=False)
    print(f"wrote {START}")


def dynamics(atoms: Atoms, potential, settings: MDSettings, output: Path, label: str) -> float:
    """Run with a progress bar; returns the seconds it took."""
    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task(label, total=settings.steps)
        report = run_md(
            atoms,
            potential,
            settings,
            output,
            overwrite=True,
            on_step=lambda status: bar.update(task, completed=status.step),
        )
    return report.seconds


def radial_distribution(frames: list[Atoms], symbol: str, num_bins: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """g(r) of one species up to half of the shortest cell vector."""
    r_max = min(frames[0].cell.lengths()) / 2
    edges = np.linspace(0, r_max, num_bins + 1)
    counts, density = np.zeros(num_bins), 0.0
    for atoms in frames:
        chosen = atoms[[atom.index for atom in atoms if atom.symbol == symbol]]
        distances = chosen.get_all_distances(mic=True)[np.triu_indices(len(chosen), 1)]
        counts += np.histogram(distances, edges)[0]
        density += len(chosen) * (len(chosen) - 1) / 2 / atoms.get_volume()
    shells = 4 / 3 * np.pi * (edges[1:] ** 3 - edges[:-1] ** 3)
    return (edges[1:] + edges[:-1]) / 2, counts / (shells * density)


def draw(path: Path, times, energies, drift, frames: list[Atoms], title: str) -> None:
    """One picture with three panels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    n = len(frames[0])
    deviation = (energies - energies[0]) / n * 1000
    left.plot(times, deviation, lw=0.8, color="tab:blue")
    fit = np.polyfit(times, deviation, 1)
    left.plot(times, np.polyval(fit, times), "--", color="black", lw=1, label=f"drift {drift:+.3f} meV/atom/ps")
    span = max(1.0, 1.5 * np.abs(deviation).max())
    left.set(xlabel="time (ps)", ylabel="total energy − start (meV/atom)", ylim=(-span, span), title="Energy, NVE")
    left.legend(frameon=False, loc="upper left")

    colours = {"H": "silver", "O": "tab:red", "Na": "tab:purple", "Cl": "tab:green"}
    for symbol, colour in colours.items():
        charges = np.concatenate([frame.get_charges()[frame.symbols == symbol] for frame in frames])
        weights = np.full(len(charges), 1 / len(charges))
        middle.hist(
            charges,
            bins=np.linspace(-1.1, 1.1, 111),
            weights=weights,
            color=colour,
            alpha=0.8,
            label=f"{symbol}  {charges.mean():+.2f} ± {charges.std():.2f} e",
        )
    middle.set(xlabel="charge (e)", ylabel="fraction of atoms", title="Charges by species", xlim=(-1.1, 1.1))
    middle.set_ylim(top=1.45 * middle.get_ylim()[1])  # room for the legend
    middle.legend(frameon=False, loc="upper center", ncols=2, handlelength=1.0, columnspacing=1.2)

    r, g = radial_distribution(frames, "O")
    right.plot(r, g, color="tab:red")
    right.axhline(1, color="grey", lw=0.6, ls=":")
    right.set(xlabel="r (Å)", ylabel="g(r)", xlim=(2, r[-1]), ylim=(0, None), title="O–O radial distribution")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run(potential, args) -> dict:
    """Equilibrate and run; returns the summary."""
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    for name in ("trajectory.extxyz", "equilibration.extxyz", "salt-water.png", "summary.json"):
        check_writable(output / name, overwrite=args.overwrite)
    atoms = read(START)
    print(potential.report())
    print(f"{atoms.get_chemical_formula()} in a cell of {atoms.cell.lengths()[0]:.2f} Å")
    warm = MDSettings(args.equilibration, ensemble="nvt", temperature=args.temperature, seed=args.seed)
    seconds = dynamics(atoms, potential, warm, output / "equilibration.extxyz", "equilibration")
    Stationary(atoms)
    trajectory = output / "trajectory.extxyz"
    seconds += dynamics(atoms, potential, MDSettings(args.steps, interval=args.interval), trajectory, "NVE")

    log = np.genfromtxt(trajectory.with_suffix(".csv"), delimiter=",", names=True)
    times, energies, n = log["time_fs"] / 1000, log["total_eV"], len(atoms)
    drift = np.polyfit(times, energies / n * 1000, 1)[0]
    rate = (args.steps + args.equilibration) / seconds
    summary = {
        "model": args.model,
        "atoms": n,
        "steps": args.steps,
        "equilibration_steps": args.equilibration,
        "timestep_fs": 0.5,
        "drift_meV_per_atom_per_ps": float(drift),
        "energy_deviation_rms_meV_per_atom": float(np.std(energies) / n * 1000),
        "mean_temperature_K": float(np.mean(log["temperature_K"])),
        "steps_per_second": rate,
        "ns_per_day": rate * 0.5e-6 * 86400,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    title = (
        f"{atoms.get_chemical_formula()}, {Path(args.model).stem}: {times[-1]:.2f} ps at "
        f"{summary['mean_temperature_K']:.0f} K, {rate:.1f} steps/s"
    )
    draw(output / "salt-water.png", times, energies, drift, read(trajectory, ":"), title)
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"energy drift {drift:+.3f} meV/atom/ps over {times[-1]:.2f} ps, {rate:.1f} steps/s")
    print(f"wrote {trajectory}, {output / 'salt-water.png'} and {output / 'summary.json'}")
    return summary


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)

    try:
        potential = fastlr.load(args.model, backend=args.backend)
        prepare(potential, args) if args.prepare else run(potential, args)
    except (fastlr.FastlrError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
