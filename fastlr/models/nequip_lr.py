"""NequIP-LR: two stacks of interaction layers with a global charge equilibration between them."""

import torch
from torch import Tensor, nn

from fastlr.backends import Operations
from fastlr.graph import Graph
from fastlr.kernels.irreps import Irreps
from fastlr.nn.charge_encoding import ChargeEncoding
from fastlr.nn.charge_equilibration import ChargeEquilibration
from fastlr.nn.linear import NodeAttributes
from fastlr.nn.mlp import ScalarMLP
from fastlr.nn.scale_shift import ScaleShift
from fastlr.standard_settings import standard_settings

from .config import NequIPLRConfig
from .nequip import (
    InteractionStack,
    cast,
    edge_embedding,
    energy_readout,
    energy_scale_shift,
    hidden_irreps,
    scalar_irreps,
    use,
)


class NequIPLR(nn.Module):
    """Maruf, Kim & Ahmad, arXiv 2503.17949.

    1. charge stack: interaction layers -> scalars -> electronegativity chi_i;
    2. charge equilibration: chi, total charge -> charges q_i;
    3. energy stack: node attributes = type embedding joined with an encoding of q_i, further interaction layers ->
       short-range atomic energies. With ``reuse_features`` its node features start from those of the charge stack
       joined with the encoding; otherwise from the node attributes;
    4. E = sum_i E_i + (k / 2) q' A q [+ sum_i chi_i q_i + J_i q_i^2 / 2, if ``site_energy``] [+ the energy of the
       charges in external potentials].
    """

    def __init__(self, config: NequIPLRConfig, operations: Operations):
        super().__init__()
        self.config = config
        self.operations = operations
        features = config.type_embedding_features or config.channels[0]
        self.type_embedding = nn.Embedding(len(config.species), features)
        self.edge_embedding = edge_embedding(config, operations)
        self.charge_encoding = ChargeEncoding(config.charge_encoding, config.num_charge_bins, config.charge_range)
        hidden, scalars = hidden_irreps(config), scalar_irreps(config)

        last = hidden if config.reuse_features else scalars
        self.charge_stack = InteractionStack(
            config,
            Irreps([(features, "0e")]),
            features,
            [hidden] * (config.num_charge_layers - 1) + [last],
            False,
            operations,
        )
        self.electronegativity_readout = ScalarMLP([config.channels[0], 1])
        self.electronegativity_scale_shift = ScaleShift(
            len(config.species),
            [1.0],
            config.of_species(config.electronegativity_shifts),
            train_scale=True,
            train_shift=True,
        )
        self.equilibration = ChargeEquilibration(config.of_species(config.hardness), config.widths, operations)

        attributes = features + self.charge_encoding.num_features
        irreps_in = Irreps([(attributes, "0e")])
        if config.reuse_features:
            (mul, _), *rest = self.charge_stack.irreps_out  # even scalars come first
            irreps_in = Irreps([(mul + self.charge_encoding.num_features, "0e"), *rest])
        self.energy_stack = InteractionStack(
            config,
            irreps_in,
            attributes,
            [hidden] * (config.num_layers - 1) + [scalars],
            config.reuse_features,
            operations,
        )
        self.readout = energy_readout(config)
        self.scale_shift = energy_scale_shift(config)
        cast(self, config.torch_dtype)

    @standard_settings(gradients=False)
    def forward(self, graph: Graph) -> dict[str, Tensor]:
        """Energies and charges of a batch.

        Returns:
            energy: (B,) float64, eV.
            atomic_energies: (N,) float64, eV: the short-range part (with site energies, if these count), without
                the Coulomb energy, which belongs to no atom, and that in external potentials.
            charges: (N,) float64, e.
            electronegativities: (N,) float64, eV/e.
            coulomb_energy: (B,) float64, eV.
            external_energy: (B,) float64, eV: of the charges in external potentials.
        """
        described = self._describe(graph)
        x = self.charge_stack(*described, graph)
        chi = self._electronegativities(x, graph)
        equilibrated = self.equilibration(graph, chi)
        atomic_energies = self._energies(described, x, equilibrated["charges"], graph)
        if self.config.site_energy:
            atomic_energies = atomic_energies + equilibrated["site_energies"]
        return {
            "energy": graph.sum_nodes(atomic_energies)
            + equilibrated["coulomb_energy"]
            + equilibrated["external_energy"],
            "atomic_energies": atomic_energies,
            "charges": equilibrated["charges"],
            "electronegativities": chi,
            "coulomb_energy": equilibrated["coulomb_energy"],
            "external_energy": equilibrated["external_energy"],
        }

    def electronegativities(self, graph: Graph) -> Tensor:
        """(N,) float64, eV/e."""
        return self._electronegativities(self.charge_stack(*self._describe(graph), graph), graph)

    def energies_at(self, graph: Graph, charges: Tensor) -> Tensor:
        """(N,) float64, eV: the short-range part for given charges (N,), e, without site energies."""
        described = self._describe(graph)
        x = self.charge_stack(*described, graph) if self.config.reuse_features else described[0]
        return self._energies(described, x, charges, graph)

    def _describe(self, graph: Graph):
        """What all layers read: features and attributes of the types, and the edges."""
        attributes = NodeAttributes(self.type_embedding.weight, graph.species)
        types = attributes.dense()
        return types, attributes, *self.edge_embedding(graph.edge_vectors(), types.dtype)

    def _electronegativities(self, x: Tensor, graph: Graph) -> Tensor:
        """From the features of the charge stack."""
        chi = self.electronegativity_readout(x[:, : self.config.channels[0]])[:, 0]
        return self.electronegativity_scale_shift(chi, graph.species)

    def _energies(self, described, x: Tensor, charges: Tensor, graph: Graph) -> Tensor:
        """From the features of the charge stack and the charges."""
        types, attributes, *edges = described
        encoding, num_scalars = self.charge_encoding(charges.to(types.dtype)), self.config.channels[0]
        attributes = attributes._replace(own=encoding)
        if self.config.reuse_features:
            x = torch.cat([x[:, :num_scalars], encoding, x[:, num_scalars:]], dim=1)
        else:
            x = attributes.dense()
        x = self.energy_stack(x, attributes, *edges, graph)
        return self.scale_shift(self.readout(x)[:, 0], graph.species)

    def use(self, operations: Operations) -> None:
        """Replace the kernels in all layers."""
        use(self, operations)
