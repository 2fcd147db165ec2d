"""What a run begins with: structures, their labels, and what they say of the model."""

from collections.abc import Callable

from ase.data import chemical_symbols

from fastlr.checkpoint import load_checkpoint
from fastlr.errors import ConfigError, InputError
from fastlr.models import ModelConfig

from .config import AUTO, TrainConfig, complete_model
from .data import Frame, Sample, make_samples, read_frames
from .labels import census, check_labels, check_overlap, check_samples
from .progress import Progress
from .references import electronegativity_shifts, energy_shifts, from_data

SETS = ("train", "validation", "test")


def starting_model(settings: TrainConfig) -> tuple[TrainConfig, dict | None]:
    """The configuration with the model of ``training.start_from``, and its weights; None for a fresh start.

    Raises:
        ConfigError: the model section asks for another model than that file holds; the message names the key.
    """
    path = settings.training.start_from
    if path is None:
        return settings, None
    config, weights, _ = load_checkpoint(path)
    held = config.model_dump()
    for key, value in settings.model.items():
        if value != AUTO and held.get(key) != value:
            raise ConfigError(f"model.{key}: is {value!r}, but the model in training.start_from has {held.get(key)!r}")
    return settings.model_copy(update={"model": held}), weights


def load_data(
    settings: TrainConfig, progress: Progress, check_stop: Callable[[], None]
) -> tuple[dict[str, list[Sample]], ModelConfig, dict[str, int]]:
    """The samples of each set, the model configuration with what they say of it, and how many structures of each set
    are in the training set, too.

    Raises:
        ConfigError, InputError: a file, a structure or its labels cannot be used; see ``labels``.
    """
    frames = {}
    for name in SETS:
        frames[name] = read_frames(getattr(settings.data, name), name)
        check_stop()
        if frames[name]:
            progress.say(census(name, frames[name]))
    check_labels(frames, settings, progress.warn)
    section = dict(settings.model)
    section["species"] = _species(section, frames, settings, progress)
    provisional = complete_model(section, {})

    def advance():
        progress.advance()
        check_stop()

    samples = {}
    for name in SETS:
        progress.start(f"neighbour lists, {name}", len(frames[name]))
        samples[name] = make_samples(frames[name], provisional, advance)
        check_samples(name, samples[name], settings.loss, progress.warn)
    return samples, _completed(section, samples["train"], settings), check_overlap(samples, progress.warn)


def _species(section: dict, frames: dict[str, list[Frame]], settings: TrainConfig, progress: Progress) -> list[str]:
    """Symbols of the model's elements: those of the training structures, unless the configuration says them.

    Raises:
        ConfigError: some are not in the training data.
        InputError: a structure to judge by has others.
    """
    labelled = [frame for frame in frames["train"] if "energy" in frame.labels]
    trained, with_energy = _symbols(frames["train"]), set(_symbols(labelled))
    species = trained if section.get("species", AUTO) == AUTO else section["species"]
    untrained = [symbol for symbol in species if symbol not in trained]
    if untrained and settings.training.start_from is None:
        raise ConfigError(
            f"model.species: no training structure has {', '.join(untrained)}; leave them out, for what the "
            "model would say of them is random"
        )
    for name in SETS[1:]:
        for frame in frames[name]:
            unknown = [symbol for symbol in _symbols([frame]) if symbol not in {*species, *trained}]
            if unknown:
                raise InputError(
                    f"{frame.source}: has {', '.join(unknown)}, which no training structure has; leave it out"
                )
    without = [symbol for symbol in trained if symbol not in with_energy]
    if without and with_energy and settings.loss.energy:
        progress.warn(f"no training structure with {', '.join(without)} has an energy; nothing says what theirs are")
    return species


def _symbols(frames: list[Frame]) -> list[str]:
    numbers: set[int] = set()
    for frame in frames:
        numbers.update(frame.atoms.numbers.tolist())
    return [chemical_symbols[number] for number in sorted(numbers)]


def _completed(section: dict, train: list[Sample], settings: TrainConfig) -> ModelConfig:
    provisional = complete_model(section, {})
    found = from_data(train, provisional.species)
    if section.get("electronegativity_shifts") == AUTO:
        found["electronegativity_shifts"] = electronegativity_shifts(train, provisional)
    if section.get("energy_shifts", AUTO) == AUTO and "energy_shifts" in found:
        found["energy_shifts"] = energy_shifts(train, complete_model(section, found), settings.training.seed)
    return complete_model(section, found)
