"""What ASE's readers pass over in the text of a file, or make up where it says nothing.

Each check walks over the lines of one format, returns what there is to be told of them, and refuses what would be read
as something else than it says. None of them reads numbers: that is ASE's part.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from ase.io.extxyz import key_val_str_to_dict

from fastlr.errors import InputError
from fastlr.stated_names import INFO, meaning, plain_name

from .names import is_symbol

Lines = Iterable[str]

QUOTED = r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\{(?:\\.|[^}\\])*\}|\[(?:\\.|[^\]\\])*\])"""
# A value in quotes or brackets; a quote or bracket elsewhere may be an apostrophe, or inches.
IN_QUOTES = re.compile(rf"=\s*{QUOTED}(?=\s|$)")
KEY = re.compile(r"""(?<!\S)(?:"((?:\\.|[^"\\=])+)"|'([^'=]+)'|([^\s=]+))\s*=""")
TRUE = re.compile(r"""=\s*["'{\[]?[Tt]""")
WITH_EQUALS = re.compile(r"""=(?:[^\s"'{}\[\],;|=]*=)+[^\s"'{}\[\],;|=]*(?=\s|$)""")
# Words that are key=value and nothing else, of which ASE reads what they say.
PLAIN_PAIRS = re.compile(r"""\s*(?:[\w.-]+=(?:"[^"\\]*"|[^\s"'{}\[\]\\=,;]+)(?:\s+|$))*""")
# What somebody who wrote it may have meant for a key: a last word before "=", or "charge" before a number.
LIKE_A_KEY = re.compile(
    r"""(?<![\w-])([A-Za-z][\w-]*)["']?\s*=|(?<!\w)(\w*[Cc][Hh][Aa][Rr][Gg][Ee])["']?(?:\s*:|\s)\s*["']?[-+]?\d"""
)
VALUE = r"\b{}\s*=\s*(?:[\"'{{\[]([^\"'}}\]]*)[\"'}}\]]|(\S+))"
COLUMNS, PERIODIC = (re.compile(VALUE.format(key)) for key in ("Properties", "pbc"))
OTHER_SPELLING = re.compile(r"(?!(?:Lattice|Properties|pbc)$)(?i:lattice|properties|pbc|cell)")
IPI_CELL = re.compile(r"\bCELL[({]\S*")
USED = {"energy", "freeenergy", "stress", "virial", "pbc", "lattice", "properties", "cell", *map(plain_name, INFO)}
GUESSED_FROM_NAMES = "elements are guessed from the names of atoms"
TRUTHS = {"T", "F", "True", "False", "true", "false", "TRUE", "FALSE", "1", "0"}


def check_xyz(lines: Lines) -> list[str]:
    """XYZ and extended XYZ: frames after a blank line, columns without a name, keys that stand twice or are spelt in
    another way, and a last line that was cut off."""
    notes, numbered, frame = {}, Numbered(lines), 0
    while (header := numbered.next()).strip():
        if not (header.strip().isascii() and header.strip().isdigit()):
            raise InputError(
                f"line {numbered.line}: expected the number of atoms of frame {frame}, got '{_cut(header)}'"
            )
        where, number = f"frame {frame} (line {numbered.line})", int(header)
        comment = numbered.next()
        names = _check_comment(comment, where, number)
        expected, last = _number_of_columns(comment), ""
        for line in islice(numbered, number):
            previous, last = last, line
            columns = len(line.split())
            if columns < expected and line.endswith("\n"):
                raise InputError(
                    f"{where}: line {numbered.line}, '{_cut(line)}', has {columns} columns, not {expected}"
                )
            if columns > expected and names:
                raise InputError(
                    f"{where}: line {numbered.line} has {columns} columns, but its Properties name {expected}"
                )
            if columns > expected:
                notes.setdefault("columns", f"{where}: columns after the first four have no name and are not read")
        if number > 1 and not last.endswith("\n") and len(last) < len(previous) - 1:
            notes["cut"] = f"{where}: its last line is shorter than the others and has no end; is the file cut short?"
        if numbered.skip("VEC") and KEY.search(comment):
            raise InputError(
                f"{where}: beside VEC lines its comment, '{_cut(comment)}', is not read; state the cell as "
                'Lattice="..." in the comment instead'
            )
        frame += 1
    if any(line.strip() for line in numbered):
        raise InputError(
            f"line {numbered.line}: after the blank line that ends the file for its reader, which found {frame} "
            f"frame{'s' * (frame != 1)}, there is more; take the blank line out"
        )
    return list(notes.values())


