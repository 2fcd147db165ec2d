"""The gate and its first two derivatives for CPUs: one pass over the rows each, in LLVM assembly."""

from functools import cache

import torch
from torch import Tensor

from ..llvm import Emitter
from ..native import compiled, launch
from . import cpu_parts
from .layout import GateLayout


def gate(x: Tensor, layout: GateLayout) -> Tensor:
    """See ``op.gate``."""
    out = x.new_empty(x.shape[0], layout.dim_out)
    return _run(cpu_parts.gate, layout, [x], [out])[0]


def backward(x: Tensor, g: Tensor, layout: GateLayout) -> Tensor:
    """See ``op.gate_backward``."""
    return _run(cpu_parts.gate_backward, layout, [x, g], [torch.empty_like(x)])[0]


def double_backward(x: Tensor, g: Tensor, v: Tensor, layout: GateLayout) -> tuple[Tensor, Tensor]:
    """See ``op.gate_double_backward``."""
    out = [torch.empty_like(x), torch.empty_like(g)]
    return tuple(_run(cpu_parts.gate_double_backward, layout, [x, g, v], out))


def _run(part, layout: GateLayout, inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
    widths = tuple(tensor.shape[1] for tensor in (*inputs, *outputs))
    launch(_kernel(part, layout, widths, inputs[0].dtype), [*inputs, *outputs], inputs[0].shape[0], minimum_work=64)
    return outputs


@cache
def _kernel(part, layout: GateLayout, widths: tuple[int, ...], dtype: torch.dtype):
    bits = torch.finfo(dtype).bits
    name = f"layer_{part.__name__}"
    return compiled(name, f"{layout.key} {bits}", lambda: _Rows(name, part, layout, widths, bits).source())


class _Rows(Emitter):
    """A part for each of the rows begin ... end - 1."""

    def __init__(self, name: str, part, layout: GateLayout, widths: tuple[int, ...], bits: int):
        super().__init__(name, bits, len(widths))
        with self.loop(self.begin, self.end) as n:
            rows = [self.at(tensor, self.mul(n, width)) for tensor, width in zip(self.tensors, widths, strict=True)]
            part(self, layout, *rows)
