"""What the numbers in a model's tensors may be, as ``config`` says of those that training starts from."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from pydantic.fields import FieldInfo
from torch import Tensor

from fastlr.errors import CheckpointError, ConfigError

from . import expected_tensors
from .config import Electronegativity, Energy, Hardness, ModelConfig, Neighbours, Scale, Width


class Meaning(NamedTuple):
    """Of a tensor's numbers: what they are, their unit, and how they follow from the numbers."""

    what: str
    least: float
    most: float
    unit: str
    of: Callable[[Tensor], Tensor] = lambda values: values


def _bounds(kind) -> tuple[float, float]:
    """The least and the largest number of an annotated type."""
    field = FieldInfo.from_annotation(kind)
    found = {type(bound).__name__: bound for bound in field.metadata}
    return float(found["Ge"].ge), float(found["Le"].le)


EMBEDDING = "type_embedding.weight"  # what all features come from
MEANINGS = {
    "equilibration.log_hardness": Meaning("a hardness", *_bounds(Hardness), "eV/e^2", lambda values: values.exp()),
    "equilibration.widths": Meaning("a width", *_bounds(Width), "Å"),
    "electronegativity_scale_shift.scale": Meaning("an electronegativity's scale", *_bounds(Electronegativity), "eV/e"),
    "electronegativity_scale_shift.shift": Meaning("an electronegativity", *_bounds(Electronegativity), "eV/e"),
    "scale_shift.scale": Meaning("an energy's scale", *_bounds(Scale), "eV"),
    "scale_shift.shift": Meaning("an energy", *_bounds(Energy), "eV"),
    "edge_embedding.roots": Meaning("a Bessel root", 1e-2, 1e4, "half-waves"),
    "norm": Meaning("an average number", *_bounds(Neighbours), "neighbours", lambda values: values**-2),
}


def check_values(path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Refuse numbers not finite in the model's float type, or out of their bounds.

    Raises:
        CheckpointError: the message names the file and the tensor.
    """
    expected = expected_tensors(config)
    if not state[EMBEDDING].any():
        raise CheckpointError(
            f"{path}: tensor '{EMBEDDING}' holds nothing but zeros, so that all features would be zero; these are no "
            "weights of a model that was trained"
        )
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: tensor '{name}' holds values that are not finite floating-point numbers")
        dtype = expected[name][1]
        if not torch.isfinite(tensor.to(dtype)).all():
            largest, name_of = float(tensor.abs().max()), str(dtype).removeprefix("torch.")
            raise CheckpointError(f"{path}: tensor '{name}' holds {largest:.3g}, which is too large for {name_of}")
        meaning = MEANINGS.get(name, MEANINGS.get(name.rpartition(".")[2]))
        if meaning is not None:
            _check_meaning(path, name, meaning, meaning.of(tensor.double()))


def _check_meaning(path, name: str, meaning: Meaning, values: Tensor) -> None:
    least, most = (bound + sign * 1e-3 * abs(bound) for bound, sign in ((meaning.least, -1), (meaning.most, 1)))
    wrong = values[~((values >= least) & (values <= most))]
    if len(wrong):
        raise CheckpointError(
            f"{path}: tensor '{name}' holds {meaning.what} of {wrong[0].item():.3g} {meaning.unit}; it must be between "
            f"{meaning.least:g} and {meaning.most:g}"
        )


def require_as_configured(model: torch.nn.Module) -> None:
    """Compare the tensors of a model with its configuration.

    Raises:
        ConfigError: a tensor is missing, unknown, or of another shape or float type; the message names it.
    """
    expected = expected_tensors(model.config)
    held = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    for name in [*expected, *held]:
        if held.get(name) != expected.get(name):
            found, wanted = (_described(tensors.get(name)) for tensors in (held, expected))
            raise ConfigError(
                f"tensor '{name}' of the model is {found}, its configuration needs {wanted}; build_model makes models "
                "of a configuration, of another float type too"
            )


def _described(layout: tuple[torch.Size, torch.dtype] | None) -> str:
    return "none" if layout is None else f"{str(layout[1]).removeprefix('torch.')} {tuple(layout[0])}"
