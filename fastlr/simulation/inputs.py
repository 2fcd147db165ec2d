"""What a run depends on, recorded with it: a resumption must be of the same run."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

import fastlr
from fastlr.conditions import Conditions, conditions_of
from fastlr.errors import InputError, StructureName
from fastlr.kernels import cores
from fastlr.potential import Potential
from fastlr.total_charge import stated_charge

START = ("positions", "momenta")  # where a run was when it started, which it is no more


def inputs_of(atoms: Atoms, potential: Potential, settings: Any) -> dict[str, np.ndarray]:
    """All inputs of a run but the number of its steps, by name.

    Args:
        atoms: the structure it starts from.
        settings: ``MDSettings``.
    """
    stated = stated_charge(atoms, settings.charge)
    conditions, charge = conditions_of(atoms, StructureName(atoms, 0), stated)
    conditions = conditions or Conditions.none(1, len(atoms))
    plain = {name: value for name, value in asdict(settings).items() if name not in ("steps", "charge")}
    fragments = (conditions.fragment, conditions.fragment_charge)
    found = {
        "numbers": atoms.numbers,
        "total_charge": charge,
        **plain,
        "dtype": potential.config.dtype,
        "model": potential.fingerprint()[:16],
        "pbc": atoms.pbc,
        "cell": atoms.cell.array,
        "masses": atoms.get_masses(),
        "constraints": json.dumps([_described(constraint) for constraint in atoms.constraints]),
        "external_potential": conditions.potential,
        "electric_field": conditions.field[0],
        "chemical_potential": conditions.chemical_potential[0],
        **dict(zip(("fragment", "fragment_charge"), ([] if f is None else f for f in fragments), strict=True)),
        "positions": atoms.positions,
        "momenta": atoms.get_momenta(),
    }
    return {name: np.array(value.numpy() if torch.is_tensor(value) else value) for name, value in found.items()}


def _described(constraint: Any) -> list:
    """Class and contents of a constraint of ASE, as JSON can hold them."""
    skip = ("constraint_forces",)  # which ASE leaves there
    return [
        type(constraint).__name__,
        {name: np.asarray(value).tolist() for name, value in sorted(vars(constraint).items()) if name not in skip},
    ]


def circumstances_of(potential: Potential) -> dict[str, str]:
    """What may change the last bits of a run, by name."""
    return {
        "fastlr": fastlr.__version__,
        "PyTorch": torch.__version__,
        "backend": potential.operations.backend,
        "device": potential.device.type,
        "threads": str(cores.count()),
    }


def require_same_run(path: Path, before: dict[str, np.ndarray], now: dict[str, np.ndarray], reached: dict) -> None:
    """Compare what a run is resumed with, by value, with what it was started with.

    Args:
        path: the checkpoint, for errors.
        reached: "positions" and "momenta" of the checkpoint, which the structure may have, too, instead of those that
            the run was started with.

    Raises:
        InputError: a value differs; the message names the first.
    """
    for name, value in now.items():
        if name in START or _equal(before.get(name), value):
            continue
        if name == "numbers":
            raise InputError(f"{path}: that run had other atoms than this structure; resume it as it was started")
        raise InputError(f"{path}: that run had {_difference(name, before.get(name), value)}; {_ADVICE}")
    if not any(all(_equal(where[name], now[name]) for name in START) for where in (before, reached)):
        name = next(name for name in START if not _equal(before[name], now[name]))
        raise InputError(f"{path}: that run had {_difference(name, before[name], now[name])}; {_ADVICE}")


_ADVICE = "resume it as it was started (only steps may differ)"


def _equal(a: np.ndarray | None, b: np.ndarray) -> bool:
    return a is not None and np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")


def _difference(name: str, before: np.ndarray | None, now: np.ndarray) -> str:
    """In words: "timestep 0.5, not 1.0"."""
    if before is None:
        return f"no {name}"
    if before.shape != now.shape or name == "constraints":
        return f"other {name}"
    if not before.ndim:
        return f"{name} {before.item()}, not {now.item()}"
    k = next(k for k in range(len(before)) if not _equal(before[k], now[k]))
    of = "" if name in ("pbc", "cell", "electric_field", "fragment_charge") else "of atom "
    return f"other {name} ({of}{k}: {before[k].tolist()}, not {now[k].tolist()})"
