"""Machine code for this CPU: LLVM modules are compiled once, cached on disk, and run over ranges on several threads.

Kernels are functions ``void kernel(int64 *arguments, int64 begin, int64 end)`` that work on rows begin ... end - 1.
The compiler is llvmlite, the one that numba uses.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache

import llvmlite.binding as llvm
import numpy as np
import torch

from . import cores, jit
from .forks import wait_before_forks
from .threads import BARRIER, barrier_address, run_parallel, run_together

_SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_lock = threading.Lock()
wait_before_forks(_lock)
_addresses: dict[str, int] = {}  # of functions, by symbol


@lru_cache(None)
def vector_bytes() -> int:
    """Width of the widest vector registers."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64
    return 32 if features.get("avx2") else 16


def compiled(name: str, recipe: str, source: Callable[[], str]):
    """Machine code of the function ``name`` in LLVM assembly, callable with (arguments, begin, end).

    Args:
        recipe: text that determines the assembly. The code is kept under its stamp, so that a second process need not
            even write the assembly.
        source: writes the assembly.
    """
    symbol = jit.stamped(name, recipe)
    with _lock:
        if symbol not in _addresses:
            renamed, imports = lambda: source().replace(f'@"{name}"', f'@"{symbol}"'), {BARRIER: barrier_address()}
            _addresses[symbol] = jit.cached(symbol, renamed, [symbol], imports)[0]
    return _SIGNATURE(_addresses[symbol])


@lru_cache(None)
def machine_code(kernel, dtype: torch.dtype, *options: int):
    """Of an ``Emitter`` with a NAME that is made from the bits of a float, and whole numbers."""
    bits = torch.finfo(dtype).bits
    return compiled(kernel.NAME, f"{bits} {options}", lambda: kernel(bits, *options).source())


def launch(kernel, tensors: list[torch.Tensor], rows: torch.Tensor | int, minimum_work: int = 256) -> None:
    """Run ``kernel`` over all rows, shared out among the threads there are (``threads.count``).

    Args:
        tensors: what the kernel works on.
        rows: the number of rows, or row pointers (CSR), whose entries are then shared out evenly.
        minimum_work: rows and entries that are worth a thread.
    """
    Call(kernel, tensors)(shares(rows, minimum_work))


def shares(rows: torch.Tensor | int, minimum_work: int = 256) -> np.ndarray:
    """Where the share of each thread begins, and where the last ends; arguments as of ``launch``."""
    num_rows = rows if isinstance(rows, int) else rows.shape[0] - 1
    number = min(cores.count(), num_rows)
    if number > 1:
        load = None if isinstance(rows, int) else rows.numpy() + np.arange(num_rows + 1)
        work = num_rows if load is None else int(load[-1])
        number = min(number, max(1, work // minimum_work))
    if number <= 1:
        return np.array([0, num_rows])
    even = work * np.arange(number + 1) // number
    bounds = even if load is None else np.searchsorted(load, even)
    return bounds.astype(np.int64)


class Call:
    """A kernel with its tensors, to be run again and again.

    Args:
        kernel: machine code.
        tensors: what it works on, contiguous. They are kept alive.
    """

    def __init__(self, kernel, tensors: Sequence[torch.Tensor]):
        self.kernel, self.tensors = kernel, list(tensors)
        self.arguments = np.array([tensor.data_ptr() for tensor in self.tensors], dtype=np.int64)
        self.pointer = self.arguments.ctypes.data

    def set(self, number: int, tensor: torch.Tensor) -> None:
        """Work on another tensor."""
        self.tensors[number] = tensor
        self.arguments[number] = tensor.data_ptr()

    def __call__(self, bounds: np.ndarray) -> None:
        """Rows bounds[k] ... bounds[k + 1] - 1 for each k, one share after the other by each thread that has time."""
        if len(bounds) == 2:
            self.kernel(self.pointer, int(bounds[0]), int(bounds[1]))
        else:
            run_parallel(self.kernel, self.pointer, bounds)

    def together(self, members: int) -> None:
        """On several threads that wait for each other."""
        run_together(self.kernel, self.pointer, members)
