"""Models of the ``nequip`` package in every dress: served, or refused by name; never silently another model."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.calculators.lj import LennardJones
from reference import structures
from torch import nn

import fastlr
from fastlr.errors import CheckpointError, ConfigError
from fastlr.foreign import NEQUIP_IMPORTER, NEQUIP_LOADER, NEQUIP_STATE
from fastlr.models.config import NequIPConfig
from fastlr.nn.nonlinearities import NONLINEARITIES

pytest.importorskip("nequip")

from nequip.model import FullNequIPGNNModel, NequIPGNNModel
from nequip.nn import mlp
from nequip.utils.global_state import set_global_state

from fastlr.interop import nequip as importer
from fastlr.interop.nequip import from_nequip
from fastlr.interop.nequip_source import evaluation_of

pytestmark = pytest.mark.filterwarnings("ignore:Found `per_type_energy:UserWarning")

SPECIES = ["Na", "Cl", "H", "O"]
BASE = {"seed": 7, "model_dtype": "float64", "r_max": 4.0, "type_names": SPECIES, "avg_num_neighbors": 11.0}
SMALL = BASE | {"num_layers": 2, "l_max": 1, "num_features": 4, "radial_mlp_width": 8}
HIDDEN, LAYERS = "4x0e+4x0o+3x1e+3x1o+2x2e+2x2o", 3
FULL = BASE | {
    "irreps_edge_sh": "1x0e+1x1o+1x2e",
    "type_embed_num_features": 4,
    "feature_irreps_hidden": [*[HIDDEN] * (LAYERS - 1), "4x0e"],
    "radial_mlp_depth": [1] * LAYERS,
    "radial_mlp_width": [8] * LAYERS,
}
DEEP = {"readout_mlp_hidden_layers_depth": 2, "readout_mlp_hidden_layers_width": 5}


@pytest.fixture(scope="module", autouse=True)
def _global_state():
    set_global_state()  # makes float64 the default float type, the first time
    torch.set_default_dtype(torch.float32)


def small(**options):
    return NequIPGNNModel(**SMALL | options)


def full(**options):
    return FullNequIPGNNModel(**FULL | options)


def assert_agrees(model, potential, tolerance: float = 1e-10) -> None:
    for atoms in (structures.salt(), structures.water()):
        theirs, ours = evaluation_of(model, SPECIES, 4.0)(atoms), potential.predict(atoms)
        assert ours.energy == pytest.approx(theirs.energy, rel=tolerance)
        assert np.linalg.norm(ours.forces - theirs.forces) <= tolerance * np.linalg.norm(theirs.forces)


@pytest.mark.parametrize("nonlinearity", mlp._NONLINEARITY_MAP, ids=repr)
def test_nonlinearities_of_the_readout(nonlinearity):
    model = small(**DEEP, readout_mlp_nonlinearity=nonlinearity)
    potential = from_nequip(model, backend="reference", device="cpu")
    if nonlinearity in NONLINEARITIES:
        assert potential.config.readout_nonlinearity == nonlinearity
    else:  # linear maps in a row
        assert potential.config.readout_depth == 0
    assert_agrees(model, potential)


def test_saved_with_its_nonlinearity(tmp_path):
    """And the inference plan has it, too."""
    model = small(**DEEP, readout_mlp_nonlinearity="mish")
    from_nequip(model, device="cpu", backend="reference").save(tmp_path / "model.safetensors")
    assert_agrees(model, fastlr.load(tmp_path / "model.safetensors", device="cpu"))


def test_the_names_are_those_of_nequip():
    choices = NequIPConfig.model_json_schema()["properties"]["readout_nonlinearity"]["enum"]
    assert set(choices) == set(NONLINEARITIES) == set(mlp._NONLINEARITY_MAP) - {None, "None", "null"}


@pytest.mark.parametrize("irreps", ["1x1o+1x0e+1x2e", "2e+1o+0e"])
def test_edge_irreps_in_another_order(irreps):
    model = full(irreps_edge_sh=irreps)
    assert_agrees(model, from_nequip(model, backend="reference", device="cpu"))


ODD = {
    "edges incomplete": ({"irreps_edge_sh": "1x0e+1x2e"}, "irreps_edge_sh 1x0e"),
    "edges twice": ({"irreps_edge_sh": "1x0e+2x1o+1x2e"}, "irreps_edge_sh 1x0e"),
    "edges of more degrees": ({"irreps_edge_sh": "0e+1o+2e+3o"}, "layer 0 .* irreps"),
    "hidden in another order": ({"feature_irreps_hidden": ["3x1o+3x1e+4x0e", "4x0e"], "irreps_edge_sh": 1}, "irreps"),
    "no scalars": ({"feature_irreps_hidden": ["3x1o+3x1e", "3x1o+3x1e", "4x0e"]}, "no scalars"),
    "last of another width": ({"feature_irreps_hidden": [HIDDEN, HIDDEN, "7x0e"]}, "layer 2 .* irreps 7x0e"),
    "radial depths": ({"radial_mlp_depth": [1, 2, 1]}, "layer 1 .* radial network"),
    "radial widths": ({"radial_mlp_width": [8, 9, 8]}, "layer 1 .* radial network"),
    "no self-connection": ({"convnet_sc": False}, "layer 1 .* self-connection"),
    "self-connection": ({"learnable_shift": True}, "layer 0 .* self-connection"),
    "norm": ({"convnet_nonlinearity_type": "norm"}, "NormActivation"),
    "gates": ({"convnet_nonlinearity_gates": {"e": "ssp", "o": "tanh"}}, "layer 0 .* nonlinearity"),
}


@pytest.mark.parametrize("name", ODD)
def test_unusual_models_are_refused_by_name(name):
    options, match = ODD[name]
    layers = len(options.get("feature_irreps_hidden", FULL["feature_irreps_hidden"]))
    options = {"radial_mlp_depth": [1] * layers, "radial_mlp_width": [8] * layers} | options
    with pytest.raises(ConfigError, match=match) as error:
        from_nequip(full(**options))
    assert "\n" not in str(error.value)


def test_type_names_that_are_no_elements():
    with pytest.raises(ConfigError, match="species: 'O1' is not a chemical symbol"):
        from_nequip(small(type_names=["O1", "H"]))


def _in_place_of_silu(network, other):
    network.mlp = nn.Sequential(*[other if isinstance(part, nn.SiLU) else part for part in network.mlp])


TAMPERED = {
    "radial network": lambda m: _in_place_of_silu(m.layer1_convnet.conv.edge_mlp, nn.Tanh()),
    "readout": lambda m: _in_place_of_silu(m.per_atom_energy_readout.mlp_module, nn.Softplus(2.0)),
    "harmonics": lambda m: setattr(m.spharm.sh, "normalization", "norm"),
    "cutoff": lambda m: setattr(m.edge_norm, "_rmax_recip", torch.tensor(0.26)),
    "factor": lambda m: setattr(m.factor, "factor", 1.0),
    "neighbours": lambda m: m.layer1_convnet.conv.avg_num_neighbors_norm.norm_const.mul_(1.01),
    "energies": lambda m: setattr(m.total_energy_sum, "constant", 1.01),
    "a part less": lambda m: delattr(m, "factor"),
    "a part more": lambda m: m.add_module("more", nn.Identity()),
    "not a number": lambda m: m.layer1_convnet.conv.linear_2.weight.detach().fill_(torch.nan),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_models_are_refused(name):
    model = small(**DEEP)
    TAMPERED[name](model.model.func)
    with pytest.raises(ConfigError) as error:
        from_nequip(model)
    assert "\n" not in str(error.value)


def test_weights_in_the_wrong_place_are_refused(monkeypatch):
    copy_weights = importer.copy_weights

    def swap(source, model):
        copy_weights(source, model)
        model.stack.layers[1].linear_1.weights["0e"].data = model.stack.layers[1].linear_1.weights["0e"].data.T

    monkeypatch.setattr(importer, "copy_weights", swap)
    with pytest.raises(ConfigError, match=r"differs from the nequip model .*: energy by .*, forces by"):
        from_nequip(small())


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model


class Training(Wrapper):
    """As nequip's modules of training, of which some hold averaged weights beside the model."""

    @property
    def evaluation_model(self):
        return nn.ModuleDict({"sole_model": self.inner})


