"""Which labels a set has, and whether they make sense, before anything is trained on them."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from ase import Atoms

from fastlr.errors import ConfigError, InputError
from fastlr.stated_names import CHARGE_NAMES
from fastlr.total_charge import charge_tolerance

from .config import LossConfig, TrainConfig
from .data import SHAPES, Frame, Sample

# parts of names under which other programs keep what fastlr calls by the name on the left
SIMILAR = {
    "energy": ("energ",),
    "forces": ("force", "grad"),
    "stress": ("stress", "virial"),
    "charges": ("charge",),
    "dipole": ("dipole",),
}
# ... and words for numbers about labels, alone or at the end of a word, and for other energies
ABOUT = re.compile(
    r"(weights?|uncertaint(y|ies)|unc|std|std?dev|sigmas?|errors?|errs?|variances?|var|deviations?|dev|rmse|mae|masks?|"
    r"units?|tolerance|tol|confidence|noise|scale|shift|kinetic)$"
)
SIZES = {"energy": (1,), "stress": (6, 9), "dipole": (3,)}  # numbers a structure, of others a row an atom
NOT_LABELS = {"initial_charges", "fragment_charge"}
LISTED = 12  # keys in one message
NET_FORCE = 0.1  # eV/Å times the square root of the number of atoms; of all sound labels less is left over


def check_labels(frames: dict[str, list[Frame]], config: TrainConfig, warn: Callable[[str], None]) -> None:
    """Refuse sets without a label of the loss, or with one under another name.

    Raises:
        ConfigError: names the key, and what was found instead.
    """
    weighted = [name for name, weight in config.loss.weights.items() if weight > 0.0]
    for key, members in frames.items():
        if key == "test" and not members:
            continue
        absent = [name for name in weighted if not any(name in frame.labels for frame in members)]
        if key == "train" and absent:
            raise ConfigError(
                f"loss.{absent[0]}: has weight {config.loss.weights[absent[0]]:g}, but no training structure has "
                f"this label{_why_absent(absent[0], members)}; fastlr reads '{absent[0]}' of ASE's calculator "
                f"results; {_keys_found(members)}"
            )
        for name in weighted:
            _refuse_other_name(key, name, members)
        if len(absent) == len(weighted):
            raise ConfigError(
                f"data.{key}: no structure has a label that counts in the loss ({', '.join(weighted)}); "
                f"{_keys_found(members)}"
            )
        if absent:
            judged = " and the best epoch is chosen without it" if key == "validation" else ""
            warn(f"no {key} structure has the label {', '.join(absent)}{judged}")
        for name in weighted:
            _refuse_zeros(key, name, members)


def census(key: str, frames: list[Frame]) -> str:
    """One line: how many structures of a set have each label, and what stands there but is not read."""
    counts = Counter(name for frame in frames for name in frame.labels)
    labels = ", ".join(f"{name} {counts[name]}" for name in SHAPES if counts[name]) or "none"
    unread = Counter(found for frame in frames for name in SHAPES for found, _ in _similar(name, frame.atoms))
    left = Counter(f"{name} {why}" for frame in frames for name, why in _dropped(frame))
    parts = [f"{key}: {len(frames)} structures; with labels: {labels}"]
    if left:
        parts.append("left out: " + ", ".join(f"{what} {count}" for what, count in left.items()))
    if unread:
        parts.append("not read: " + ", ".join(f"{what} {count}" for what, count in unread.most_common(LISTED)))
    return "; ".join(parts)


def check_samples(key: str, samples: list[Sample], loss: LossConfig, warn: Callable[[str], None]) -> None:
    """Compare the labels of structures with what is known of them.

    Raises:
        InputError: charges do not add up to the total charge, or this is to be found; the message names file and frame.
    """
    nets = []
    for sample in samples:
        if sample.graph.conditions is not None and sample.graph.conditions.has_potentials:
            raise InputError(
                f"{sample.source}: states a chemical potential; training is at given charges, so state that which goes "
                "with its labels instead"
            )
        _check_charges(sample)
        if "forces" in sample.labels and sample.graph.conditions is None:
            net = float(sample.labels["forces"].sum(dim=0).norm())
            if net > NET_FORCE * sample.graph.num_nodes**0.5:
                nets.append((net, sample.source))
    if nets:
        net, source = max(nets)
        warn(
            f"{key}: forces of {len(nets)} of {len(samples)} structures do not add up to zero, as those of a model do, "
            f"by up to {net:.3g} eV/Å ({source}); were forces of fixed atoms set to zero, or a field left out?"
        )
    dipoles = sum("dipole" in sample.labels and bool(sample.graph.charge.abs().max() > 1e-6) for sample in samples)
    if dipoles and loss.dipole:
        warn(f"{key}: {dipoles} charged structures have dipoles, which must be about the origin of their coordinates")


def check_overlap(samples: dict[str, list[Sample]], warn: Callable[[str], None]) -> dict[str, int]:
    """Number of structures of each set in the training set, too; for "train", of repeated ones."""
    places = {key: [_identity(sample) for sample in members] for key, members in samples.items()}
    counts = {"train": len(places["train"]) - len(set(places["train"]))}
    if counts["train"]:
        warn(f"train: {counts['train']} structures stand there more than once, and count as often")
    known = set(places["train"])
    for key in places.keys() - {"train"}:
        counts[key] = sum(place in known for place in places[key])
        if counts[key]:
            warn(
                f"{key}: {counts[key]} of {len(places[key])} structures are in the training set, too; errors on them "
                "are no measure of those on other structures"
            )
    return counts


def _identity(sample: Sample) -> bytes:
    graph = sample.graph
    cell = graph.cell.numpy()[0][graph.pbc.numpy()[0]]
    parts = (graph.species.numpy(), graph.positions.numpy().round(6) + 0.0, cell.round(6) + 0.0, graph.charge.numpy())
    return b"|".join(np.ascontiguousarray(part).tobytes() for part in parts)


def _check_charges(sample: Sample) -> None:
    graph = sample.graph
    if "charges" not in sample.labels or graph.coulomb is None:
        return
    charges, conditions = sample.labels["charges"], graph.conditions
    groups, stated = [charges], graph.charge.tolist()
    if conditions is not None and conditions.fragment is not None:
        stated = conditions.fragment_charge.tolist()
        groups = [charges[conditions.fragment == k] for k in range(len(stated))]
    for k, (group, charge) in enumerate(zip(groups, stated, strict=True)):
        total = float(group.sum())
        if abs(total - charge) > charge_tolerance(len(group)):
            of = f" of fragment {k}" if len(groups) > 1 else ""
            where = "info['fragment_charge']" if len(groups) > 1 else "info['charge']"
            raise InputError(
                f"{sample.source}: the charge labels{of} add up to {total:.4g} e, but its charge is {charge:g} e, to "
                f"which those of a model always add up; state it as {where}, or correct or remove the labels"
            )


def _refuse_other_name(key: str, name: str, frames: list[Frame]) -> None:
    """Refuse frames with a label under another name: these would not count, and nobody would know."""
    others = [(frame, found) for frame in frames if name not in frame.labels for found in _renamed(name, frame)]
    if others:
        frame, found = others[0]
        count = len({id(frame) for frame, _ in others})
        raise ConfigError(
            f"data.{key}: {count} of {len(frames)} structures have no label '{name}' but {found} (first: "
            f"{frame.source}); loss.{name} has a weight, and fastlr reads '{name}': rename it, or leave it out"
        )


def _refuse_zeros(key: str, name: str, frames: list[Frame]) -> None:
    values = [frame.labels[name] for frame in frames if name in frame.labels and len(frame.atoms) > 1]
    if values and not any(value.any() for value in values):
        raise ConfigError(
            f"loss.{name}: all labels '{name}' of data.{key} are exactly zero; leave them out, or set the weight to 0"
        )


def _renamed(name: str, frame: Frame) -> Iterator[str]:
    pbc = frame.atoms.pbc
    if (name == "stress" and not pbc.all()) or (name == "dipole" and pbc.any()):
        return
    for found, value in _similar(name, frame.atoms):
        if _is_about_a_label(found):
            continue
        value = np.asarray(value)
        rows = len(frame.atoms)
        sizes = SIZES.get(name, (rows * int(np.prod(SHAPES[name], dtype=int)),))
        if value.dtype.kind in "iuf" and value.size in sizes and (name in SIZES or value.shape[:1] == (rows,)):
            yield found


def _similar(name: str, atoms: Atoms) -> Iterator[tuple[str, object]]:
    """Unread entries of a structure with a name like a label's, as (where, value)."""
    results = atoms.calc.results if atoms.calc is not None else {}
    for where, entries in (("info", atoms.info), ("arrays", atoms.arrays), ("results", results)):
        for key, value in entries.items():
            if _is_called_like(name, str(key), where == "results"):
                yield f"{where}['{key}']", value


