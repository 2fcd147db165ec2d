"""Training, validation and test split, drawn by trajectory within each family."""

import zlib

import numpy as np

from .plan import TEST_ONLY, TRAIN_ONLY

SPLITS = ("train", "validation", "test")


def assign_splits(tasks, seed):
    """Split for every trajectory: about 80/10/10 within each family; some families are in one split alone."""
    splits = {}
    for family in dict.fromkeys(task["family"] for task in tasks):
        names = sorted(task["name"] for task in tasks if task["family"] == family)
        rng = np.random.default_rng([seed, zlib.crc32(family.encode())])
        order = [names[k] for k in rng.permutation(len(names))]
        held = max(1, round(0.1 * len(order)))
        for k, name in enumerate(order):
            splits[name] = "validation" if k < held else "test" if k < 2 * held else "train"
            if family in TEST_ONLY:
                splits[name] = "test"
            elif family in TRAIN_ONLY:
                splits[name] = "train"
    return splits
