"""Take a model of the ``nequip`` package (0.19) over, weights and all."""

import math

import torch
from torch import nn

from fastlr.errors import ConfigError, FastlrError
from fastlr.kernels.gate.layout import SILU_SCALE, TANH_SCALE
from fastlr.models import NequIPConfig, build_model, parse_config
from fastlr.models.nequip import NequIP, hidden_irreps, scalar_irreps
from fastlr.potential import Potential
from fastlr.standard_settings import standard_settings

from .nequip_source import check_module, evaluation_of, find_model, float_type_of
from .nequip_weights import copy_weights, layers_of, nonlinearity_of
from .proof import TOLERANCE, require_agreement

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


@standard_settings()
def from_nequip(module: nn.Module, **options) -> Potential:
    """A ``Potential`` with the weights of a ``nequip`` model.

    Args:
        module: a NequIP model as built or loaded by ``nequip`` (``NequIPGNNModel``, or the energy model inside it).
            Its type names must be chemical symbols.
        options: passed to ``Potential`` (backend, device, memory_budget, name).

    The module stays as it is. It and the potential's model are evaluated on probe structures, and must agree.

    Raises:
        ConfigError: what was given is no such module, or holds several models; the model has a part that fastlr does
            not know (a pair potential, cutoffs for each pair of types, other nonlinearities, ...), which the message
            names; or its energies, forces or stress differ from those of the model taken over.
    """
    top, energy_model = find_model(check_module(module))
    model = _read(energy_model)
    source = evaluation_of(top, model.config.species, model.config.r_max)
    require_agreement(source, model, "nequip", TOLERANCE[float_type_of(top)])
    return Potential(model, {"source": "nequip"}, **options)


def _read(source: nn.Module) -> NequIP:
    """A model of ours with the configuration and the weights of an energy model."""
    try:
        config = _config(source)
        with torch.random.fork_rng(devices=[]):
            model = build_model(config)
        copy_weights(source, model)
    except FastlrError:
        raise
    except (AttributeError, LookupError, RuntimeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"the nequip model is not built as those of nequip 0.19 are ({reason[:300]})") from error
    return model


def _config(source: nn.Module) -> NequIPConfig:
    _check_parts(source)
    layers = layers_of(source)
    species, r_max = list(source.per_type_energy_scale_shift.type_names), float(source.edge_norm.r_max)
    config = parse_config(
        {"kind": "nequip", "species": species, "r_max": r_max}
        | {"dtype": str(source.type_embed.embed_module.weight.dtype).removeprefix("torch.")}
        | _edges(source, r_max)
        | _layer_settings(source, layers, species)
        | _readout(source.per_atom_energy_readout.mlp_module)
        | _scales(source.per_type_energy_scale_shift, species)
    )
    for k, layer in enumerate(layers):
        wanted = scalar_irreps(config) if k == len(layers) - 1 else hidden_irreps(config)
        if str(layer.feature_irreps_hidden) != str(wanted):
            raise ConfigError(f"layer {k} of the nequip model has irreps {layer.feature_irreps_hidden}, not {wanted}")
        _check_layer(k, layer)
    return config


def _check_parts(source: nn.Module) -> None:
    """Refuse parts that fastlr does not know, and models that lack one."""
    parts = dict(source.named_children())
    known = _EXPECTED | {f"layer{k}_convnet" for k in range(len(layers_of(source)))}
    for name in parts:
        if name not in known:
            kind = type(parts[name]).__name__
            raise ConfigError(f"the nequip model has a part that fastlr does not know: {name} ({kind})")
    for name in sorted(_EXPECTED - set(parts)):
        raise ConfigError(f"the nequip model has no part '{name}', which those of nequip 0.19 have")
    if source.edge_norm._per_edge_type:
        raise ConfigError("the nequip model has per_edge_type_cutoff, which fastlr does not know")
    if len(source.type_embed.categorical_graph_field_embed_modules):
        raise ConfigError("the nequip model embeds categorical graph fields, which fastlr does not know")


