"""One-file models: safetensors with a JSON header. A model file is data, never code: nothing is unpickled.

The header's metadata holds one entry, ``fastlr``, a JSON object with

    format_version  integer, see ``FORMAT_VERSION``
    config          the model configuration (``fastlr.models.config``)
    units           the units of everything the model predicts, see ``UNITS``
    conventions     what else the meaning of the weights depends on, see ``CONVENTIONS``
    card            free-form model card: what it was trained on, its errors on held-out data, where it fails

Files in which units or conventions are not stated have those below, which are all that this version knows. Whatever
else a file states is refused: it would be read by nobody.
"""

import json
from contextlib import suppress
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
from .models import ModelConfig, expected_tensors, parse_config
from .models.values import check_values

FORMAT_VERSION = 1
HEADER = "fastlr"
KEYS = ("format_version", "config", "units", "conventions", "card")
LARGEST_HEADER = 2**23  # bytes; the largest network has a hundredth of that
FLOAT_TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
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
    """Write a model file; an existing one is replaced only when the new one is complete.

    Raises:
        CheckpointError: it could not be read again, for what ``load_checkpoint`` refuses, or the card is no JSON.
    """
    header = {
        "format_version": FORMAT_VERSION,
        "config": config.model_dump(),
        "units": UNITS,
        "conventions": CONVENTIONS,
        "card": card,
    }
    try:
        text = json.dumps(header)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the model card cannot be written: {error}") from None
    if len(text) > LARGEST_HEADER // 2:
        raise CheckpointError(f"{path}: the model card of {len(text) / 2**20:.0f} MiB is too long")
    _parse_header(path, {HEADER: text})
    _check_layout(path, config, {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    check_values(path, config, tensors)
    with replacing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(tensors, partial, metadata={HEADER: text})
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


def load_checkpoint(path: str | Path, dtype: str | None = None) -> tuple[ModelConfig, dict[str, torch.Tensor], dict]:
    """Configuration, weights and model card of a model file.

    Names, shapes and float types are compared with those of the configuration before any weight is read.

    Args:
        dtype: the configuration's float type is replaced by this one.

    Raises:
        CheckpointError: no such file; not a safetensors file (or a truncated one); not a fastlr model or one of a newer
            format; other units or conventions; an invalid configuration; a tensor that is missing, unknown, of another
            shape, no floating-point numbers, not finite in the model's float type, or outside of what it means.
    """
    with _open(path) as file:
        config, card = _parse_header(path, file.metadata())
        if dtype is not None:
            config = config.model_copy(update={"dtype": dtype})
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        held = {
            name: (torch.Size(part.get_shape()), FLOAT_TYPES.get(part.get_dtype())) for name, part in slices.items()
        }
        _check_layout(path, config, held)
        state = {name: file.get_tensor(name) for name in held}
    check_values(path, config, state)
    return config, state, card


def _check_layout(path, config: ModelConfig, held: dict[str, tuple[torch.Size, torch.dtype | None]]) -> None:
    """Refuse tensors of other names, shapes or types than the configuration has."""
    for name, (_, dtype) in held.items():
        if dtype not in FLOAT_TYPES.values():
            raise CheckpointError(f"{path}: tensor '{name}' does not hold floating-point numbers of 16 to 64 bits")
    _require_shapes(
        path,
        {name: shape for name, (shape, _) in held.items()},
        {name: shape for name, (shape, _) in expected_tensors(config).items()},
    )


def _require_shapes(path, held: dict[str, torch.Size], expected: dict[str, torch.Size]) -> None:
    for name in expected:
        if name not in held:
            raise CheckpointError(f"{path}: tensor '{name}' is missing")
    for name, shape in held.items():
        if name not in expected:
            raise CheckpointError(f"{path}: tensor '{shortened(name)[1:-1]}' is not part of this model")
        if shape != expected[name]:
            raise CheckpointError(
                f"{path}: tensor '{name}' has shape {tuple(shape)}, the configuration needs {tuple(expected[name])}"
            )


def load_state(model: torch.nn.Module, state: dict[str, torch.Tensor], path: str | Path = "model file") -> None:
    """Put weights into a model freshly built from the same configuration.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, or contradicts the configuration that it
            follows from; the message names it.
    """
    _require_shapes(
        path,
        {name: tensor.shape for name, tensor in state.items()},
        {name: tensor.shape for name, tensor in model.state_dict().items()},
    )
    for name, buffer in model.named_buffers():
        if name in state:
            _require_constant(path, name, state[name], buffer)
    model.load_state_dict(state)


def _require_constant(path, name: str, held: torch.Tensor, stated: torch.Tensor) -> None:
    """Refuse a buffer at odds with the configuration, from which it follows."""
    digits = 8.0 * max(torch.finfo(tensor.dtype).eps for tensor in (held, stated))
    if not torch.allclose(held.double(), stated.double(), rtol=digits, atol=digits):
        worst = int((held.double() - stated.double()).abs().argmax())
        raise CheckpointError(
            f"{path}: tensor '{name}' holds {held.flatten()[worst].item():g} where the configuration of the file says "
            f"{stated.flatten()[worst].item():g}"
        )


def _open(path):
    path, advised = Path(path), advice(path)
    if not path.is_file():
        also = f", nor would fastlr load one of that name: {advised}" if advised else ""
        raise CheckpointError(f"{path}: no such model file{also}")
    try:
        _check_container(path)
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        if advised:
            raise CheckpointError(f"{path}: not a model file of fastlr: {advised}") from None
        hint = ""
        with suppress(OSError), path.open("rb") as file:
            if file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"):
                hint = "; it looks like a PyTorch pickle, which fastlr never opens"
        raise CheckpointError(f"{path}: not a complete safetensors file ({error}){hint}") from None


def _check_container(path: Path) -> None:
    """Refuse a container with too large a table of contents, or with an entry twice: the last would win."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        table = file.read(min(length, LARGEST_HEADER + 1))
    if LARGEST_HEADER < length <= path.stat().st_size:
        raise CheckpointError(f"{path}: its header of {length / 2**20:.0f} MiB is larger than that of any model")
    try:
        json.loads(table, object_pairs_hook=_once)
    except _Twice as error:
        raise CheckpointError(f"{path}: {error} stands twice in the table of its tensors") from None
    except (ValueError, RecursionError):
        return  # safetensors says what is wrong


class _Twice(ValueError):
    """A repeated key of a JSON object."""


def _once(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        known = set()
        raise _Twice(next(shortened(key) for key, _ in pairs if key in known or known.add(key)))
    return found


def _parse_header(path, metadata: dict | None) -> tuple[ModelConfig, dict]:
    try:
        header = json.loads((metadata or {})[HEADER], object_pairs_hook=_once)
        version, config, card = header["format_version"], dict(header["config"]), dict(header["card"])
    except _Twice as error:
        raise CheckpointError(f"{path}: {error} stands twice in its 'fastlr' header") from None
    except (KeyError, TypeError, ValueError, RecursionError):
        raise CheckpointError(
            f"{path}: a safetensors file, but not a fastlr model (no valid 'fastlr' header)"
        ) from None
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {shortened(version)}; this fastlr reads version {FORMAT_VERSION}; update fastlr"
        )
    for place, stated, known in (("header", header, KEYS), ("metadata", metadata, (HEADER, "format"))):
        for key in stated:
            if key not in known:
                raise CheckpointError(f"{path}: its {place} states {shortened(key)}, which this fastlr does not know")
    for name, known in (("units", UNITS), ("conventions", CONVENTIONS)):
        _check_stated(path, name, header.get(name, {}), known)
        for key in card:  # which is for people, but shall not say something else
            if key.lower().rstrip("s") == name.rstrip("s"):
                _check_stated(path, f"{key} in the card", card[key], known)
    try:
        return parse_config(config), card
    except ConfigError as error:
        raise CheckpointError(f"{path}: invalid configuration: {error}") from None


def _check_stated(path, name: str, stated, known: dict) -> None:
    """Refuse units or conventions that the header states other than they are known."""
    if not isinstance(stated, dict):
        raise CheckpointError(f"{path}: '{name}' of its header is no object but {shortened(stated)}")
    for key, value in stated.items():
        if key not in known or isinstance(value, bool) or value != known[key]:
            ours = f"only knows {known[key]!r}" if key in known else "does not know it"
            raise CheckpointError(f"{path}: {name}: {shortened(key)} is {shortened(value)}; this fastlr {ours}")
