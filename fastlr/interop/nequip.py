"""Take a model of the ``nequip`` package (0.19) over, weights and all."""

import math

import torch
from torch import nn

from fastlr.errors import ConfigError
from fastlr.kernels.gate.layout import SILU_SCALE, TANH_SCALE
from fastlr.kernels.irreps import Irreps
from fastlr.models import NequIPConfig, build_model
from fastlr.models.nequip import hidden_irreps, scalar_irreps
from fastlr.potential import Potential

_EXPECTED = {
    "type_embed",
    "spharm",
    "edge_norm",
    "bessel_encode",
    "factor",
    "per_atom_energy_readout",
    "per_type_energy_scale_shift",
    "total_energy_sum",
}


def from_nequip(module: nn.Module, **options) -> Potential:
    """A ``Potential`` with the weights of a ``nequip`` model.

    Args:
        module: a NequIP model as built or loaded by ``nequip`` (``NequIPGNNModel``, or the energy model inside it).
            Its type names must be chemical symbols.
        options: passed to ``Potential`` (backend, device, memory_budget, name).

    Raises:
        ConfigError: the model has a part that fastlr does not know (a pair potential, cutoffs for each pair of
            types, other nonlinearities, ...); the message names it.
    """
    energy_model = _energy_model(module)
    config = _config(energy_model)
    model = build_model(config)
    _copy_weights(energy_model, model)
    return Potential(model, {"source": "nequip"}, **options)


def _energy_model(module: nn.Module) -> nn.Module:
    for candidate in module.modules():
        if {"type_embed", "layer0_convnet"} <= {name for name, _ in candidate.named_children()}:
            return candidate
    raise ConfigError("this module holds no NequIP energy model (no 'type_embed' and 'layer0_convnet' in it)")


def _layers(energy_model: nn.Module) -> list[nn.Module]:
    children = dict(energy_model.named_children())
    return [children[f"layer{k}_convnet"] for k in range(len(children)) if f"layer{k}_convnet" in children]


def _config(source: nn.Module) -> NequIPConfig:
    layers = _layers(source)
    known = _EXPECTED | {f"layer{k}_convnet" for k in range(len(layers))}
    for name, child in source.named_children():
        if name not in known:
            raise ConfigError(f"the nequip model has a part that fastlr does not know: {name} ({type(child).__name__})")
    if source.edge_norm._per_edge_type:
        raise ConfigError("the nequip model has per_edge_type_cutoff, which fastlr does not know")
    if len(source.type_embed.categorical_graph_field_embed_modules):
        raise ConfigError("the nequip model embeds categorical graph fields, which fastlr does not know")

    r_max = float(source.edge_norm.r_max)
    if not math.isclose(float(source.factor.factor), 2.0 * math.pi / r_max**2):
        raise ConfigError("the nequip model scales its Bessel functions in a way that fastlr does not know")
    species = list(source.per_type_energy_scale_shift.type_names)
    l_max = source.spharm.irreps_edge_sh.lmax
    hidden = layers[0].feature_irreps_hidden
    channels = {ir.l: mul for mul, ir in hidden}
    norm = layers[0].conv.avg_num_neighbors_norm.norm_const.double().flatten()
    radial = [layer.in_features for layer in _linear_layers(layers[0].conv.edge_mlp)][1:]
    readout = [layer.in_features for layer in _linear_layers(source.per_atom_energy_readout.mlp_module)][1:]
    for name, widths in (("radial network", radial), ("readout", readout)):
        if len(set(widths)) > 1:
            raise ConfigError(f"the nequip model's {name} has hidden layers of several widths: {widths}")
    shift = source.per_type_energy_scale_shift

    def of_species(values) -> dict[str, float]:
        return dict(zip(species, values.detach().double().flatten().expand(len(species)).tolist(), strict=True))

    config = NequIPConfig(
        species=species,
        dtype=str(source.type_embed.embed_module.weight.dtype).removeprefix("torch."),
        r_max=r_max,
        num_layers=len(layers),
        l_max=l_max,
        parity=len(layers) > 1 and len({ir.p for _, ir in hidden if ir.l == min(1, l_max)}) == 2,
        num_features=[channels.get(l, channels[0]) for l in range(l_max + 1)],
        type_embedding_features=source.type_embed.embed_module.embedding_dim,
        radial_depth=len(radial),
        radial_width=radial[0] if radial else 1,
        num_bessels=source.bessel_encode.num_bessels,
        bessel_trainable=bool(source.bessel_encode.trainable),
        cutoff_p=float(source.bessel_encode.cutoff.p),
        avg_num_neighbors=of_species(norm**-2),
        readout_depth=len(readout),
        readout_width=readout[0] if readout else None,
        energy_scales=of_species(shift.scales) if shift.has_scales else 1.0,
        energy_shifts=of_species(shift.shifts) if shift.has_shifts else 0.0,
        energy_scales_trainable=bool(shift.scales_trainable),
        energy_shifts_trainable=bool(shift.shifts_trainable),
    )
    for k, layer in enumerate(layers):
        wanted = scalar_irreps(config) if k == len(layers) - 1 else hidden_irreps(config)
        if Irreps(layer.feature_irreps_hidden) != wanted:
            raise ConfigError(f"layer {k} of the nequip model has irreps {layer.feature_irreps_hidden}, not {wanted}")
        _check_layer(k, layer)
    return config


