"""The NequIP model inside a module of the ``nequip`` package: finding it, and evaluating a copy of it in float64."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from torch import nn

from fastlr.errors import ConfigError
from fastlr.foreign import NEQUIP_LOADER, NEQUIP_STATE

from .proof import Evaluation

# containers whose own computation is that of what they contain
_CONTAINERS = ("ModuleDict", "ModuleList", "OptimizedModule", "DataParallel", "DistributedDataParallel")


def check_module(given) -> nn.Module:
    """What was given, if it is a module that can be read.

    Raises:
        ConfigError: it is a path, a calculator, compiled, or something else; the message says what to do.
    """
    if isinstance(given, nn.Module) and not isinstance(given, torch.jit.ScriptModule):
        return given
    if isinstance(given, str | PathLike):
        kind = f"a file name ('{given}')"
    elif isinstance(given, Calculator):
        kind = f"an ASE calculator ({type(given).__name__})"
    elif isinstance(given, torch.jit.ScriptModule):
        kind = "a TorchScript module"
    else:
        kind = f"something of type {type(given).__name__}"
    raise ConfigError(
        f"from_nequip takes a module that is not compiled, not {kind}; for a model of nequip, call {NEQUIP_STATE}(), "
        f"load its package (.nequip.zip) or checkpoint (.ckpt) with {NEQUIP_LOADER}(path), and pass what that returns"
    )


def find_model(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The outermost nequip module that computes energies, and the energy model inside it.

    Raises:
        ConfigError: there is none, there are several, or they are part of something that computes more.
    """
    energy_models = [name for name, part in module.named_modules() if _is_energy_model(part)]
    if not energy_models:
        raise ConfigError("this module holds no NequIP energy model (no 'type_embed' and 'layer0_convnet' in it)")
    tops = [_top(module, name) for name in energy_models]
    if len(tops) > 1:
        names = tops if len(set(tops)) == len(tops) else energy_models
        raise ConfigError(
            f"this module holds {len(names)} NequIP models: {', '.join(names)}; pass one of them, as in "
            f"from_nequip(module.get_submodule('{names[0]}'))"
        )
    top = tops[0]
    for name in _ancestors(top):
        around = module.get_submodule(name)
        if type(around).__name__ not in _CONTAINERS:
            raise ConfigError(
                f"the NequIP model is part of a module ({type(around).__name__}) that may compute more than it; pass "
                f"the model itself: {_how_to_get(around, top)}"
            )
    return module.get_submodule(top), module.get_submodule(energy_models[0])


def _is_energy_model(module: nn.Module) -> bool:
    return {"type_embed", "layer0_convnet"} <= {name for name, _ in module.named_children()}


def _ancestors(name: str) -> list[str]:
    """Names of the modules around a module, from the outermost."""
    parts = name.split(".") if name else []
    return [".".join(parts[:k]) for k in range(len(parts))]


def _top(module: nn.Module, name: str) -> str:
    """The outermost of the nequip modules around a module."""
    for around in _ancestors(name):
        # asked of the class: compiled modules pass questions on to what they contain
        if getattr(type(module.get_submodule(around)), "_is_graph_module_mixin", False):
            return around
    return name


def _how_to_get(around: nn.Module, name: str) -> str:
    if hasattr(type(around), "evaluation_model"):  # of training, which may hold averaged weights beside the model
        return "module.evaluation_model['sole_model']"
    return f"module.get_submodule('{name}')"


def evaluation_of(top: nn.Module, species: list[str], r_max: float) -> Callable[[Atoms], Evaluation]:
    """A function that evaluates a nequip model on structures, in float64 on the CPU.

    The model is copied; it and the process's settings stay as they are. Weights and constants keep the digits that they
    were rounded to.
    """
    from nequip.data import AtomicDataDict, from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

    with _guarded():
        model = _in_float64(_with_derivatives(copy.deepcopy(top)))
        types, neighbours = ChemicalSpeciesToAtomTypeMapper(species), NeighborListTransform(r_max)

    def evaluate(atoms: Atoms) -> Evaluation:
        with _guarded():
            out = model(AtomicDataDict.with_batch_(neighbours(types(from_ase(atoms)))))
            stress = out["stress"][0].detach().numpy() if "stress" in out and atoms.pbc.all() else None
            return Evaluation(out["total_energy"].item(), out["forces"].detach().numpy(), stress)

    return evaluate


@contextmanager
def _guarded() -> Iterator[None]:
    """float64 as the default type, as nequip has it, for a while; what goes wrong is an error of the model."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            yield
    except Exception as error:  # whatever the code of another package trips over
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"the nequip model cannot be evaluated to compare with it: {reason[:300]}") from error
    finally:
        torch.set_default_dtype(default)


def _with_derivatives(model: nn.Module) -> nn.Module:
    """The model as one that gives forces and stress, and is not compiled."""
    from nequip.nn import ForceStressOutput

    if getattr(model, "is_compile_graph_model", False):
        model = model.model
    outputs = [part for part in model.modules() if hasattr(part, "do_derivatives")]
    for part in outputs:
        part.do_derivatives = True
    gives_forces = outputs or any(type(part).__name__ == "PartialForceOutput" for part in model.modules())
    return model if gives_forces else ForceStressOutput(model)


def float_type_of(top: nn.Module) -> torch.dtype:
    """What a model's weights and constants have been rounded to; it may have been cast to another type since."""
    known = {value for part in top.modules() for value in vars(part).values() if isinstance(value, torch.dtype)}
    known |= {parameter.dtype for parameter in top.parameters()}
    return torch.float32 if torch.float32 in known else torch.float64


def _in_float64(model: nn.Module) -> nn.Module:
    model = model.to("cpu", torch.float64).eval().requires_grad_(False)
    for part in model.modules():
        for name, value in list(vars(part).items()):
            if value is torch.float32:  # float types that modules cast to
                setattr(part, name, torch.float64)
    return model
