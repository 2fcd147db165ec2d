"""What acts on the charges of a structure besides their given sum: fields, potentials, and charges of its fragments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from .errors import InputError
from .kernels.charge_solver.constraints import Constraints
from .stated_names import ARRAYS, INFO

LARGEST = {"electric_field": 50.0, "external_potential": 1e4, "chemical_potential": 1e3}  # V/Å, V, eV/e


@dataclass(frozen=True)
class Conditions:
    """Of B structures with N atoms in all; float64.

    Attributes:
        potential: (N,) external electrostatic potential at each atom, V. It moves with the atom: its gradient is not
            part of the forces.
        field: (B, 3) uniform electric field, V/Å. Its potential is -field . r, and part of the forces.
        chemical_potential: (B,) dE/dQ in eV/e where it is given instead of the total charge; NaN elsewhere.
        fragment: (N,) int64, the fragment of each atom, ascending with the structures; None where none are named.
        fragment_charge: (G,) e.
    """

    potential: Tensor
    field: Tensor
    chemical_potential: Tensor
    fragment: Tensor | None = None
    fragment_charge: Tensor | None = None

    def to(self, device) -> Conditions:
        """All tensors on ``device``."""
        values = (getattr(self, entry.name) for entry in fields(self))
        return Conditions(*(value if value is None else value.to(device) for value in values))

    def potential_at(self, positions: Tensor, batch: Tensor) -> Tensor:
        """(N,) V, differentiable in the positions (N, 3)."""
        return self.potential - (positions * self.field.index_select(0, batch)).sum(dim=1)

    @property
    def constraints(self) -> Constraints | None:
        """As the solver of the charges takes them."""
        return None if self.fragment is None else Constraints(self.fragment, self.fragment_charge)

    @property
    def has_potentials(self) -> bool:
        """Whether the chemical potential of a structure is given."""
        return not bool(self.chemical_potential.isnan().all())

    def without_potentials(self) -> Conditions | None:
        """The rest, where total charges have been found; None if nothing is left."""
        if self.fragment is None and not bool(self.potential.any() or self.field.any()):
            return None
        return replace(self, chemical_potential=torch.full_like(self.chemical_potential, torch.nan))

    @staticmethod
    def none(num_structures: int, num_nodes: int) -> Conditions:
        """Nothing."""
        zeros = torch.zeros(num_nodes, dtype=torch.float64)
        return Conditions(zeros, zeros.new_zeros(num_structures, 3), zeros.new_full((num_structures,), torch.nan))

    @staticmethod
    def join(
        parts: Sequence[Conditions | None], charges: Sequence[Tensor], batches: Sequence[Tensor]
    ) -> Conditions | None:
        """Those of several batches as one, given the charges (B,) of their structures and those of their atoms (N,)."""
        if all(part is None for part in parts):
            return None
        filled = [
            part or Conditions.none(len(charge), len(batch))
            for part, charge, batch in zip(parts, charges, batches, strict=True)
        ]
        names = ("potential", "field", "chemical_potential")
        plain = (torch.cat([getattr(part, name) for part in filled]) for name in names)
        joined = Conditions(*plain)
        if all(part.fragment is None for part in filled):
            return joined
        fragments, fragment_charges, count = [], [], 0
        for part, charge, batch in zip(filled, charges, batches, strict=True):
            own, own_charge = part.fragment, part.fragment_charge
            if own is None:  # each structure that has atoms is one fragment
                present, own = torch.unique(batch, return_inverse=True)
                own_charge = charge[present]
            fragments.append(own + count)
            fragment_charges.append(own_charge)
            count += len(own_charge)
        return replace(joined, fragment=torch.cat(fragments), fragment_charge=torch.cat(fragment_charges))


def conditions_of(atoms: Atoms, name: str, charge: float | None) -> tuple[Conditions | None, float]:
    """Conditions that a structure states, None if none, and its total charge.

    - ``atoms.arrays["fragment"]``, a whole number an atom, with ``atoms.info["fragment_charge"]``, a charge in e for
      each fragment in ascending order of these numbers, or a dictionary from number to charge;
    - ``atoms.info["electric_field"]``, three numbers in V/Å; it must be normal to all periodic directions;
    - ``atoms.arrays["external_potential"]``, V;
    - ``atoms.info["chemical_potential"]``, eV/e: then the total charge is found, not given.

    Args:
        name: what errors call the structure.
        charge: the total charge in e if it is stated.

    Raises:
        InputError: a value of the wrong kind or shape, or two that contradict each other; the message names it.
    """
    if not mentions_conditions(atoms):
        return None, charge or 0.0
    _require_place(atoms, name)
    if not any(key in atoms.arrays for key in ARRAYS) and all(atoms.info.get(key) is None for key in INFO):
        return None, charge or 0.0
    n = len(atoms)
    found = Conditions.none(1, n)
    if "external_potential" in atoms.arrays:
        found = replace(found, potential=_numbers(atoms.arrays, "external_potential", (n,), name))
    if atoms.info.get("electric_field") is not None:
        field = _numbers(atoms.info, "electric_field", (3,), name)
        along = np.abs(atoms.cell.array[atoms.pbc] @ field.numpy())
        if along.max(initial=0.0) > 1e-8 * np.abs(atoms.cell.array).max(initial=0.0) * float(field.norm()):
            raise InputError(
                f"{name}: the electric field {field.tolist()} has a part along a periodic direction, where its "
                "potential has no period"
            )
        found = replace(found, field=field[None])
    has_potential = atoms.info.get("chemical_potential") is not None
    if has_potential:
        found = replace(found, chemical_potential=_numbers(atoms.info, "chemical_potential", (), name)[None])
        if charge:
            raise InputError(f"{name}: both a chemical potential and a charge of {charge:g} e are given; choose one")
    if "fragment" in atoms.arrays or atoms.info.get("fragment_charge") is not None:
        fragment, fragment_charge = _fragments(atoms, name)
        found = replace(found, fragment=fragment, fragment_charge=fragment_charge)
        total = float(fragment_charge.sum())
        if has_potential:
            raise InputError(
                f"{name}: the charges of its fragments fix its total charge, which leaves none to be found at a "
                "chemical potential; choose one"
            )
        if charge is not None and abs(charge - total) > 1e-6:
            raise InputError(f"{name}: its charge is {charge:g} e, but those of its fragments add up to {total:g} e")
        charge = total
    return found, charge or 0.0


def mentions_conditions(atoms: Atoms) -> bool:
    """Whether the name of any condition is in ``atoms.arrays`` or ``atoms.info``."""
    if not atoms.info and len(atoms.arrays) == 2:  # which are numbers and positions
        return False
    return any(key in atoms.arrays or key in atoms.info for key in (*ARRAYS, *INFO))


def _require_place(atoms: Atoms, name: str) -> None:
    for keys, wrong, where, right in ((ARRAYS, atoms.info, "info", "arrays"), (INFO, atoms.arrays, "arrays", "info")):
        for key in keys:
            if wrong.get(key) is not None:
                raise InputError(f"{name}: {key!r} is in atoms.{where}, but belongs in atoms.{right}")


def require_electrons(charge: float, numbers: np.ndarray, what: str) -> None:
    """Refuse a charge (e) beyond the number of electrons of the neutral atoms, given their atomic numbers.

    Raises:
        InputError: ``what`` has it.
    """
    if abs(charge) > max(1, len(numbers)) and abs(charge) > (electrons := max(1, int(numbers.sum()))):
        raise InputError(
            f"{what}: a charge of {charge:g} e is more than its neutral atoms have electrons, which are {electrons}; "
            "charges are in e"
        )


def _fragments(atoms: Atoms, name: str) -> tuple[Tensor, Tensor]:
    given = atoms.info.get("fragment_charge")
    if "fragment" not in atoms.arrays or given is None:
        raise InputError(f"{name}: atoms.arrays['fragment'] and atoms.info['fragment_charge'] belong together")
    labels = np.asarray(atoms.arrays["fragment"])
    if labels.shape != (len(atoms),) or labels.dtype.kind not in "iu":
        raise InputError(f"{name}: atoms.arrays['fragment'] must be one whole number an atom")
    present, own = np.unique(labels, return_inverse=True)
    if isinstance(given, dict):
        given = _in_order(given, present.tolist(), name)
    charge = _numbers({"fragment_charge": np.atleast_1d(given)}, "fragment_charge", (len(present),), name)
    for label, each in zip(present.tolist(), charge.tolist(), strict=True):
        if abs(each) > 1.0:
            require_electrons(each, atoms.numbers[labels == label], f"{name}: fragment {label}")
    return torch.from_numpy(own.astype(np.int64).reshape(-1)), charge


def _in_order(given: dict, labels: list[int], name: str) -> list:
    """Charges from a dictionary in the order of the fragments' numbers; files keep these as text."""
    by_label = {}
    for key, charge in given.items():
        try:
            label = int(key)
            if isinstance(key, bool) or label != float(key):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{name}: 'fragment_charge' names a fragment {key!r}, which is no whole number") from None
        if label in by_label:
            raise InputError(f"{name}: fragment {label} stands twice in 'fragment_charge'")
        by_label[label] = charge
    missing = sorted(set(labels) ^ set(by_label))
    if missing:
        raise InputError(f"{name}: fragment {missing[0]} has either no atom or no charge in 'fragment_charge'")
    return [by_label[label] for label in labels]


def _numbers(where: dict, key: str, shape: tuple[int, ...], name: str) -> Tensor:
    value = where[key]
    try:
        value = value.detach().cpu() if isinstance(value, Tensor) else value
        values = np.asarray(value)
        usable = values.dtype.kind in "iuf" and not np.ma.is_masked(value) and not _has_truths(value)
        values = values.astype(np.float64) if usable else np.full(1, np.nan)
    except (TypeError, ValueError):
        values = np.full(1, np.nan)
    if not shape and values.size == 1:
        values = values.reshape(())
    if values.shape != shape or not np.isfinite(values).all():
        expected = "a number" if not shape else f"{' x '.join(map(str, shape))} numbers"
        raise InputError(f"{name}: '{key}' must be {expected}, got {where[key]!r:.200}")
    if np.abs(values).max(initial=0.0) > LARGEST.get(key, np.inf):
        raise InputError(f"{name}: '{key}' is larger than {LARGEST[key]:g}; is its unit another than V, Å and eV?")
    return torch.from_numpy(values.copy())


def _has_truths(value) -> bool:
    """Whether a list has True or False among its numbers."""
    return isinstance(value, (list, tuple)) and any(isinstance(entry, bool) for entry in value)
