"""The edge basis for GPUs: a Triton kernel that does the formulas for a block of edges, one a lane, in float64."""

from functools import cache

import torch
import triton
from torch import Tensor

from ..triton_source import FLOAT, Operations, Source
from . import formulas
from .formulas import Basis

BLOCK = 128


def forward(vectors: Tensor, roots: Tensor, basis: Basis, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See ``op.edge_basis``."""
    angular = vectors.new_empty(vectors.shape[0], basis.num_harmonics, dtype=dtype)
    radial = vectors.new_empty(vectors.shape[0], basis.num_bessels, dtype=dtype)
    _run("forward", basis, dtype, [vectors, roots, angular, radial])
    return angular, radial


def backward(vectors: Tensor, roots: Tensor, g_angular: Tensor, g_radial: Tensor, basis: Basis) -> Tensor:
    """See ``op.edge_basis_backward``."""
    gradient = torch.empty_like(vectors)
    _run("backward", basis, g_angular.dtype, [vectors, roots, g_angular, g_radial, gradient])
    return gradient


def double_backward(vectors, roots, g_angular, g_radial, h, basis: Basis) -> tuple[Tensor, Tensor, Tensor]:
    """See ``op.edge_basis_double_backward``."""
    outputs = [torch.empty_like(tensor) for tensor in (g_angular, g_radial, vectors)]
    _run("double_backward", basis, g_angular.dtype, [vectors, roots, g_angular, g_radial, h, *outputs])
    return tuple(outputs)


def _run(name: str, basis: Basis, dtype: torch.dtype, tensors: list[Tensor]) -> None:
    num_edges = tensors[0].shape[0]
    if num_edges:
        grid = (triton.cdiv(num_edges, BLOCK),)
        edge_basis_kernel(name, basis, dtype)[grid](
            *tensors, num_edges, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=True
        )


@cache
def edge_basis_kernel(name: str, basis: Basis, dtype: torch.dtype):
    """One of the functions of ``formulas`` as a kernel; ``dtype`` is that of Y, R and their gradients."""
    vector = ("vectors", 3, torch.float64)
    angular, radial = ("angular", basis.num_harmonics, dtype), ("radial", basis.num_bessels, dtype)
    arguments, results = {
        "forward": ([vector], [angular, radial]),
        "backward": ([vector, angular, radial], [vector]),
        "double_backward": ([vector, angular, radial, ("h", 3, torch.float64)], [angular, radial, vector]),
    }[name]
    parameters = [argument for argument, _, _ in arguments]
    outputs = [f"d_{result}" for result, _, _ in results]
    body = Source(
        f"edge_basis_{name}", [*parameters[:1], "roots", *parameters[1:], *outputs, "num_edges", "BLOCK: tl.constexpr"]
    )
    body("e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)")
    body("inside = e < num_edges")
    ops = Operations(body)
    columns = [
        [ops.named(f"tl.load({argument} + e * {width} + {k}, mask=inside, other=1.0).to(tl.float64)")
         for k in range(width)]
        for argument, width, _ in arguments
    ]  # fmt: skip
    bessel = [ops.named(f"tl.load(roots + {m})") for m in range(basis.num_bessels)]
    values = getattr(formulas, name)(columns[0], bessel, *columns[1:], basis, ops)
    for output, (_, width, kind), value in zip(
        outputs, results, [values] if len(results) == 1 else values, strict=True
    ):
        for k in range(width):
            body(f"tl.store({output} + e * {width} + {k}, ({value[k].name}).to({FLOAT[kind]}), mask=inside)")
    return body.kernel(do_not_specialize=["num_edges"])
