"""Predictions for many structures, one at a time into a file."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ase import Atoms

from fastlr.errors import FastlrError
from fastlr.interop.ase import ase_results
from fastlr.kernels.files import replacing
from fastlr.potential import Potential
from fastlr.total_charge import total_charge

from .structures import extxyz, with_results


def predict_structures(
    potential: Potential,
    structures: Sequence[Atoms],
    charge: float | None = None,
    *,
    source: str | Path = "input",
    on_done: Callable[[int], None] = lambda done: None,
) -> Iterator[Atoms]:
    """Copies of structures that carry what the potential predicts, as batches finish.

    Args:
        potential: the model.
        structures: what to evaluate.
        charge: total charge in e of those that do not state theirs.
        source: what errors call the place the structures come from.
        on_done: called with the number done after each.

    Raises:
        FastlrError: see ``Potential.predict``; the message starts with ``source``.
    """
    predictions = potential.iter_predict(structures, charge)
    try:
        for k, (atoms, prediction) in enumerate(zip(structures, predictions, strict=True)):
            total = prediction.total_charge
            total = total_charge(atoms, charge, k) if total is None else total
            frame = with_results(atoms, ase_results(prediction), total)
            if prediction.electronegativities is not None:
                frame.arrays["electronegativities"] = prediction.electronegativities
            yield frame
            on_done(k + 1)
    except FastlrError as error:
        raise type(error)(f"{source}: {error}") from error


def write_predictions(path: str | Path, frames: Iterable[Atoms]) -> None:
    """Frames to an extended XYZ file, which appears when it is complete."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for frame in frames:
            file.write(extxyz(frame))