def _check_comment(comment: str, where: str, number: int) -> bool:
    """Whether it names the columns of so many atoms."""
    open_text = IN_QUOTES.sub('=""', comment)
    keys = ["".join(groups) for groups in KEY.findall(open_text)]
    if not keys and not LIKE_A_KEY.search(open_text) and not IPI_CELL.search(open_text):
        return False
    extended = "Properties" in keys or "Lattice" in keys
    used = [key for key in keys if extended or _is_used(key)]
    twice = next((key for k, key in enumerate(used) if key in used[:k]), None)
    if twice is not None:
        raise InputError(f"{where}: '{twice}' stands twice; leave one")
    spelt = [key for key in keys if OTHER_SPELLING.fullmatch(key)] + IPI_CELL.findall(open_text)
    if spelt:
        raise InputError(
            f"{where}: '{_cut(spelt[0])}' is not read; extended XYZ spells these Lattice=\"...\", Properties=... and "
            'pbc="T T T", in Å'
        )
    if not PLAIN_PAIRS.fullmatch(comment) or TRUE.search(comment):
        # programs write texts without blanks as they are: url=http://x?charge=1
        _check_read(comment, WITH_EQUALS.sub("=", open_text) if extended else open_text, used, where)
    if match := PERIODIC.search(comment):
        values = re.findall(r"[^\s,]+", match[1] or match[2] or "")
        if len(values) not in (1, 3) or not TRUTHS.issuperset(values):
            raise InputError(f"{where}: pbc must be three of T and F, as in pbc=\"T T F\", got '{' '.join(values)}'")
    if number and "Properties" in keys and not re.search(r"\b(species:S|symbols:S|Z:I|numbers:I):1\b", comment):
        raise InputError(f"{where}: its Properties name no column of elements (species:S:1)")
    if number and "Properties" in keys and not re.search(r"\bpos(itions)?:R:3\b", comment):
        raise InputError(f"{where}: its Properties name no columns of positions (pos:R:3)")
    return "Properties" in keys


def _check_read(comment: str, open_text: str, keys: list[str], where: str) -> None:
    """Compare what a reader of words would find with what ASE finds, which takes all up to the next apostrophe or
    closing bracket for one word: these keys, and all names of values that are used."""
    like_keys = ("".join(groups) for groups in LIKE_A_KEY.findall(KEY.sub(_without_quotes, open_text)))
    expected = [*keys, *filter(_is_used, like_keys)]
    if not expected:
        return
    try:
        read = key_val_str_to_dict(comment)
    except ValueError:  # refused by the reader
        return
    # a word without a value is true for ASE, which may replace a value
    names = {plain_name(key) for key, value in read.items() if not key.endswith(":") and not is_word(key, value)}
    lost = [key for key in expected if plain_name(key) not in names]
    if lost:
        raise InputError(
            f"{where}: '{lost[0]}' is not read; write {lost[0]}=... with blanks around it, where no value before is "
            "empty or ends in a backslash, and every quote and bracket is closed"
        )


def is_word(key: str, value) -> bool:
    """Whether what ASE reads as true is but a word that names a charge or spin in free text."""
    return value is True and meaning(key) is not None


def _is_used(key: str) -> bool:
    """Whether the value of this name is used, in whatever spelling."""
    return meaning(key) is not None or plain_name(key) in USED


def _without_quotes(key: re.Match) -> str:
    """A key, but nothing for one in quotes."""
    return key[0] if key[3] else " ="


def _number_of_columns(comment: str) -> int:
    match = COLUMNS.search(comment)
    if match is None:
        return 4
    return sum(int(number) for number in (match[1] or match[2] or "").split(":")[2::3] if number.isdigit())


def check_pdb(lines: Lines) -> list[str]:
    """PDB: atoms in alternate places, and after the last END."""
    left = unnamed = 0
    for number, line in enumerate(lines, 1):
        if line.startswith("END"):
            left = 0
        elif line.startswith(("ATOM  ", "HETATM")):
            left = left or number
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


def count_xyz_frames(lines: Lines) -> int:
    """Frames of an XYZ file in which ``check_xyz`` finds nothing wrong."""
    numbered, count = Numbered(lines), 0
    while (header := numbered.next()).strip():
        next(islice(numbered, int(header), int(header)), None)
        numbered.next()
        numbered.skip("VEC")
        count += 1
    return count


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


class Numbered:
    """Lines with the number of the last one taken, counted from 1."""

    def __init__(self, lines: Lines):
        self.lines, self.line, self.ahead = iter(lines), 0, None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line, self.ahead = self.ahead, None
        line = next(self.lines) if line is None else line
        self.line += 1
        return line

    def next(self) -> str:
        """The next line, empty at the end."""
        return next(self, "")

    def skip(self, start: str) -> bool:
        """Take all lines with this first word; tell whether there were any."""
        found = False
        while (line := self.next()).lstrip().startswith(start):
            found = True
        if line:
            self.ahead, self.line = line, self.line - 1
        return found


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) < 60 else text[:57] + "..."
