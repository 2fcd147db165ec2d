"""The committed results in one table, for the README."""

import json
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results"


class Row(NamedTuple):
    """One comparison: in which file, of which problem (the beginning of its name) and phase, of whom with whom."""

    label: str
    file: str
    problem: str
    phase: str
    ours: str
    theirs: str


_CONVOLUTION = ("convolution-cpu", "nequip-l2-32")
_MODEL = "energy, forces, stress"
_ENGINE = "NequIP 3 layers, l_max 2, 32 features, r 5 Å"
_SIZES = (
    ("NequIP, molecule of 21 atoms", "1-hexanol"),
    ("NequIP, 512 atoms", "NaCl, 512 atoms"),
    ("NequIP, 8,000 atoms", "NaCl, 8,000 atoms"),
)
_COULOMB = "energy and forces"
_MOLECULES = ("equilibration-cpu", "charge equilibration, 1,024 molecules", "charges and gradient", "fastlr")
ROWS = (
    Row("convolution of NequIP (l = 2, 32 features)", *_CONVOLUTION, "forward", "cpu", "e3nn"),
    Row("... with gradients", *_CONVOLUTION, "backward", "cpu", "e3nn"),
    Row("... with second derivatives", *_CONVOLUTION, "double_backward", "cpu", "e3nn"),
    *(
        Row(label if theirs == "nequip" else "", "engine-cpu", f"{_ENGINE}: {name}", _MODEL, "fastlr", theirs)
        for label, name in _SIZES
        for theirs in ("nequip", "nequip compiled")
    ),
    Row("NequIP-LR, 512 atoms", "model-cpu", "NequIP-LR", _MODEL, "fastlr cpu", "nequip (NequIP, without charges)"),
    Row("1,000 molecules of 21 atoms in one list", "throughput-cpu", "NequIP 3 layers, r 5 Å: 1,000 molecules",
        "predict", "one list", "one by one"),
    Row("training step of NequIP-LR", "training-cpu", "training", "step", "cpu", "reference"),
    Row("Ewald sum, 4,096 ions", "electrostatics-4096-cpu", "NaCl", _COULOMB, "fastlr Ewald", "torch-pme Ewald"),
    Row("particle mesh, 13,824 ions", "electrostatics-13824-cpu", "NaCl", _COULOMB, "fastlr mesh", "torch-pme P3M"),
    Row("", "electrostatics-13824-cpu", "NaCl", _COULOMB, "fastlr mesh", "nvalchemi PME"),
    Row("particle mesh, 110,592 ions", "electrostatics-110592-cpu", "NaCl", _COULOMB, "fastlr mesh", "torch-pme P3M"),
    Row("", "electrostatics-110592-cpu", "NaCl", _COULOMB, "fastlr mesh", "nvalchemi PME"),
    Row("charges of 1,024 molecules and their gradient", *_MOLECULES, "loop of dense solves"),
    Row("", *_MOLECULES, "padded batched solve"),
    Row("charges of 1,000 atoms in a cell and their gradient", "equilibration-cpu", "charge equilibration, NaCl",
        "charges and gradient", "fastlr", "mlipops"),
)  # fmt: skip


def table(folder: Path = RESULTS) -> list[str]:
    """Lines of Markdown."""
    lines = ["| | fastlr (ms) | beside it | (ms) | ratio |", "|---|---|---|---|---|"]
    for row in ROWS:
        results = json.loads((folder / f"{row.file}.json").read_text(encoding="utf-8"))["results"]
        times = next(r for r in results if r["problem"].startswith(row.problem))["times"][row.phase]
        ours, theirs = times[row.ours], times[row.theirs]
        lines.append(
            f"| {row.label} | {number(ours['ms']['median'])} | {row.theirs} | {number(theirs['ms']['median'])} | "
            f"{number(ratio(ours, row.theirs), 2)} |"
        )
    return lines


def number(value: float, digits: int = 3) -> str:
    """Rounded to so many digits, and written out."""
    return f"{float(f'{value:.{digits}g}'):,.10g}"


def ratio(ours: dict, theirs: str) -> float:
    """How much faster, the median of ratios round by round."""
    paired = {ours["speedup"]["over"]: ours["speedup"]} | ours.get("speedup_over", {})
    return paired[theirs]["median"]