def _edges(source: nn.Module, r_max: float) -> dict:
    if not math.isclose(float(source.factor.factor), 2.0 * math.pi / r_max**2):
        raise ConfigError("the nequip model scales its Bessel functions in a way that fastlr does not know")
    return {
        "l_max": _l_max(source),
        "num_bessels": source.bessel_encode.num_bessels,
        "bessel_trainable": bool(source.bessel_encode.trainable),
        "cutoff_p": float(source.bessel_encode.cutoff.p),
    }


def _layer_settings(source: nn.Module, layers: list[nn.Module], species: list[str]) -> dict:
    l_max, hidden = _l_max(source), layers[0].feature_irreps_hidden
    channels = {ir.l: mul for mul, ir in hidden}
    if 0 not in channels:
        raise ConfigError(f"layer 0 of the nequip model has no scalars among its irreps {hidden}")
    norm = _common("avg_num_neighbors", [layer.conv.avg_num_neighbors_norm.norm_const for layer in layers])
    radial = _common("its radial network", [_hidden_widths(layer.conv.edge_mlp) for layer in layers])
    for k, layer in enumerate(layers):
        if (found := nonlinearity_of(layer.conv.edge_mlp)) != "silu":
            raise ConfigError(f"the radial network of layer {k} of the nequip model has {found} in place of silu")
    return {
        "num_layers": len(layers),
        "parity": len(layers) > 1 and len({ir.p for _, ir in hidden if ir.l == min(1, l_max)}) == 2,
        "num_features": [channels.get(l, channels[0]) for l in range(l_max + 1)],
        "type_embedding_features": source.type_embed.embed_module.embedding_dim,
        "radial_depth": len(radial),
        "radial_width": radial[0] if radial else 1,
        "avg_num_neighbors": _of_species(norm.double() ** -2, species),
    }


def _readout(network: nn.Module) -> dict:
    nonlinearity = nonlinearity_of(network)
    hidden = [] if nonlinearity == "None" else _hidden_widths(network)
    if not hidden:
        return {"readout_depth": 0}
    return {"readout_depth": len(hidden), "readout_width": hidden[0], "readout_nonlinearity": nonlinearity}


def _scales(part: nn.Module, species: list[str]) -> dict:
    return {
        "energy_scales": _of_species(part.scales, species) if part.has_scales else 1.0,
        "energy_shifts": _of_species(part.shifts, species) if part.has_shifts else 0.0,
        "energy_scales_trainable": bool(part.scales_trainable),
        "energy_shifts_trainable": bool(part.shifts_trainable),
    }


def _of_species(values: torch.Tensor, species: list[str]) -> dict[str, float]:
    """A number for each species, from as many or from one."""
    numbers = values.detach().double().flatten().expand(len(species)).tolist()
    return dict(zip(species, numbers, strict=True))


def _hidden_widths(mlp: nn.Module) -> list[int]:
    widths = list(mlp.dims[1:-1])
    if len(set(widths)) > 1:
        raise ConfigError(f"a network of the nequip model has hidden layers of several widths: {widths}")
    return widths


def _l_max(source: nn.Module) -> int:
    """Degree of the edges' harmonics, which must all be there, in any order."""
    irreps = source.spharm.irreps_edge_sh
    degrees = sorted(ir.l for _, ir in irreps)
    if degrees != list(range(len(degrees))) or any(mul != 1 or ir.p != (-1) ** ir.l for mul, ir in irreps):
        raise ConfigError(
            f"the nequip model has irreps_edge_sh {irreps}; fastlr needs the spherical harmonics of each degree up to "
            "the largest, once"
        )
    return degrees[-1]


def _common(what: str, values: list):
    """What all layers have."""
    for k, value in enumerate(values):
        same = torch.equal(value, values[0]) if isinstance(value, torch.Tensor) else value == values[0]
        if not same:
            raise ConfigError(
                f"layer {k} of the nequip model differs from layer 0 in {what}, which fastlr does not know"
            )
    return values[0]


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
