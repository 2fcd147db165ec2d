"""The common model interface: ``fastlr.load`` gives a ``Potential``; its ``predict`` gives ``Prediction``."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from . import checkpoint
from .backends import resolve
from .checks.inference import InferenceCheck, check_inference, require_sense
from .checks.operations import Parity, check_operations
from .checks.stored import fingerprint, stored
from .engine.charges import require_right_charges
from .engine.fixed_potential import evaluate_at_potential, is_fixed, warn_of_large_charges
from .engine.parts import TooLarge, evaluate_in_parts, halved
from .engine.precision import Precision
from .errors import BackendError, CheckpointError, InputError, NonFiniteError, StructureName, structure_number
from .files import check_writable
from .graph import CoulombSettings, Graph
from .kernels.charge_solver.conjugate_gradient import Report
from .kernels.charge_solver.memory import Memory
from .memory import Counts, MemoryModel, available_bytes, list_bytes
from .models import ModelConfig, NequIPConfig, build_model
from .models.derivatives import evaluate
from .models.pieces import Pieces
from .models.tables import embeddings, find_size, interpolate_networks, without_tables
from .models.values import require_as_configured
from .models.watch import Watch
from .molecules import molecules_graph, runs
from .pretrained import available_models, model_path
from .standard_settings import each_with_standard_settings, standard_settings
from .structure_checks import as_structures
from .total_charge import each_charge

COARSEST = 1e-7  # accuracy of Coulomb sums: with less, energies tell how the sums were split
FINER = 4.0  # by how much Coulomb sums become finer where a model is not served well enough


@dataclass(frozen=True)
class Prediction:
    """What a potential says of one structure of n atoms (numpy, float64).

    Attributes:
        energy: eV.
        atomic_energies: (n,) eV; for NequIP-LR without the Coulomb energy, which belongs to no atom.
        forces: (n, 3) eV/Å, or None if not asked for.
        stress: (3, 3) eV/Å^3, tension positive; None unless periodic in three directions (or not asked for).
        charges: (n,) e; None for models without charges.
        electronegativities: (n,) eV/e; None for models without charges.
        coulomb_energy: eV; None for models without charges.
        external_energy: eV, of the charges in external potentials and fields (see ``conditions.conditions_of``), zero
            without; None for models without charges. It is part of the energy, whose derivatives are the forces.
        dipole: (3,) e Å, sum of q r about the origin; None for periodic structures and models without charges. It is
            not -dE/dF in a field F, since the short-range energy depends on the charges, too: see ``polarisation``.
        polarisation: (3,) e Å, -dE/dF about the origin, of slabs its part along the normal; None for cells, for models
            without charges, and without forces.
        total_charge: e, Q; None for models without charges.
        potential: eV/e, dE/dQ; None for models without charges, where charges of fragments are given, and without
            forces.
        grand_energy: eV, E - mu Q where a chemical potential mu is given and Q is found: forces and stress are then its
            derivatives at constant mu. None otherwise.
        charge_solution: how the iteration for the charges went, with a bound on their error; None where they were
            solved for directly.
    """

    energy: float
    atomic_energies: np.ndarray
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    charges: np.ndarray | None = None
    electronegativities: np.ndarray | None = None
    coulomb_energy: float | None = None
    external_energy: float | None = None
    dipole: np.ndarray | None = None
    polarisation: np.ndarray | None = None
    total_charge: float | None = None
    potential: float | None = None
    grand_energy: float | None = None
    charge_solution: Report | None = None


@standard_settings()
def load(
    model: str | Path,
    *,
    backend: str = "auto",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    memory_budget: float | None = None,
) -> Potential:
    """Load a model for inference.

    Args:
        model: name of a bundled model (``fastlr.available_models()``) or path of a .safetensors file.
        backend: "auto", or a name in ``fastlr.backends.BACKENDS``.
        device: "auto" (a GPU if there is one), or a PyTorch device.
        dtype: "float32" or "float64", or PyTorch's; default: as the model was saved.
        memory_budget: bytes that one evaluation may use; default: 60% of what is free at each call.

    Raises:
        CheckpointError: there is no such model, or its file is not sound.
        BackendError: the backend cannot serve, or fails the parity check against the reference.
        InputError: another argument is none of these.
    """
    path = _model_file(model)
    config, state, card = checkpoint.load_checkpoint(path, _float_type(dtype))
    with torch.random.fork_rng(devices=[]):  # weights that are drawn, to be overwritten
        module = build_model(config)
    checkpoint.load_state(module, state, path)
    require_sense(module, coulomb_settings(config), path)
    return Potential(module, card, backend=backend, device=device, memory_budget=memory_budget, name=str(model))


class Potential:
    """A model ready for use: structures in, ``Prediction`` out.

    It is of the weights as they are now: the model is copied, and may be trained further.

    Args:
        model: ``NequIP`` or ``NequIPLR``.
        card: model card.
        backend, device, memory_budget: see ``load``.
        name: what reports call it.
    """

    @standard_settings()
    def __init__(
        self,
        model: torch.nn.Module,
        card: dict | None = None,
        *,
        backend: str = "auto",
        device: str | torch.device = "auto",
        memory_budget: float | None = None,
        name: str = "model",
    ):
        self._model = _own_copy(model)
        self.card = card or {}
        self.name = name
        self.memory_budget = memory_budget
        self._config: ModelConfig = self._model.config
        self._watch: Watch | None = None
        self.use(*("auto" if choice is None else choice for choice in (backend, device)))

    @standard_settings()
    def use(self, backend: str = "auto", device: str | torch.device | None = None) -> Potential:
        """Switch backend and device; checks parity with the reference again.

        This is also what takes notice of weights of ``model`` that were changed. After an error all is as it was.
        """
        before, where = dict(vars(self)), self.device
        serving = [(part, part.table_intervals, part.kept_tables) for part in embeddings(self._model)]
        try:
            return self._set_up(backend, device)
        except BaseException:
            if self._watch is not None:
                self._restore(before, where, serving)
            raise

    def _set_up(self, backend: str, device: str | torch.device | None) -> Potential:
        device = _usable_device(device if device is not None else self.device)
        operations = resolve(backend, device, self._config.torch_dtype)
        require_as_configured(self._model)
        self._model.eval().requires_grad_(False).to(device).use(operations)
        without_tables(self._model)
        self.settings = inference_settings(self._model)
        self.operations, self.plan, self.captured, self.tables = operations, None, None, None
        self.parity: list[Parity] = []
        self.inference_check: InferenceCheck | None = None
        self._parts_are_checked = False
        self.no_plan: str | None = f"it is made of kernels for CPUs, and the backend is '{operations.backend}'"
        if operations.backend == "cpu":
            self.tables = self._table_size()
            self.no_plan = None if self.tables else "no radial table is fine enough for this model"
        if self.no_plan is None:
            self._plan()
        else:
            self._operate(device)
        self._watch = Watch(self._model, self._watch is not None and self._watch.is_handed_out)
        return self

    def _restore(self, before: dict, where: torch.device, serving: list) -> None:
        """Serve as before an attempt to serve otherwise."""
        vars(self).clear()
        vars(self).update(before)
        if self.device != where:  # what was captured reads memory that has been left
            self._set_up(self.operations.backend, where)
            return
        self._model.use(self.operations)
        for part, intervals, tables in serving:
            part.table_intervals, part.kept_tables = intervals, tables

    @property
    def model(self) -> torch.nn.Module:
        """The potential's own copy of the model. Once its weights are changed, evaluations are refused until ``use``
        has been called."""
        return self._watch.hand_out()

    @property
    def config(self) -> ModelConfig:
        """A copy of the model's configuration."""
        return self._config.model_copy(deep=True)

    @property
    def r_max(self) -> float:
        """Cutoff of the edges, Å."""
        return self._config.r_max

    @property
    def memory_budget(self) -> float | None:
        """Bytes for one evaluation; None for 60% of the free memory at each call."""
        return self._memory_budget

    @memory_budget.setter
    def memory_budget(self, budget: float | None) -> None:
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, Real) or not budget >= 0):
            raise InputError(f"memory_budget must be a number of bytes, or None, got {budget!r:.100}")
        self._memory_budget = budget

    def fingerprint(self) -> str:
        """A digest of configuration and weights."""
        return fingerprint(self._model)

    def require_unchanged(self, thorough: bool = False) -> None:
        """Compare the weights of ``model`` with those in use.

        Args:
            thorough: see ``Watch.has_seen_change``.

        Raises:
            InputError: it is not.
        """
        if self._watch.has_seen_change(thorough):
            raise InputError(
                f"the weights or settings of {self.name!r} were changed since it was made ready; call potential.use() "
                "to evaluate with what they are now, or make a new Potential"
            )

    def __copy__(self) -> Potential:
        """Copies share nothing: one may be put to other use."""
        return deepcopy(self)

    @standard_settings()
    def __deepcopy__(self, memo: dict) -> Potential:
        self.require_unchanged()
        memo[id(self)] = copy = Potential.__new__(type(self))
        vars(copy).update(deepcopy(vars(self), memo))
        return copy

    @standard_settings()
    def __reduce__(self):
        """Text within text, so that tensors are made anew under standard settings, too."""
        self.require_unchanged()
        return _unpickled, (type(self), pickle.dumps(vars(self)))

    def _plan(self) -> None:
        """Evaluate by the inference plan."""
        plan = self.operations.executor(self._model, self.tables[0])
        checks = [self._checked(run) for run in plan.regimes()]
        self.inference_check = max(checks, key=lambda check: check.forces)
        self.plan, self._memory = plan, plan.memory

    def _operate(self, device: torch.device) -> None:
        """Evaluate operation by operation, by autograd."""
        operations = self.operations
        self.parity = check_operations(self._model, operations)
        dense = operations.chosen["charge_equilibration"] == "reference"
        self._memory = MemoryModel.of_autograd(self._model, dense)
        # those who choose float64 want the digits that a table's derivatives lack
        if operations.chosen["tabulated_product"] != "reference" and self._config.torch_dtype == torch.float32:
            self.tables = self._table_size()
            if self.tables is not None:
                interpolate_networks(self._model, self.tables[0], keep=True)
        if operations.executor is not None and operations.backend != "cpu":
            self._capture()
        elif operations.backend != "reference":
            self.inference_check = self._checked(lambda graph: evaluate(self._model, graph.to(device)))

    def _capture(self) -> None:
        """Launch the kernels of small structures together, if this GPU can."""
        captured = self.operations.executor(self._model)
        try:
            self.inference_check = self._checked(captured.evaluate)
        except BackendError:
            raise
        except RuntimeError as error:  # of CUDA
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"kernels are launched one by one, for no CUDA graph could be made: {reason}", stacklevel=3)
            return
        self.captured = captured

    def _checked(self, run: Callable[[Graph], dict[str, torch.Tensor]]) -> InferenceCheck:
        """Compare an executor with the reference, with finer Coulomb sums where forces need them."""
        whole = coulomb_settings(self._config)
        while True:
            try:
                return check_inference(run, self._model, whole, self.settings)
            except BackendError as error:
                if whole is None or self.settings.accuracy <= whole.accuracy:
                    raise BackendError(f"{self.name}: {error}") from None
                finer = max(self.settings.accuracy / FINER, whole.accuracy)
                self.settings = replace(self.settings, accuracy=finer)

    def _table_size(self) -> tuple[int, float] | None:
        """As ``find_size``, from disk if that was found before."""

        def find() -> dict[str, torch.Tensor]:
            size, error = find_size(self._model) or (0, 0.0)
            return {"intervals": torch.tensor(size), "error": torch.tensor(error, dtype=torch.float64)}

        found = stored("table_size", fingerprint(self._model), find)
        return (int(found["intervals"]), float(found["error"])) if found["intervals"] else None

    @property
    def device(self) -> torch.device:
        return self._model.type_embedding.weight.device

    @property
    def species(self) -> list[str]:
        """Chemical symbols that the model knows."""
        return list(self._config.species)

    @property
    def has_charges(self) -> bool:
        return self._config.kind == "nequip-lr"

    def graph(self, atoms: Atoms | Sequence[Atoms], charge: float | Sequence[float] | None = None) -> Graph:
        """Structures as the batch that the model takes (on the CPU); see ``Graph.from_atoms``."""
        return Graph.from_atoms(atoms, self.species, self._config.r_max, self.settings, charge)

    def single_graph(self, atoms: Atoms, charge: float | None = None, index: int = 0, skin: float = 0.0) -> Graph:
        """One structure as a batch of one; errors call it structure ``index``. See ``Graph.single``."""
        config = self._config
        needed = list_bytes(atoms, config.r_max + skin, self.settings)
        if needed and (needed > (free := available_bytes(torch.device("cpu"))) or needed / 4.0 > self._budget()):
            raise InputError(
                f"structure {structure_number(atoms, index)} ({len(atoms)} atoms): to list the neighbours within "
                f"{config.r_max:g} Å takes about {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of memory are "
                f"free (memory_budget: {self._budget() / 2**30:,.1f} GiB); is the cell in Å?"
            )
        return Graph.single(atoms, config.species, config.r_max, self.settings, charge, index, skin)

    @standard_settings()
    def predict(
        self,
        atoms: Atoms | Sequence[Atoms],
        charge: float | Sequence[float] | None = None,
        *,
        forces: bool = True,
        progress: bool = False,
    ) -> Prediction | list[Prediction]:
        """Energy, forces, stress, charges and more of one structure or of each in a list.

        A list is evaluated in batches that fit the memory budget.

        Args:
            atoms: one ASE structure or a list, sizes and periodicities mixed as you like.
            charge: total charge in e, for all or for each; ``atoms.info["charge"]`` wins; the default is 0.
            forces: whether to compute forces and stress.
            progress: show a progress bar.

        Raises:
            InputError: a structure cannot be used (see ``Graph.from_atoms``), or is too large for the memory budget.
            NonFiniteError: an energy or force is not a finite number.
        """
        if isinstance(atoms, Atoms):
            return next(self._predictions([atoms], charge, forces, False))
        return list(self._predictions(as_structures(atoms), charge, forces, progress))

    def iter_predict(
        self, atoms: Sequence[Atoms], charge: float | Sequence[float] | None = None, *, forces: bool = True
    ) -> Iterator[Prediction]:
        """As ``predict`` on a list, one prediction at a time as batches finish."""
        return each_with_standard_settings(self._predictions(as_structures(atoms), charge, forces, False))

    def _predictions(self, structures, charge, forces, progress) -> Iterator[Prediction]:
        self.require_unchanged(thorough=True)
        charge = each_charge(charge, len(structures))
        with _progress(len(structures), progress) as advance:
            for start, graphs, in_parts in self._batches(structures, charge):
                graph = Graph.batch_of(graphs)
                for prediction in self.evaluate(graph, structures, start, forces=forces, in_parts=in_parts):
                    yield prediction
                    advance()

    @standard_settings()
    def evaluate(
        self,
        graph: Graph,
        structures: Sequence[Atoms],
        start: int = 0,
        *,
        forces: bool = True,
        in_parts: bool = False,
    ) -> list[Prediction]:
        """Predictions of a batch.

        Args:
            graph: the structures from number ``start`` of ``structures``, which errors name.
            forces: whether to compute forces and stress.
            in_parts: part by part, as ``check_memory`` tells of one structure.
        """
        self.require_unchanged()
        if self.has_charges and graph.memory is None:
            graph = replace(graph, memory=Memory())  # for its reports
        if is_fixed(graph):  # which takes the derivative by the total charge
            run = partial(self._run, in_parts=in_parts, name=f"structure {start}")
            out, found = evaluate_at_potential(run, self._model.equilibration, graph)
            warn_of_large_charges(found, structures, start)
            return list(_split(out, found, start, structures, graph.conditions.chemical_potential, forces))
        out = self._run(graph, forces, in_parts, f"structure {start}")
        return list(_split(out, graph, start, structures))

    def _run(self, graph: Graph, forces: bool = True, in_parts: bool = False, name: str = "") -> dict:
        """Results of a batch whose charges are given."""
        if in_parts:
            return self._in_parts(graph, name, forces)
        if self.plan is not None:
            return self.plan.evaluate(graph, forces=forces)
        if self.captured is not None:
            return self.captured.evaluate(graph, forces=forces)
        on_device = graph.to(self.device)
        if self.has_charges:
            require_right_charges(self._model.equilibration, on_device, by_autograd=True)
        return evaluate(self._model, on_device, forces=forces)

    def check_memory(self, graph: Graph) -> bool:
        """Whether one structure is so large that it has to be evaluated part by part."""
        return self._memory.bytes_of(Counts.of(graph)) > self._budget()

    def _in_parts(self, graph: Graph, name: str, forces: bool) -> dict[str, torch.Tensor]:
        needed = self._memory.bytes_of
        # what parts are taken from, and the charges, which have none
        whole = graph.num_bytes + needed(Counts.of(graph).charges) - needed(Counts(0, 0))
        left = self._budget() - whole
        plan = self.plan or Pieces(self._model)
        if not self._parts_are_checked:
            self._checked(lambda box: evaluate_in_parts(plan, box, halved(), forces=True))
            self._parts_are_checked = True
        try:
            return evaluate_in_parts(plan, graph, lambda part: needed(Counts.of(part)) <= left, forces=forces)
        except TooLarge as error:
            least = whole + needed(Counts.of(error.part))
            raise self._over_budget(name, graph.num_nodes, least, ", even part by part") from None

    def _budget(self) -> float:
        return 0.6 * available_bytes(self.device) if self.memory_budget is None else self.memory_budget

    def _over_budget(self, name: str, num_atoms: int, needed: float, how: str = "") -> InputError:
        return InputError(
            f"{name} ({num_atoms} atoms) needs about {needed / 2**30:.3g} GiB, but the memory budget is "
            f"{self._budget() / 2**30:.3g} GiB{how}; raise memory_budget or use a machine with more memory"
        )

    def _batches(self, structures, charges) -> Iterator[tuple[int, list[Graph], bool]]:
        """(index of the first structure, graphs, whether it is one that needs parts) of consecutive batches within the
        memory budget."""
        budget = self._budget()
        batch, total, start, in_parts = [], None, 0, False
        for index, graph in self._graphs(structures, charges, budget):
            count = Counts.of(graph)
            is_large = graph.num_structures == 1 and self._memory.bytes_of(count) > budget
            joined = count.joined(total) if batch else count
            if batch and self._memory.bytes_of(joined) > budget:
                yield start, batch, in_parts
                batch, joined, start = [], count, index
            batch.append(graph)
            total, in_parts = joined, is_large  # nothing else fits beside a large one
        if batch:
            yield start, batch, in_parts

    def _graphs(self, structures, charges, budget: float) -> Iterator[tuple[int, Graph]]:
        """(index of the first structure, graph): small molecules together, everything else one by one."""
        config = self._config
        for some in runs(structures):
            if len(some) > 1:
                known, own = ([values[k] for k in some] for values in (structures, charges))
                graph = molecules_graph(known, config.species, config.r_max, self.settings, own, some.start)
                if graph is not None and self._memory.bytes_of(Counts.of(graph)) <= budget:
                    yield some.start, graph
                    continue
            for k in some:
                yield k, self.single_graph(structures[k], charges[k], k)

    def calculator(self, charge: float | None = None):
        """An ASE calculator; ``atoms.info["charge"]`` wins over ``charge``."""
        from .interop.ase import FastlrCalculator

        return FastlrCalculator(self, charge)

    def save(self, path: str | Path) -> None:
        """Write the model to one .safetensors file; an existing one is replaced.

        Raises:
            InputError: it cannot be written.
        """
        if not isinstance(path, (str, Path)) or str(path) in ("", "."):
            raise InputError(f"a model is saved to the path of a file, got {path!r:.80}")
        path = check_writable(path, overwrite=True)
        try:
            checkpoint.save_checkpoint(path, self._config, self._model.state_dict(), self.card)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None

    def report(self) -> str:
        """Which implementation serves each operation, with the parity measured at load; the plan and its stages."""
        parity = {row.operation: f"parity {row.error:.1e}" for row in self.parity}
        lines = [
            f"{self.name}: {self._config.kind}, {sum(p.numel() for p in self._model.parameters())} parameters, "
            f"{self._config.dtype} on {self.device}, backend '{self.operations.backend}'"
        ]
        for operation, served_by, remark in self.operations.table():
            if served_by != "reference" and operation not in parity:
                continue  # part of the plan, or a model without charges
            note = parity.get(operation, "the specification itself")
            lines.append(f"  {operation:<20} {served_by:<15} {note}{'; ' + remark if remark else ''}")
        if self.tables is None:
            lines.append("  radial networks evaluated at every edge")
        else:
            intervals, error = self.tables
            lines.append(f"  radial networks from tables of {intervals} intervals, which differ by {error:.1e}")
        if self.has_charges:
            asked, usual = self.settings.accuracy, inference_settings(self._model).accuracy
            finer = f", not {usual:.1e}: the check of forces asked for it" if asked < usual else ""
            lines.append(f"  Coulomb sums accurate to {asked:.1e}{finer}")
        if self.plan is None:
            lines.append(f"  no inference plan: {self.no_plan}")
            if self.captured is not None:
                lines.append(f"  kernels of up to {self.captured.LARGEST:,} edges are launched together")
            if self.inference_check is not None:
                lines.append(f"  {self.inference_check}")
            return "\n".join(lines)
        weights, buffers = (f"{size / 2**20:.1f} MiB" for size in self.plan.num_bytes)
        lines.append(f"  inference plan       {self.operations.backend:<15} {self.inference_check}")
        lines.append(f"  weights and tables {weights}, buffers {buffers}; stages:")
        lines += [f"    {stage.name}" for stage in self.plan.stages()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<fastlr.Potential {self.name}: {self._config.kind} for {' '.join(self.species)} on {self.device}>"


def _model_file(model: str | Path) -> Path:
    """The file of a bundled model, or of another."""
    if not isinstance(model, (str, os.PathLike)) or isinstance(os.fspath(model), bytes):
        raise InputError(f"a model is named by a string or a path, got {model!r:.100}")
    path = model_path(str(model)) or Path(model)
    try:
        is_there = path.exists()
    except (OSError, ValueError) as error:  # names too long, or with characters that none may have
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{str(model)!r:.100} is no name of a model file: {reason}") from None
    if not is_there and not path.suffix:
        raise CheckpointError(f"no bundled model is named '{model}' (there are: {', '.join(available_models())})")
    return path


def _float_type(dtype: str | torch.dtype | None) -> str | None:
    """The name of a float type of models."""
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, (torch.dtype, np.dtype)) else dtype
    if name is not None and name not in ("float32", "float64"):
        raise InputError(f"dtype must be 'float32' or 'float64', got {dtype!r:.100}")
    return name


