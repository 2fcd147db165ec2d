"""Arguments and options that several commands share."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from fastlr.errors import FastlrError, InputError


def positive(value: float | list[float] | None) -> float | list[float] | None:
    """An option's value or values, if finite and larger than zero."""
    for number in value if isinstance(value, list) else [value]:
        if number is not None and not (isfinite(number) and number > 0):
            raise typer.BadParameter(f"must be a positive number, got {number:g}")
    return value


def not_negative(value: float) -> float:
    """An option's value, if finite and not negative."""
    if not (isfinite(value) and value >= 0):
        raise typer.BadParameter(f"must be a finite number, not negative, got {value:g}")
    return value


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Bundled model (see 'fastlr info') or .safetensors file.")
]
InputArgument = Annotated[
    Path,
    typer.Argument(metavar="INPUT", help="Structures in any format that ASE reads; - for stdin.", show_default=False),
]
ChargeOption = Annotated[
    str | None,
    typer.Option(metavar="Q", help="Total charge in e; a charge in the input file wins (default: 0)."),
]
FrameOption = Annotated[
    str, typer.Option("--index", metavar="I", help="Which structure of the input to start from; -1 is the last.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output, if it exists; without this it is an error.")
]
BackendOption = Annotated[str, typer.Option(metavar="NAME", help="Kernels to use; see 'fastlr doctor'.")]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")]
DtypeOption = Annotated[
    str | None, typer.Option(metavar="TYPE", help="float32 or float64 (default: as the model was saved).")
]
MemoryOption = Annotated[
    float | None,
    typer.Option(metavar="GIB", help="Memory that one evaluation may use (default: 60% of what is free)."),
]


def parse_charge(text: str | None) -> float | None:
    """A total charge as typed.

    Raises:
        InputError: it is not a finite number.
    """
    if text is None:
        return None
    try:
        charge = float(text) if "_" not in text else float("nan")
    except ValueError:
        charge = float("nan")
    if not isfinite(charge):
        raise InputError(f"charge must be a finite number, got '{text}'")
    return charge


def load_potential(model: str, backend: str, device: str, dtype: str | None, memory_budget: float | None):
    """``fastlr.load`` with options as typed."""
    import fastlr

    if memory_budget is not None and not memory_budget > 0:
        raise InputError(f"memory budget must be a positive number of GiB, got {memory_budget}")
    budget = None if memory_budget is None else memory_budget * 2**30
    return fastlr.load(model, backend=backend, device=device, dtype=dtype, memory_budget=budget)


@contextmanager
def naming(source: str | Path | None, index: str = "-1") -> Iterator[None]:
    """Have errors about a structure name the file that it was read from."""
    try:
        yield
    except FastlrError as error:
        if source is None or "structure 0" not in str(error):
            raise
        raise type(error)(f"{source} (index {index}): {error}") from error
