"""One structure after another of the same atoms, moved a little: neighbour lists and charges are carried on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from ase import Atoms

from fastlr.conditions import conditions_of
from fastlr.errors import StructureName
from fastlr.graph import Graph, whole_cells
from fastlr.kernels.charge_solver.memory import Memory
from fastlr.kernels.forks import Lock
from fastlr.potential import Potential, Prediction
from fastlr.standard_settings import standard_settings
from fastlr.structure_checks import usable_positions
from fastlr.total_charge import stated_charge

SKIN = 1.0  # Å; of 0.4 to 1.2 the fastest for water at 300 K, by a little


class Steps:
    """Predictions along a path of configurations: dynamics, relaxations.

    Edges and Coulomb tables reach ``skin`` farther than the model does and are made anew when an atom has moved half of
    it since, or when anything but positions has changed. Where charges are found by iteration, it starts from an
    extrapolation of those of the last steps. A step that fails leaves nothing behind. One thread is served at a time.

    Args:
        potential: gives the predictions.
        skin: Å.

    Attributes:
        evaluations, rebuilds: how many there were.
        memory: charges of the last steps, and how the last solves went.
    """

    def __init__(self, potential: Potential, skin: float = SKIN):
        self.potential, self.skin = potential, skin
        self.evaluations = self.rebuilds = 0
        self.memory = Memory()
        self._lock = Lock()
        self._before: tuple[dict, dict] | None = None
        self._list: Graph | None = None
        self._in_parts = False
        self._built_for: Atoms | None = None
        self._cells: np.ndarray | None = None  # what is taken off positions that lie far away
        self._served_by = None

    def __reduce__(self):
        """What is carried on belongs to a path: a copy begins anew."""
        return Steps, (self.potential, self.skin)

    @standard_settings()
    def predict(self, atoms: Atoms, charge: float | None = None, *, forces: bool = True) -> Prediction:
        """As ``Potential.predict`` of one structure."""
        with self._lock:
            graph = self.graph(atoms, charge)
            before = self.memory.begin()
            try:
                found = self.potential.evaluate(graph, [atoms], forces=forces, in_parts=self._in_parts)[0]
            except BaseException:
                self.memory.undo(before)
                raise
            self.evaluations, self._before = self.evaluations + 1, before
            return found

    @standard_settings()
    def graph(self, atoms: Atoms, charge: float | None = None) -> Graph:
        """The structure as the model takes it, with edges up to its cutoff or, for a plan, those of the whole list.

        Raises:
            InputError: see ``Graph.from_atoms``, or the structure is too large for the memory budget.
        """
        if not self._holds_for(atoms):
            self._rebuild(atoms, charge)
            graph = self._list
        else:
            name = StructureName(atoms, 0)
            conditions, total = conditions_of(atoms, name, stated_charge(atoms, charge))
            if (conditions is None) != (self._list.conditions is None):
                self._rebuild(atoms, charge)  # which also refuses what the model does not know
                conditions = self._list.conditions
            positions = usable_positions(atoms, name)
            positions = positions.copy() if self._cells is None else positions - self._cells
            graph = replace(self._list, positions=torch.from_numpy(positions), conditions=conditions)
            graph = replace(graph, charge=graph.charge.new_full((1,), total))
        if self.potential.plan is None and self.potential.captured is None:  # which leave longer edges out themselves
            graph = graph.within(self.potential.r_max)
        return replace(graph, memory=self.memory)

    def forget(self) -> None:
        """The next step begins anew."""
        self._list = self._built_for = self._before = None
        self.memory.clear()

    def state(self, *, repeated: bool = False) -> dict[str, np.ndarray]:
        """Arrays for ``restore``: steps afterwards are the same to the last bit.

        Args:
            repeated: tell what the last step went on from, which after ``restore`` is the first.
        """
        if self._built_for is None:
            return {}
        known = self.memory.state(self._before if repeated else None)
        return {"list_positions": self._built_for.positions, **known}

    @standard_settings()
    def restore(self, atoms: Atoms, state: dict[str, np.ndarray], charge: float | None = None) -> None:
        """Go on with what ``state`` has told, for a structure like ``atoms`` (whose positions are not read)."""
        self.forget()
        if not state:
            return
        built_for = atoms.copy()
        built_for.positions = state["list_positions"]
        self._rebuild(built_for, charge)
        self.memory.restore({name: value for name, value in state.items() if name != "list_positions"})

    def _rebuild(self, atoms: Atoms, charge: float | None) -> None:
        if self._built_for is not None and not np.array_equal(atoms.numbers, self._built_for.numbers):
            self.memory.clear()
        graph = self.potential.single_graph(atoms, charge, skin=self.skin)
        self._in_parts = self.potential.check_memory(graph)
        self._cells = whole_cells(atoms.positions, graph.cell[0].numpy(), atoms.pbc)
        self._list = replace(graph, listed_at=graph.positions)
        self._built_for = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        self._served_by = self.potential.operations
        self.rebuilds += 1

    def _holds_for(self, atoms: Atoms) -> bool:
        built = self._built_for
        if built is None or self._served_by is not self.potential.operations:
            return False
        if len(built) != len(atoms) or not np.array_equal(built.numbers, atoms.numbers):
            return False
        if not (np.array_equal(built.pbc, atoms.pbc) and np.array_equal(built.cell.array, atoms.cell.array)):
            return False
        if np.shape(atoms.positions) != built.positions.shape:
            return False
        moved = ((atoms.positions - built.positions) ** 2).sum(axis=1)
        return bool((moved < (0.5 * self.skin) ** 2).all())  # not for positions that are not finite
