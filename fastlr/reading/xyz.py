"""XYZ and extended XYZ: what ASE's reader passes over, and keys that it takes for parts of others."""

import re
from itertools import islice

from ase.io.extxyz import key_val_str_to_dict

from fastlr.errors import InputError
from fastlr.stated_names import INFO, meaning, plain_name

from .lines import Lines, Numbered, shortened

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
TRUTHS = {"T", "F", "True", "False", "true", "false", "TRUE", "FALSE", "1", "0"}


def check_xyz(lines: Lines) -> list[str]:
    """XYZ and extended XYZ: frames after a blank line, columns without a name, keys that stand twice or are spelt in
    another way, and a last line that was cut off."""
    notes, numbered, frame = {}, Numbered(lines), 0
    while (header := numbered.next()).strip():
        if not (header.strip().isascii() and header.strip().isdigit()):
            raise InputError(
                f"line {numbered.line}: expected the number of atoms of frame {frame}, got '{shortened(header)}'"
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
                    f"{where}: line {numbered.line}, '{shortened(line)}', has {columns} columns, not {expected}"
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
                f"{where}: beside VEC lines its comment, '{shortened(comment)}', is not read; state the cell as "
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
            f"{where}: '{shortened(spelt[0])}' is not read; extended XYZ spells these "
            'Lattice="...", Properties=... and pbc="T T T", in Å'
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


def count_xyz_frames(lines: Lines) -> int:
    """Frames of an XYZ file in which ``check_xyz`` finds nothing wrong."""
    numbered, count = Numbered(lines), 0
    while (header := numbered.next()).strip():
        next(islice(numbered, int(header), int(header)), None)
        numbered.next()
        numbered.skip("VEC")
        count += 1
    return count
