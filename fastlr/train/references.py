"""What the training data say of a model's constants: neighbours, reference energies, scale, electronegativities."""

import numpy as np
import torch
from scipy.linalg import qr

from fastlr.constants import COULOMB_CONSTANT
from fastlr.kernels.ewald.coulomb import coulomb_matrix
from fastlr.models import ModelConfig, build_model
from fastlr.nn.charge_equilibration import ChargeEquilibration


def reference_energies(counts: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """(S,) eV: per-species energies e that best give the total energies by composition.

    Least squares on energies per atom, of least norm about the mean energy per atom: where compositions are collinear
    (pure water: two H for each O) the data fix only the sum, and every species gets an equal deviation from the mean.
    Constants an atom of each species, added to the energies, are found again to rounding: what the result leaves of the
    energies does not depend on them.

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
    found = np.full(counts.shape[1], per_atom.mean())
    for _ in range(2):  # the second time on what the first has left by rounding, which counts beside 1e5 eV
        found += np.linalg.lstsq(fractions, per_atom - fractions @ found, rcond=None)[0]
    return found


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
    labelled = representative([sample for sample in samples if "charges" in sample.labels], len(config.species), most)
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


def representative(samples: list, num_species: int, most: int) -> list:
    """About ``most`` of the samples, evenly spaced, and some that span all compositions."""
    if not samples:
        return []
    counts = compositions(samples, num_species)
    fractions = counts / counts.sum(axis=1, keepdims=True).clip(1)
    spanning = qr(fractions.T, mode="r", pivoting=True)[1][:num_species]
    chosen = sorted({*range(0, len(samples), -(-len(samples) // most)), *spanning.tolist()})
    return [samples[k] for k in chosen]


def energy_shifts(samples: list, config: ModelConfig, seed: int, most: int = 256) -> dict[str, float]:
    """Reference energies (eV) of what the untrained model, without shifts, leaves of the total energies.

    Counting the model's own energy matters with charges: an equilibration that starts near the right charges has
    energies of several eV an ion. It is found of ``most`` structures, the references of all.
    """
    torch.manual_seed(seed)
    model = build_model(config.model_copy(update={"energy_shifts": 0.0}))
    labelled = [sample for sample in samples if "energy" in sample.labels]
    some = representative(labelled, len(config.species), most)
    with torch.no_grad():
        initial = np.array([model(sample.graph)["energy"].item() for sample in some])
    S = len(config.species)
    shifts = reference_energies(compositions(labelled, S), total_energies(labelled))
    shifts -= reference_energies(compositions(some, S), initial)
    return dict(zip(config.species, shifts.tolist(), strict=True))


def compositions(samples: list, num_species: int) -> np.ndarray:
    """(F, S) atoms of each species."""
    counts = [np.bincount(sample.graph.species.numpy(), minlength=num_species) for sample in samples]
    return np.array(counts, dtype=np.float64).reshape(-1, num_species)


def total_energies(samples: list) -> np.ndarray:
    """(F,) eV."""
    return np.array([sample.labels["energy"].item() for sample in samples])


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
        counts, energies = compositions(labelled, len(species)), total_energies(labelled)
        shifts = reference_energies(counts, energies)
        found["energy_shifts"] = dict(zip(species, shifts.tolist(), strict=True))
        scale = float(np.std((energies - counts @ shifts) / counts.sum(axis=1).clip(1)))
    forces = [sample.labels["forces"] for sample in samples if "forces" in sample.labels]
    if forces:
        scale = float(torch.cat(forces).square().mean().sqrt())
    found["energy_scales"] = scale if scale > 1e-6 else 1.0
    return found
