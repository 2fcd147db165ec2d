"""The finished data set: the trajectories gathered into one file for each split, and the card."""

import json
import lzma
from collections import Counter
from pathlib import Path

from .card import card
from .files import write_atomically
from .splits import SPLITS, assign_splits


def assemble(tasks, args):
    """Write the three files and the card from the finished trajectories."""
    import ase.io

    splits, texts, discarded = assign_splits(tasks, args.seed), {split: [] for split in SPLITS}, {}
    for task in sorted(tasks, key=lambda task: task["name"]):
        result = json.loads(Path(task["file"]).read_text(encoding="utf-8"))
        texts[splits[task["name"]]] += result["frames"]
        discarded.setdefault(task["family"], Counter()).update(result["discarded"])
    args.output.mkdir(parents=True, exist_ok=True)
    frames, sizes = {}, {}
    for split in SPLITS:
        path = args.output / f"{split}.extxyz.xz"
        write_atomically(path, lzma.compress("".join(texts[split]).encode(), preset=9 | lzma.PRESET_EXTREME))
        frames[split] = ase.io.read(path, index=":") if texts[split] else []
        sizes[split] = path.stat().st_size
    write_atomically(args.output / "README.md", card(frames, sizes, discarded, args).encode())
    for split in SPLITS:
        print(f"{split}: {len(frames[split])} frames, {sizes[split] / 1e6:.2f} MB")
