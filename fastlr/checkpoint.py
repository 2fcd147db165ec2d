"""One-file models: safetensors with a JSON header. A model file is data, never code: nothing is unpickled.

The header's metadata holds one entry, ``fastlr``, a JSON object with

    format_version  integer, see ``FORMAT_VERSION``
    config          the model configuration (``fastlr.models.config``)
    units           the units of everything the model predicts, see ``UNITS``
    conventions     what else the meaning of the weights depends on, see ``CONVENTIONS``
    card            free-form model card: what it was trained on, its errors on held-out data, where it fails

Files in which units or conventions are not stated have those below, which are all that this version knows.
"""

import json
from errno import EIO
from pathlib import Path
from reprlib import repr as shortened

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .constants import COULOMB_CONSTANT
from .errors import CheckpointError, ConfigError
from .foreign import advice
from .kernels.files import replacing
from .kernels.gate.layout import SILU_SCALE, TANH_SCALE
from .models.config import ModelConfig, parse_config

FORMAT_VERSION = 1
FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
UNITS = {"energy": "eV", "length": "Å", "charge": "e", "stress": "eV/Å^3"}
CONVENTIONS = {
    "couplings": "e3nn 0.6",  # signs; ``kernels/tensor_product/coupling.py`` has the definition
    "components": "-l ... l about y",  # the order of real harmonics within an irrep
    "harmonics": "component",  # |Y_l|^2 = 2 l + 1, and couplings of unit norm for each output component
    "linear_maps": "element",  # divided by the square root of the number of inputs
    "irreps": "by degree, odd first",  # the order of the outputs of a convolution
    "paths": "by input, edge, output",  # the order of the weights of a convolution
    "coulomb_constant": COULOMB_CONSTANT,  # eV Å / e^2
    "gaussian_widths": "covalent radii, Cordero 2008",  # where the configuration states none
    "silu_scale": SILU_SCALE,
    "tanh_scale": TANH_SCALE,
}


def save_checkpoint(path: str | Path, config: ModelConfig, state: dict[str, torch.Tensor], card: dict) -> None:
    """Write a model file; an existing one is replaced only when the new one is complete."""
    header = {
        "format_version": FORMAT_VERSION,
        "config": config.model_dump(),
        "units": UNITS,
        "conventions": CONVENTIONS,
        "card": card,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(tensors, partial, metadata={"fastlr": json.dumps(header)})
        except SafetensorError as error:  # as of a full disk
            raise OSError(EIO, str(error)) from None
        partial.chmod(mode)  # safetensors makes the file private; a model is a file like any other


def read_header(path: str | Path) -> tuple[ModelConfig, dict]:
    """Configuration and model card of a model file, without reading its weights.

    Raises:
        CheckpointError: see ``load_checkpoint``.
    """
    with _open(path) as file:
        return _parse_header(path, file.metadata())


def load_checkpoint(path: str | Path) -> tuple[ModelConfig, dict[str, torch.Tensor], dict]:
    """Configuration, weights and model card of a model file.

    Raises:
        CheckpointError: no such file; not a safetensors file (or a truncated one); not a fastlr model or one of a newer
            format; other units or conventions; an invalid configuration; weights that are not finite or too few for
            the configuration.
    """
    with _open(path) as file:
        config, card = _parse_header(path, file.metadata())
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    for name, tensor in state.items():
        if tensor.dtype not in FLOAT_TYPES or not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: tensor '{name}' holds values that are not finite floating-point numbers")
    # refuse a configuration that promises far more than the file holds before building it
    held, least = sum(tensor.numel() for tensor in state.values()), least_numbers(config)
    if held < least:
        raise CheckpointError(f"{path}: holds {held} numbers, but its configuration needs at least {least}")
    return config, state, card


def least_numbers(config: ModelConfig) -> int:
    """A lower bound, and a cheap one, of how many numbers a model of this configuration holds."""
    channels, width, depth = config.channels, config.radial_width, config.radial_depth
    features = config.type_embedding_features or channels[0]
    depths = [config.num_layers, *([config.num_charge_layers] if config.kind == "nequip-lr" else [])]
    layers, stacks = sum(depths), len(depths)
    least = layers * (config.num_bessels * width + max(depth - 1, 0) * width**2 + width) if depth else 0
    # linear maps and self-connection between hidden layers, and the first layer of the first stack
    hidden = layers - stacks + (stacks == 2 and config.reuse_features)
    least += hidden * (1 + features) * channels[0] ** 2 + hidden * sum(c * c for c in channels[1:])
    # and self-connections of the degrees above zero, where both sides have them
    wide = layers - 2 if stacks == 2 and config.reuse_features else sum(max(n - 2, 0) for n in depths)
    least += wide * features * sum(c * c for c in channels[1:])
    least += features * (features + len(config.species) + channels[0]) + (width * features if depth else 0)
    if config.readout_depth:
        readout = config.readout_width or channels[0]
        least += readout * (channels[0] + 1) + (config.readout_depth - 1) * readout**2
    return least


def load_state(model: torch.nn.Module, state: dict[str, torch.Tensor], path: str | Path = "model file") -> None:
    """Put weights into a model built from the same configuration.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape; the message names it.
    """
    expected = model.state_dict()
    for name in expected:
        if name not in state:
            raise CheckpointError(f"{path}: tensor '{name}' is missing")
    for name, tensor in state.items():
        if name not in expected:
            raise CheckpointError(f"{path}: tensor '{name}' is not part of this model")
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: tensor '{name}' has shape {tuple(tensor.shape)}, the configuration needs "
                f"{tuple(expected[name].shape)}"
            )
    model.load_state_dict(state)


def _open(path):
    path, advised = Path(path), advice(path)
    if not path.is_file():
        also = f", nor would fastlr load one of that name: {advised}" if advised else ""
        raise CheckpointError(f"{path}: no such model file{also}")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        if advised:
            raise CheckpointError(f"{path}: not a model file of fastlr: {advised}") from None
        hint = ""
        with path.open("rb") as file:
            if file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"):
                hint = "; it looks like a PyTorch pickle, which fastlr never opens"
        raise CheckpointError(f"{path}: not a complete safetensors file ({error}){hint}") from None


def _parse_header(path, metadata: dict | None) -> tuple[ModelConfig, dict]:
    try:
        header = json.loads((metadata or {})["fastlr"])
        version, config, card = header["format_version"], dict(header["config"]), dict(header["card"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise CheckpointError(
            f"{path}: a safetensors file, but not a fastlr model (no valid 'fastlr' header)"
        ) from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version!r}; this fastlr reads version {FORMAT_VERSION}; update fastlr"
        )
    for name, known in (("units", UNITS), ("conventions", CONVENTIONS)):
        _check_stated(path, name, header.get(name, {}), known)
    try:
        return parse_config(config), card
    except ConfigError as error:
        raise CheckpointError(f"{path}: invalid configuration: {error}") from None


def _check_stated(path, name: str, stated, known: dict) -> None:
    """Refuse units or conventions that the header states other than they are known."""
    if not isinstance(stated, dict):
        raise CheckpointError(f"{path}: '{name}' of its header is no object but {shortened(stated)}")
    for key, value in stated.items():
        if key not in known or value != known[key]:
            ours = f"only knows {known[key]!r}" if key in known else "does not know it"
            raise CheckpointError(f"{path}: {name}: {shortened(key)} is {shortened(value)}; this fastlr {ours}")
