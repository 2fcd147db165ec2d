"""Implementations of the tensor-product convolution behind one interface."""

from abc import ABC, abstractmethod
from importlib.util import find_spec

import torch
from e3nn import o3
from fastlr.kernels.adjacency import Adjacency
from fastlr.kernels.tensor_product.program import Program
from torch import Tensor

from fastlr.backends import obstacle, resolve


class Contestant(ABC):
    """A convolution in its own layout; ``x_in`` and ``z_out`` translate, outside of what is timed."""

    name: str

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor, w: Tensor, edges: Adjacency) -> Tensor: ...

    def x_in(self, x: Tensor) -> Tensor:
        """Node features, or their gradients, from fastlr's layout to this one's."""
        return x

    def x_out(self, x: Tensor) -> Tensor:
        return x

    def z_in(self, z: Tensor) -> Tensor:
        return z

    def z_out(self, z: Tensor) -> Tensor:
        return z


class Backend(Contestant):
    """One of fastlr's own backends."""

    def __init__(self, backend: str, program: Program, device: str, dtype: torch.dtype):
        self.name = backend
        self.convolution = resolve(backend, device, dtype).tensor_product(program)

    def __call__(self, x, y, w, edges):
        return self.convolution(x, y, w, edges)


class E3nn(Contestant):
    """e3nn's TensorProduct on every edge, then index_add: what NequIP and MACE do without accelerators."""

    name = "e3nn"

    def __init__(self, program: Program, device: str, dtype: torch.dtype):
        self.program = program
        paths, instructions = [], []
        for path in program.paths:
            instructions.append((path.block1, path.block2, len(paths), "uvu", True))
            paths.append(f"{path.mul}x{program.irreps_out[path.block3].ir}")
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # the precision of e3nn's coefficients
        try:
            self.product = o3.TensorProduct(
                str(program.irreps_in), str(program.irreps_edge), "+".join(paths), instructions,
                shared_weights=False, internal_weights=False,
            ).to(device)  # fmt: skip
        finally:
            torch.set_default_dtype(default)
        self.to_e3nn_x = _channels_first([(p.start, p.stride, p.dim, mul) for p, mul in self._blocks_in()], device)
        z = [(c.target.start, c.target.stride, c.target.dim, c.mul) for c in program.contractions()]
        self.to_e3nn_z = _channels_first(z, device)

    def _blocks_in(self):
        from fastlr.kernels.tensor_product.program import Block

        for block, (mul, ir) in zip(self.program.irreps_in.slices(), self.program.irreps_in, strict=True):
            yield Block(block.start, mul, ir.dim), mul

    def __call__(self, x, y, w, edges):
        messages = self.product(x.index_select(0, edges.source), y, w)
        return messages.new_zeros(x.shape[0], messages.shape[1]).index_add(0, edges.destination, messages)

    def x_in(self, x):
        return x[:, self.to_e3nn_x]

    def x_out(self, x):
        return x[:, torch.argsort(self.to_e3nn_x)]

    def z_in(self, z):
        return z[:, self.to_e3nn_z]

    def z_out(self, z):
        return z[:, torch.argsort(self.to_e3nn_z)]


def _channels_first(blocks: list[tuple[int, int, int, int]], device: str) -> Tensor:
    """For each of e3nn's columns (channel, then component) the column of fastlr's layout."""
    columns = [start + m * stride + u for start, stride, dim, mul in blocks for u in range(mul) for m in range(dim)]
    return torch.tensor(columns, device=device)


class OpenEquivariance(Contestant):
    """OpenEquivariance's fused convolution (GPUs only), on edges sorted by destination."""

    name = "openequivariance"

    def __init__(self, program: Program, device: str, dtype: torch.dtype):
        import openequivariance as oeq

        self.layout = E3nn(program, device, dtype)
        product = self.layout.product
        problem = oeq.TPProblem(
            product.irreps_in1, product.irreps_in2, product.irreps_out,
            [(i.i_in1, i.i_in2, i.i_out, i.connection_mode, i.has_weight) for i in product.instructions],
            shared_weights=False, internal_weights=False,
        )  # fmt: skip
        self.convolution = oeq.TensorProductConv(problem, deterministic=False)

    def __call__(self, x, y, w, edges):
        return self.convolution(x, y, w, edges.destination, edges.source)

    def x_in(self, x):
        return self.layout.x_in(x)

    def x_out(self, x):
        return self.layout.x_out(x)

    def z_in(self, z):
        return self.layout.z_in(z)

    def z_out(self, z):
        return self.layout.z_out(z)


def contestants(program: Program, device: str, dtype: torch.dtype, wanted: list[str]) -> tuple[list, dict[str, str]]:
    """The implementations that can run here, and why the others cannot."""
    running, absent = [], {}
    for name in wanted:
        try:
            if name == "e3nn":
                running.append(E3nn(program, device, dtype))
            elif name == "openequivariance":
                if device != "cuda":
                    absent[name] = "runs on GPUs only"
                elif find_spec("openequivariance") is None:
                    absent[name] = "is not installed"
                else:
                    running.append(OpenEquivariance(program, device, dtype))
            elif reason := obstacle(name, device, dtype):
                absent[name] = reason
            else:
                running.append(Backend(name, program, device, dtype))
        except Exception as error:  # a peer that fails to build is reported, not hidden
            absent[name] = f"{type(error).__name__}: {error}"
    return running, absent