DRESSES = {
    "as built": lambda model: model,
    "with forces": lambda model: model.model,
    "energies alone": lambda model: model.model.func,
    "one in a dictionary": lambda model: nn.ModuleDict({"sole_model": model}),
    "twice the same": lambda model: nn.ModuleDict({"a": model, "b": model}),
    "compiled when called": torch.compile,
    "in training": lambda model: model.train(),
    "without derivatives": lambda model: small(do_derivatives=False),
    "compiled in training": lambda model: small(compile_mode="compile"),
}


@pytest.mark.parametrize("dress", DRESSES)
def test_the_model_is_found(dress):
    model = small()
    potential = from_nequip(DRESSES[dress](model), backend="reference", device="cpu")
    assert_agrees(model, potential)


def test_weights_that_were_rounded_once():
    model = small(model_dtype="float32").double()
    assert_agrees(model, from_nequip(model, backend="reference", device="cpu"), 1e-5)


def test_several_models_and_unknown_wrappers():
    two = nn.ModuleDict({"a": small(), "b": nn.ModuleList([small(seed=8)])})
    with pytest.raises(ConfigError, match=r"2 NequIP models: a, b\.0; .*get_submodule\('a'\)"):
        from_nequip(two)
    model = small()
    with pytest.raises(ConfigError, match=r"part of a module \(Wrapper\) .*get_submodule\('inner'\)") as error:
        from_nequip(Wrapper(model))
    assert "\n" not in str(error.value)
    assert_agrees(model, from_nequip(Wrapper(model).get_submodule("inner"), backend="reference", device="cpu"))
    with pytest.raises(ConfigError, match=r"\(Training\) .*module\.evaluation_model\['sole_model'\]"):
        from_nequip(Training(model))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_source_stays_as_it_is(dtype):
    torch.manual_seed(5)
    model = small(model_dtype=dtype, per_type_energy_scales=1.0, per_type_energy_scales_trainable=True).train()
    model.model.func.type_embed.requires_grad_(False)

    def state():
        parts = [(type(part), part.training, vars(part).get("_output_dtype")) for part in model.modules()]
        flags = [parameter.requires_grad for parameter in model.parameters()]
        return parts, flags, torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state().tolist()

    before, weights = state(), {name: value.clone() for name, value in model.state_dict().items()}
    from_nequip(model, backend="reference", device="cpu")
    assert state() == before
    for name, value in model.state_dict().items():
        assert value.dtype == weights[name].dtype
        assert torch.equal(value, weights[name])
    assert all(parameter.grad is None for parameter in model.parameters())


