"""Structures to files, with results: extended XYZ."""

import os
import re
import warnings
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict, write_extxyz

from fastlr.errors import InputError
from fastlr.files import check_writable

# Names that mean something else in the format, in whatever case.
KEYS_OF_FORMAT = re.compile(r"(?i)lattice|properties|pbc")
NAME_OF_COLUMN = re.compile(r"[^\s:=,\"'\\{}\[\]]+")
# What files carry of a calculator's results.
FILE_RESULTS = ("energy", "forces", "stress", "charges", "dipole")


def check_output(path: str | Path, **options) -> Path:
    """Check the path of an extended XYZ file for writing, and return it.

    Args:
        path: where to write.
        options: see ``fastlr.files.check_writable``.

    Raises:
        InputError: it cannot be written, or the name is that of another format.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"the output must be the name of a file, got {path!r:.80}")
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


def extxyz(frame: Atoms, on_note: Callable[[str], None] = warnings.warn) -> str:
    """A structure, with the results of its calculator, as the text of one extended XYZ frame.

    What the format has no way to say, or would say such that the next key is lost (an empty text, a line break, a
    backslash), is left out, and ``on_note`` is told.
    """
    written, left = frame.copy(), []
    written.calc = frame.calc
    for key, value in frame.info.items():
        value = _plain_charges(value) if key == "fragment_charge" else value
        if value is None or not _comes_back(key, value):
            del written.info[key]
            left += [f"info[{key!r}]"] if value is not None else []
        else:
            written.info[key] = value
    for name, array in frame.arrays.items():
        if array.dtype.kind == "u" and array.max(initial=0) < 2**63:
            written.set_array(name, None)
            written.set_array(name, array.astype(np.int64))
        elif name not in ("numbers", "positions") and not _is_column(name, array):
            written.set_array(name, None)
            left.append(f"arrays[{name!r}]")
    left += {f"a {type(c).__name__}" for c in frame.constraints if not isinstance(c, FixAtoms | FixCartesian)}
    if left:
        on_note(f"extended XYZ cannot hold {', '.join(left)}: left out of what is written")
    text = StringIO()
    write_extxyz(text, written)
    return text.getvalue()


def _plain_charges(value: Any) -> Any:
    """Charges of fragments as a list in the order of their numbers; the keys of a dictionary would become texts."""
    if not isinstance(value, dict):
        return value
    return [value[key] for key in sorted(value, key=int)]


def _comes_back(key: Any, value: Any) -> bool:
    """Whether an entry of ``info`` is read again under its key and without harm to the next."""
    if not isinstance(key, str) or KEYS_OF_FORMAT.fullmatch(key):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what ASE skips does not come back
            text = key_val_dict_to_str({key: value, "next": 1})
        text.encode()
        return len(text.splitlines()) == 1 and list(key_val_str_to_dict(text)) == [key, "next"]
    except Exception:  # ASE's writer and reader raise whatever they stumble over
        return False


def _is_column(name: str, array: np.ndarray) -> bool:
    """Whether an array of atoms can be columns of a text."""
    if not NAME_OF_COLUMN.fullmatch(name) or name in ("species", "pos", "Z", "charge"):
        return False
    if array.dtype.kind not in "ifbOSU" or array.ndim > 2:
        return False
    return array.dtype.kind in "ifb" or all(len(str(value).split()) == 1 for value in array.reshape(-1))