@cache
def _is_called_like(name: str, key: str, is_result: bool) -> bool:
    """Whether an entry could be a label by its name, and is not read as one, nor as something else."""
    plain = "".join(letter for letter in key.lower() if letter.isalnum())
    known = key in SHAPES if is_result else key in NOT_LABELS or plain in CHARGE_NAMES
    return not known and any(part in key.lower() for part in SIMILAR[name])


@cache
def _is_about_a_label(found: str) -> bool:
    """Whether a name is that of a weight, an uncertainty, ... of a label: "config_energy_weight", "forcesStd"."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", found)]
    return any(ABOUT.search(word) for word in words)


def _dropped(frame: Frame) -> Iterator[tuple[str, str]]:
    results = frame.atoms.calc.results if frame.atoms.calc is not None else {}
    if results.get("stress") is not None and not frame.atoms.pbc.all():
        yield "stress", "of what is no cell"
    if results.get("dipole") is not None and frame.atoms.pbc.any():
        yield "dipole", "of what is periodic"


def _why_absent(name: str, frames: list[Frame]) -> str:
    reasons = {why for frame in frames for dropped, why in _dropped(frame) if dropped == name}
    return f" but {' and '.join(reasons)}" if reasons else ""


def _keys_found(frames: list[Frame]) -> str:
    parts = []
    for where in ("results", "info", "arrays"):
        keys: dict[str, None] = {}
        for frame in frames:
            calculated = frame.atoms.calc.results if frame.atoms.calc is not None else {}
            keys.update(dict.fromkeys(calculated if where == "results" else getattr(frame.atoms, where)))
        names = [str(key) for key in keys if key not in ("numbers", "positions")]
        more = ", ..." if len(names) > LISTED else ""
        parts.append(f"{where}: {', '.join(names[:LISTED]) or 'nothing'}{more}")
    return f"found in {'; '.join(parts)}"