def _check_layer(k: int, layer: nn.Module) -> None:
    """Refuse what the interaction layer does not do."""
    if layer.resnet:
        raise ConfigError(f"layer {k} of the nequip model has a residual connection, which fastlr does not know")
    if type(layer.equivariant_nonlin).__name__ != "Gate":
        raise ConfigError(f"layer {k} of the nequip model has no gate but {type(layer.equivariant_nonlin).__name__}")
    probe = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)
    silu, tanh = torch.nn.functional.silu(probe) * SILU_SCALE, torch.tanh(probe) * TANH_SCALE
    gate = layer.equivariant_nonlin
    acts = [(act, silu if ir.p == 1 else tanh) for act, (_, ir) in zip(gate.act_scalars.acts, gate.irreps_scalars)]  # noqa: B905
    acts += [(act, silu) for act in gate.act_gates.acts]
    for act, expected in acts:
        if not torch.allclose(act(probe), expected, rtol=1e-6, atol=1e-6):
            raise ConfigError(f"layer {k} of the nequip model has a nonlinearity that fastlr does not know")


@torch.no_grad()
def _copy_weights(source: nn.Module, model: nn.Module) -> None:
    model.type_embedding.weight.copy_(source.type_embed.embed_module.weight)
    model.edge_embedding.roots.copy_(source.bessel_encode.bessel_weights.flatten())
    for ours, theirs in zip(model.stack.layers, _layers(source), strict=True):
        conv = theirs.conv
        _copy_mlp(conv.edge_mlp, ours.radial_network)
        for target, linear in ((ours.linear_1, conv.linear_1), (ours.linear_2, conv.linear_2)):
            _copy_paths(linear, linear.irreps_in, target.weights)
        if (conv.sc is None) != (ours.self_connection is None):
            raise ConfigError("the nequip model has self-connections where fastlr has none, or the reverse")
        if conv.sc is not None:
            _copy_paths(conv.sc, conv.sc.irreps_in1, ours.self_connection.weights)
    _copy_mlp(source.per_atom_energy_readout.mlp_module, model.readout)


def _copy_paths(source: nn.Module, irreps_in, targets: nn.ParameterDict) -> None:
    """e3nn keeps the weights of all paths in one flat vector; ours are one tensor an irrep."""
    start, seen = 0, set()
    for path in source.instructions:
        irrep = str(irreps_in[path.i_in if hasattr(path, "i_in") else path.i_in1].ir)
        size = math.prod(path.path_shape)
        targets[irrep].copy_(source.weight[start : start + size].view(path.path_shape))
        start += size
        seen.add(irrep)
    if start != source.weight.numel() or seen != set(targets):
        raise ConfigError(f"the weights of {source} do not fit; is this nequip 0.19?")


def _linear_layers(mlp: nn.Module) -> list[nn.Module]:
    return [layer for layer in mlp.modules() if hasattr(layer, "in_features")]


def _copy_mlp(source: nn.Module, target: nn.Module) -> None:
    layers = _linear_layers(source)
    if source.bias or any(
        not math.isclose(layer.alpha, scale, rel_tol=1e-6)  # kept in the model's own float type
        for layer, scale in zip(layers, target.scales, strict=True)
    ):
        raise ConfigError(f"a network of the nequip model has biases or other scales than expected: {source}")
    for layer, weight in zip(layers, target.weights, strict=True):
        weight.copy_(layer.weight)
