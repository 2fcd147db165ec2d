"""Tables on stdout."""

import numpy as np
from ase import Atoms, units
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDEST = 1000  # columns


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table with a rule under its heading and no other lines."""
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def show(*tables: Table) -> None:
    """Print tables, wider than the terminal if something would be cut off otherwise: half a number is a wrong one."""
    for table in tables:
        console = Console()
        everything = _characters(table, WIDEST)
        while console.width < WIDEST and _characters(table, console.width) < everything:
            console.width += 8
        console.print(table)


def _characters(table: Table, width: int) -> int:
    """Letters and digits of a table printed in so many columns."""
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    return sum(map(str.isalnum, captured.get()))


def max_force(frame: Atoms) -> float:
    """Length of the largest force, eV/Å."""
    return float(np.linalg.norm(frame.get_forces(apply_constraint=False), axis=1).max(initial=0.0))


def pressure(frame: Atoms) -> float | None:
    """Pressure in GPa, compression positive, without the kinetic part; None where there is no stress."""
    if "stress" not in frame.calc.results:
        return None
    return float(-frame.calc.results["stress"][:3].mean() / units.GPa)


def _charge(frame: Atoms) -> float:
    """Total charge, given or found, e."""
    return frame.info["charge"] if "charge" in frame.info else frame.info["found_charge"]


def print_predictions(frames: list[Atoms], numbers: list[int]) -> None:
    """One row a structure, with its number: energy, largest force, range of the charges, pressure."""
    has_charges = any("charges" in frame.calc.results for frame in frames)
    has_pressure = any("stress" in frame.calc.results for frame in frames)
    table = plain_table()
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("formula", overflow="fold", min_width=7)
    headings = ["Q (e)", "energy (eV)", "max |F|\n(eV/Å)"]
    headings += ["charges (e)\nmin ... max"] * has_charges + ["pressure\n(GPa)"] * has_pressure
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, frame in zip(numbers, frames, strict=True):
        charges, gpa = frame.calc.results.get("charges", ()), pressure(frame)
        row = [str(number), Text(frame.get_chemical_formula(mode="hill")), f"{_charge(frame):+.4g}".replace("+0", "0")]
        row += [f"{frame.calc.results['energy']:.6f}", f"{max_force(frame):.4f}"]
        if has_charges:
            row.append(f"{min(charges):+.3f} ... {max(charges):+.3f}" if len(charges) else "-")
        if has_pressure:
            row.append("-" if gpa is None else f"{gpa:.4g}")
        table.add_row(*row)
    show(table)