def _own_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a model without gradients."""
    if not isinstance(getattr(model, "config", None), NequIPConfig):
        raise InputError(
            f"a Potential is made of a model of fastlr, got {model!r:.100}; fastlr.load opens files, and "
            "fastlr.interop takes over models of other packages"
        )
    own = deepcopy(model)
    own.zero_grad(set_to_none=True)
    return own


@standard_settings()
def _unpickled(kind: type, state: bytes) -> Potential:
    potential = Potential.__new__(kind)
    vars(potential).update(pickle.loads(state))
    return potential


def _usable_device(device: str | torch.device) -> torch.device:
    """The device of that name, "auto" being a GPU if there is one; one that PyTorch cannot use is an error."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()  # also refuses devices that hold no values
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # PyTorch raises any of these
        reason = str(error).strip().partition("\n")[0]
        raise BackendError(f"device {str(device)!r:.100} cannot be used: {reason}") from None
    if found.type == "cpu" and found.index:
        raise BackendError(f"device '{found}' cannot be used: there is one 'cpu'")
    return torch.device("cpu") if found.type == "cpu" else found


def coulomb_settings(config: ModelConfig, least: float = 0.0) -> CoulombSettings | None:
    """Settings of the Coulomb tables that a model needs, accurate to ``least`` at best, ``COARSEST`` at worst; None for
    a short-range model."""
    if config.kind != "nequip-lr":
        return None
    accuracy = max(min(config.ewald_accuracy, COARSEST), least)
    return CoulombSettings(tuple(config.widths), accuracy, config.ewald_eta)


