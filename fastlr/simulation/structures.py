"""Structures from files and to files: any format ASE reads in, extended XYZ out."""

import os
from io import StringIO
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz

from fastlr.compression import uncompressed
from fastlr.errors import InputError

# What files carry of a calculator's results.
FILE_RESULTS = ("energy", "forces", "stress", "charges", "dipole")


def read_structures(path: str | Path, index: str = ":") -> list[Atoms]:
    """Structures of a file that ASE can read.

    Args:
        path: the file; its format is found out from name and content.
        index: which of them, as Python would write it: "0", "-1", ":", "10:20:2".

    Raises:
        InputError: there is no such file, it cannot be read, or nothing is selected.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path}: is a folder")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    selection = _parse_index(index)
    try:
        # "@" may stand in a file name: the index is given here
        with uncompressed(path) as plain:
            found = ase.io.read(plain, index=selection, do_not_split_by_at_sign=True)
    except (IndexError, StopIteration):
        found = []
    except Exception as error:  # ASE's readers raise whatever their parsing trips over
        reason = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {reason[0]}" if reason else type(error).__name__
        raise InputError(f"{path}: cannot be read as a file of structures ({reason})") from None
    structures = [found] if isinstance(found, Atoms) else list(found)
    if not structures:
        raise InputError(f"{path}: " + ("holds no structure" if index == ":" else f"has no structure {index}"))
    return structures


def read_structure(path: str | Path, index: str = "-1") -> Atoms:
    """One structure of a file, by default the last; see ``read_structures``."""
    structures = read_structures(path, index)
    if len(structures) > 1:
        raise InputError(f"{path}: index '{index}' selects {len(structures)} structures, but one is needed")
    return structures[0]


def _parse_index(text: str) -> int | slice:
    try:
        parts = [int(part) if part.strip() else None for part in text.split(":")]
        return slice(*parts) if ":" in text else int(text)
    except (ValueError, TypeError):
        raise InputError(f"index must be a number or start:stop:step, got '{text}'") from None


def check_output(path: str | Path) -> Path:
    """The path of an extended XYZ file that can be written, found out before any work is done.

    Raises:
        InputError: its folder does not exist or cannot be written to, or the name is that of another format.
    """
    path = Path(path)
    if path.suffix not in (".extxyz", ".xyz"):
        raise InputError(f"{path}: the output is extended XYZ; give it a name that ends in .extxyz or .xyz")
    if path.is_dir():
        raise InputError(f"{path}: is a folder")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: no permission to write to the folder {path.parent}")
    return path


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
