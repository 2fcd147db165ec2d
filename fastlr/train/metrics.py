"""Errors in the units people quote, over a set of structures and over each family in it."""

import numpy as np
import torch
from torch import Tensor

from fastlr.models.derivatives import evaluate

from .config import LossConfig
from .data import Batch, Batches, Sample, batch_order
from .loss import QUANTITIES, penalty, residuals

UNITS = {
    "energy": "meV/atom",
    "forces": "meV/Å",
    "stress": "meV/Å^3",
    "charges": "me",
    "dipole": "me Å",
}


class Errors:
    """Sums over residuals: absolute values, squares, loss penalties and counts, as one tensor (quantities, 4)."""

    def __init__(self, loss: LossConfig, device: torch.device | str = "cpu"):
        self.loss = loss
        self.sums = torch.zeros(len(QUANTITIES), 4, dtype=torch.float64, device=device)

    def add(self, found: dict[str, Tensor]) -> None:
        for name, r in found.items():
            r = r.detach()
            sums = [r.abs().sum(), r.square().sum(), penalty(r, self.loss.huber_delta).sum()]
            self.sums[QUANTITIES.index(name)] += torch.stack([*sums, r.new_tensor(r.numel())])

    def total_loss(self) -> float:
        """The loss over the whole set."""
        return sum(
            weight * float(self.sums[QUANTITIES.index(name), 2] / self.sums[QUANTITIES.index(name), 3])
            for name, weight in self.loss.weights.items()
            if weight > 0.0 and self.sums[QUANTITIES.index(name), 3] > 0
        )

    def table(self) -> dict[str, dict]:
        """MAE and RMSE of each quantity that had labels, a thousandth of eV, Å and e as the unit."""
        rows = {}
        for name, (absolute, squares, _, count) in zip(QUANTITIES, self.sums.tolist(), strict=True):
            if count:
                rows[name] = {
                    "mae": 1e3 * absolute / count,
                    "rmse": 1e3 * (squares / count) ** 0.5,
                    "unit": UNITS[name],
                    "count": int(count),
                }
        return rows


def evaluate_set(
    model: torch.nn.Module, samples: list[Sample], loss: LossConfig, batch_size: int, max_atoms: int | None = None
) -> tuple[dict, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Errors of a model over a set, and what to plot.

    Returns:
        {"structures", "loss", "overall": table, "families": {family: table}} and, for each quantity, the labels and
        the predictions (flat arrays; energies per atom, less the model's reference energies of the species).
    """
    device = next(model.parameters()).device
    overall, families = Errors(loss), {}
    pairs: dict[str, list] = {}
    sizes = np.array([sample.graph.num_nodes for sample in samples])
    # one family a batch, so that a batch's residuals belong to one family
    names = sorted({sample.family for sample in samples}, key=str)
    for family in names:
        members = [k for k, sample in enumerate(samples) if sample.family == family]
        order = batch_order(sizes[members], batch_size, max_atoms)
        for batch in Batches(samples, [[members[k] for k in batch] for batch in order]):
            batch = batch.to(device)
            out = evaluate(model, batch.graph)
            found = {name: r.cpu() for name, r in residuals(out, batch).items()}
            overall.add(found)
            families.setdefault(family, Errors(loss)).add(found)
            for name, r in found.items():
                rows, values = batch.targets[name]
                if name == "energy":  # of the structure, not of its composition, which would hide everything else
                    values = (values - select(composition_energies(model, batch), rows)) / select(batch.num_atoms, rows)
                values = values.cpu()
                pairs.setdefault(name, []).append((values.flatten().numpy(), (values + r).flatten().numpy()))
    report = {"structures": len(samples), "loss": overall.total_loss(), "overall": overall.table()}
    if names != [None]:
        report["families"] = {str(family): errors.table() for family, errors in families.items()}
    return report, {
        name: tuple(np.concatenate(side) for side in zip(*parts, strict=True)) for name, parts in pairs.items()
    }


def composition_energies(model: torch.nn.Module, batch: Batch) -> Tensor:
    """(B,) eV: sum of the reference energies of the species."""
    shifts = torch.tensor(model.config.of_species(model.config.energy_shifts), dtype=torch.float64)
    return batch.graph.sum_nodes(shifts.to(batch.graph.species.device)[batch.graph.species])


def select(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values[rows]
