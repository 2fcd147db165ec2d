"""Layers without what never reaches the energy: irreps that no later layer reads, the paths into them, their gates."""

import torch

from fastlr.backends import NoOperations
from fastlr.kernels.irreps import Irrep, Irreps
from fastlr.models.nequip import InteractionStack
from fastlr.nn.gate import Gate
from fastlr.nn.interaction import InteractionLayer

SCALAR = Irrep(0, 1)


def prune(stack: InteractionStack, wanted: set[Irrep]) -> tuple[list[InteractionLayer], set[Irrep]]:
    """The layers of a stack that ``wanted`` irreps of its output depend on.

    A hidden irrep is read by the paths and the self-connection of the next layer; in the layer before the last, for
    example, only those that a spherical harmonic turns into even scalars matter.

    Returns:
        new layers, in float64, and the irreps of the stack's input that they read (even scalars in any case).
    """
    layers = []
    for layer in reversed(stack.layers):
        pruned = _pruned(layer, wanted)
        layers.insert(0, pruned)
        wanted = {ir for _, ir in pruned.irreps_in}
    return layers, wanted


@torch.no_grad()
def _pruned(layer: InteractionLayer, wanted: set[Irrep]) -> InteractionLayer:
    hidden = Irreps([(mul, ir) for mul, ir in layer.irreps_out if ir in wanted or ir == SCALAR])
    program, connection = layer.program, layer.self_connection
    gate = Gate(hidden)
    targets = {ir for _, ir in gate.irreps_in}
    read = {
        program.irreps_in[path.block1].ir for path in program.paths if program.irreps_out[path.block3].ir in targets
    }
    if connection is not None:
        read |= targets & {ir for _, ir in connection.irreps_in}
    irreps_in = Irreps([(mul, ir) for mul, ir in layer.irreps_in if ir in read or ir == SCALAR])
    with torch.random.fork_rng(devices=[]):  # weights that are drawn, to be overwritten
        new = InteractionLayer(
            irreps_in,
            program.irreps_edge,
            hidden,
            connection.num_attributes if connection is not None else 0,
            layer.radial_network.dims[:-1],
            connection is not None,
            NoOperations(),
        ).double()
    columns = _gate_columns(layer.gate, new.gate)
    for name, weight in new.linear_1.weights.items():
        weight.copy_(layer.linear_1.weights[name])
    for name, weight in new.linear_2.weights.items():
        weight.copy_(layer.linear_2.weights[name][:, columns[name]])
    if connection is not None:
        for name, weight in new.self_connection.weights.items():
            weight.copy_(connection.weights[name][:, :, columns[name]])
    *shared, last = layer.radial_network.weights
    for weight, old in zip(new.radial_network.weights, shared, strict=False):
        weight.copy_(old)
    new.radial_network.weights[-1].copy_(last[:, _weight_columns(program, new.program)])
    return new


def _gate_columns(old: Gate, new: Gate) -> dict[str, torch.Tensor]:
    """Which channels of each irrep that enters the old gate enter the new one."""
    columns = {str(ir): torch.arange(mul) for mul, ir in new.irreps_in}
    even = sum(mul for mul, ir in new.scalars if ir == SCALAR)
    kept, first = [torch.arange(even)], sum(mul for mul, ir in old.scalars if ir == SCALAR)
    live = {ir for _, ir in new.gated}
    for mul, ir in old.gated:
        if ir in live:
            kept.append(first + torch.arange(mul))
        first += mul
    if str(SCALAR) in columns:
        columns[str(SCALAR)] = torch.cat(kept)
    return columns


def _weight_columns(old, new) -> torch.Tensor:
    """Which weights of the old program are those of the new one, in its order."""

    def named(program):
        start = 0
        for path in program.paths:
            irreps = (
                (program.irreps_in, path.block1),
                (program.irreps_edge, path.block2),
                (program.irreps_out, path.block3),
            )
            yield tuple(side[block].ir for side, block in irreps), torch.arange(start, start + path.mul)
            start += path.mul

    known = dict(named(old))
    parts = [known[name] for name, _ in named(new)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
