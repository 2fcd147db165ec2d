"""Structures as ASE reads them, one mechanism for all commands and for training."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path

import ase.db
import ase.io
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype, get_ioformat

from fastlr.errors import InputError, structure_number
from fastlr.stated_names import INFO, meaning

from .charges import FORMATS, charges_of_pdb, stated_charge
from .names import guessed_elements
from .plain import plain_file
from .texts import CHECKS, COUNTS, GUESSED_FROM_NAMES, is_lammps_data, whole_gro
from .xyz import count_xyz_frames, is_word

# Formats of which ASE reads single frames without the others.
INDEXED = ("extxyz", "traj", "netcdftrajectory")


def read_structures(path: str | Path, index: str = ":") -> list[Atoms]:
    """Read structures of a file in any format of ASE.

    What ASE's readers skip is refused. What they guess, and what they warn of, is told as a warning, one line each.
    Text is UTF-8, in every locale.

    Args:
        path: the file, which may be compressed, or a pipe, or "-" for the standard input; its format is found out from
            name and content.
        index: which of them, as Python would write it: "0", "-1", ":", "10:20:2".

    Raises:
        InputError: there is no such file, it cannot be read, says what would not be read, or nothing is selected; the
            message names file and frame.
    """
    selection = _parse_index(index)
    try:
        with plain_file(path) as plain:
            structures = _read(plain, selection, path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not structures:
        raise InputError(f"{path}: " + ("holds no structure" if index == ":" else f"has no structure {index}"))
    return structures


def read_structure(path: str | Path, index: str = "-1") -> Atoms:
    """One structure of a file, by default the last; see ``read_structures``."""
    structures = read_structures(path, index)
    if len(structures) > 1:
        raise InputError(f"{path}: index '{index}' selects {len(structures)} structures, but one is needed")
    return structures[0]


def _parse_index(text: str) -> slice:
    """A slice; for a single number, one of a single frame."""
    parts = [part.strip() for part in text.split(":")]
    if len(parts) > 3 or not all(re.fullmatch(r"[+-]?[0-9]+", part) or (not part and len(parts) > 1) for part in parts):
        raise InputError(f"index must be a number or start:stop:step, got '{text}'")
    numbers = [int(part) if part else None for part in parts]
    if len(numbers) == 1:
        return slice(numbers[0], numbers[0] + 1 or None)
    if len(numbers) == 3 and numbers[2] == 0:
        raise InputError(f"the step of an index cannot be zero, got '{text}'")
    return slice(*numbers)


def _read(path: Path, selection: slice, source: str | Path) -> list[Atoms]:
    """Selected structures of a plain file; errors do not name it, for it may be a temporary one."""
    format = _format(path)
    if "xyz" in format and not __debug__:
        raise InputError(
            "cannot be read where Python leaves out assertions, of which ASE's reader makes use: unset PYTHONOPTIMIZE"
        )
    notes = []
    if format in CHECKS:
        try:
            with _refusals(format), _opened_text(path) as lines:
                notes = CHECKS[format](lines)
        except InputError as error:
            raise InputError(str(error) if "cannot be read" in str(error) else f"cannot be read: {error}") from None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        indexed = format in INDEXED
        structures = list(_frames(path, format, selection if indexed else slice(None)))
    notes += [str(warning.message) for warning in told]
    if format in COUNTS:
        _check_count(path, format, sum(map(len, structures)))
    if format == "proteindatabank":
        structures = [atoms for atoms in structures if len(atoms)]  # an END after ENDMDL makes one without
        _mend_pdb(structures, notes)
    if "xyz" in format:
        for atoms in structures:
            atoms.info = {key: value for key, value in atoms.info.items() if not is_word(key, value)}
    if format == "gromacs" and not structures[0].cell.any():  # a box of zeros
        structures[0].pbc = False
    _add_charges(path, format, structures, notes)
    count = None if indexed else len(structures)
    if not indexed:
        structures = structures[selection]
    _number(path, format, selection, count, structures)
    from_names, taken = any(GUESSED_FROM_NAMES in note for note in notes), {}
    for k, atoms in enumerate(structures):
        try:
            _check(atoms)
            taken |= guessed_elements(atoms) if from_names else dict.fromkeys(atoms.symbols, "")
        except InputError as error:
            raise InputError(f"frame {structure_number(atoms, k)}: {error}") from None
    _tell(notes, ", ".join(" ".join(pair).strip() for pair in taken.items()), source)
    return structures


def _number(path: Path, format: str, selection: slice, count: int | None, structures: list[Atoms]) -> None:
    """Note which frames of their file structures are, for errors and tables, where they are not all of it."""
    if selection == slice(None):
        return
    parts = (selection.start or 0, selection.stop or 0, selection.step or 1)
    if count is None and min(parts) < 0:
        count = _count_frames(path, format)
    numbers = range(sys.maxsize if count is None else count)[selection]
    for number, atoms in zip(numbers, structures, strict=False):  # the last frame is not known where none is negative
        atoms.number_in_file = number


def _count_frames(path: Path, format: str) -> int:
    """Frames of a file in one of the formats that are ``INDEXED``."""
    if "xyz" in format:
        with _opened_text(path) as lines:
            return count_xyz_frames(lines)
    from ase.io.netcdftrajectory import NetCDFTrajectory

    with ase.io.Trajectory(path) if format == "traj" else NetCDFTrajectory(str(path)) as frames:
        return len(frames)


def _tell(notes: list[str], elements: str, source: str | Path) -> None:
    """Warn of each thing once, in one line; of guessed elements, with their symbols."""
    for note in dict.fromkeys(" ".join(note.split()) for note in notes):
        warnings.warn(f"{source}: {note}" + (f": {elements}" if "elements are" in note else ""), stacklevel=5)


def _format(path: Path) -> str:
    try:
        # an absolute path: ASE takes names that start with "postgres" for addresses of servers
        format = get_ioformat(filetype(str(path.absolute()))).name
    except UnknownFileTypeError:
        format = None
    if format in (None, "runnerdata"):  # which is what ASE takes all .data for
        with suppress(UnicodeDecodeError), _opened_text(path) as lines:
            format = "lammps-data" if is_lammps_data(lines) else format
    if format is None:
        raise InputError("cannot be read as a file of structures (its format is not known from name or content)")
    return format


def _opened_text(path: Path):
    return path.open(encoding="utf-8")


def _frames(path: Path, format: str, selection: slice) -> Iterator[Atoms]:
    """Frames one after the other; an error names the frame."""
    known, count = get_ioformat(format), 0
    content = str(path.absolute())
    if known.acceptsfd:
        content = path.open("rb") if known.isbinary else _opened_text(path)
    if format == "gromacs":
        with content as lines:
            content = StringIO(whole_gro(lines))
    try:
        with _refusals(format):
            frames = ase.io.iread(content, selection, format=format, do_not_split_by_at_sign=True)
            for atoms in _rows(path, format) if format in ("db", "json") else frames:
                yield atoms
                count += 1
    except InputError as error:
        raise InputError(
            f"{_name(selection, count)} {error}" if count or known.code[0] == "+" else str(error)
        ) from None
    finally:
        if known.acceptsfd:
            content.close()


@contextmanager
def _refusals(format: str) -> Iterator[None]:
    """Turn any error of a reader into one line."""
    try:
        yield
    except InputError:
        raise
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(
            f"cannot be read as {format}: the byte {byte:#x} is no UTF-8; convert it, as by iconv -f latin1 -t utf-8"
        ) from None
    except Exception as error:
        reason = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {reason[0]}" if reason else type(error).__name__
        raise InputError(f"cannot be read as {format}, for which name or content were taken ({reason})") from None


def _name(selection: slice, k: int) -> str:
    """The name of the k-th structure read, for errors."""
    start, step = selection.start or 0, selection.step or 1
    if start < 0 or step < 0:
        return f"frame {start}" if selection.stop in (start + 1, None) and k == 0 else f"selected frame {k}"
    return f"frame {start + k * step}"


def _rows(path: Path, format: str) -> Iterator[Atoms]:
    """Structures of ASE's databases, with the key-value pairs of their rows in ``info``."""
    with ase.db.connect(str(path), type=format, serial=True) as database:
        for row in database.select():
            atoms = row.toatoms()
            stated = {key: row.data[key] for key in row.data if key in INFO or meaning(key) == "charge"}
            # not the values of key_value_pairs: "charge" would be the sum of the charges of atoms
            pairs = {key: vars(row)[key] for key in row.key_value_pairs}
            atoms.info = {**stated, **pairs, **atoms.info}
            yield atoms


