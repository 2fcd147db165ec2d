"""Molecular dynamics that survives interruption: ASE integrates, this keeps the books."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from time import perf_counter

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet

from fastlr.errors import FastlrError, InputError
from fastlr.interop.ase import FastlrCalculator
from fastlr.potential import Potential

from .records import AppendedFile, MDState, load_state, save_state
from .structures import check_output, extxyz, with_results

LOG_HEADER = "step,time_fs,potential_eV,kinetic_eV,total_eV,temperature_K\n"


@dataclass(frozen=True)
class MDSettings:
    """How to run.

    Attributes:
        steps: steps in all, those before a resumption included.
        timestep: fs.
        ensemble: "nve" (velocity Verlet) or "nvt" (Langevin).
        temperature: K; of the thermostat, and of the starting velocities of structures that bring none.
        friction: 1/fs, of the Langevin thermostat.
        interval: steps from one frame and log line to the next.
        seed: of starting velocities and thermostat.
        charge: total charge in e, unless the structure states its own.
    """

    steps: int
    timestep: float = 0.5
    ensemble: str = "nve"
    temperature: float = 300.0
    friction: float = 0.01
    interval: int = 10
    seed: int = 0
    charge: float | None = None

    def __post_init__(self):
        if self.ensemble not in ("nve", "nvt"):
            raise InputError(f"ensemble must be 'nve' or 'nvt', got '{self.ensemble}'")
        if not (isfinite(self.timestep) and self.timestep > 0):
            raise InputError(f"timestep must be a positive number of fs, got {self.timestep}")
        for name in ("temperature", "friction"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise InputError(f"{name} must be a finite number, not negative, got {value}")
        for name, least in (("steps", 0), ("interval", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class MDStatus:
    """Where a run stands: energies in eV, temperature in K (3 degrees of freedom an atom less constrained ones)."""

    step: int
    potential: float
    kinetic: float
    temperature: float

    @property
    def total(self) -> float:
        return self.potential + self.kinetic


@dataclass(frozen=True)
class MDReport:
    """How a run went.

    Attributes:
        rebuilds: neighbour lists made.
        charge_iterations, adjoint_iterations: a step, on average, where charges are found by iteration; else 0.
    """

    first_step: int
    last_step: int
    seconds: float
    start: MDStatus
    end: MDStatus
    rebuilds: int = 0
    charge_iterations: float = 0.0
    adjoint_iterations: float = 0.0


@dataclass(frozen=True)
class MDFiles:
    """The files of a run, named after its trajectory."""

    trajectory: Path

    @property
    def log(self) -> Path:
        return self.trajectory.with_suffix(".csv")

    @property
    def checkpoint(self) -> Path:
        return self.trajectory.with_suffix(".checkpoint.npz")

    @property
    def all(self) -> tuple[Path, Path, Path]:
        return self.checkpoint, self.trajectory, self.log


def run_md(
    atoms: Atoms,
    potential: Potential,
    settings: MDSettings,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_seconds: float = 60.0,
    on_step: Callable[[MDStatus], None] = lambda status: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> MDReport:
    """Run molecular dynamics.

    Beside the trajectory (extended XYZ with momenta, forces and charges) it writes a log (.csv) and a checkpoint
    (.checkpoint.npz). A resumed run goes on exactly as if it had never stopped: trajectory and log are first cut back
    to the checkpoint. The checkpoint is written at the start, every ``checkpoint_seconds`` and at the end.

    Args:
        atoms: where to start; changed in place. Velocities are drawn unless it has momenta other than zero.
        potential: gives the forces.
        settings: see ``MDSettings``.
        output: the trajectory, .extxyz or .xyz.
        resume: go on from the checkpoint; where there is no file at all yet, start.
        overwrite: delete the files of an earlier run, where there are any.
        checkpoint_seconds: wall time between checkpoints.
        on_step: called after every step.
        should_stop: asked after every step; on True the run saves a checkpoint and returns early.

    Raises:
        InputError: the structure cannot be used, or there is an earlier run and neither resume nor overwrite.
        CheckpointError: the run cannot be resumed from these files.
        NonFiniteError: an energy or force is not finite. The last good frame is then the last of the trajectory.
    """
    files = MDFiles(check_output(output, overwrite=True))
    existing = [path for path in files.all if path.exists()]
    if existing and not (resume or overwrite):
        raise InputError(f"{existing[-1]} exists; go on with that run (resume) or replace it (overwrite)")
    atoms.calc = calculator = FastlrCalculator(potential, settings.charge)
    rng = np.random.default_rng(settings.seed)
    recorded = {**asdict(settings), "total_charge": calculator.total_charge(atoms), "model": _fingerprint(potential)}
    sizes = {"trajectory": None, "log": None}
    step = 0
    if resume and existing:
        state = load_state(files.checkpoint)
        _check_same_run(files.checkpoint, state, recorded, atoms)
        atoms.set_cell(state.cell)
        atoms.set_positions(state.positions, apply_constraint=False)
        atoms.set_momenta(state.momenta, apply_constraint=False)
        rng.bit_generator.state = state.rng
        calculator.steps.restore(atoms, state.carried, settings.charge)
        step, sizes = state.step, state.sizes
    elif not (atoms.has("momenta") and atoms.get_momenta().any()):
        draw_velocities(atoms, settings, rng)
    dynamics = _integrator(atoms, settings, rng)
    # before an earlier run is deleted: an unusable structure must not cost it
    start = status = _status(atoms, step)
    if overwrite:
        for path in existing:
            path.unlink()

    first_step, began = step, perf_counter()
    with (
        AppendedFile(files.trajectory, sizes["trajectory"]) as trajectory,
        AppendedFile(files.log, sizes["log"]) as log,
    ):

        def record() -> None:
            trajectory.append(extxyz(_frame(atoms, calculator, settings, status)))
            log.append(
                f"{step},{step * settings.timestep:.10g},{status.potential:.8f},{status.kinetic:.8f},"
                f"{status.total:.8f},{status.temperature:.4f}\n"
            )

        def checkpoint() -> None:
            sizes = {"trajectory": trajectory.sync(), "log": log.sync()}
            save_state(
                files.checkpoint,
                MDState(
                    step,
                    atoms.numbers,
                    atoms.positions,
                    atoms.get_momenta(),
                    atoms.cell.array,
                    rng.bit_generator.state,
                    sizes,
                    recorded,
                    calculator.steps.state(),
                ),
            )

        if sizes["trajectory"] is None:
            log.append(LOG_HEADER)
            record()
            checkpoint()
        saved = perf_counter()
        while step < settings.steps and not should_stop():
            good = atoms.positions.copy(), atoms.get_momenta(), calculator.results, calculator.found_charge
            try:
                dynamics.step()
                status = _status(atoms, step + 1)
            except FastlrError as error:
                if step % settings.interval:
                    frame = _earlier(atoms, *good)
                    trajectory.append(extxyz(_stamped(frame, step, settings)))
                raise type(error)(
                    f"step {step + 1}: {error}; the last good frame, of step {step}, is the last in {files.trajectory}"
                ) from error
            step += 1
            if step % settings.interval == 0:
                record()
            if perf_counter() - saved >= checkpoint_seconds:
                checkpoint()
                saved = perf_counter()
            on_step(status)
        checkpoint()
    seconds, evaluations = perf_counter() - began, max(calculator.steps.evaluations, 1)
    iterations = [calculator.steps.memory.iterations(call) / evaluations for call in range(2)]
    return MDReport(first_step, step, seconds, start, status, calculator.steps.rebuilds, *iterations)


def draw_velocities(atoms: Atoms, settings: MDSettings, rng: np.random.Generator) -> None:
    """Velocities from the Maxwell-Boltzmann distribution; at constant energy, where a drift would stay for ever,
    without motion of the centre of mass."""
    MaxwellBoltzmannDistribution(atoms, temperature_K=settings.temperature, rng=rng)
    if settings.ensemble == "nve" and len(atoms) > 1 and settings.temperature > 0:
        Stationary(atoms)


def _integrator(atoms: Atoms, settings: MDSettings, rng: np.random.Generator):
    timestep = settings.timestep * units.fs
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    return Langevin(
        atoms,
        timestep,
        temperature_K=settings.temperature,
        friction=settings.friction / units.fs,
        fixcm=False,  # fixing it does not sample the canonical ensemble
        rng=rng,
    )


def _status(atoms: Atoms, step: int) -> MDStatus:
    return MDStatus(step, atoms.get_potential_energy(), atoms.get_kinetic_energy(), atoms.get_temperature())


def _frame(atoms: Atoms, calculator: FastlrCalculator, settings: MDSettings, status: MDStatus) -> Atoms:
    return _stamped(with_results(atoms, calculator.results, calculator.found_charge), status.step, settings)


def _earlier(atoms: Atoms, positions: np.ndarray, momenta: np.ndarray, results: dict, charge: float) -> Atoms:
    """What the atoms were before a step that failed."""
    before = atoms.copy()
    before.set_positions(positions, apply_constraint=False)
    before.set_momenta(momenta, apply_constraint=False)
    return with_results(before, results, charge)


def _stamped(frame: Atoms, step: int, settings: MDSettings) -> Atoms:
    frame.info |= {"step": step, "time_fs": step * settings.timestep}
    return frame


def _fingerprint(potential: Potential) -> str:
    """Changes with any weight or setting of the model."""
    digest = hashlib.sha256(potential.config.model_dump_json().encode())
    for name, tensor in sorted(potential.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_same_run(path: Path, state: MDState, recorded: dict, atoms: Atoms) -> None:
    """A resumption must be of the same run; only the number of steps may differ."""
    for name, value in recorded.items():
        before = state.settings.get(name)
        if name != "steps" and before != value:
            raise InputError(f"{path}: that run had {name} {before}, not {value}; resume it as it was started")
    if not np.array_equal(state.numbers, atoms.numbers):
        raise InputError(f"{path}: that run had other atoms than this structure; resume it as it was started")
