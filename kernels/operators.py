"""PyTorch operators made of Python functions.

They are what PyTorch's own ``custom_op`` makes, but for its first call, which imports PyTorch's compiler; that takes a
second.
"""

from collections.abc import Callable

import torch
from torch import library


class Operator:
    """A function as an operator, opaque to tracing; call it like the function.

    Args:
        name: ``namespace::name``.
        function: the kernel for all devices; it changes no argument and returns none of them. Types must be annotated.

    Attributes:
        overload: the operator as PyTorch knows it.
        function: what was given, which saves 0.05 ms where nothing is differentiated or traced.
    """

    def __init__(self, name: str, function: Callable):
        self.name, self.function, self._derivative, self._setup = name, function, None, None
        library.define(name, library.infer_schema(function, mutates_args=()), tags=[torch.Tag.pt2_compliant_tag])
        namespace, short = name.split("::")
        self.overload = getattr(getattr(torch.ops, namespace), short).default
        library.impl(name, "default", function)
        library.register_autograd(name, self._differentiate, setup_context=self._prepare)

    def __call__(self, *arguments):
        return self.overload(*arguments)

    def register_fake(self, function: Callable, by_device: bool = False) -> Callable:
        """Say by a function of the same arguments what the results look like; a decorator.

        Args:
            function: given tensors without data.
            by_device: whether results differ from device to device, and the function has to be told which.
        """
        if by_device:  # which takes longer: PyTorch goes through all modules to find where the function is written
            library.register_fake(self.name, function)
        else:
            library.impl(self.name, "Meta", function)
        return function

    def register_autograd(self, derivative: Callable, setup_context: Callable) -> None:
        """Make the operator differentiable; arguments as of PyTorch's function of this name."""
        self._derivative, self._setup = derivative, setup_context

    def _prepare(self, ctx, inputs, output) -> None:
        if self._setup is not None:
            self._setup(ctx, inputs, output)

    def _differentiate(self, ctx, *gradients):
        if self._derivative is None:
            raise NotImplementedError(f"{self.name} has no derivative")
        return self._derivative(ctx, *gradients)


def operator(name: str) -> Callable[[Callable], Operator]:
    """Decorator: the function as an ``Operator``."""
    return lambda function: Operator(name, function)
