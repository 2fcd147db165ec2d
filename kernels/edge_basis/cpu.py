"""The edge basis for CPUs: LLVM assembly that does the formulas for several edges at once, one a lane, in float64."""

from functools import cache

import torch
from llvmlite import ir
from torch import Tensor

from .. import llvm
from ..llvm import Emitter, Lanes, Operations
from ..native import compiled, launch
from . import formulas
from .formulas import Basis


def forward(vectors: Tensor, roots: Tensor, basis: Basis, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See ``op.edge_basis``."""
    shape = vectors.shape[0]
    angular = vectors.new_empty(shape, basis.num_harmonics, dtype=dtype)
    radial = vectors.new_empty(shape, basis.num_bessels, dtype=dtype)
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
    launch(_kernel(name, basis, dtype), tensors, tensors[0].shape[0])


@cache
def _kernel(name: str, basis: Basis, dtype: torch.dtype):
    narrow = dtype == torch.float32
    return compiled(f"edge_basis_{name}", f"{basis} {dtype}", lambda: _Kernel(name, basis, narrow).source())


class _Kernel(Emitter):
    """One of the functions of ``formulas`` over a range of edges. The last lanes may do the last edge again."""

    # columns of each argument and each result; those marked True are in the model's float type
    def __init__(self, name: str, basis: Basis, narrow: bool):
        vector, angular, radial = (3, False), (basis.num_harmonics, narrow), (basis.num_bessels, narrow)
        arguments, results = {
            "forward": ([vector], [angular, radial]),
            "backward": ([vector, angular, radial], [vector]),
            "double_backward": ([vector, angular, radial, vector], [angular, radial, vector]),
        }[name]
        super().__init__(f"edge_basis_{name}", 64, 1 + len(arguments) + len(results))
        vectors, roots, *others = self.tensors
        inputs, outputs = [vectors, *others[: len(arguments) - 1]], others[len(arguments) - 1 :]
        final = self.add(self.end, -1)
        with self.loop(self.begin, self.end, self.lanes) as first:
            self.rows = [self.minimum(self.add(first, lane), final) for lane in range(self.lanes)]
            v, *g = [self.load_rows(pointer, *kind) for pointer, kind in zip(inputs, arguments, strict=True)]
            bessel = [Lanes(self, self.broadcast(roots, m, self.lanes)) for m in range(basis.num_bessels)]
            values = getattr(formulas, name)(v, bessel, *g, basis, Operations(self))
            for pointer, kind, columns in zip(outputs, results, [values] if len(results) == 1 else values, strict=True):
                self.store_rows(columns, pointer, *kind)

    def load_rows(self, pointer, columns: int, narrow: bool) -> list[Lanes]:
        """The columns of several rows, each a vector."""
        kind = ir.FloatType() if narrow else self.float
        result = []
        for column in range(columns):
            value = ir.Constant(self.vector(self.lanes), ir.Undefined)
            for lane, row in enumerate(self.rows):
                scalar = self.builder.load(self.at(pointer, self.add(self.mul(row, columns), column), kind), typ=kind)
                scalar = self.builder.fpext(scalar, self.float) if narrow else scalar
                value = self.builder.insert_element(value, scalar, llvm.I32(lane))
            result.append(Lanes(self, value))
        return result

    def store_rows(self, values: list[Lanes], pointer, columns: int, narrow: bool) -> None:
        kind = ir.FloatType() if narrow else self.float
        for column, value in enumerate(values):
            for lane, row in enumerate(self.rows):
                scalar = self.builder.extract_element(value.value, llvm.I32(lane))
                scalar = self.builder.fptrunc(scalar, kind) if narrow else scalar
                self.builder.store(scalar, self.at(pointer, self.add(self.mul(row, columns), column), kind))
