"""The models, each built from a validated configuration."""

import torch

from .config import ModelConfig, NequIPConfig, NequIPLRConfig, parse_config

__all__ = ["ModelConfig", "NequIPConfig", "NequIPLRConfig", "build_model", "expected_tensors", "parse_config"]


def build_model(config: ModelConfig, operations=None):
    """The model of a configuration, in the float type it names, freshly initialised.

    Args:
        config: ``NequIPConfig`` or ``NequIPLRConfig``.
        operations: kernels to use (default: the reference ones on the CPU).
    """
    from fastlr.backends import resolve

    from .nequip import NequIP
    from .nequip_lr import NequIPLR

    operations = operations or resolve("reference", dtype=config.torch_dtype)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # what the user may have set globally is not to decide the float type
    try:
        return {"nequip": NequIP, "nequip-lr": NequIPLR}[config.kind](config, operations)
    finally:
        torch.set_default_dtype(default)


def expected_tensors(config: ModelConfig) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shapes and float types of all tensors of a model of this configuration, by name.

    They are read off the layers themselves, whose weights are neither allocated nor drawn.
    """
    from fastlr.backends import NoOperations
    from fastlr.nn.initial import shapes_alone

    with torch.random.fork_rng(devices=[]), shapes_alone():
        model = build_model(config.model_copy(update={"dtype": "float32"}), NoOperations())
    types = {torch.float32: config.torch_dtype}
    return {name: (value.shape, types.get(value.dtype, value.dtype)) for name, value in model.state_dict().items()}
