"""Model configurations: what a model is made of, validated before anything is built."""

from reprlib import repr as shortened
from typing import Annotated, Literal

import torch
from ase.data import atomic_numbers
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from fastlr.covalent_radii import COVALENT_RADII
from fastlr.errors import ConfigError


def _no_truth(value):
    """Refuse what YAML makes of "yes" and "on" in place of a number."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {value}")
    return value


def _number(kind: type, **bounds: float):
    return Annotated[kind, Field(**bounds), BeforeValidator(_no_truth)]


# What a number may be. Models that anybody would want lie far inside; beyond, numbers overflow in float32, or a small
# file asks for more memory and time than there is. How large networks may be is bounded by what a file holds of them.
PositiveInt = _number(int, ge=1, le=4096)
NumLayers = _number(int, ge=1, le=64)
Degree = _number(int, ge=0, le=4)
Depth = _number(int, ge=0, le=64)
NumBessels = _number(int, ge=1, le=512)
NumBins = _number(int, ge=2, le=4096)
Cutoff = _number(float, ge=1.5, le=30.0)  # Å; bonds are about as long, and within 30 Å of an atom are ten thousand
CutoffPower = _number(float, ge=2.0, le=100.0)  # two derivatives; (p + 1)(p + 2) cancel down to one
Neighbours = _number(float, ge=1e-4, le=1e6)
Scale = _number(float, ge=-1e6, le=1e6)  # eV
Energy = _number(float, ge=-1e8, le=1e8)  # eV; all electrons of the heaviest element have two million
Charge = _number(float, ge=1e-3, le=1e3)  # e
Hardness = _number(float, ge=1e-3, le=1e4)  # eV/e^2; elements have 4 to 25
Electronegativity = _number(float, ge=-1e4, le=1e4)  # eV/e
Width = _number(float, ge=0.01, le=4.0)  # Å; pairs are summed one by one up to ten widths
Splitting = _number(float, ge=0.2, le=10.0)  # Å; waves go with its inverse cubed, and pairs with its cube
Accuracy = _number(float, ge=1e-15, le=1e-2)  # float64 tells no more; sums are never coarser than 1e-7


class NequIPConfig(BaseModel):
    """A short-range NequIP model (Batzner et al., Nat. Commun. 13, 2453, 2022)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    kind: Literal["nequip"] = "nequip"
    species: list[str] = Field(min_length=1, max_length=len(atomic_numbers) - 1)
    dtype: Literal["float32", "float64"] = "float32"
    r_max: Cutoff = 5.0  # Å
    num_layers: NumLayers = 3
    l_max: Degree = 2
    parity: bool = True  # keep both parities of each degree
    num_features: PositiveInt | list[PositiveInt] = 32  # channels, for all degrees or for each
    type_embedding_features: PositiveInt | None = None  # default: channels of degree zero
    radial_depth: Depth = 1
    radial_width: PositiveInt = 128
    num_bessels: NumBessels = 8
    bessel_trainable: bool = False
    cutoff_p: CutoffPower = 6.0
    avg_num_neighbors: Neighbours | dict[str, Neighbours] = 20.0  # for all species or for each
    readout_depth: Depth = 0  # hidden layers
    readout_width: PositiveInt | None = None
    readout_nonlinearity: Literal["silu", "mish", "gelu", "tanh", "ssp", "sigmoid", "softplus"] = "silu"
    energy_scales: Scale | dict[str, Scale] = 1.0  # eV
    energy_shifts: Energy | dict[str, Energy] = 0.0  # eV
    energy_scales_trainable: bool = False
    energy_shifts_trainable: bool = False

    @model_validator(mode="after")
    def _check(self):
        unknown = [symbol for symbol in self.species if symbol not in atomic_numbers or symbol == "X"]
        if unknown:
            raise ValueError(f"species: {unknown[0]!r} is not a chemical symbol")
        if len(set(self.species)) != len(self.species):
            raise ValueError(f"species: a symbol is listed twice in {shortened(self.species)}")
        if isinstance(self.num_features, list) and len(self.num_features) != self.l_max + 1:
            raise ValueError(f"num_features: needs l_max + 1 = {self.l_max + 1} entries, got {self.num_features}")
        for key in self._per_species():
            value = getattr(self, key)
            if isinstance(value, dict) and set(value) != set(self.species):
                raise ValueError(f"{key}: needs an entry for each of {self.species}, got {sorted(value)}")
        return self

    def __setattr__(self, name: str, value) -> None:
        raise ConfigError(f"model.{name}: a configuration does not change; make another with model_copy(update=...)")

    def _per_species(self) -> tuple[str, ...]:
        return ("avg_num_neighbors", "energy_scales", "energy_shifts")

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def channels(self) -> list[int]:
        """Channels of each degree 0 ... l_max."""
        return self.num_features if isinstance(self.num_features, list) else [self.num_features] * (self.l_max + 1)

    def of_species(self, value: float | dict[str, float]) -> list[float]:
        """A number for each species, in the order of ``species``."""
        return [value[symbol] for symbol in self.species] if isinstance(value, dict) else [value] * len(self.species)


