"""Total charges that files state in their own ways, which ASE's readers pass over."""

import re
from collections.abc import Iterable

from fastlr.errors import InputError
from fastlr.stated_names import CHARGE_NAMES, plain_name

# Of molfiles: charges by the number in the charge column of an atom; 4 is a radical.
BY_COLUMN = {"1": 3, "2": 2, "3": 1, "5": -1, "6": -2, "7": -3}
NUMBER = r"([-+]?[\d.]+(?:[eEdD][-+]?\d+)?)\b"
# Keywords of other formats.
KEYWORDS = {
    "turbomole": re.compile(r"^\s*\$(?:chrg|eht\s+charge)\b[\s=]*(\S*)"),
    "nwchem-in": re.compile(rf"(?i)^\s*charge\s+{NUMBER}"),
    "espresso-in": re.compile(rf"(?i)^[^!]*\btot_charge\s*=\s*{NUMBER}"),
    "abinit-in": re.compile(rf"(?i)^\s*(?:cell)?charge\s+{NUMBER}"),
    "octopus-in": re.compile(rf"(?i)^\s*ExcessCharge\s*=\s*{NUMBER}"),
    "cp2k-restart": re.compile(rf"^\s*CHARGE\s+{NUMBER}"),
}


def charge_of_molfile(lines: Iterable[str]) -> float | None:
    """That of an MDL molfile (V2000) or the first of an SDF file, e: its ``M  CHG`` lines, else the charge column, and
    data named as a charge.

    Raises:
        InputError: data state another charge than the atoms.
    """
    lines = list(lines)
    count = lines[3][:3].strip() if len(lines) > 3 else ""
    column = [BY_COLUMN.get(line[36:39].strip(), 0) for line in lines[4 : 4 + int(count or 0)]]
    properties, found = [], []
    for k, line in enumerate(lines):
        if line.startswith("M  CHG"):
            properties += [int(number) for number in line[9:].split()[1::2]]
        elif line.startswith("> ") and (match := re.search("<(.*?)>", line)) and plain_name(match[1]) in CHARGE_NAMES:
            found.append(_number(next(iter(lines[k + 1 : k + 2]), "").strip(), match[1]))
    if properties or any(column):
        found.append(sum(properties) if properties else sum(column))
    return _only(found)


def charge_of_gaussian_input(lines: Iterable[str]) -> float | None:
    """The first number of the line that starts its molecule, the third section of the input, e."""
    sections = re.split(r"\n\s*\n", "".join(lines).partition("#")[2])
    first = sections[2].split("\n")[0].replace(",", " ").split() if len(sections) > 2 else []
    return _number(first[0], "charge") if len(first) > 1 else None


def charge_by_keyword(format: str, lines: Iterable[str]) -> float | None:
    """What follows the keyword of this format, e."""
    found = (KEYWORDS[format].search(line) for line in lines)
    return _only([_number(match[1], "charge") for match in found if match])


def stated_charge(format: str, lines: Iterable[str]) -> float | None:
    """Total charge (e) of the structure of a file in this format, None if it states none.

    Raises:
        InputError: it states several, or what is no number.
    """
    if format in ("sdf", "mol"):
        return charge_of_molfile(lines)
    if format == "gaussian-in":
        return charge_of_gaussian_input(lines)
    return charge_by_keyword(format, lines)


FORMATS = {"sdf", "mol", "gaussian-in", *KEYWORDS}


def charges_of_pdb(lines: Iterable[str]) -> list[float | None]:
    """Sum of the charges in columns 79 and 80 for each model with atoms, e; None where no atom has one."""
    sums, models, charges = [], False, None
    for line in lines:
        if line.startswith("END"):
            sums += [charges] if models else []
            models, charges = False, None
        elif line.startswith(("ATOM  ", "HETATM")):
            models = True
            if match := re.fullmatch(r"(\d)([+-])|([+-])(\d)", line[78:80]):
                charges = (charges or 0) + int((match[2] or match[3]) + (match[1] or match[4]))
    return sums + ([charges] if models else [])


def _number(text: str, name: str) -> float:
    try:
        return float(text.lower().replace("d", "e"))
    except ValueError:
        raise InputError(f"its '{name}' must be a number of e, got '{text}'") from None


def _only(found: list[float]) -> float | None:
    if len(set(found)) > 1:
        raise InputError(f"states the charges {', '.join(f'{charge:g}' for charge in found)} e; leave one")
    return found[0] if found else None
