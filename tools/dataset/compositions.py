"""What a trajectory is made of: its molecules, density and temperature, drawn at random by stratum."""

import numpy as np


def pick(rng, choices, weights=None):
    """One of the choices, which may be of any type."""
    weights = None if weights is None else np.array(weights) / np.sum(weights)
    return choices[rng.choice(len(choices), p=weights)]


def cluster_molecules(stratum, rng):
    """Molecules of a cluster of the given kind."""
    if stratum == "water-cluster":
        return ["H2O"] * int(rng.integers(1, 13))
    if stratum == "ion-cluster":
        ions = [["Na"], ["Cl"], ["Na", "Cl"], ["Na", "Na"], ["Cl", "Cl"], ["Na", "Na", "Cl"], ["Na", "Cl", "Cl"]]
        ions = pick(rng, [*ions, ["Na", "Na", "Cl", "Cl"]], [3, 3, 4, 1, 1, 1, 1, 2])
        return ions + ["H2O"] * int(rng.integers(1, 11))
    ions = pick(rng, [["H3O"], ["OH"], ["H3O", "Cl"], ["OH", "Na"]], [4, 4, 1, 1])
    return ions + ["H2O"] * int(rng.integers(0, 10))


def box_molecules(stratum, rng):
    """Molecules of a periodic cell and its density (g/cm3). Cells are neutral: see the card on charged ones."""
    if stratum == "water-box":
        return ["H2O"] * int(pick(rng, [8, 9, 10, 12, 16, 20, 24], [4, 3, 3, 3, 2, 1, 1])), rng.uniform(0.85, 1.15)
    if stratum.endswith("small"):  # small cells cost least for the variety they bring
        waters = ["H2O"] * int(pick(rng, [7, 8, 9, 10]))
        if stratum == "water-box-small":
            return ["H2O", *waters], rng.uniform(0.90, 1.30)
        if stratum == "ion-box-small":
            return ["Na", "Cl"] * int(pick(rng, [1, 2], [3, 1])) + waters, rng.uniform(1.00, 1.40)
        return pick(rng, [["H3O", "Cl"], ["OH", "Na"]]) + waters, rng.uniform(0.95, 1.25)
    if stratum == "ion-box-solution":
        pairs = int(pick(rng, [1, 2, 3], [5, 3, 2]))
        waters = int(pick(rng, [7, 8, 10, 12, 16, 20], [2, 3, 3, 2, 2, 1]))
        return ["Na", "Cl"] * pairs + ["H2O"] * waters, rng.uniform(0.95, 1.15) + 0.1 * pairs * 8 / waters
    ions = pick(rng, [["H3O", "Cl"], ["OH", "Na"]])
    return ions + ["H2O"] * int(pick(rng, [7, 8, 10, 12, 15], [3, 3, 2, 2, 1])), rng.uniform(0.95, 1.15)


def pick_temperature(rng, periodic):
    weights = [1, 4, 3, 2, 2, 1, 1] if periodic else [2, 3, 3, 2, 2, 2, 2]
    return int(pick(rng, [250, 300, 350, 400, 500, 600, 700], weights))