def inference_settings(model: torch.nn.Module) -> CoulombSettings | None:
    """The same, no finer than predictions in the model's float type can tell."""
    if model.config.kind != "nequip-lr":
        return None
    precision = Precision.of(model)
    return replace(coulomb_settings(model.config, precision.accuracy), products=precision.products)


def _split(
    out: dict[str, torch.Tensor],
    graph: Graph,
    start: int,
    structures,
    given: torch.Tensor | None = None,
    forces: bool = True,
) -> Iterator[Prediction]:
    """The tensors of a batch as one ``Prediction`` a structure.

    Args:
        given: (B,) chemical potentials, eV/e, NaN where none is given.
        forces: whether forces and stress are wanted.
    """
    if not forces:
        out = {key: value for key, value in out.items() if key not in ("forces", "stress")}
    arrays = {key: value.double().cpu().numpy() for key, value in out.items()}
    ptr, is_cell, is_free = (t.tolist() for t in (graph.node_ptr, graph.pbc.all(dim=1), ~graph.pbc.any(dim=1)))
    # lists, for the elements of tensors and small arrays take microseconds each
    charge = graph.charge.tolist()
    grand = _grand(arrays["energy"], graph.charge, given)
    known = {key: _known(arrays.get(key), graph.num_structures) for key in ("polarisation", "potential")}
    reports = {} if graph.memory is None else graph.memory.reports
    for b in range(graph.num_structures):
        atoms = slice(ptr[b], ptr[b + 1])

        def per_atom(key, atoms=atoms):
            return arrays[key][atoms].copy() if key in arrays else None

        def per_structure(key, b=b):
            return float(arrays[key][b]) if key in arrays else None

        prediction = Prediction(
            energy=float(arrays["energy"][b]),
            atomic_energies=per_atom("atomic_energies"),
            forces=per_atom("forces"),
            stress=arrays["stress"][b].copy() if "stress" in arrays and is_cell[b] else None,
            charges=per_atom("charges"),
            electronegativities=per_atom("electronegativities"),
            coulomb_energy=per_structure("coulomb_energy"),
            external_energy=per_structure("external_energy"),
            dipole=arrays["dipole"][b].copy() if "dipole" in arrays and is_free[b] else None,
            polarisation=arrays["polarisation"][b].copy() if known["polarisation"][b] else None,
            total_charge=charge[b] if "charges" in arrays else None,
            potential=per_structure("potential") if known["potential"][b] and ptr[b] < ptr[b + 1] else None,
            grand_energy=grand[b],
            charge_solution=reports.get((b, 0)),
        )
        finite = np.isfinite(prediction.energy) and (prediction.forces is None or np.isfinite(prediction.forces).all())
        if not finite:
            raise NonFiniteError(
                f"{StructureName(structures[start + b], start + b)}: the predicted energy or a "
                "force is not finite; the structure is far outside what the model was trained on"
            )
        yield prediction


def _known(values: np.ndarray | None, count: int) -> list[bool]:
    """Of each structure, whether there are results (B, ...) and none of them is NaN."""
    return [False] * count if values is None else (~np.isnan(values.reshape(count, -1)).any(axis=1)).tolist()


def _grand(energy: np.ndarray, charge: torch.Tensor, given: torch.Tensor | None) -> list[float | None]:
    """E - mu Q of each structure, None where no potential mu is given."""
    if given is None:
        return [None] * len(energy)
    grand = (torch.from_numpy(energy) - given.cpu() * charge.cpu()).tolist()
    return [None if unknown else value for value, unknown in zip(grand, given.isnan().tolist(), strict=True)]


class _progress:
    """A rich progress bar, or nothing."""

    def __init__(self, total: int, show: bool):
        self.bar = None
        if show:
            from rich.progress import Progress

            self.bar = Progress(transient=True)
            self.task = self.bar.add_task("predicting", total=total)

    def __enter__(self):
        if self.bar is None:
            return lambda: None
        self.bar.start()
        return lambda: self.bar.advance(self.task)

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.stop()