GIVEN = {
    "file name": ("model.nequip.zip", r"a file name \('model.nequip.zip'\)"),
    "path": (Path("model.ckpt"), "a file name"),
    "calculator": (LennardJones(), r"an ASE calculator \(LennardJones\)"),
    "weights": (nn.Linear(2, 2).state_dict(), "of type OrderedDict"),
    "nothing": (None, "of type NoneType"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_no_module(name):
    given, match = GIVEN[name]
    with pytest.raises(ConfigError, match=f"not .*{match}.*load_saved_model") as error:
        from_nequip(given)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript():
    with pytest.raises(ConfigError, match=r"a TorchScript module.*load_saved_model"):
        from_nequip(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)))


@pytest.mark.parametrize("function", [NEQUIP_STATE, NEQUIP_LOADER, NEQUIP_IMPORTER])
def test_functions_that_advice_names_are_there(function):
    module, _, name = function.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("ending", [".nequip.zip", ".nequip.pt2", ".ckpt", ".pt2", ".pth", ".pt", ".model"])
def test_files_of_other_packages(ending, tmp_path):
    """One line that says what to do; nothing is opened but the first bytes."""
    path = tmp_path / f"some{ending}"
    path.write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(CheckpointError, match="not a model file of fastlr: it is a") as error:
        fastlr.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert (NEQUIP_LOADER in str(error.value)) == (ending != ".model")
    with pytest.raises(CheckpointError, match="no such model file, nor would fastlr load one of that name: it is a"):
        fastlr.load(tmp_path / f"missing{ending}")
