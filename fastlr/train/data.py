"""Structures and labels: read once, turned into graphs once, batched by size."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened

import numpy as np
import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from torch import Tensor

from fastlr.errors import ConfigError, InputError
from fastlr.graph import Graph
from fastlr.models import ModelConfig
from fastlr.potential import coulomb_settings
from fastlr.reading import read_structures

PER_ATOM = ("forces", "charges")
# beyond these a label is of another unit: all electrons of the heaviest atoms have 1.5e6 eV, and 200 eV/Å^3 are 32 TPa
LARGEST = {
    "energy": (1e7, "eV/atom"),
    "forces": (1e5, "eV/Å"),
    "stress": (200.0, "eV/Å^3"),
    "charges": (120.0, "e"),
    "dipole": (1e6, "e Å"),
}
SHAPES = {"energy": (), "forces": (3,), "stress": (3, 3), "charges": (), "dipole": (3,)}


@dataclass(frozen=True)
class Frame:
    """A structure as read: ``labels`` holds those of energy (eV), forces (eV/Å), stress (3, 3; eV/Å^3, tension
    positive), charges (e) and dipole (e Å) that it has."""

    atoms: Atoms
    labels: dict[str, np.ndarray]
    source: str  # "file, frame k"


@dataclass(frozen=True)
class Sample:
    """A structure ready for training: its graph, its labels (float64 tensors), its place and its family."""

    graph: Graph
    labels: dict[str, Tensor]
    source: str
    family: str | None


@dataclass(frozen=True)
class Batch:
    """Structures joined.

    Attributes:
        graph: the joined graph.
        num_atoms: (B,) float64.
        targets: label -> (rows, values): the structures (or atoms) that have it, None for all; and its values.
        indices: which samples these are.
    """

    graph: Graph
    num_atoms: Tensor
    targets: dict[str, tuple[Tensor | None, Tensor]]
    indices: list[int]

    def to(self, device) -> "Batch":
        targets = {
            name: (rows if rows is None else rows.to(device), values.to(device))
            for name, (rows, values) in self.targets.items()
        }
        return Batch(self.graph.to(device), self.num_atoms.to(device), targets, self.indices)


def read_frames(paths: list[str], key: str) -> list[Frame]:
    """All structures of some files with their labels, as ASE reads them.

    Raises:
        ConfigError: a file does not exist.
        InputError: a file cannot be read (see ``read_structures``), a frame has no atoms, or a label is not finite
            or of the wrong shape; the message names file and frame.
    """
    frames = []
    for path in paths:
        if not Path(path).exists():
            raise ConfigError(f"data.{key}: there is no file {path}")
        structures = read_structures(path)
        for k, atoms in enumerate(structures):
            source = f"{path}, frame {k}"
            if len(atoms) == 0:
                raise InputError(f"{source}: has no atoms; take it out")
            frames.append(Frame(atoms, _labels(atoms, source), source))
    return frames


def _labels(atoms: Atoms, source: str) -> dict[str, np.ndarray]:
    results = atoms.calc.results if atoms.calc is not None else {}
    periodic = atoms.pbc
    labels = {}
    for name, shape in SHAPES.items():
        if results.get(name) is None or (isinstance(results[name], str) and results[name] == "None"):
            continue
        # a stress needs a cell, and a dipole moment is not defined in one
        if (name == "stress" and not periodic.all()) or (name == "dipole" and periodic.any()):
            continue
        value = _numbers(results[name], name, source)
        if name == "stress" and value.shape == (6,):
            value = voigt_6_to_full_3x3_stress(value)
        expected = (len(atoms), *shape) if name in PER_ATOM else shape
        if name == "energy" and value.size == 1:
            value = value.reshape(())
        if value.shape != expected:
            raise InputError(f"{source}: {name} has shape {value.shape}, expected {expected}")
        if not np.isfinite(value).all():
            raise InputError(f"{source}: {name} is not finite")
        if name == "stress" and np.abs(value - value.T).max() > 1e-3 * np.abs(value).max():
            raise InputError(f"{source}: stress is not symmetric: {value.tolist()}")
        most = np.abs(value).max(initial=0.0) / (max(len(atoms), 1) if name == "energy" else 1)
        if most > LARGEST[name][0]:
            raise InputError(f"{source}: {name} of {most:.3g} {LARGEST[name][1]} is no label in this unit")
        labels[name] = value
    return labels


def _numbers(value, name: str, source: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise InputError(f"{source}: {name} is {shortened(value)}, no number; leave it out where there is none")
    return array.astype(np.float64)


def make_samples(frames: list[Frame], config: ModelConfig, advance: Callable[[], None] = lambda: None) -> list[Sample]:
    """Graphs of all frames.

    Raises:
        InputError: a structure cannot be used, for instance an unknown element; the message names file and frame.
    """
    samples = []
    for k, frame in enumerate(frames):
        if not len(frame.atoms):
            raise InputError(f"{frame.source}: has no atoms; leave it out")
        try:
            graph = Graph.single(frame.atoms, config.species, config.r_max, coulomb_settings(config), index=k)
        except InputError as error:
            raise InputError(f"{frame.source}: {error}") from None
        family = frame.atoms.info.get("family")
        labels = {name: torch.tensor(value) for name, value in frame.labels.items()}
        samples.append(Sample(graph, labels, frame.source, None if family is None else str(family)))
        advance()
    return samples


def collate(samples: list[Sample], indices: list[int]) -> Batch:
    """The samples with these indices as one batch."""
    chosen = [samples[k] for k in indices]
    num_atoms = [sample.graph.num_nodes for sample in chosen]
    starts = np.cumsum([0, *num_atoms])
    targets = {}
    for name in SHAPES:
        have = [b for b, sample in enumerate(chosen) if name in sample.labels]
        if not have:
            continue
        values = [chosen[b].labels[name] for b in have]
        rows = None
        if name in PER_ATOM:
            if len(have) < len(chosen):
                rows = torch.cat([torch.arange(starts[b], starts[b + 1]) for b in have])
            targets[name] = (rows, torch.cat(values))
        else:
            if len(have) < len(chosen):
                rows = torch.tensor(have)
            targets[name] = (rows, torch.stack(values))
    graph = Graph.batch_of([sample.graph for sample in chosen])
    return Batch(graph, torch.tensor(num_atoms, dtype=torch.float64), targets, list(indices))


def batch_order(
    num_atoms: np.ndarray, batch_size: int, max_atoms: int | None = None, seed: int = 0, epoch: int | None = None
) -> list[list[int]]:
    """Indices of the samples of each batch, similar sizes together, since charge matrices are padded to the largest.

    Args:
        num_atoms: (F,) size of each sample.
        batch_size: structures in a batch, at most.
        max_atoms: atoms in a batch, at most (a larger structure is a batch of its own).
        seed, epoch: decide the shuffle; without an epoch there is none.
    """
    order = np.argsort(num_atoms, kind="stable")
    generator = np.random.default_rng((seed, epoch or 0))
    if epoch is not None:
        # sort within shuffled pools: batches of one size range, but never the same company twice
        pool = 16 * batch_size
        shuffled = generator.permutation(len(num_atoms))
        pools = [shuffled[k : k + pool] for k in range(0, len(shuffled), pool)]
        order = np.concatenate([p[np.argsort(num_atoms[p], kind="stable")] for p in pools]) if pools else order
    batches, batch, atoms = [], [], 0
    for k in order.tolist():
        if batch and (len(batch) == batch_size or (max_atoms and atoms + num_atoms[k] > max_atoms)):
            batches.append(batch)
            batch, atoms = [], 0
        batch.append(k)
        atoms += num_atoms[k]
    if batch:
        batches.append(batch)
    if epoch is not None:
        batches = [batches[k] for k in generator.permutation(len(batches))]
    return batches


class Batches(torch.utils.data.Dataset):
    """Batches by number; made when asked for, from graphs that were built once."""

    def __init__(self, samples: list[Sample], order: list[list[int]]):
        self.samples, self.order = samples, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, k: int) -> Batch:
        return collate(self.samples, self.order[k])

    def __iter__(self) -> Iterator[Batch]:
        return (self[k] for k in range(len(self)))


def as_is(batch: Batch) -> Batch:
    """Collation is done by ``Batches``."""
    return batch
