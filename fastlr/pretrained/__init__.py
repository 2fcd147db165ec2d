"""Bundled models, each a .safetensors file with a model card (.md) beside it."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def available_models() -> list[str]:
    """Names that ``fastlr.load`` knows."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def model_path(name: str) -> Path | None:
    """File of a bundled model, or None."""
    return _FOLDER / f"{name}.safetensors" if name in available_models() else None
