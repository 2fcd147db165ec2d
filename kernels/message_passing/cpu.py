"""Machine code of the layer kernels for this CPU."""

from functools import cache
from importlib import import_module

from ..irreps_linear.layout import Layout
from ..native import compiled
from .shape import LayerShape

# name -> module, class, and what makes its first argument from text
_KERNELS = {
    "layer_forward": ("cpu_forward", "Forward", LayerShape.from_key),
    "layer_backward": ("cpu_backward", "Backward", LayerShape.from_key),
    "mix": ("cpu_collect", "Mix", Layout.from_key),
    "collect": ("cpu_collect", "Collect", Layout.from_key),
    "edges": ("cpu_edges", "Edges", int),
    "edge_forces": ("cpu_edges", "Forces", int),
}


@cache
def kernel(name: str, key: str, bits: int):
    """The machine code of a kernel; what writes its assembly is imported only if it is not on disk.

    Args:
        name: of the kernel, which its class has as ``NAME``.
        key: of a ``LayerShape``, of the ``Layout`` of a linear map, or the largest degree of the harmonics, as text.
        bits: of the model's float type.
    """
    module, kind, parsed = _KERNELS[name]

    def source() -> str:
        return getattr(import_module(f".{module}", __package__), kind)(parsed(key), bits).source()

    return compiled(name, f"{key} {bits}", source)
