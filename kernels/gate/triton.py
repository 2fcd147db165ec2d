"""The gate and its first two derivatives for GPUs: a Triton kernel each, in which a program does a row."""

from functools import cache

import torch
from torch import Tensor

from ..triton_source import Source
from .layout import SILU_SCALE, TANH_SCALE, GateLayout

BLOCK = 32  # channels, one a lane

# x - x^3 / 3 + ... of tanh: coefficients by powers of x^2, for arguments below ``NEAR``, where 1 - e^-2x loses digits
NEAR, SERIES = 0.1, (1.0, -1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075)


def gate(x: Tensor, layout: GateLayout) -> Tensor:
    """See ``op.gate``."""
    out = x.new_empty(x.shape[0], layout.dim_out)
    return _run("gate", layout, [x], [out])[0]


def backward(x: Tensor, g: Tensor, layout: GateLayout) -> Tensor:
    """See ``op.gate_backward``."""
    return _run("backward", layout, [x, g], [torch.empty_like(x)])[0]


def double_backward(x: Tensor, g: Tensor, v: Tensor, layout: GateLayout) -> tuple[Tensor, Tensor]:
    """See ``op.gate_double_backward``."""
    return tuple(_run("double_backward", layout, [x, g, v], [torch.empty_like(x), torch.empty_like(g)]))


def _run(name: str, layout: GateLayout, inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
    rows = inputs[0].shape[0]
    if rows:
        gate_kernel(name, layout)[(rows,)](*inputs, *outputs, BLOCK=BLOCK, num_warps=1, enable_fp_fusion=True)
    return outputs


@cache
def gate_kernel(name: str, layout: GateLayout):
    """The kernel ``name``: gate, backward or double_backward."""
    return {"gate": _Forward, "backward": _Backward, "double_backward": _DoubleBackward}[name](layout).kernel()


class _Rows:
    """A kernel that does one row: first the scalars, then what is gated."""

    NAME: str
    ARRAYS: dict[str, bool]  # whether their columns are those of the input

    def __init__(self, layout: GateLayout):
        self.layout = layout
        self.body = Source(self.NAME, [*self.ARRAYS, "BLOCK: tl.constexpr"])

    def kernel(self):
        body, layout = self.body, self.layout
        body("n = tl.program_id(0).to(tl.int64)")
        for array, is_input in self.ARRAYS.items():
            body(f"{array}_row = {array} + n * {layout.dim_in if is_input else layout.dim_out}")
        for start_in, start_out, mul, odd in layout.scalars:
            with self.channels(mul):
                self.scalar(start_in, start_out, odd)
        for gates, start_in, start_out, dim, mul in layout.gated:
            with self.channels(mul):
                self.gated(gates, [(start_in + k * mul, start_out + k * mul) for k in range(dim)])
        return body.kernel()

    def channels(self, mul: int):
        """For channels u of ``mul``."""
        self.body(f"for start in range(0, {mul}, BLOCK):")
        with self.body:
            self.body("u = start + tl.arange(0, BLOCK)")
            self.body(f"inside = u < {mul}")
        return self.body

    def load(self, name: str, array: str, place: int) -> None:
        self.body(f"{name} = tl.load({array}_row + {place} + u, mask=inside, other=0.0)")

    def store(self, value: str, array: str, place: int) -> None:
        self.body(f"tl.store({array}_row + {place} + u, {value}, mask=inside)")

    def activate(self, argument: str, odd: bool, order: int) -> None:
        """``value``, ``slope`` and ``bend``: scaled silu (tanh if odd) and its derivatives up to ``order``."""
        body = self.body
        if odd:
            body(f"small = tl.exp(-2.0 * tl.abs({argument}))")
            body("far = (1.0 - small) / (1.0 + small)")
            body(f"square = {argument} * {argument}")
            body(f"series = {SERIES[-1]!r}")
            for coefficient in reversed(SERIES[:-1]):
                body(f"series = series * square + {coefficient!r}")
            body(f"far = tl.where({argument} < 0.0, -far, far)")
            body(f"plain = tl.where(tl.abs({argument}) < {NEAR}, {argument} * series, far)")
            formulas = {"value": "plain", "slope": "(1.0 - plain * plain)", "bend": "-2.0 * plain * slope"}
            scale = TANH_SCALE
        else:
            body(f"small = tl.exp(-tl.abs({argument}))")
            body("share = 1.0 / (1.0 + small)")
            body("rest = small * share")
            body(f"logistic = tl.where({argument} < 0.0, rest, share)")
            body(f"other = tl.where({argument} < 0.0, share, rest)")
            formulas = {
                "value": f"{argument} * logistic",
                "slope": f"logistic + {argument} * logistic * other",
                "bend": f"logistic * other * (2.0 + {argument} * (other - logistic))",
            }
            scale = SILU_SCALE
        for name in tuple(formulas)[: order + 1]:
            # the second derivative of tanh is made from the first, which is scaled already
            factor = "" if odd and name == "bend" else f"{scale!r} * "
            body(f"{name} = {factor}({formulas[name]})")


class _Forward(_Rows):
    NAME, ARRAYS = "gate", {"x": True, "out": False}

    def scalar(self, start_in: int, start_out: int, odd: bool) -> None:
        self.load("argument", "x", start_in)
        self.activate("argument", odd, 0)
        self.store("value", "out", start_out)

    def gated(self, gates: int, components: list[tuple[int, int]]) -> None:
        self.load("argument", "x", gates)
        self.activate("argument", False, 0)
        for place_in, place_out in components:
            self.load("component", "x", place_in)
            self.store("value * component", "out", place_out)


class _Backward(_Rows):
    NAME, ARRAYS = "gate_backward", {"x": True, "g": False, "out": True}

    def scalar(self, start_in: int, start_out: int, odd: bool) -> None:
        self.load("argument", "x", start_in)
        self.activate("argument", odd, 1)
        self.load("gradient", "g", start_out)
        self.store("slope * gradient", "out", start_in)

    def gated(self, gates: int, components: list[tuple[int, int]]) -> None:
        self.load("argument", "x", gates)
        self.activate("argument", False, 1)
        self.body("total = 0.0 * argument")
        for place_in, place_out in components:
            self.load("component", "x", place_in)
            self.load("gradient", "g", place_out)
            self.body("total += component * gradient")
            self.store("value * gradient", "out", place_in)
        self.store("slope * total", "out", gates)


class _DoubleBackward(_Rows):
    NAME, ARRAYS = "gate_double_backward", {"x": True, "g": False, "v": True, "by_x": True, "by_g": False}

    def scalar(self, start_in: int, start_out: int, odd: bool) -> None:
        self.load("argument", "x", start_in)
        self.activate("argument", odd, 2)
        self.load("gradient", "g", start_out)
        self.load("change", "v", start_in)
        self.store("bend * gradient * change", "by_x", start_in)
        self.store("slope * change", "by_g", start_out)

    def gated(self, gates: int, components: list[tuple[int, int]]) -> None:
        self.load("argument", "x", gates)
        self.load("turned", "v", gates)
        self.activate("argument", False, 2)
        self.body("along = 0.0 * argument")
        self.body("across = 0.0 * argument")
        for place_in, place_out in components:
            self.load("component", "x", place_in)
            self.load("gradient", "g", place_out)
            self.load("change", "v", place_in)
            self.body("along += component * gradient")
            self.body("across += change * gradient")
            self.store("slope * turned * gradient", "by_x", place_in)
            self.store("slope * turned * component + value * change", "by_g", place_out)
        self.store("bend * turned * along + slope * across", "by_x", gates)
