"""NequIP: short-range equivariant message passing."""

import torch
from torch import Tensor, nn

from fastlr.backends import Operations
from fastlr.graph import Graph
from fastlr.kernels.irreps import Irreps
from fastlr.nn.edge_embedding import EdgeEmbedding
from fastlr.nn.interaction import InteractionLayer
from fastlr.nn.linear import NodeAttributes
from fastlr.nn.mlp import ScalarMLP
from fastlr.nn.scale_shift import ScaleShift
from fastlr.standard_settings import standard_settings

from .config import NequIPConfig


class InteractionStack(nn.Module):
    """Interaction layers one after another, all on the same edges and node attributes."""

    def __init__(
        self,
        config: NequIPConfig,
        irreps_in,
        num_attributes: int,
        irreps_hidden: list[Irreps],
        first_self_connection: bool,
        operations: Operations,
    ):
        super().__init__()
        irreps_edge = Irreps.spherical_harmonics(config.l_max)
        radial_dims = [config.num_bessels, *[config.radial_width] * config.radial_depth]
        layers = []
        for k, hidden in enumerate(irreps_hidden):
            self_connection = k > 0 or first_self_connection
            layer = InteractionLayer(
                irreps_in, irreps_edge, hidden, num_attributes, radial_dims, self_connection, operations
            )
            layers.append(layer)
            irreps_in = layer.irreps_out
        self.layers = nn.ModuleList(layers)
        self.irreps_out = irreps_in
        neighbours = torch.tensor(config.of_species(config.avg_num_neighbors), dtype=torch.float64)
        self.register_buffer("norm", neighbours.rsqrt()[:, None].to(config.torch_dtype))

    def forward(self, x: Tensor, attributes: NodeAttributes, angular: Tensor, radial, graph: Graph) -> Tensor:
        norm, edges = self.norm.index_select(0, graph.species), graph.adjacency
        for layer in self.layers:
            x = layer(x, attributes, angular, radial, edges, norm)
        return x


class NequIP(nn.Module):
    """Energies of structures; see ``fastlr.models.derivatives`` for forces and stress.

    The mathematics is that of the ``nequip`` package (0.19), so that its weights can be taken over.
    """

    def __init__(self, config: NequIPConfig, operations: Operations):
        super().__init__()
        self.config = config
        self.operations = operations
        features = config.type_embedding_features or config.channels[0]
        self.type_embedding = nn.Embedding(len(config.species), features)
        self.edge_embedding = edge_embedding(config, operations)
        hidden = [hidden_irreps(config)] * (config.num_layers - 1) + [scalar_irreps(config)]
        # no self-connection in the first layer: an isolated atom has no energy but its shift
        self.stack = InteractionStack(config, Irreps([(features, "0e")]), features, hidden, False, operations)
        self.readout = energy_readout(config)
        self.scale_shift = energy_scale_shift(config)
        cast(self, config.torch_dtype)

    @standard_settings(gradients=False)
    def forward(self, graph: Graph) -> dict[str, Tensor]:
        """Energies of a batch.

        Returns:
            energy: (B,) float64, eV.
            atomic_energies: (N,) float64, eV.
        """
        atomic_energies = self.energies_at(graph)
        return {"energy": graph.sum_nodes(atomic_energies), "atomic_energies": atomic_energies}

    def energies_at(self, graph: Graph, charges: None = None) -> Tensor:
        """(N,) float64, eV; the charges of other models are none here."""
        attributes = NodeAttributes(self.type_embedding.weight, graph.species)
        types = attributes.dense()
        angular, radial = self.edge_embedding(graph.edge_vectors(), types.dtype)
        x = self.stack(types, attributes, angular, radial, graph)
        return self.scale_shift(self.readout(x)[:, 0], graph.species)

    def use(self, operations: Operations) -> None:
        """Replace the kernels in all layers."""
        use(self, operations)


def hidden_irreps(config: NequIPConfig) -> Irreps:
    """Irreps of a hidden layer: each degree with its natural parity, or with both."""
    return Irreps(
        [(mul, (l, p)) for l, mul in enumerate(config.channels) for p in ((1, -1) if config.parity else ((-1) ** l,))]
    )


def scalar_irreps(config: NequIPConfig) -> Irreps:
    """Irreps of the last layer: even scalars."""
    return Irreps([(config.channels[0], "0e")])


def edge_embedding(config: NequIPConfig, operations: Operations) -> EdgeEmbedding:
    return EdgeEmbedding(
        config.r_max, config.l_max, config.num_bessels, config.bessel_trainable, config.cutoff_p, operations
    )


def energy_readout(config: NequIPConfig) -> ScalarMLP:
    width = config.readout_width or config.channels[0]
    return ScalarMLP([config.channels[0], *[width] * config.readout_depth, 1], config.readout_nonlinearity)


def energy_scale_shift(config: NequIPConfig) -> ScaleShift:
    return ScaleShift(
        len(config.species),
        config.of_species(config.energy_scales),
        config.of_species(config.energy_shifts),
        config.energy_scales_trainable,
        config.energy_shifts_trainable,
    )


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring 32-bit parameters and buffers to ``dtype``; what is float64 by design stays."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is not None and value.dtype == torch.float32 and value.dtype != dtype:
                    tensors[name] = (
                        nn.Parameter(value.detach().to(dtype), value.requires_grad)
                        if isinstance(value, nn.Parameter)
                        else value.to(dtype)
                    )


def use(model: nn.Module, operations: Operations) -> None:
    """Replace the kernels of every layer of ``model``."""
    for module in model.modules():
        if hasattr(module, "operations"):
            module.operations = operations
        if isinstance(module, InteractionLayer):
            module.use(operations)
