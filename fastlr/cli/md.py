"""fastlr md: molecular dynamics that can be resumed."""

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
    load_potential,
    naming,
    not_negative,
    parse_charge,
)


def md(
    model: ModelArgument,
    input: InputArgument,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Trajectory, extended XYZ; beside it go a log (.csv) and a checkpoint (.checkpoint.npz).",
            show_default=False,
        ),
    ],
    steps: Annotated[int, typer.Option(help="Steps in all, those before a resumption included.", show_default=False)],
    timestep: Annotated[float, typer.Option(help="Time step in fs.")] = 0.5,
    temperature: Annotated[
        float, typer.Option(help="In K: of the thermostat, and of starting velocities if the input has none.")
    ] = 300.0,
    ensemble: Annotated[str, typer.Option(metavar="nve|nvt", help="nvt is Langevin dynamics.")] = "nve",
    friction: Annotated[float, typer.Option(help="Of the thermostat, in 1/fs.")] = 0.01,
    charge: ChargeOption = None,
    index: FrameOption = "-1",
    interval: Annotated[int, typer.Option(help="Steps from one frame and log line to the next.")] = 10,
    seed: Annotated[int, typer.Option(help="Of starting velocities and thermostat.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint, or start if there is none.")] = (
        False
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier run.")] = False,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between checkpoints.", callback=not_negative)] = 60.0,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    memory_budget: MemoryOption = None,
) -> None:
    """Molecular dynamics at constant energy or temperature.

    Interrupted, killed or finished, the same command with --resume goes on, to the last bit as if nothing had happened.

    Only --steps may differ: another structure, model or setting is refused. Where the number of threads, the backend or
    a version has changed last bits, a note says so.
    """
    total_charge = parse_charge(charge)
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")

    from fastlr.files import check_writable
    from fastlr.reading import read_structure
    from fastlr.simulation.dynamics import MDSettings, run_md
    from fastlr.simulation.files import MDFiles, require_own
    from fastlr.simulation.structures import check_output

    from .progress import Stopped, progress_bar, stop_on_signals

    settings = MDSettings(steps, timestep, ensemble, temperature, friction, interval, seed, total_charge)
    files = MDFiles(check_output(output, overwrite=True))
    require_own(files, resume)
    for path in files.all:
        check_writable(
            path, (input, model), overwrite or resume, "--resume goes on with that run, --overwrite replaces it"
        )
    atoms = read_structure(input, index)
    potential = load_potential(model, backend, device, dtype, memory_budget)
    if resume and not any(path.exists() for path in files.all):
        print(f"nothing to resume at {output}: starting", file=sys.stderr)
    with naming(input, index), stop_on_signals() as stop, progress_bar("md", steps) as show:
        report = run_md(
            atoms,
            potential,
            settings,
            output,
            resume=resume,
            overwrite=overwrite,
            checkpoint_seconds=checkpoint_every,
            on_step=_Speedometer(show, timestep),
            should_stop=stop,
            on_note=lambda note: print(f"note: {note}", file=sys.stderr),
        )
    _print_report(report, settings, files)
    if stop() and report.last_step < steps:
        raise Stopped(f"stopped at step {report.last_step} of {steps}; add --resume to go on", stop.exit_code)


class _Speedometer:
    """Shows where a run is and how fast it goes."""

    def __init__(self, show, timestep: float):
        from time import perf_counter

        self.show, self.timestep, self.clock = show, timestep, perf_counter
        self.first_step = self.began = None

    def __call__(self, status) -> None:
        now = self.clock()
        if self.began is None:
            self.first_step, self.began = status.step, now
        steps, seconds = status.step - self.first_step, now - self.began
        speed = f"{_speed(steps, seconds, self.timestep)} " if steps else ""
        self.show(status.step, f"{speed}{status.temperature:.0f} K {status.total:.3f} eV")


def _speed(steps: int, seconds: float, timestep: float) -> str:
    rate = steps / max(seconds, 1e-9)
    return f"{rate:.3g} steps/s {rate * timestep * 0.0864:.3g} ns/day"  # 86,400 s/day, 1e-6 ns/fs


def _print_report(report, settings, files) -> None:
    done = report.last_step - report.first_step
    if report.last_step == report.first_step > 0:
        print(f"already at step {report.last_step}; raise --steps to go on")
        return
    print(
        f"steps {report.first_step} to {report.last_step} ({report.last_step * settings.timestep:g} fs) "
        f"in {report.seconds:.1f} s" + (f": {_speed(done, report.seconds, settings.timestep)}" if done else "")
    )
    print(f"total energy  {report.start.total:.6f} -> {report.end.total:.6f} eV")
    if report.charge_iterations:
        charges, forces = report.charge_iterations, report.adjoint_iterations
        print(f"iterations    {charges:.1f} a step for charges, {forces:.1f} for forces")
    if done:
        print(f"lists         made {report.rebuilds} times, for {done / max(report.rebuilds, 1):.3g} steps each")
    print(f"temperature   {report.start.temperature:.1f} -> {report.end.temperature:.1f} K")
    print(f"wrote {files.trajectory}, {files.log.name} and {files.checkpoint.name}")
