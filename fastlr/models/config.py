"""Model configurations: what a model is made of, validated before anything is built."""

from typing import Annotated, Literal

import torch
from ase.data import atomic_numbers
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, TypeAdapter, ValidationError, model_validator

from fastlr.covalent_radii import COVALENT_RADII
from fastlr.errors import ConfigError

PositiveInt = Annotated[int, Field(ge=1, le=4096)]
NumLayers = Annotated[int, Field(ge=1, le=64)]


class NequIPConfig(BaseModel):
    """A short-range NequIP model (Batzner et al., Nat. Commun. 13, 2453, 2022)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: Literal["nequip"] = "nequip"
    species: list[str] = Field(min_length=1)
    dtype: Literal["float32", "float64"] = "float32"
    r_max: PositiveFloat = 5.0  # Å
    num_layers: NumLayers = 3
    l_max: Annotated[int, Field(ge=0, le=4)] = 2
    parity: bool = True  # keep both parities of each degree
    num_features: PositiveInt | list[PositiveInt] = 32  # channels, for all degrees or for each
    type_embedding_features: PositiveInt | None = None  # default: channels of degree zero
    radial_depth: Annotated[int, Field(ge=0, le=64)] = 1
    radial_width: PositiveInt = 128
    num_bessels: PositiveInt = 8
    bessel_trainable: bool = False
    cutoff_p: Annotated[float, Field(ge=2.0)] = 6.0
    avg_num_neighbors: PositiveFloat | dict[str, PositiveFloat] = 20.0  # for all species or for each
    readout_depth: Annotated[int, Field(ge=0, le=64)] = 0  # hidden layers
    readout_width: PositiveInt | None = None
    readout_nonlinearity: Literal["silu", "mish", "gelu", "tanh", "ssp", "sigmoid", "softplus"] = "silu"
    energy_scales: float | dict[str, float] = 1.0  # eV
    energy_shifts: float | dict[str, float] = 0.0  # eV
    energy_scales_trainable: bool = False
    energy_shifts_trainable: bool = False

    @model_validator(mode="after")
    def _check(self):
        unknown = [symbol for symbol in self.species if symbol not in atomic_numbers or symbol == "X"]
        if unknown:
            raise ValueError(f"species: {unknown[0]!r} is not a chemical symbol")
        if len(set(self.species)) != len(self.species):
            raise ValueError(f"species: a symbol is listed twice in {self.species}")
        if isinstance(self.num_features, list) and len(self.num_features) != self.l_max + 1:
            raise ValueError(f"num_features: needs l_max + 1 = {self.l_max + 1} entries, got {self.num_features}")
        for key in self._per_species():
            value = getattr(self, key)
            if isinstance(value, dict) and set(value) != set(self.species):
                raise ValueError(f"{key}: needs an entry for each of {self.species}, got {sorted(value)}")
        return self

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
    num_charge_bins: Annotated[int, Field(ge=2, le=4096)] = 16  # Gaussian encoding
    charge_range: PositiveFloat = 2.0  # e; Gaussian bins span minus to plus this
    site_energy: bool = True  # whether chi q + J q^2 / 2 counts towards the energy
    hardness: PositiveFloat | dict[str, PositiveFloat] = 20.0  # eV/e^2, where training starts
    electronegativity_shifts: float | dict[str, float] = 0.0  # eV/e, where training starts
    gaussian_widths: PositiveFloat | dict[str, PositiveFloat] | None = None  # Å; default: covalent radii
    ewald_accuracy: Annotated[float, Field(gt=0.0, lt=1e-2)] = 1e-10
    ewald_eta: PositiveFloat | None = None  # Å; default: balanced between the two sums

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
    first = error.errors()[0]
    where = ".".join([prefix, *(str(part) for part in first["loc"] if part not in ("nequip", "nequip-lr"))])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "this key is not known"
    elif first["type"] in ("union_tag_not_found", "union_tag_invalid"):
        message = "'kind' must be 'nequip' or 'nequip-lr'"
    elif first["type"] != "missing" and first["type"] != "value_error":
        message = f"{message}, got {first['input']!r}"
    return f"{where}: {message}"
