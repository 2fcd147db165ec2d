"""How much memory an evaluation needs, and how much there is."""

import os

import torch

from .graph import Graph
from .nn.interaction import InteractionLayer

WORKSPACE = 8 * 2**20  # bytes that libraries keep for themselves, whatever the structure


def available_bytes(device: torch.device) -> int:
    """Free memory of the device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            line = next(line for line in file if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


class MemoryModel:
    """Peak memory of energy and forces with the reference kernels, from counts alone.

    The autograd graph keeps, a layer and edge: the gathered features, the folded coupling, the unweighted and the
    weighted products, the weights and the radial network's hidden layers; a layer and atom: features before and after
    each map. The Coulomb sum keeps about ten numbers a pair and, a structure padded to the largest, about eight
    n x n matrices and six n x K tables. Measured peaks lie below these estimates.
    """

    def __init__(self, model: torch.nn.Module):
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
        self.per_edge, self.per_node = per_edge * itemsize + 400, per_node * itemsize + 200

    def counts(self, graph: Graph) -> tuple[int, int, int, int, int]:
        """(atoms, edges, Coulomb pairs, largest structure, most wave vectors) of a graph."""
        tables = graph.coulomb
        pairs, waves = (0, 0) if tables is None else (len(tables.neighbour), int((tables.waves > 0.0).sum()))
        return graph.num_nodes, graph.num_edges, pairs, graph.max_atoms if tables is not None else 0, waves

    def bytes_of(self, counts: list[tuple[int, int, int, int, int]]) -> int:
        """Peak memory of these graphs evaluated as one batch."""
        nodes, edges, pairs = (sum(column) for column in list(zip(*counts, strict=True))[:3])
        largest, waves = max(c[3] for c in counts), max(c[4] for c in counts)
        dense = len(counts) * largest * (8 * largest + 6 * waves)
        return WORKSPACE + edges * self.per_edge + nodes * self.per_node + 8 * (10 * pairs + dense)
