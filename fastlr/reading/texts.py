"""What ASE's readers pass over in the text of a file, or make up where it says nothing.

Each check walks over the lines of one format, returns what there is to be told of them, and refuses what would be read
as something else than it says. None of them reads numbers: that is ASE's part.
"""

from collections.abc import Callable
from itertools import islice

from fastlr.errors import InputError

from .lines import Lines, Numbered
from .names import is_symbol
from .xyz import check_xyz

GUESSED_FROM_NAMES = "elements are guessed from the names of atoms"


def check_pdb(lines: Lines) -> list[str]:
    """PDB: atoms in alternate places, and without elements."""
    unnamed = 0
    for number, line in enumerate(lines, 1):
        if line.startswith(("ATOM  ", "HETATM")):
            unnamed = unnamed or (number if not is_symbol(line[76:78].strip()) else 0)
            if line[16:17].strip():
                raise InputError(
                    f"line {number}: an atom in an alternate place ('{line[16]}'), beside which its others would be "
                    "read as further atoms; keep one of each"
                )
    if unnamed:
        return [f"line {unnamed}: no element in columns 77 and 78; {GUESSED_FROM_NAMES}"]
    return []


def check_gro(lines: Lines) -> list[str]:
    """GROMACS coordinates: one frame alone is read, and elements are not part of the format."""
    numbered = Numbered(lines)
    numbered.next()
    count = numbered.next().strip()
    rest = list(numbered)
    number = int(count) if count.isdigit() else -1
    length = max((k for k, line in enumerate(rest, 1) if line.strip()), default=0)
    # without a cell, the last line may be blank
    if number < 0 or len(rest) <= number or not number <= length <= number + 1:
        raise InputError(
            f"has {length} lines after its number of atoms, '{count}', where there must be one more than atoms"
        )
    return [GUESSED_FROM_NAMES]


def whole_gro(lines: Lines) -> str:
    """A file of GROMACS up to its box, in the line after the atoms: ASE takes the last line for it."""
    lines = list(lines)
    return "".join(lines[: 3 + int(lines[1])])


def check_sdf(lines: Lines) -> list[str]:
    """SDF: of several molecules the first alone is read, and of V3000 nothing."""
    ended = False
    for number, line in enumerate(lines, 1):
        if number == 4 and "V3000" in line:
            raise InputError("line 4: V3000, of which ASE reads no atoms; convert it to V2000 or extended XYZ")
        if ended and line.strip():
            raise InputError(
                f"line {number}: more than one molecule, of which ASE reads the first alone; split the file"
            )
        ended |= line.startswith("$$$$")
    return []


def check_poscar(lines: Lines) -> list[str]:
    """POSCAR: the elements of old files are not in them."""
    sixth = next(islice(lines, 5, None), "").split()
    if sixth and sixth[0].isdigit():
        return ["no elements are named; those of its first line are taken, or of a POTCAR or OUTCAR beside it"]
    return []


def is_lammps_data(lines: Lines) -> bool:
    """Whether it has the header and the atoms of a LAMMPS data file, whose name may be anything."""
    heads = [" ".join(line.partition("#")[0].split()) for line in islice(lines, 1, None)]
    return any(head.endswith(" xlo xhi") for head in heads[:50]) and "Atoms" in heads


def check_lammps_data(lines: Lines) -> list[str]:
    """LAMMPS data: types are no elements."""
    heads = {line.partition("#")[0].strip() for line in lines}
    units = "lengths are taken for Å (units metal or real)"
    if "Masses" in heads:
        return [units, "elements are guessed from masses"]
    if "Atom Type Labels" in heads:
        return [units]
    raise InputError(
        "types of LAMMPS are no elements; add masses (a section 'Masses') or elements ('Atom Type Labels')"
    )


def check_lammps_dump(lines: Lines) -> list[str]:
    """LAMMPS dump: types are no elements."""
    columns = next((line.split() for line in lines if line.startswith("ITEM: ATOMS")), [])
    units = "lengths are taken for Å (units metal or real)"
    if "element" in columns:
        return [units]
    if "mass" in columns:
        return [units, "elements are guessed from masses"]
    raise InputError("types of LAMMPS are no elements; dump a column 'element' (dump_modify ... element ...) or 'mass'")


def count_pdb_atoms(lines: Lines) -> int:
    """Atoms of a PDB file."""
    return sum(line.startswith(("ATOM", "HETATM")) for line in lines)


def count_dump_atoms(lines: Lines) -> int:
    """The stated number of atoms of a LAMMPS dump."""
    heads = (line for line in lines if line.startswith("ITEM: NUMBER OF ATOMS"))
    return sum(int(next(iter(lines), "0")) for _ in heads)


# Atoms that a text has or claims, where a reader may return fewer.
COUNTS = {"proteindatabank": count_pdb_atoms, "lammps-dump-text": count_dump_atoms}
CHECKS: dict[str, Callable[[Lines], list[str]]] = {
    "extxyz": check_xyz,
    "xyz": check_xyz,
    "proteindatabank": check_pdb,
    "gromacs": check_gro,
    "sdf": check_sdf,
    "mol": check_sdf,
    "vasp": check_poscar,
    "lammps-data": check_lammps_data,
    "lammps-dump-text": check_lammps_dump,
    **dict.fromkeys(("gromos", "dlp4", "dlp-history"), lambda lines: [GUESSED_FROM_NAMES]),
}
