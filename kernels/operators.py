"""PyTorch operators made of Python functions.

They are what ``torch.library.custom_op`` makes, but for its first call: that imports PyTorch's compiler, which takes a
second. Here it is left alone until something else has imported it.
"""

import sys
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
    """

    def __init__(self, name: str, function: Callable):
        self.name, self._function, self._untraced, self._derivative, self._setup = name, function, None, None, None
        library.define(name, library.infer_schema(function, mutates_args=()), tags=[torch.Tag.pt2_compliant_tag])
        namespace, short = name.split("::")
        self.overload = getattr(getattr(torch.ops, namespace), short).default
        library.impl(name, "default", self._run)
        library.register_autograd(name, self._differentiate, setup_context=self._prepare)

    def __call__(self, *arguments):
        return self.overload(*arguments)

    def register_fake(self, function: Callable) -> Callable:
        """Say by a function of the same arguments what the results look like; a decorator."""
        library.register_fake(self.name, function)
        return function

    def register_autograd(self, derivative: Callable, setup_context: Callable) -> None:
        """Make the operator differentiable; see ``torch.library.register_autograd``."""
        self._derivative, self._setup = derivative, setup_context

    def _run(self, *arguments):
        if "torch._dynamo" not in sys.modules:
            return self._function(*arguments)
        if self._untraced is None:  # or code around the operator that is being compiled would drag the kernel in
            self._untraced = torch.compiler.disable(self._function)
        return self._untraced(*arguments)

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
