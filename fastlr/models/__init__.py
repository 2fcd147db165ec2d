"""The models, each built from a validated configuration."""

import torch

from .config import ModelConfig, NequIPConfig, NequIPLRConfig, parse_config

__all__ = ["ModelConfig", "NequIPConfig", "NequIPLRConfig", "build_model", "parse_config"]


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
