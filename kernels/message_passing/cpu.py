"""Machine code of the layer kernels for this CPU."""

from functools import cache

from ..irreps_linear.layout import Layout
from ..native import compiled
from .shape import LayerShape


@cache
def layer_forward(shape: str, bits: int):
    """See ``cpu_forward.Forward``; ``shape`` is the key of a ``LayerShape``."""
    from .cpu_forward import Forward

    return compiled(Forward.NAME, f"{shape} {bits}", lambda: Forward(LayerShape.from_key(shape), bits).source())


@cache
def layer_backward(shape: str, bits: int):
    """See ``cpu_backward.Backward``; ``shape`` is the key of a ``LayerShape``."""
    from .cpu_backward import Backward

    return compiled(Backward.NAME, f"{shape} {bits}", lambda: Backward(LayerShape.from_key(shape), bits).source())


@cache
def mix(layout: str, bits: int):
    """See ``cpu_collect.Mix``; ``layout`` is the key of a ``Layout``."""
    from .cpu_collect import Mix

    return compiled(Mix.NAME, f"{layout} {bits}", lambda: Mix(Layout.from_key(layout), bits).source())


@cache
def collect(layout: str, bits: int):
    """See ``cpu_collect.Collect``; ``layout`` is the key of a ``Layout``."""
    from .cpu_collect import Collect

    return compiled(Collect.NAME, f"{layout} {bits}", lambda: Collect(Layout.from_key(layout), bits).source())


@cache
def edges(l_max: int, bits: int):
    """See ``cpu_edges.Edges``."""
    from .cpu_edges import Edges

    return compiled(Edges.NAME, f"{l_max} {bits}", lambda: Edges(l_max, bits).source())


@cache
def edge_forces(l_max: int, bits: int):
    """See ``cpu_edges.Forces``."""
    from .cpu_edges import Forces

    return compiled(Forces.NAME, f"{l_max} {bits}", lambda: Forces(l_max, bits).source())
