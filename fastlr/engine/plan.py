"""The inference plan of a model: energies and forces by kernels alone, forwards and back, without autograd."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor

from fastlr.graph import Graph
from fastlr.kernels.cores import count, torch_on_one_thread
from fastlr.kernels.forks import Lock
from fastlr.memory import MemoryModel

from .bound import Bound
from .buffers import Buffers
from .folding import fold_layers
from .pruning import SCALAR, prune
from .stages import Stage


class Plan:
    """A model for inference on CPUs.

    Buffers and the calls of kernels on them are made once for an edge list and used again while only positions change.

    Args:
        model: ``NequIP`` or ``NequIPLR``.
        num_intervals: of the radial tables.

    Attributes:
        recorder: of the stages, or None.
    """

    def __init__(self, model: torch.nn.Module, num_intervals: int):
        config = model.config
        self.model, self.config, self.dtype = model, config, config.torch_dtype
        self.num_intervals = num_intervals
        self.settings = torch.tensor(
            [config.r_max**2, num_intervals / config.r_max, num_intervals - 1.0], dtype=torch.float64
        )
        types = model.type_embedding.weight.detach()
        fold = {"embedding": model.edge_embedding, "num_intervals": num_intervals, "types": types, "dtype": self.dtype}
        if config.kind == "nequip-lr":
            charge, energy = model.charge_stack, model.energy_stack
            layers, read = prune(energy, {SCALAR})
            self.energy_layers = fold_layers(layers, energy.norm, first=False, **fold)
            layers, _ = prune(charge, read if config.reuse_features else {SCALAR})
            self.charge_layers = fold_layers(layers, charge.norm, first=True, **fold)
            self.norms = charge.norm, energy.norm
        else:
            layers, _ = prune(model.stack, {SCALAR})
            self.charge_layers, self.norms = [], (None, model.stack.norm)
            self.energy_layers = fold_layers(layers, model.stack.norm, first=True, **fold)
        self.recorder, self._lock = None, Lock()
        self._begin()

    def _begin(self) -> None:
        """Drop buffers and the bound edge list."""
        self.buffers, self._process = Buffers(), os.getpid()
        self._bound: Bound | None = None

    def __reduce__(self):
        """Machine code and buffers belong to a process: a copy is made anew from the model."""
        return Plan, (self.model, self.num_intervals)

    def evaluate(self, graph: Graph, *, forces: bool = True, large: bool = False) -> dict[str, Tensor]:
        """As ``fastlr.models.derivatives.evaluate``; edges of the graph may be longer than the cutoff.

        Args:
            large: sort and share out the atoms as if there were many.

        Raises:
            InputError: atoms overlap, or the charges cannot be found.
        """
        with self._bound_to(graph, large) as bound:
            return bound.evaluate(graph, forces)

    def regimes(self) -> list[Callable[[Graph], dict[str, Tensor]]]:
        """``evaluate`` in each way in which it serves structures of some size."""
        return [self.evaluate, partial(self.evaluate, large=True)]

    def electronegativities(self, graph: Graph) -> Tensor:
        """As ``fastlr.models.pieces.Pieces.electronegativities``.

        Raises:
            InputError: atoms overlap.
        """
        with self._bound_to(graph) as bound:
            return bound.electronegativities(graph)

    def energies_at(
        self, graph: Graph, charges: Tensor | None, counted: Tensor, *, forces: bool = True
    ) -> dict[str, Tensor]:
        """As ``Pieces.energies_at``.

        Raises:
            InputError: atoms overlap.
        """
        with self._bound_to(graph) as bound:
            return bound.energies_at(graph, charges, counted, forces)

    def pulls_at(self, graph: Graph, by_chi: Tensor) -> dict[str, Tensor]:
        """As ``Pieces.pulls_at``.

        Raises:
            InputError: atoms overlap.
        """
        with self._bound_to(graph) as bound:
            return bound.pulls_at(graph, by_chi)

    def run(self, *stages: Stage) -> None:
        """One stage after another, recorded if that is wanted."""
        for stage in stages:
            if self.recorder is None:
                stage.run()
            else:
                self.recorder.run(*stage)

    @property
    def num_bytes(self) -> tuple[int, int]:
        """Of the weights and tables, and of the buffers as they are."""
        layers = [*self.charge_layers, *self.energy_layers]
        return sum(layer.num_bytes for layer in layers), self.buffers.num_bytes

    @property
    def memory(self) -> MemoryModel:
        """Of the edge list and the buffers; copies of rows are at most as many as there are threads."""
        itemsize, harmonics = torch.finfo(self.dtype).bits // 8, (self.config.l_max + 1) ** 2
        per_edge, per_node, threads = 220 + 2 * (harmonics + 1) * itemsize, 200, count()
        for layer in (*self.charge_layers, *self.energy_layers):
            gate, width = layer.shape.gate, layer.first_layout.dim_in
            per_node += (gate.dim_in + 2 * gate.dim_out + (2 + threads) * width) * itemsize
        return MemoryModel(per_edge, per_node + 32 * threads, dense=False)

    def stages(self) -> list[Stage]:
        """What an evaluation of the last graph consists of, kernel by kernel."""
        return [] if self._bound is None else self._bound.stages()

    @contextmanager
    def _bound_to(self, graph: Graph, large: bool = False) -> Iterator[Bound]:
        """The plan for the edge list of a graph, for one evaluation at a time: buffers serve no more."""
        evaluation = nullcontext() if self.recorder is None else self.recorder.evaluation()
        with torch.no_grad(), self._lock, torch_on_one_thread(), evaluation:
            if self._process != os.getpid():  # forked, maybe in the middle of another thread's evaluation
                self._begin()
            if self._bound is None or not self._bound.serves(graph, large):
                self._bound = Bound(self, graph, large)
            yield self._bound