def _add_charges(path: Path, format: str, structures: list[Atoms], notes: list[str]) -> None:
    """Keep total charges that only the text of a file states, in ``info``."""
    if format not in FORMATS and format != "proteindatabank":
        return
    with _refusals(format), _opened_text(path) as lines:
        charges = charges_of_pdb(lines) if format == "proteindatabank" else [stated_charge(format, lines)]
    stated = [(atoms, charge) for atoms, charge in zip(structures, charges, strict=True) if charge is not None]
    for atoms, charge in stated:
        atoms.info["charge"] = charge
    if stated and format == "proteindatabank":
        sums = ", ".join(f"{charge:g}" for charge in sorted({charge for _, charge in stated}))
        notes.append(f"charges of atoms in columns 79 and 80 are taken for all that it has; they add up to {sums} e")


def _check_count(path: Path, format: str, found: int) -> None:
    with _refusals(format), _opened_text(path) as lines:
        number = COUNTS[format](lines)
    if number != found:
        raise InputError(f"holds or states {number} atoms, of which ASE reads {found}; its last frame is not complete")


def _mend_pdb(structures: list[Atoms], notes: list[str]) -> None:
    """Give all models the cell, stated once before them; one of 1 x 1 x 1 or 0 x 0 x 0 Å means none."""
    if not structures:
        return
    first = structures[0]
    cell, pbc = first.cell.copy(), first.pbc.copy()
    if pbc.any() and cell.lengths().max() <= 1.0:
        notes.append(f"its cell of {' x '.join(f'{length:g}' for length in cell.lengths())} Å stands for none")
        cell, pbc = None, False
    for atoms in structures:
        if atoms is first or not atoms.pbc.any():
            atoms.set_cell(cell)
            atoms.pbc = pbc


def _check(atoms: Atoms) -> None:
    """Refuse sites that are not wholly occupied: ASE makes an atom of each."""
    stated = atoms.info.get("occupancy")
    parts = []
    if isinstance(stated, dict):
        parts += [number for site in stated.values() if isinstance(site, dict) for number in site.values()]
    for key in ("occupancy", "occupancies"):
        if key in atoms.arrays:
            parts += atoms.arrays[key].reshape(-1).tolist()
    partial = next((part for part in parts if isinstance(part, int | float) and 0.0 < part < 1.0), None)
    if partial is not None:
        raise InputError(f"a site is occupied to {partial:g}; make an ordered structure of it")
