"""How much memory an evaluation needs, and how much there is."""

import ctypes
import os
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms

from .graph import CoulombSettings, Graph
from .kernels.charge_solver.solvers import LARGEST_DENSE
from .kernels.ewald.tables import SMALLEST_MESH
from .nn.interaction import InteractionLayer

WORKSPACE = 8 * 2**20  # bytes that libraries keep for themselves, whatever the structure


def available_bytes(device: torch.device) -> int:
    """Free memory of the device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            line = next(line for line in file if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return _free_on_windows() if hasattr(ctypes, "windll") else _half_of_all()


def _half_of_all() -> int:
    """Half of the physical memory, where the system does not tell what is free (macOS)."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _free_on_windows() -> int:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("Windows does not tell how much memory is free; give memory_budget, in bytes")
    return status.free


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("percent_in_use", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("free", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 5),
    )


class Counts(NamedTuple):
    """What memory depends on, of one structure or batch.

    Attributes:
        nodes, edges, pairs: atoms, edges within the cutoff, entries of the real-space Coulomb sum.
        largest: atoms of the largest structure with charges.
        waves: most wave vectors of a structure; factors: cosines and sines of an atom that they are products of.
        mesh: most points of a particle mesh.
        structures: how many there are.
    """

    nodes: int
    edges: int
    pairs: int = 0
    largest: int = 0
    waves: int = 0
    factors: int = 0
    mesh: int = 0
    structures: int = 1

    @staticmethod
    def of(graph: Graph) -> "Counts":
        tables = graph.coulomb
        if tables is None:
            return Counts(graph.num_nodes, graph.num_edges, structures=graph.num_structures)
        waves, factors = int((tables.waves > 0.0).sum()), 2 * (tables.lines.shape[1] + tables.waves.shape[3])
        mesh = int(tables.mesh[:, :3].prod(dim=1).max()) if len(tables.mesh) else 0
        sizes = graph.num_nodes, graph.num_edges, len(tables.neighbour), graph.max_atoms
        return Counts(*sizes, waves, factors, mesh, graph.num_structures)

    @property
    def charges(self) -> "Counts":
        """Without the layers of message passing."""
        return self._replace(nodes=0, edges=0)

    def joined(self, other: "Counts") -> "Counts":
        """Of both as one batch."""
        largest = (max(pair) for pair in zip(self[3:7], other[3:7], strict=True))
        sums = [a + b for a, b in zip(self, other, strict=True)]
        return Counts(*sums[:3], *largest, sums[7])


class MemoryModel:
    """Peak memory of energy and forces, from counts alone. Measured peaks lie below these estimates.

    Args:
        per_edge, per_node: bytes, of the layers.
        dense: whether charges always come from dense matrices, as those of the reference do, or from iterations
            where there are many atoms.
    """

    def __init__(self, per_edge: int, per_node: int, dense: bool):
        self.per_edge, self.per_node, self.dense = per_edge, per_node, dense

    @staticmethod
    def of_autograd(model: torch.nn.Module, dense: bool) -> "MemoryModel":
        """With the reference kernels, for which the autograd graph keeps, a layer and edge: the gathered features, the
        folded coupling, the unweighted and the weighted products, the weights and the radial network's hidden layers; a
        layer and atom: features before and after each map."""
        per_edge, per_node = 0, 0
        for layer in (module for module in model.modules() if isinstance(module, InteractionLayer)):
            program = layer.program
            products = sum((2 * path.l3 + 1) * path.mul for path in program.paths)
            per_edge += 4 * products + 3 * program.weight_numel + 2 * program.irreps_in.dim
            per_edge += 3 * sum(layer.radial_network.dims[:-1]) + 2 * program.irreps_edge.dim * program.irreps_in.dim
            per_node += 3 * program.irreps_out.dim + 4 * program.irreps_in.dim + 3 * layer.irreps_out.dim
            if layer.self_connection is not None:
                per_node += 2 * program.irreps_in.dim * layer.self_connection.num_attributes
        itemsize = next(model.parameters()).element_size()
        return MemoryModel(per_edge * itemsize + 400, per_node * itemsize + 200, dense)

    def bytes_of(self, counts: Counts) -> int:
        """Peak memory of an evaluation.

        Coulomb sums from dense matrices keep about 24 numbers a pair and, a structure padded to the largest, twelve
        n x n matrices and ten n x K tables; by iterations, five numbers a pair and some factors of the waves or meshes.
        """
        nodes, edges, pairs, largest, waves, factors, mesh, structures = counts
        if self.dense or largest <= LARGEST_DENSE:
            numbers = 24 * pairs + structures * largest * (12 * largest + 10 * waves)
        else:
            numbers = 5 * pairs + 12 * LARGEST_DENSE**2 + largest * (8 * factors + 100) + 8 * mesh
        return WORKSPACE + edges * self.per_edge + nodes * self.per_node + 8 * numbers


SMALL = 500  # atoms, of which lists are short for cutoffs of up to
SHORT = 10.0  # Å
EDGE, PAIR, WAVE = 150, 60, 20  # bytes while lists of them are made; what stays of an edge is a third


@np.errstate(all="ignore")
def list_bytes(atoms: Atoms, r_max: float, coulomb: CoulombSettings | None = None) -> float:
    """About how much memory it takes to list the neighbours of a structure within ``r_max`` (Å), and what its Coulomb
    sum visits, from its density alone; zero where that is little."""
    if not isinstance(atoms, Atoms):  # which is refused elsewhere, as are cells without a volume
        return 0.0
    n, eta = len(atoms), coulomb and coulomb.eta
    if n < SMALL and r_max <= SHORT and not eta:
        return 0.0
    pbc, cell = np.asarray(atoms.pbc, bool), np.asarray(atoms.cell.array, np.float64)
    spread = np.ptp(atoms.positions, axis=0) if n else np.zeros(3)
    # in directions that are not periodic, as far as an atom sees; lists of molecules hold each pair once more
    lengths = np.where(pbc, np.linalg.norm(cell, axis=1), spread + r_max)
    volume = abs(np.linalg.det(cell)) if pbc.all() else 2.0 * lengths.prod()
    if not (np.isfinite(volume) and volume > 0.0):
        return 0.0
    needed = EDGE * min(n * n * _sphere(r_max) / volume, float(n * n) if not pbc.any() else np.inf)
    if coulomb is None or not pbc.all():
        return needed
    reach = float(np.sqrt(-2.0 * np.log(coulomb.accuracy)))
    needed += PAIR * n * n * _sphere(reach * (eta or 0.0)) / volume
    if eta and n <= SMALLEST_MESH:
        needed += WAVE * volume * (reach / eta) ** 3 / (12.0 * np.pi**2)
    return needed


def _sphere(radius: float) -> float:
    return 4.0 / 3.0 * np.pi * radius**3
