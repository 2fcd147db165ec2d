"""Inference on GPUs. Of small structures, the kernels of an evaluation are launched together, as one CUDA graph.

A GPU is done with the kernels of a small structure before the next ones are launched. A CUDA graph launches all of them
at once, but for tensors at the same addresses and of the same sizes: those of a bucket, into which every graph of
about these sizes is copied.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from fastlr.graph import MIN_DISTANCE, Graph, overlap
from fastlr.kernels.forks import Lock
from fastlr.models.derivatives import evaluate, finish
from fastlr.models.pieces import Pieces

from .charges import Charges, Equilibrated
from .padding import Sizes, padded

BUCKETS = 32  # that are kept
LISTS = "edge_index", "cell", "coulomb"  # a graph with these is another one's, but for positions and charges


class CudaGraphs:
    """Makes a function one that replays its kernels: its tensors stay where they are, and are written to by each call.

    What all of them need in between is in the same memory, so that the results of one are only good until another is
    called that was made before it.
    """

    def __init__(self):
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, tunes, and has libraries set up what they need
                function()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            out = function()

        def replayed():
            graph.replay()
            return out

        return replayed


class Captured:
    """A model for inference on a GPU.

    Graphs of up to ``LARGEST`` edges are replayed.

    Args:
        model: ``NequIP`` or ``NequIPLR``, on the GPU.
        capture: makes a function one that replays it (default: ``CudaGraphs``).

    Attributes:
        captures: how many buckets there have been.
    """

    LARGEST = 200_000  # edges; the kernels of more of them keep a GPU busy for longer than it takes to launch them

    def __init__(self, model: torch.nn.Module, capture: Callable | None = None):
        self.model, self.config, self._given = model, model.config, capture
        self.capture = capture or CudaGraphs()
        self.device = next(model.parameters()).device
        self.captures = 0
        self._buckets: OrderedDict[Sizes, Bucket] = OrderedDict()
        self._known: Graph | None = None
        self._list: Graph | None = None  # the same on the device
        self._charges: Charges | None = None  # of it
        self._lock = Lock()

    def __reduce__(self):
        """CUDA graphs belong to a process: a copy begins without."""
        return Captured, (self.model, self._given)

    def evaluate(self, graph: Graph, *, forces: bool = True) -> dict[str, Tensor]:
        """As ``fastlr.models.derivatives.evaluate``; edges of the graph may be longer than the cutoff.

        Args:
            graph: on the CPU.

        Raises:
            InputError: atoms overlap, or the charges cannot be found.
        """
        with self._lock:
            if graph.num_edges > self.LARGEST:
                near = self._on_device(graph).within(self.config.r_max)
                return evaluate(self.model, near, forces=forces)
            out = self._replayed(graph)
        if not forces:
            for name in ("forces", "virial", "by_potential", "potential"):
                out.pop(name, None)
        return finish(graph, out)

    def _replayed(self, graph: Graph) -> dict[str, Tensor]:
        """All but what follows from the other results, on the CPU."""
        bucket = self._filled(graph)
        if self.config.kind != "nequip-lr":
            found = bucket.energies()
            _refuse_overlap(graph, found)
            out = {name: found[name].cpu() for name in ("atomic_energies", "forces", "virial")}
            return out | {"energy": graph.sum_nodes(out["atomic_energies"])}
        first = bucket.electronegativities()
        _refuse_overlap(graph, first)
        equilibrated = self._equilibrated(graph, first["electronegativities"].clone())
        second = bucket.energies(equilibrated.charges)
        by_charges = equilibrated.gradients(second["by_charge"].clone())
        third = bucket.pulls(by_charges.chi)
        out = {
            "atomic_energies": second["atomic_energies"].clone(),
            "forces": second["forces"] + third["forces"] - by_charges.position,
            "virial": second["virial"] + third["virial"] + by_charges.strain,
            "by_potential": by_charges.potential,
            "potential": by_charges.total,
        }
        equilibrated.join(out)
        out = {name: values.cpu() for name, values in out.items()}
        energy = graph.sum_nodes(out["atomic_energies"])
        return out | {"energy": energy + out["coulomb_energy"] + out["external_energy"]}

    def _filled(self, graph: Graph) -> Bucket:
        """The bucket for a graph, which it is copied into."""
        sizes = Sizes.of(graph)
        bucket = self._buckets.pop(sizes, None)
        if bucket is None:
            bucket = Bucket(self.model, sizes, self.device, self.capture)
            self.captures += 1
        self._buckets[sizes] = bucket
        if len(self._buckets) > BUCKETS:
            self._buckets.popitem(last=False)
        bucket.fill(graph)
        return bucket

    def _equilibrated(self, graph: Graph, chi: Tensor) -> Equilibrated:
        on_device = self._on_device(graph)
        if self._charges is None:
            self._charges = Charges(self.model)
        with torch.no_grad():
            return self._charges.of(on_device, chi)

    def _on_device(self, graph: Graph) -> Graph:
        """The graph on the device, where only what differs from the last one is copied."""
        known = self._known
        if known is None or not all(getattr(known, name) is getattr(graph, name) for name in LISTS):
            self._known, self._list, self._charges = graph, graph.to(self.device), None
            return self._list
        moved = {name: getattr(graph, name).to(self.device) for name in ("positions", "charge")}
        conditions = None if graph.conditions is None else graph.conditions.to(self.device)
        return replace(self._list, **moved, conditions=conditions, memory=graph.memory)


class Bucket:
    """A graph of given sizes that stays where it is, and what is captured of its evaluation.

    Results are views of memory that the next call writes to.
    """

    def __init__(self, model: torch.nn.Module, sizes: Sizes, device: torch.device, capture):
        self.pieces, self.sizes, self.capture, self.device = Pieces(model), sizes, capture, device
        self.charged = model.config.kind == "nequip-lr"
        self.graph: Graph | None = None
        self._filled_with: Graph | None = None
        self._captured: dict[str, Callable] = {}
        self.charges, self.by_chi = (torch.zeros(sizes.nodes, dtype=torch.float64, device=device) for _ in range(2))

    def fill(self, graph: Graph) -> None:
        """Copy a graph; only its positions, if all else is that of the last one."""
        last, n = self._filled_with, graph.num_nodes
        if last is not None and all(getattr(last, name) is getattr(graph, name) for name in LISTS):
            self.graph.positions[:n].copy_(graph.positions)
            return
        full = padded(graph, self.sizes, self.pieces.config.r_max)
        if self.graph is None:
            self.graph = full.to(self.device)
        for field in fields(Graph):
            value = getattr(full, field.name)
            if isinstance(value, Tensor):
                getattr(self.graph, field.name).copy_(value)
        self._filled_with = graph

    def electronegativities(self) -> dict[str, Tensor]:
        """See ``Pieces``, as of the others."""
        return self._run(
            "electronegativities",
            lambda: {"electronegativities": self.pieces.electronegativities(self.graph)} | self._shortest(),
        )

    def energies(self, charges: Tensor | None = None) -> dict[str, Tensor]:
        if charges is not None:
            self.charges[: len(charges)] = charges
        own = self.charges if self.charged else None
        return self._run("energies", lambda: self.pieces.energies_at(self.graph, own) | self._shortest())

    def pulls(self, by_chi: Tensor) -> dict[str, Tensor]:
        self.by_chi[: len(by_chi)] = by_chi
        return self._run("pulls", lambda: self.pieces.pulls_at(self.graph, self.by_chi))

    def _shortest(self) -> dict[str, Tensor]:
        """The square of the shortest edge's length."""
        return {"shortest": (self.graph.edge_vectors() ** 2).sum(dim=1).min()}

    def _run(self, name: str, function: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What the function returns, for the atoms and structures of the graph that this was filled with."""
        if name not in self._captured:
            self._captured[name] = self.capture(function)
        n, structures = self._filled_with.num_nodes, self._filled_with.num_structures
        counts = {"virial": structures}
        found = self._captured[name]()
        return {key: values[: counts.get(key, n)] if values.ndim else values for key, values in found.items()}


def _refuse_overlap(graph: Graph, found: dict[str, Tensor]) -> None:
    if float(found["shortest"]) < MIN_DISTANCE**2:
        square = (graph.edge_vectors() ** 2).sum(dim=1)
        raise overlap(graph, int(square.argmin()), float(square.min()) ** 0.5)
