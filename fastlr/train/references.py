"""What the training data say of a model's constants: neighbours, reference energies, scale, electronegativities."""

import numpy as np
import torch

from fastlr.constants import COULOMB_CONSTANT
from fastlr.kernels.ewald.coulomb import coulomb_matrix
from fastlr.models import ModelConfig, build_model
from fastlr.nn.charge_equilibration import ChargeEquilibration

RIDGE = 1e-8  # relative; enough to settle what collinear compositions leave open, too little to bias the rest


def reference_energies(counts: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """(S,) eV: per-species energies e that best give the total energies by composition.

    Ridge regression on energies per atom, towards the mean energy per atom: where compositions are collinear (pure
    water: two H for each O) the data fix only the sum, and every species gets an equal deviation from the mean.

    Args:
        counts: (F, S) atoms of each species.
        energies: (F,) eV.
    """
    num_atoms = counts.sum(axis=1)
    counts, energies, num_atoms = counts[num_atoms > 0], energies[num_atoms > 0], num_atoms[num_atoms > 0]
    if not len(energies):
        return np.zeros(counts.shape[1])
    fractions = counts / num_atoms[:, None]
    per_atom = energies / num_atoms
    mean = per_atom.mean()
    gram = fractions.T @ fractions
    ridge = RIDGE * np.trace(gram) * np.eye(len(gram))
    return mean + np.linalg.solve(gram + ridge, fractions.T @ (per_atom - mean))


def electronegativity_shifts(samples: list, config: ModelConfig, most: int = 100) -> dict[str, float]:
    """Electronegativities a species (eV/e) that come closest to giving the charges of ``samples`` at the start.

    The charges q of a structure are in equilibrium if chi_i = -J_i q_i - k (A q)_i - mu. The constant mu of each
    structure changes nothing, so each structure is centred before the average over the atoms of a species is taken.

    Args:
        samples: structures with charges (``data.Sample``).
        config: model whose hardness and widths count.
        most: how many structures to look at.
    """
    from fastlr.backends import resolve

    equilibration = ChargeEquilibration(
        config.of_species(config.hardness), config.widths, resolve("reference", dtype=torch.float64)
    )
    labelled = spread([sample for sample in samples if "charges" in sample.labels], most)
    S = len(config.species)
    gram, rhs = np.zeros((S, S)), np.zeros(S)
    with torch.no_grad():
        for sample in labelled:
            graph, q = sample.graph, sample.labels["charges"]
            potential = COULOMB_CONSTANT * coulomb_matrix(equilibration.system(graph))[0] @ q
            chi = -(potential + equilibration.hardness[graph.species] * q).numpy()
            one_hot = np.eye(S)[graph.species.numpy()]
            centred = one_hot - one_hot.mean(axis=0)
            gram += centred.T @ centred
            rhs += centred.T @ (chi - chi.mean())
    shifts = np.linalg.lstsq(gram, rhs, rcond=1e-6)[0] if labelled else rhs
    return dict(zip(config.species, shifts.tolist(), strict=True))


def spread(items: list, most: int) -> list:
    """At most about ``most`` of the items, evenly spaced."""
    return items[:: -(-len(items) // most)] if items else []


def energy_shifts(samples: list, config: ModelConfig, seed: int, most: int = 256) -> dict[str, float]:
    """Reference energies (eV) of what the untrained model, without shifts, leaves of the total energies.

    Counting the model's own energy matters with charges: an equilibration that starts near the right charges has
    energies of several eV an ion.
    """
    torch.manual_seed(seed)
    model = build_model(config.model_copy(update={"energy_shifts": 0.0}))
    labelled = spread([sample for sample in samples if "energy" in sample.labels], most)
    with torch.no_grad():
        initial = [model(sample.graph)["energy"].item() for sample in labelled]
    counts, energies = compositions(labelled, len(config.species))
    return dict(zip(config.species, reference_energies(counts, energies - initial).tolist(), strict=True))


def compositions(samples: list, num_species: int) -> tuple[np.ndarray, np.ndarray]:
    """(F, S) atoms of each species and (F,) total energies in eV."""
    counts = [np.bincount(sample.graph.species.numpy(), minlength=num_species) for sample in samples]
    energies = np.array([sample.labels["energy"].item() for sample in samples])
    return np.array(counts, dtype=np.float64).reshape(-1, num_species), energies


def from_data(samples: list, species: list[str]) -> dict:
    """Values of the model configuration that the training structures decide.

    Returns:
        avg_num_neighbors: edges per atom; energy_shifts: per-species eV; energy_scales: RMS force (eV/Å) or, without
        forces, the standard deviation of what the shifts leave of the energy per atom.
    """
    atoms = sum(sample.graph.num_nodes for sample in samples)
    edges = sum(sample.graph.num_edges for sample in samples)
    found = {"avg_num_neighbors": max(edges / max(atoms, 1), 1.0)}
    scale = 1.0
    labelled = [sample for sample in samples if "energy" in sample.labels]
    if labelled:
        counts, energies = compositions(labelled, len(species))
        shifts = reference_energies(counts, energies)
        found["energy_shifts"] = dict(zip(species, shifts.tolist(), strict=True))
        scale = float(np.std((energies - counts @ shifts) / counts.sum(axis=1).clip(1)))
    forces = [sample.labels["forces"] for sample in samples if "forces" in sample.labels]
    if forces:
        scale = float(torch.cat(forces).square().mean().sqrt())
    found["energy_scales"] = scale if scale > 1e-6 else 1.0
    return found
