"""Convolution of a mesh with an even function given by its Fourier transform, with derivatives that waste no transform.

With the transform G (n1, n2, n3 // 2 + 1), real, and n = n1 n2 n3, the trilinear form of two meshes and G is

    T(a, b, G) = sum_k a[k] convolve(b, G)[k] = (1 / n) sum_k G(k) Re[conj(A(k)) B(k)],      A = rfftn(a), B = rfftn(b),

symmetric in a and b. Its derivatives are convolutions and ``products``, whose own derivatives are these two again. (The
derivatives that PyTorch knows of ``rfftn`` go by a complex transform of the full space.)
"""

import torch
from torch import Tensor

from .. import freed_memory
from ..cores import torch_on_all_threads


def convolve(a: Tensor, g: Tensor) -> Tensor:
    """irfftn(G rfftn(a)), (n1, n2, n3)."""
    return _Convolve.apply(a, g)


def form(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """T(a, b, G); if a is b, with one transform, and one back if a's derivative will be asked for."""
    return _Square.apply(a, g) if a is b else (a * convolve(b, g)).sum()


def transform(mesh: Tensor) -> Tensor:
    """rfftn(mesh)."""
    if mesh.device.type == "cpu" and mesh.numel() * mesh.element_size() > freed_memory.GIVEN_BACK:
        freed_memory.keep()
    with torch_on_all_threads():
        return torch.fft.rfftn(mesh)


def filtered(transformed: Tensor, g: Tensor, dims: tuple[int, ...]) -> Tensor:
    """irfftn(G transformed); overwrites ``transformed``."""
    # a real factor of real and imaginary parts: PyTorch would convert G to complex numbers first
    torch.view_as_real(transformed).mul_(g[..., None])
    with torch_on_all_threads():
        return torch.fft.irfftn(transformed, s=dims)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, g):
        ctx.save_for_backward(a, g)
        return filtered(transform(a), g, a.shape)

    @staticmethod
    def backward(ctx, gradient):
        a, g = ctx.saved_tensors
        return (
            convolve(gradient, g) if ctx.needs_input_grad[0] else None,
            _Products.apply(gradient, a) if ctx.needs_input_grad[1] else None,
        )


class _Products(torch.autograd.Function):
    """dT/dG (n1, n2, n3 // 2 + 1): Re[conj(A) B] / n, twice where k stands for -k, too."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        first = transform(a)
        second = first if b is a else transform(b)
        return _products(first, second, a.shape)

    @staticmethod
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        # to vary dT/dG along a direction is T with that direction for G
        return (
            convolve(b, gradient) if ctx.needs_input_grad[0] else None,
            convolve(a, gradient) if ctx.needs_input_grad[1] else None,
        )


class _Square(torch.autograd.Function):
    """T(a, a, G), which keeps what its derivatives need anyway."""

    @staticmethod
    def forward(ctx, a, g):
        transformed = transform(a)
        products = _products(transformed, transformed, a.shape)
        ctx.save_for_backward(a, g)
        ctx.potential = filtered(transformed, g, a.shape) if ctx.needs_input_grad[0] else None
        ctx.products = products if ctx.needs_input_grad[1] else None
        return (products * g).sum()

    @staticmethod
    def backward(ctx, gradient):
        a, g = ctx.saved_tensors
        twice = torch.is_grad_enabled()  # derivatives of the derivatives will be asked for
        da = dg = None
        if ctx.needs_input_grad[0]:
            da = 2.0 * gradient * (convolve(a, g) if twice else ctx.potential)
        if ctx.needs_input_grad[1]:
            dg = gradient * (_Products.apply(a, a) if twice else ctx.products)
        return da, dg


def _products(first: Tensor, second: Tensor, dims: tuple[int, ...]) -> Tensor:
    out = (torch.view_as_real(first) * torch.view_as_real(second)).sum(dim=-1)
    out *= 2.0 / dims.numel()
    out[..., 0] *= 0.5
    if dims[2] % 2 == 0:
        out[..., -1] *= 0.5
    return out
