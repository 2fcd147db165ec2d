"""Molecular dynamics that survives interruption: ASE integrates, this keeps the books."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from os.path import lexists
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import all_changes
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from fastlr.errors import CheckpointError, FastlrError, InputError, NonFiniteError
from fastlr.interop.ase import FastlrCalculator
from fastlr.potential import Potential
from fastlr.structure_checks import as_structure
from fastlr.total_charge import require_stated_charge

from .arguments import loaded, number, require_functions, require_switches, whole
from .files import LOG_HEADER, MDFiles, require_own
from .inputs import circumstances_of, inputs_of, require_same_run
from .records import AppendedFile, MDState, load_state, save_state
from .start import (
    centre_rests,
    degrees_of_freedom,
    draw_velocities,
    keeps_centre,
    require_finite_velocities,
    require_movable,
    satisfied_constraints,
    temperature,
)
from .structures import check_output, extxyz, with_results

FAR, FARTHEST = 0.1, 2.0  # Å in a step that tell of forces too large for it, and of an atom flung away
DRIFT = 1.0  # eV an atom by which the total energy may change where it is conserved
SAME_MODEL = 1e-3  # of forces; what other kernels and threads change is far less


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

    Raises:
        InputError: a value is not what it must be; the message names it. Numbers may be numpy's or a tensor's.
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
        if not (isinstance(self.ensemble, str) and self.ensemble in ("nve", "nvt")):
            raise InputError(f"ensemble must be 'nve' or 'nvt', got {self.ensemble!r:.80}")
        plain = {"timestep": number("timestep", self.timestep, above=0.0, unit="fs")}
        for name, unit in (("temperature", "K"), ("friction", "1/fs")):
            plain[name] = number(name, getattr(self, name), least=0.0, unit=unit)
        for name, least in (("steps", 0), ("interval", 1), ("seed", 0)):
            plain[name] = whole(name, getattr(self, name), least=least)
        if self.charge is not None:
            plain["charge"] = number("charge", self.charge, unit="e")
        vars(self).update(plain)  # as Python's own numbers


@dataclass(frozen=True)
class MDStatus:
    """Where a run stands: energies in eV, with what constraints add, and the temperature in K.

    The temperature is of three degrees of freedom an atom, less those that constraints hold, and less three where the
    centre of mass is at rest and stays so; it is zero where there are none.
    """

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


def run_md(
    atoms: Atoms,
    potential: Potential | str | Path,
    settings: MDSettings,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_seconds: float = 60.0,
    on_step: Callable[[MDStatus], None] = lambda status: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_note: Callable[[str], None] = warnings.warn,
) -> MDReport:
    """Run molecular dynamics.

    Beside the trajectory (extended XYZ with momenta, forces and charges) it writes a log (.csv) and a checkpoint
    (.checkpoint.npz). A resumed run goes on exactly as if it had never stopped, to the last bit, and must be started as
    it was: with the same structure, velocities, masses, constraints, conditions, model and settings but ``steps``.
    Trajectory and log are first cut back to the checkpoint. The checkpoint is written at the start, every
    ``checkpoint_seconds`` and at the end.

    Last bits depend on the number of threads, the backend, the versions of fastlr and PyTorch, the processor, and, of a
    structure that is evaluated part by part, on the memory budget. Where one of these has changed the forces, the run
    goes on all the same, and ``on_note`` is told.

    Args:
        atoms: where to start; changed in place. Velocities are drawn unless it has momenta other than zero.
        potential: gives the forces; what ``fastlr.load`` takes is loaded.
        settings: see ``MDSettings``.
        output: the trajectory, .extxyz or .xyz.
        resume: go on from the checkpoint; where there is no file at all yet, start.
        overwrite: delete the files of an earlier run, where there are any; files that are none of that run stay.
        checkpoint_seconds: wall time between checkpoints.
        on_step: called after every step.
        should_stop: asked after every step; on True the run saves a checkpoint and returns early.
        on_note: told what is no error but should be known.

    Raises:
        InputError: the structure cannot be used, there is an earlier run and neither resume nor overwrite, that run was
            another one, a file of the user's stands where log or checkpoint would, or a step tore the structure apart:
            the last good frame is then the last of the trajectory.
        CheckpointError: the run cannot be resumed from these files.
        NonFiniteError: an energy, force or velocity is not finite; likewise.
    """
    atoms, files = as_structure(atoms), MDFiles(check_output(output, overwrite=True))
    if not isinstance(settings, MDSettings):
        raise InputError(f"settings must be MDSettings, as in MDSettings(steps=100), got {settings!r:.80}")
    require_switches(resume=resume, overwrite=overwrite)
    require_functions(on_step=on_step, should_stop=should_stop, on_note=on_note)
    if resume and overwrite:
        raise InputError("resume and overwrite exclude each other")
    if not (getattr(checkpoint_seconds, "shape", ()) == () and checkpoint_seconds == inf):
        checkpoint_seconds = number("checkpoint_seconds", checkpoint_seconds, least=0.0, unit="s")
    require_own(files, resume)
    existing = [path for path in files.all if lexists(path)]
    if existing and not (resume or overwrite):
        raise InputError(f"{existing[-1]} exists; go on with that run (resume) or replace it (overwrite)")
    run = _Run(atoms, loaded(potential), settings, files, on_note)
    if resume and existing:
        run.resume()
    else:
        run.start()
    # only now is an earlier run deleted: an unusable structure must not cost it
    if overwrite:
        for path in existing:
            path.unlink()
    return run.go(checkpoint_seconds, on_step, should_stop)


class _Run:
    """A run and its files."""

    def __init__(self, atoms: Atoms, potential: Potential, settings: MDSettings, files: MDFiles, on_note: Callable):
        require_movable(atoms)
        self.on_note, self.told = on_note, set()
        if potential.has_charges:
            require_stated_charge(atoms, settings.charge)
        self.atoms, self.settings, self.files = atoms, settings, files
        self.calculator = atoms.calc = _Evaluator(potential, settings.charge)
        self.rng = np.random.default_rng(settings.seed)
        self.inputs, self.circumstances = inputs_of(atoms, potential, settings), circumstances_of(potential)
        self.sizes: dict[str, int] | None = None

    def start(self) -> None:
        """From the structure as it is, with velocities of its own or drawn ones."""
        atoms, inputs = self.atoms, self.inputs
        is_pulled = inputs["electric_field"].any() and (
            inputs["total_charge"] or ~np.isnan(inputs["chemical_potential"])
        )
        conserved = self.settings.ensemble == "nve" and keeps_centre(atoms) and not is_pulled
        if inputs["momenta"].any():
            atoms.set_momenta(inputs["momenta"])  # as constraints let them be
            if np.abs(atoms.get_momenta() - inputs["momenta"]).max() > 1e-6 * np.abs(inputs["momenta"]).max():
                self.on_note(
                    "the structure brings velocities that its constraints do not allow; that part of them is dropped"
                )
        else:
            draw_velocities(atoms, self.settings.temperature, self.rng, at_rest=conserved)
        self.freedom = degrees_of_freedom(atoms, conserved and centre_rests(atoms))
        self._begin(0)
        self.first_total = self.status.total

    def resume(self) -> None:
        """From the checkpoint.

        Raises:
            CheckpointError: it cannot be used.
            InputError: it is of another run.
        """
        path = self.files.checkpoint
        state = load_state(path)
        require_same_run(path, state.inputs, self.inputs, {"positions": state.positions, "momenta": state.momenta})
        self.inputs = state.inputs
        self.atoms.set_positions(state.positions, apply_constraint=False)
        self.atoms.set_momenta(state.momenta, apply_constraint=False)
        self.rng.bit_generator.state = state.rng
        self.calculator.steps.restore(self.atoms, state.carried, self.settings.charge)
        self.freedom, self.sizes, self.first_total = state.freedom, state.sizes, state.first_total
        self._begin(state.step)
        self._compare(state)

    def _begin(self, step: int) -> None:
        self.step, self.dynamics = step, _integrator(self.atoms, self.settings, self.rng)
        self.status = self._status()

    def _compare(self, state: MDState) -> None:
        """What the model says of the step of the checkpoint is what it said then."""
        forces, path = self.calculator.results["forces"], self.files.checkpoint
        if np.array_equal(forces, state.forces) and self.calculator.results["energy"] == state.energy:
            return
        now, difference = self.circumstances, float(np.abs(forces - state.forces).max())
        changed = [f"{name} {was}, not {now[name]}" for name, was in state.circumstances.items() if was != now[name]]
        why = f" (that run had {'; '.join(changed)})" if changed else ""
        if difference > SAME_MODEL * max(1.0, float(np.abs(state.forces).max())):
            raise CheckpointError(f"{path}: forces of step {state.step} differ by {difference:.2g} eV/Å now{why}")
        self.on_note(
            f"{path}: forces of step {state.step} differ by up to {difference:.1g} eV/Å now{why}; the run goes on, but "
            "not to the last bit as it would have"
        )

    def go(self, seconds: float, on_step: Callable[[MDStatus], None], should_stop: Callable[[], bool]) -> MDReport:
        """Do the remaining steps, with a checkpoint every so many seconds."""
        first, began = self.status, perf_counter()
        sizes, files = self.sizes or {"trajectory": None, "log": None}, self.files
        with (
            AppendedFile(files.trajectory, sizes["trajectory"]) as self.trajectory,
            AppendedFile(files.log, sizes["log"]) as self.log,
        ):
            if self.sizes is None:
                self.log.append(LOG_HEADER)
                self._record()
                self._checkpoint()
            saved = perf_counter()
            while self.step < self.settings.steps and not should_stop():
                self._advance()
                if self.step % self.settings.interval == 0:
                    self._record()
                if perf_counter() - saved >= seconds:
                    self._checkpoint()
                    saved = perf_counter()
                on_step(self.status)
            if self.step > first.step:
                self._checkpoint()
        steps, evaluations = self.calculator.steps, max(self.calculator.steps.evaluations, 1)
        iterations = [steps.memory.iterations(call) / evaluations for call in range(2)]
        return MDReport(first.step, self.step, perf_counter() - began, first, self.status, steps.rebuilds, *iterations)

    def _advance(self) -> None:
        """One step; where it fails, the frame before it is the last of the trajectory."""
        atoms, calculator = self.atoms, self.calculator
        before = atoms.positions.copy(), atoms.get_momenta()
        found = calculator.results, calculator.found_charge
        calculator.before = before[0]
        try:
            with satisfied_constraints():
                self.dynamics.step()
            require_finite_velocities(atoms, "after it")
            status = self._status(1)
            self._require_conserved(status)
        except FastlrError as error:
            if self.step % self.settings.interval:
                self.trajectory.append(self._frame(_earlier(atoms, *before), *found))
            raise type(error)(
                f"step {self.step + 1}: {error}{self._what_happened(before[0])}; the last good frame, of step "
                f"{self.step}, is the last in {self.files.trajectory}"
            ) from error
        self.step, self.status = self.step + 1, status

    def _what_happened(self, before: np.ndarray) -> str:
        """How far atoms moved in a failed step, if it was far, and what to do."""
        moved = np.linalg.norm(self.atoms.positions - before, axis=1)
        k = int(np.nan_to_num(moved, nan=np.inf).argmax())
        if moved[k] < FAR:
            return ""
        return (
            f"; in this step atom {k} ({self.atoms.symbols[k]}) moved {moved[k]:.3g} Å, after "
            f"{self.status.temperature:.3g} K; choose a smaller time step than {self.settings.timestep:g} fs"
        )

    def _require_conserved(self, status: MDStatus) -> None:
        change = status.total - self.first_total
        if not abs(change) < inf:
            raise NonFiniteError(f"the total energy is not finite: {status.total}")
        if self.settings.ensemble == "nve" and abs(change) > DRIFT * len(self.atoms):
            raise InputError(f"the total energy has changed by {change:+.3g} eV since the start, and should not at all")

    def _status(self, ahead: int = 0) -> MDStatus:
        kinetic = self.atoms.get_kinetic_energy()
        known = self.atoms.get_potential_energy(), kinetic, temperature(kinetic, self.freedom)
        return MDStatus(self.step + ahead, *map(float, known))

    def _frame(self, atoms: Atoms, results: dict[str, Any], charge: float) -> str:
        frame = with_results(atoms, results, charge)
        frame.info |= {"step": self.step, "time_fs": self.step * self.settings.timestep}
        return extxyz(frame, self._tell_once)

    def _tell_once(self, note: str) -> None:
        """What is the same of every frame."""
        if note not in self.told:
            self.told.add(note)
            self.on_note(note)

    def _record(self) -> None:
        """A frame and a line of the log."""
        status, calculator = self.status, self.calculator
        self.trajectory.append(self._frame(self.atoms, calculator.results, calculator.found_charge))
        self.log.append(
            f"{self.step},{self.step * self.settings.timestep:.10g},{status.potential:.8f},{status.kinetic:.8f},"
            f"{status.total:.8f},{status.temperature:.4f}\n"
        )

    def _checkpoint(self) -> None:
        atoms, results = self.atoms, self.calculator.results
        save_state(
            self.files.checkpoint,
            MDState(
                step=self.step,
                positions=atoms.positions,
                momenta=atoms.get_momenta(),
                energy=results["energy"],
                forces=results["forces"],
                rng=self.rng.bit_generator.state,
                sizes={"trajectory": self.trajectory.sync(), "log": self.log.sync()},
                freedom=self.freedom,
                first_total=self.first_total,
                inputs=self.inputs,
                circumstances=self.circumstances,
                carried=self.calculator.steps.state(repeated=True),
                trajectory=self.files.trajectory.suffix,
            ),
        )


class _Evaluator(FastlrCalculator):
    """A calculator; structures torn apart by a step are not evaluated.

    Attributes:
        before: (n, 3) Å, positions before the step.
    """

    before: np.ndarray | None = None

    def calculate(self, atoms: Atoms | None = None, properties=("energy",), system_changes=all_changes) -> None:
        if self.before is not None:
            require_finite_velocities(atoms, "in it")
            moved = np.abs(atoms.positions - self.before).max(initial=0.0)
            if not moved <= FARTHEST:  # nor if it is NaN
                raise InputError("the forces have flung atoms away")
        super().calculate(atoms, properties, system_changes)


def _integrator(atoms: Atoms, settings: MDSettings, rng: np.random.Generator) -> VelocityVerlet | Langevin:
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


def _earlier(atoms: Atoms, positions: np.ndarray, momenta: np.ndarray) -> Atoms:
    """What the atoms were before a step that failed."""
    before = atoms.copy()
    before.set_positions(positions, apply_constraint=False)
    before.set_momenta(momenta, apply_constraint=False)
    return before
