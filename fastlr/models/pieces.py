"""What lies before, between and behind the charges of a model, each with its own derivatives.

The charges are found in between, by whatever finds them. Together the pieces give what ``derivatives.evaluate`` does.
"""

import torch
from torch import Tensor

from fastlr.graph import Graph

from .derivatives import deformable, pulled


class Pieces:
    """Pieces by autograd; ``engine.plan.Plan`` has the same ones by kernels.

    Args:
        model: ``NequIP`` or ``NequIPLR``.
    """

    def __init__(self, model: torch.nn.Module):
        self.model, self.config = model, model.config

    def electronegativities(self, graph: Graph) -> Tensor:
        """(N,) float64, eV/e, of a model with charges."""
        with torch.no_grad():
            return self.model.electronegativities(graph)

    def energies_at(
        self, graph: Graph, charges: Tensor | None, counted: Tensor | float = 1.0, *, forces: bool = True
    ) -> dict[str, Tensor]:
        """The short-range energies for given charges.

        Args:
            charges: (N,) e, or None for a model without.
            counted: (N,) how often each atom's energy counts in derivatives.

        Returns:
            atomic_energies: (N,) eV; and with ``forces``, of their sum as it counts, at constant charges:
            forces: (N, 3) eV/Å;
            virial: (B, 3, 3) eV;
            by_charge: (N,) eV/e, its gradient by the charges, for a model with charges.
        """
        if not forces:
            with torch.no_grad():
                return {"atomic_energies": self.model.energies_at(graph, charges)}
        names = ["forces", "virial"]
        with torch.enable_grad():
            deformed, *leaves = deformable(graph)
            if charges is not None:
                charges = charges.detach().requires_grad_(True)
                leaves.append(charges)
                names.append("by_charge")
            energies = self.model.energies_at(deformed, charges)
            found = pulled((energies * counted).sum(), leaves)
        return {"atomic_energies": energies.detach(), **dict(zip(names, found, strict=True))}

    def pulls_at(self, graph: Graph, by_chi: Tensor) -> dict[str, Tensor]:
        """Forces (N, 3) and virial (B, 3, 3) of the sum of ``by_chi`` (N,), e, times the electronegativities."""
        with torch.enable_grad():
            deformed, *leaves = deformable(graph)
            found = pulled((self.model.electronegativities(deformed) * by_chi).sum(), leaves)
        return dict(zip(("forces", "virial"), found, strict=True))
