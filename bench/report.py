"""Results of a benchmark as a JSON file, and as a table to read."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from fastlr.kernels.files import replacing

from . import machine


def save(path: str | Path, name: str, results: list[dict], device: str = "cpu") -> None:
    """Write results with the machine, its limits and all versions; the file appears when it is whole."""
    path = Path(path)
    record = {"benchmark": name, "machine": machine.describe(device), "limits": machine.limits(device)}
    record["results"] = [with_floors(result, record["limits"]) for result in results]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def save_csv(path: str | Path, rows: Iterable[dict]) -> list[dict]:
    """Write rows with the same keys as they come, beside ``path`` until all are there."""
    path, written, writer = Path(path), [], None
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(path).open("w", newline="", encoding="utf-8") as file:
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, fieldnames=list(row))
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            written.append(row)
    unfinished(path).replace(path)
    return written


def saved_rows(path: str | Path) -> list[dict[str, str]]:
    """What an earlier ``save_csv`` wrote, and what one that was interrupted did."""
    rows = []
    for file in (Path(path), unfinished(Path(path))):
        if file.exists():
            with file.open(newline="", encoding="utf-8") as lines:
                rows += csv.DictReader(lines)
    return rows


def unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def with_floors(result: dict, limits: dict) -> dict:
    """Adds how long the machine would need for the bytes and for the operations alone, in ms."""
    floor = result.get("floor")
    if not floor:
        return result
    times = {}
    for phase in [key.removesuffix("_bytes") for key in floor if key.endswith("_bytes")]:
        by_bytes = floor[f"{phase}_bytes"] / limits["copy_GB_per_s"] / 1e6
        by_operations = floor[f"{phase}_operations"] / limits["float32_GFLOP_per_s"] / 1e6
        times[phase] = {"bytes_ms": by_bytes, "operations_ms": by_operations}
    return result | {"floor": floor | times}


def table(results: list[dict]) -> str:
    """Median times and speedups, one line a problem and phase, in Markdown."""
    names = list(dict.fromkeys(name for result in results for phase in result["times"].values() for name in phase))
    lines = ["| problem | phase | " + " | ".join(f"{name} (ms)" for name in names) + " | speedup |"]
    lines.append("|---" * (3 + len(names)) + "|")
    for result in results:
        for phase, rows in result["times"].items():
            cells = [f"{rows[name]['ms']['median']:.3g}" if name in rows else "" for name in names]
            speedups = [f"{name} {row['speedup']['median']:.1f}x" for name, row in rows.items() if "speedup" in row]
            lines.append(f"| {result['problem']} | {phase} | " + " | ".join(cells) + f" | {', '.join(speedups)} |")
    return "\n".join(lines)
