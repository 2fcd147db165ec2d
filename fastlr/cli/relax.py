"""fastlr relax: structures at a minimum of the energy."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    BackendOption,
    ChargeOption,
    DeviceOption,
    DtypeOption,
    FrameOption,
    InputArgument,
    MemoryOption,
    ModelArgument,
    OverwriteOption,
    load_potential,
    naming,
    parse_charge,
)

EXIT_NOT_CONVERGED = 1


def relax(
    model: ModelArgument,
    input: InputArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Extended XYZ.", show_default=False)],
    fmax: Annotated[float, typer.Option(help="Largest force left, eV/Å.")] = 0.01,
    steps: Annotated[int, typer.Option(help="At most so many steps.", min=0)] = 1000,
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell as well.")] = False,
    optimizer: Annotated[str, typer.Option(metavar="NAME", help="fire, bfgs or lbfgs.")] = "lbfgs",
    overwrite: OverwriteOption = False,
    charge: ChargeOption = None,
    index: FrameOption = "-1",
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    memory_budget: MemoryOption = None,
) -> None:
    """Relax a structure, and with --cell its cell.

    Exit code 1 says that it did not converge; the structure it came to is written all the same.
    """
    total_charge = parse_charge(charge)

    from fastlr.reading import read_structure
    from fastlr.simulation.prediction import write_predictions
    from fastlr.simulation.relaxation import relax as run_relaxation
    from fastlr.simulation.structures import check_output, with_results

    from .progress import Stopped, progress_bar, stop_on_signals
    from .tables import pressure

    check_output(output, inputs=(input, model), overwrite=overwrite)
    atoms = read_structure(input, index)
    potential = load_potential(model, backend, device, dtype, memory_budget)
    with naming(input, index), stop_on_signals() as stop, progress_bar("relaxing", steps) as show:
        report = run_relaxation(
            atoms,
            potential,
            fmax=fmax,
            steps=steps,
            cell=cell,
            optimizer=optimizer,
            charge=total_charge,
            on_step=lambda r: show(r.steps, f"{r.energy:.4f} eV  max |F| {r.max_force:.4f} eV/Å"),
            should_stop=stop,
        )
    frame = with_results(atoms, atoms.calc.results, atoms.calc.found_charge)
    write_predictions(output, [frame])
    gpa = pressure(frame)
    print(
        f"{'converged' if report.converged else 'stopped'} after {report.steps} steps: energy {report.energy:.6f} eV, "
        f"max |F| {report.max_force:.4f} eV/Å" + (f", pressure {gpa:.4g} GPa" if gpa is not None else "")
    )
    print(f"wrote {output}")
    if stop() and not report.converged:
        raise Stopped(f"stopped after {report.steps} steps; start from {output} to go on", stop.exit_code)
    if not report.converged:
        what = "forces and stress" if cell else "forces"
        print(f"not converged: {what} above fmax = {fmax:g} eV/Å after {report.steps} steps", file=sys.stderr)
        raise typer.Exit(EXIT_NOT_CONVERGED)
