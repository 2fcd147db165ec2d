"""metrics.csv: a row of losses and errors for each epoch."""

import csv
from pathlib import Path

from fastlr.kernels.files import replacing

from .metrics import UNITS

COLUMNS = [
    "epoch",
    "step",
    "learning_rate",
    "train_loss",
    "validation_loss",
    *(f"{name}_{kind} ({unit})" for name, unit in UNITS.items() for kind in ("mae", "rmse")),
    "seconds",
]


def append_row(path: Path, row: dict) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        if new:
            writer.writeheader()
        writer.writerow({key: f"{value:.8g}" if isinstance(value, float) else value for key, value in row.items()})


def read_rows(path: Path) -> list[dict[str, float]]:
    """Rows of metrics.csv; what is empty is left out."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def keep_rows(path: Path, epochs: int) -> None:
    """Keep the rows of the first ``epochs`` epochs, one each; a resumed run repeats the others, and what is torn."""
    if not path.exists():
        return
    header, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = {}
    for row in rows:
        first = row.split(",")[0]
        if row.endswith("\n") and row.count(",") == header.count(",") and first.isdecimal() and int(first) <= epochs:
            kept[int(first)] = row
    with replacing(path) as partial:
        partial.write_text("".join([header, *kept.values()]), encoding="utf-8")
