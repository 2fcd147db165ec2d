"""Settings of PyTorch and NumPy that hold while fastlr computes, whatever the caller's are: these come back afterwards.

Numbers must not depend on what surrounds a call: autocast would compute in half precision, a default device would put
tensors elsewhere, inference mode would forbid the derivatives that forces are. Deterministic mode is left as it is: on
CPUs all results are the same from run to run, and on GPUs it is the caller who decides.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, local
from typing import TypeVar

import numpy as np
import torch

ARITHMETIC = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}  # NumPy's own
DEVICE_TYPES = ("cpu", "cuda")  # on which autocast may be on

T = TypeVar("T")


class _Inside(local):
    """Of this thread: 0 outside, 1 with standard settings, 2 with recorded gradients, too."""

    level = 0


_inside = _Inside()


def each_with_standard_settings(values: Iterator[T]) -> Iterator[T]:
    """Compute each value of an iterator under ``standard_settings``; in between, the caller's settings hold."""
    while True:
        with standard_settings():
            try:
                value = next(values)
            except StopIteration:
                return
        yield value


@contextmanager
def standard_settings(gradients: bool = True) -> Iterator[None]:
    """No autocast, float32 as default, the CPU as default device, full precision of float32, NumPy's arithmetic, and
    with ``gradients`` recorded gradients, which inference mode and ``no_grad`` forbid.

    It is a decorator of functions, too, but not of generators.
    """
    before, level = _inside.level, 2 if gradients else 1
    if before >= level:
        yield
        return
    _inside.level = level
    _process.enter()
    try:
        if _are_standard(gradients):
            yield
        else:
            with ExitStack() as stack:
                _settle(stack, gradients)
                yield
    finally:
        _process.leave()
        _inside.level = before


def _are_standard(gradients: bool) -> bool:
    """Whether the settings of this thread are."""
    return (
        torch.empty(0).device.type == "cpu"  # which tells the default device quickest
        and not any(torch.is_autocast_enabled(device) for device in DEVICE_TYPES)
        and (not gradients or (torch.is_grad_enabled() and not torch.is_inference_mode_enabled()))
        and np.geterr() == ARITHMETIC
    )


def _settle(stack: ExitStack, gradients: bool) -> None:
    for device in DEVICE_TYPES:
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    if gradients:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
    stack.enter_context(torch.device("cpu"))
    stack.enter_context(np.errstate(**ARITHMETIC))


class _Process:
    """Settings of the whole process: changed by the first thread to enter, and undone by the last to leave."""

    def __init__(self):
        self.lock, self.users, self.undo = Lock(), 0, ExitStack()

    def enter(self) -> None:
        with self.lock:
            self.users += 1
            if self.users > 1:
                return
            if torch.get_default_dtype() != torch.float32:
                self.undo.callback(torch.set_default_dtype, torch.get_default_dtype())
                torch.set_default_dtype(torch.float32)
            _multiply_in_full(self.undo)

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                self.undo.close()


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.__init__)  # without the other threads


def _multiply_in_full(stack: ExitStack) -> None:
    """Have float32 matrices multiplied in float32 until ``stack`` is left."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        precision = None
    if precision is not None:
        if precision != "highest":
            stack.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision("highest")
        return
    # the caller has used the finer settings of PyTorch 2.9, which the one above does not go together with
    backends = torch.backends
    for place in (backends, backends.mkldnn, backends.cuda.matmul, backends.mkldnn.matmul):
        if place.fp32_precision not in ("none", "ieee"):
            stack.callback(setattr, place, "fp32_precision", place.fp32_precision)
            place.fp32_precision = "ieee"
