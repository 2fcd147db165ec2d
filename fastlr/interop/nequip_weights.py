"""Weights of a ``nequip`` model in the order and units of ours."""

import math
from collections import Counter, defaultdict

import torch
from torch import Tensor, nn

from fastlr.errors import ConfigError
from fastlr.kernels.tensor_product.program import Program
from fastlr.nn.mlp import ScalarMLP
from fastlr.nn.nonlinearities import NONLINEARITIES


@torch.no_grad()
def copy_weights(source: nn.Module, model: nn.Module) -> None:
    """Fill ``model`` with the weights of the energy model ``source``, of the same configuration."""
    model.type_embedding.weight.copy_(source.type_embed.embed_module.weight)
    model.edge_embedding.roots.copy_(source.bessel_encode.bessel_weights.flatten())
    for k, (ours, theirs) in enumerate(zip(model.stack.layers, layers_of(source), strict=True)):
        conv = theirs.conv
        weights, channels = _path_order(conv.tp_scatter.tp, ours.program)
        _copy_mlp(conv.edge_mlp, ours.radial_network, weights)
        _copy_paths(conv.linear_1, conv.linear_1.irreps_in, ours.linear_1.weights)
        _copy_paths(conv.linear_2, conv.linear_2.irreps_in, ours.linear_2.weights, channels)
        if (conv.sc is None) != (ours.self_connection is None):
            has = "has no" if conv.sc is None else "has a"
            raise ConfigError(f"layer {k} of the nequip model {has} self-connection, unlike those that fastlr knows")
        if conv.sc is not None:
            _copy_paths(conv.sc, conv.sc.irreps_in1, ours.self_connection.weights)
    network = source.per_atom_energy_readout.mlp_module
    if nonlinearity_of(network) == "None":  # several linear maps in a row are one
        whole = network(torch.eye(network.dims[0]).to(next(network.parameters())))
        model.readout.weights[0].copy_(whole / model.readout.scales[0])
    else:
        _copy_mlp(network, model.readout)


def _path_order(product: nn.Module, program: Program) -> tuple[Tensor, dict[str, Tensor]]:
    """Where the source has what the paths of our convolution need; it orders them by its edge irreps.

    Returns:
        its weight for each of ours, and by irrep its output channel for each of ours.
    """
    weight_of, channel_of, weight, filled = {}, {}, 0, Counter()
    paths = [(ins, *_irreps_of(ins, product)) for ins in product.instructions]
    for ins, *key in paths:
        weight_of[tuple(key)] = weight
        weight += math.prod(ins.path_shape)
    for ins, *key in sorted(paths, key=lambda path: path[0].i_out):
        channel_of[tuple(key)] = filled[key[2]]
        filled[key[2]] += product.irreps_out[ins.i_out].mul
    weights, channels = [], defaultdict(list)
    for path in program.paths:
        ir1, ir2, ir3 = (
            str(irreps[block].ir)
            for irreps, block in (
                (program.irreps_in, path.block1),
                (program.irreps_edge, path.block2),
                (program.irreps_out, path.block3),
            )
        )
        weights.append(torch.arange(path.mul) + weight_of[ir1, ir2, ir3])
        channels[ir3].append(torch.arange(path.mul) + channel_of[ir1, ir2, ir3])
    return torch.cat(weights), {ir: torch.cat(parts) for ir, parts in channels.items()}


def _irreps_of(instruction, product: nn.Module) -> tuple[str, str, str]:
    parts = (
        product.irreps_in1[instruction.i_in1],
        product.irreps_in2[instruction.i_in2],
        product.irreps_out[instruction.i_out],
    )
    return tuple(str(ir) for _, ir in parts)


def _copy_paths(source: nn.Module, irreps_in, targets: nn.ParameterDict, rows: dict[str, Tensor] | None = None) -> None:
    """e3nn keeps the weights of all paths in one flat vector; ours are one tensor an irrep.

    Args:
        rows: by irrep, the source's input channel for each of ours; default: the same.
    """
    start, seen = 0, set()
    for path in source.instructions:
        irrep = str(irreps_in[path.i_in if hasattr(path, "i_in") else path.i_in1].ir)
        size = math.prod(path.path_shape)
        weight = source.weight[start : start + size].view(path.path_shape)
        targets[irrep].copy_(weight if rows is None else weight[rows[irrep].to(weight.device)])
        start += size
        seen.add(irrep)
    if start != source.weight.numel() or seen != set(targets):
        raise ConfigError(f"the weights of {source} do not fit; is this nequip 0.19?")


def layers_of(energy_model: nn.Module) -> list[nn.Module]:
    """Its interaction layers."""
    children = dict(energy_model.named_children())
    return [children[f"layer{k}_convnet"] for k in range(len(children)) if f"layer{k}_convnet" in children]


def _linear_layers(mlp: nn.Module) -> list[nn.Module]:
    return [layer for layer in mlp.modules() if hasattr(layer, "in_features")]


def _copy_mlp(source: nn.Module, target: ScalarMLP, columns: Tensor | None = None) -> None:
    """Copy a network; ``columns``: the source's output for each of ours (default: the same)."""
    layers = _linear_layers(source)
    if source.bias or any(
        not math.isclose(layer.alpha, scale, rel_tol=1e-6)  # kept in the model's own float type
        for layer, scale in zip(layers, target.scales, strict=True)
    ):
        raise ConfigError(f"a network of the nequip model has biases or other scales than expected: {source}")
    for layer, weight in zip(layers[:-1], target.weights[:-1], strict=True):
        weight.copy_(layer.weight)
    last = layers[-1].weight
    target.weights[-1].copy_(last if columns is None else last[:, columns.to(last.device)])


def nonlinearity_of(mlp: nn.Module) -> str:
    """Name of what stands between the layers of a network; "None" where nothing does, though there are several."""
    if hasattr(mlp.mlp, "weights"):
        return "None"
    names = {_name_of(part) for part in mlp.mlp if not hasattr(part, "in_features")}
    if len(names) > 1:
        raise ConfigError(f"a network of the nequip model has several nonlinearities: {', '.join(sorted(names))}")
    return names.pop() if names else "silu"


@torch.no_grad()
def _name_of(function: nn.Module) -> str:
    """By what it does: the same class may have other parameters."""
    probe = torch.linspace(-3.0, 3.0, 13, dtype=torch.float64)
    known = {"None": nn.Identity()} | {name: known.value for name, known in NONLINEARITIES.items()}
    for name, candidate in known.items():
        if torch.allclose(function(probe), candidate(probe), rtol=0.0, atol=1e-12):
            return name
    raise ConfigError(f"the nequip model has a nonlinearity that fastlr does not know: {function}")
