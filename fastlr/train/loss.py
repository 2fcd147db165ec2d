"""Residuals between predictions and labels, and the loss made of them."""

import torch
from torch import Tensor

from .config import LossConfig
from .data import Batch

QUANTITIES = ("energy", "forces", "stress", "charges", "dipole")


def residuals(out: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Prediction minus label for every label that both sides have, float64.

    Returns:
        energy (b,) eV/atom, forces (n, 3) eV/Å, stress (b, 3, 3) eV/Å^3, charges (n,) e, dipole (b, 3) e Å, for the
        structures or atoms that have the label.
    """
    found = {}
    for name in QUANTITIES:
        if name not in batch.targets or name not in out:
            continue
        rows, values = batch.targets[name]
        predicted = out[name] if rows is None else out[name].index_select(0, rows)
        found[name] = predicted - values
        if name == "energy":
            found[name] = found[name] / (batch.num_atoms if rows is None else batch.num_atoms.index_select(0, rows))
    return found


def penalty(residual: Tensor, delta: float | None) -> Tensor:
    """Squares, or Huber's function 2 delta (|r| - delta / 2) beyond ``delta``, which meets them there."""
    if delta is None:
        return residual.square()
    size = residual.abs()
    return torch.where(size <= delta, residual.square(), delta * (2.0 * size - delta))


def loss_terms(residual: dict[str, Tensor], config: LossConfig) -> dict[str, Tensor]:
    """The mean penalty of each label that has a weight, not yet weighted."""
    return {
        name: penalty(residual[name], config.huber_delta).mean()
        for name, weight in config.weights.items()
        if weight > 0.0 and name in residual
    }


def total_loss(terms: dict[str, Tensor], config: LossConfig) -> Tensor:
    """The weighted sum; float64 scalar."""
    return sum(
        (config.weights[name] * term for name, term in terms.items()), start=torch.zeros((), dtype=torch.float64)
    )
