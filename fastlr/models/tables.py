"""Tables in place of the radial networks of a model, as fine as its float type can tell."""

import torch

from fastlr.kernels.edge_basis.naive import radial_basis
from fastlr.kernels.radial_table.intervals import interval_of
from fastlr.kernels.radial_table.naive import interpolate, spline_coefficients
from fastlr.nn.edge_embedding import EdgeEmbedding
from fastlr.nn.interaction import InteractionLayer
from fastlr.numerics import relative_rms

# Largest relative root-mean-square differences between a table and its network, in values and in derivatives by the
# length, both in float64.
TOLERANCE = {torch.float32: (1e-7, 1e-6), torch.float64: (1e-12, 1e-12)}
SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
SHORTEST = 0.05  # of the cutoff; atoms do not come nearer


@torch.no_grad()
def table_error(model: torch.nn.Module, num_intervals: int) -> tuple[float, float]:
    """Worst relative RMS differences between table and network of any layer, of values and of derivatives by the
    length, measured between the knots in float64."""
    worst = [0.0, 0.0]
    for embedding in embeddings(model):
        roots, r_max = embedding.roots.detach(), embedding.r_max
        knots = torch.arange(num_intervals, dtype=torch.float64, device=roots.device)
        places = torch.cat([knots + 0.2, knots + 0.5])
        places = places[places > SHORTEST * num_intervals]
        interval = interval_of(places, num_intervals)
        coefficients = _with_slope(spline_coefficients, places - interval)

        def basis(places, r_max=r_max, roots=roots, p=embedding.p):
            return radial_basis(places / num_intervals, r_max, roots, p)

        for layer in _modules(model, InteractionLayer):
            network = layer.radial_network
            table = embedding.table_of(network, num_intervals)
            expected = _with_slope(lambda places, network=network: network(basis(places)), places)
            for k in range(2):
                found = interpolate(coefficients[k], table, interval)
                worst[k] = max(worst[k], relative_rms(found, expected[k]))
    return worst[0], worst[1]


def _with_slope(function, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (E, F), each a function of its own place (E,), and their derivatives: the gradient's by what it is taken of.

    ``torch.func.jvp`` and gradients that start from more than one number give the same, but PyTorch takes half a second
    to be ready for them.
    """
    with torch.enable_grad():
        places = places.detach().requires_grad_(True)
        rows = function(places)
        weights = torch.zeros_like(rows, requires_grad=True)
        (gradient,) = torch.autograd.grad((rows * weights).sum(), places, create_graph=True)
        (slopes,) = torch.autograd.grad(gradient.sum(), weights)
    return rows.detach(), slopes


def find_size(model: torch.nn.Module) -> tuple[int, float] | None:
    """The least number of intervals that ``TOLERANCE`` allows, and the error of values; None if no table is fine
    enough."""
    for size in SIZES:
        errors = table_error(model, size)
        if all(error <= allowed for error, allowed in zip(errors, TOLERANCE[model.config.torch_dtype], strict=True)):
            return size, errors[0]
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
    if found is None:
        without_tables(model)
    else:
        interpolate_networks(model, found[0], keep)
    return found


def interpolate_networks(model: torch.nn.Module, num_intervals: int, keep: bool = False) -> None:
    """Interpolate the radial networks of ``model`` from tables of ``num_intervals`` intervals; ``keep`` as above."""
    for embedding in embeddings(model):
        embedding.table_intervals, embedding.kept_tables = num_intervals, {} if keep else None


def without_tables(model: torch.nn.Module) -> None:
    """Evaluate the radial networks of ``model`` at every edge."""
    for embedding in embeddings(model):
        embedding.table_intervals = embedding.kept_tables = None


def embeddings(model: torch.nn.Module) -> list[EdgeEmbedding]:
    """The modules of ``model`` with tables."""
    return _modules(model, EdgeEmbedding)


def _modules(model: torch.nn.Module, kind: type) -> list:
    return [module for module in model.modules() if isinstance(module, kind)]