class NequIPLRConfig(NequIPConfig):
    """NequIP-LR: NequIP with global charge equilibration (Maruf, Kim & Ahmad, arXiv 2503.17949).

    ``num_layers`` counts the interaction layers of the energy stack, ``num_charge_layers`` those of the charge stack.
    ``l_max = 0`` gives the long-range invariant variant.
    """

    kind: Literal["nequip-lr"] = "nequip-lr"
    num_charge_layers: NumLayers = 1
    num_layers: NumLayers = 1
    reuse_features: bool = True  # the energy stack goes on from the features of the charge stack
    charge_encoding: Literal["scalar", "gaussian"] = "scalar"
    num_charge_bins: NumBins = 16  # Gaussian encoding
    charge_range: Charge = 2.0  # e; Gaussian bins span minus to plus this
    site_energy: bool = True  # whether chi q + J q^2 / 2 counts towards the energy
    hardness: Hardness | dict[str, Hardness] = 20.0  # eV/e^2, where training starts
    electronegativity_shifts: Electronegativity | dict[str, Electronegativity] = 0.0  # eV/e, where training starts
    gaussian_widths: Width | dict[str, Width] | None = None  # Å; default: covalent radii
    ewald_accuracy: Accuracy = 1e-10
    ewald_eta: Splitting | None = None  # Å; default: balanced between the two sums

    @model_validator(mode="after")
    def _check_widths(self):
        if self.gaussian_widths is None:
            for symbol in self.species:
                if atomic_numbers[symbol] > len(COVALENT_RADII):
                    raise ValueError(f"gaussian_widths: needs one for {symbol}, of which no covalent radius is known")
        return self

    def _per_species(self) -> tuple[str, ...]:
        return (*super()._per_species(), "hardness", "electronegativity_shifts", "gaussian_widths")

    @property
    def widths(self) -> list[float]:
        """Width of each species' Gaussian charge, Å."""
        if self.gaussian_widths is None:
            return [COVALENT_RADII[atomic_numbers[symbol] - 1] for symbol in self.species]
        return self.of_species(self.gaussian_widths)


ModelConfig = NequIPConfig | NequIPLRConfig
_ADAPTER = TypeAdapter(Annotated[ModelConfig, Field(discriminator="kind")])


def parse_config(data: dict) -> ModelConfig:
    """A configuration from plain data.

    Raises:
        ConfigError: a key is unknown or a value invalid; the message names the key.
    """
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        raise ConfigError(describe(error, "model")) from None


def describe(error: ValidationError, prefix: str) -> str:
    """The first problem of a pydantic error as one line that names the key."""
    first = _telling(error.errors())
    where = ".".join([prefix, *(str(part) for part in first["loc"] if not _is_type(part))])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "this key is not known"
    elif first["type"] in ("union_tag_not_found", "union_tag_invalid"):
        message = "'kind' must be 'nequip' or 'nequip-lr'"
    elif first["type"] != "missing" and first["type"] != "value_error":
        message = f"{message}, got {shortened(first['input'])}"
    return f"{where}: {message}"


def _telling(errors: list[dict]) -> dict:
    """The first error; of a union of types, the one of the type of the value."""
    field = errors[0]["loc"][:2]
    return next((error for error in errors if error["loc"][:2] == field and "_type" not in error["type"]), errors[0])


def _is_type(part: str | int) -> bool:
    """Whether a part of a location names a type: a kind of model, or a member of a union."""
    names = ("nequip", "nequip-lr", "float", "int", "dict", "list", "function-before")
    return str(part).removeprefix("constrained-").partition("[")[0] in names
