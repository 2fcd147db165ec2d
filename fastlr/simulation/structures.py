"""Structures to files, with results: extended XYZ."""

from io import StringIO
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz

from fastlr.errors import InputError
from fastlr.files import check_writable

# What files carry of a calculator's results.
FILE_RESULTS = ("energy", "forces", "stress", "charges", "dipole")


def check_output(path: str | Path, **options) -> Path:
    """The path of an extended XYZ file that can be written.

    Args:
        path: where to write.
        options: see ``fastlr.files.check_writable``.

    Raises:
        InputError: it cannot be written, or the name is that of another format.
    """
    path = Path(path)
    if path.suffix not in (".extxyz", ".xyz"):
        raise InputError(f"{path}: the output is extended XYZ; give it a name that ends in .extxyz or .xyz")
    return check_writable(path, **options)


def with_results(atoms: Atoms, results: dict[str, Any], charge: float) -> Atoms:
    """A copy of a structure that carries results as a file should hold them, and its total charge in e: as "charge", or
    as "found_charge" where its chemical potential is given, so that it means the same when it is read.

    Results that the structure's file brought along are dropped: two energies in one frame would be read as one.
    """
    frame = atoms.copy()
    for name in all_properties:
        frame.info.pop(name, None)
        frame.arrays.pop(name, None)
    if frame.info.get("chemical_potential") is None:
        frame.info["charge"] = charge
    else:
        frame.info.pop("charge", None)
        frame.info["found_charge"] = charge
    frame.calc = SinglePointCalculator(frame, **{name: results[name] for name in FILE_RESULTS if name in results})
    return frame


def extxyz(frame: Atoms) -> str:
    """A structure, with the results of its calculator, as the text of one extended XYZ frame."""
    text = StringIO()
    write_extxyz(text, frame)
    return text.getvalue()
