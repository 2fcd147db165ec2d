"""Tables in place of the radial networks of a model, as fine as its float type can tell."""

import torch

from fastlr.kernels.edge_basis.naive import radial_basis
from fastlr.nn.edge_embedding import EdgeEmbedding
from fastlr.nn.interaction import InteractionLayer
from fastlr.parity import relative_rms

# Largest relative root-mean-square difference between a table and its network, both in float64.
TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-12}
SIZES = (64, 128, 256, 512, 1024, 2048)
SHORTEST = 0.05  # of the cutoff; atoms do not come nearer


@torch.no_grad()
def table_error(model: torch.nn.Module, num_intervals: int) -> float:
    """Worst relative RMS difference between table and network of any layer, measured between the knots in float64."""
    worst = 0.0
    for embedding in _modules(model, EdgeEmbedding):
        roots = embedding.roots
        middles = torch.arange(num_intervals, dtype=torch.float64, device=roots.device) + 0.5
        lengths = middles[middles > SHORTEST * num_intervals] * (embedding.r_max / num_intervals)
        table = embedding.table(lengths, num_intervals, torch.float64)
        basis = radial_basis(lengths / embedding.r_max, embedding.r_max, roots, embedding.p)
        for layer in _modules(model, InteractionLayer):
            network = layer.radial_network
            worst = max(worst, relative_rms(table.weights(network), network(basis)))
    return worst


def find_size(model: torch.nn.Module) -> tuple[int, float] | None:
    """The least number of intervals that ``TOLERANCE`` allows, and the error; None if no table is fine enough."""
    for size in SIZES:
        error = table_error(model, size)
        if error <= TOLERANCE[model.config.torch_dtype]:
            return size, error
    return None


def tabulate(model: torch.nn.Module, keep: bool = False) -> tuple[int, float] | None:
    """Interpolate the radial networks of ``model`` from tables with as few intervals as ``TOLERANCE`` allows.

    Args:
        keep: make each table once; for weights that do not change any more.

    Returns:
        the number of intervals and the error, or None if no table is fine enough; the networks are then evaluated at
        every edge.
    """
    found = find_size(model)
    for embedding in _modules(model, EdgeEmbedding):
        embedding.table_intervals = found[0] if found else None
        embedding.kept_tables = {} if keep else None
    return found


def without_tables(model: torch.nn.Module) -> None:
    """Evaluate the radial networks of ``model`` at every edge."""
    for embedding in _modules(model, EdgeEmbedding):
        embedding.table_intervals = embedding.kept_tables = None


def _modules(model: torch.nn.Module, kind: type) -> list:
    return [module for module in model.modules() if isinstance(module, kind)]
