"""What a Potential holds, and what is not its own: the caller's model, weights that change, attempts that fail."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from reference import structures
from reference.models import small_model

import fastlr
from fastlr import Potential
from fastlr.backends import resolve
from fastlr.engine.steps import Steps
from fastlr.errors import BackendError, CheckpointError, ConfigError, FastlrError, InputError
from fastlr.models import build_model, watch
from fastlr.models.tables import tabulate

KINDS = ["nequip", "lr"]
BACKENDS = ["auto", "reference"]


def twice(model, name="type_embedding.weight"):
    """Another set of weights of the same model."""
    return {key: 2.0 * value if key == name else value for key, value in copy.deepcopy(model).state_dict().items()}


def energy(potential) -> float:
    return potential.predict(structures.water()).energy


@torch.no_grad()
def scale(model):
    model.type_embedding.weight.mul_(2.0)


def replace_data(model):
    model.type_embedding.weight.data = 2.0 * model.type_embedding.weight.data


def write_data(model):
    model.type_embedding.weight.data.mul_(2.0)


def write_by_numpy(model):
    model.type_embedding.weight.detach().numpy()[:] *= 2.0


def replace_parameter(model):
    model.type_embedding.weight = torch.nn.Parameter(2.0 * model.type_embedding.weight.detach())


def replace_module(model):
    new = copy.deepcopy(model.type_embedding)
    new.weight.data.mul_(2.0)
    model.type_embedding = new


def load_weights(model):
    model.load_state_dict(twice(model))


def step_an_optimizer(model):
    weight = model.type_embedding.weight.requires_grad_()
    weight.grad = -weight.detach().clone()
    torch.optim.SGD([weight], lr=1.0).step()


CHANGES = [
    scale,
    replace_data,
    write_data,
    write_by_numpy,
    replace_parameter,
    replace_module,
    load_weights,
    step_an_optimizer,
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weights_are_refused_until_they_are_used(kind, backend, change):
    """No answer mixes old weights with new ones."""
    model = small_model(kind)
    potential, expected = Potential(model, backend=backend), Potential(model, backend=backend)
    model.load_state_dict(twice(model))
    new = energy(Potential(model, backend=backend))
    steps = Steps(potential)
    assert energy(potential) == steps.predict(structures.water()).energy == energy(expected)
    change(potential.model)
    for evaluate in (partial(energy, potential), partial(steps.predict, structures.water())):
        with pytest.raises(InputError, match=r"weights or settings of 'model' were changed .* call potential.use\(\)"):
            evaluate()
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(InputError, match="were changed"):
            duplicate(potential)
    potential.use(backend)
    assert energy(potential) == steps.predict(structures.water()).energy == new


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_who_kept_the_model_is_noticed_too(change):
    """Without asking for it again."""
    potential = Potential(small_model("lr"))
    model = potential.model
    energy(potential)
    change(model)
    with pytest.raises(InputError, match="were changed"):
        energy(potential)


def test_large_models_are_compared_in_turn(monkeypatch):
    monkeypatch.setattr(watch, "WINDOW", 1000)
    monkeypatch.setattr(watch, "MOST", 2000)
    potential = Potential(small_model("lr"))
    model = potential.model
    energy(potential)
    write_data(model)
    steps, size = Steps(potential), sum(tensor.nbytes for tensor in model.state_dict().values())
    for number, evaluate in (
        (size // 500, partial(steps.predict, structures.water())),
        (1, partial(energy, potential)),
    ):
        with pytest.raises(InputError, match="were changed"):
            for _ in range(number):
                evaluate()
        monkeypatch.setattr(watch, "MOST", 2 * size)


def to_double(model):
    model.double()


def to_half(model):
    model.half()


@pytest.mark.parametrize("cast", [to_double, to_half])
def test_another_float_type_is_no_use(cast):
    """The configuration names the float type."""
    potential = Potential(small_model("nequip", dtype="float32"))
    cast(potential.model)
    with pytest.raises(InputError, match="were changed"):
        energy(potential)
    with pytest.raises(ConfigError, match=r"tensor '.*' of the model is float.*, its configuration needs float32"):
        potential.use()
    with pytest.raises(ConfigError, match="its configuration needs float32"):
        Potential(small_model("nequip", dtype="float32").double())


def test_settings_of_layers_are_part_of_it():
    potential = Potential(small_model("nequip"))
    potential.model.readout.nonlinearity = "gelu"
    with pytest.raises(InputError, match="were changed"):
        energy(potential)
    potential = Potential(small_model("lr"))
    potential.model.use(resolve("reference", dtype=torch.float64))
    with pytest.raises(InputError, match="were changed"):
        energy(potential)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_changes_nothing_is_no_change(backend):
    potential = Potential(small_model("lr"), backend=backend)
    before, model = energy(potential), potential.model
    model.train()
    model.requires_grad_(True)
    model.to("cpu")
    model.eval()
    assert energy(potential) == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_model_stays_as_it_was(kind, backend):
    """Gradients, mode, kernels and tables; and it may be trained on while the potential serves."""
    model = small_model(kind, dtype="float32")
    tabulate(model)
    model.readout.weights[0].requires_grad_(False)
    required = [parameter.requires_grad for parameter in model.parameters()]
    tables = model.edge_embedding.table_intervals, model.edge_embedding.kept_tables
    weights, operations = copy.deepcopy(model.state_dict()), model.operations
    potential = Potential(model, backend=backend)
    before = energy(potential)
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    assert model.training and model.operations is operations
    assert (model.edge_embedding.table_intervals, model.edge_embedding.kept_tables) == tables
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    model(potential.graph(structures.water()))["energy"].sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert energy(potential) == before != energy(Potential(model, backend=backend))
    assert all(parameter.grad is None for parameter in potential.model.parameters())


def test_two_potentials_of_one_model():
    """Of different backends and float types, one after the other and back."""
    model = small_model("lr", dtype="float32")
    fast, plain = Potential(model), Potential(model, backend="reference")
    single, exact = energy(fast), energy(plain)
    assert single == pytest.approx(exact, rel=1e-5)
    other = copy.copy(fast)
    other.use("reference")
    fast.use("reference").use("auto")
    assert (energy(fast), energy(plain), energy(other)) == (single, exact, exact)
    assert fast.model is not other.model
    wide = build_model(model.config.model_copy(update={"dtype": "float64"}))
    wide.load_state_dict(model.state_dict())
    assert energy(Potential(wide)) == pytest.approx(exact, rel=1e-5)


FAILING = {
    "backend": ({"backend": "unheard-of"}, BackendError, "there is no such backend; there are"),
    "backend that is no name": ({"backend": ["cpu"]}, BackendError, "there is no such backend"),
    "no GPU": ({"device": "cuda:9"}, BackendError, "device 'cuda:9' cannot be used"),
    "GPU kernels on a CPU": ({"backend": "triton", "device": "cpu"}, BackendError, "its kernels run on GPUs"),
    "second CPU": ({"device": "cpu:3"}, BackendError, "device 'cpu:3' cannot be used: there is one 'cpu'"),
    "no device": ({"device": "abacus"}, BackendError, "device 'abacus' cannot be used"),
    "number": ({"device": 1.5}, BackendError, "device '1.5' cannot be used"),
    "no values": ({"device": "meta"}, BackendError, "device 'meta' cannot be used"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("options", "error", "said"), FAILING.values(), ids=FAILING.keys())
def test_a_failed_use_changes_nothing(backend, options, error, said):
    potential = Potential(small_model("lr"), backend=backend)
    before, operations, report = energy(potential), potential.operations, potential.report()
    with pytest.raises(error, match=said) as caught:
        potential.use(**options)
    assert "\n" not in str(caught.value)
    assert potential.operations is operations and potential.report() == report
    assert energy(potential) == before
    with pytest.raises(error, match=said):
        Potential(small_model("nequip"), **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_use_that_fails_on_the_way_changes_nothing(backend, monkeypatch):
    """At the very end, when the model has been given other kernels and tables."""
    potential = Potential(small_model("lr", dtype="float32"), backend=backend)
    before, report = energy(potential), potential.report()
    other = "reference" if backend == "auto" else "cpu"
    monkeypatch.setattr("fastlr.potential.Watch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        potential.use(other)
    assert (energy(potential), potential.report()) == (before, report)
    assert potential.model.operations is potential.operations


def test_the_configuration_does_not_change():
    potential = Potential(small_model("lr"))
    before = energy(potential)
    with pytest.raises(ConfigError, match=r"model.r_max: a configuration does not change; make another"):
        potential.config.r_max = 3.0
    potential.config.species.reverse()
    potential.config.energy_shifts["H"] = 7.0
    potential.species.reverse()
    assert energy(potential) == before
    with pytest.raises(AttributeError):
        potential.config = small_model("nequip").config
    with pytest.raises(AttributeError):
        potential.model = small_model("nequip")
    potential.model.config.species.reverse()
    with pytest.raises(InputError, match="were changed"):
        energy(potential)


@pytest.mark.parametrize("budget", [-1, float("nan"), "1e9", True, [1], np.array([1, 2])], ids=str)
def test_memory_budgets_that_are_none(budget):
    potential = Potential(small_model("nequip"), memory_budget=np.int64(10**9))
    with pytest.raises(InputError, match="memory_budget must be a number of bytes, or None, got"):
        potential.memory_budget = budget
    with pytest.raises(InputError, match="memory_budget must be"):
        fastlr.load("aqueous-xtb", memory_budget=budget)
    assert potential.memory_budget == 10**9
    for usable in (None, 1e9, np.float32(1e9), float("inf"), 0):
        potential.memory_budget = usable


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        (None, InputError, "a model is named by a string or a path, got None"),
        (b"aqueous-xtb", InputError, "a model is named by a string or a path, got b'aqueous-xtb'"),
        (5, InputError, "got 5"),
        (["aqueous-xtb"], InputError, "got \\['aqueous-xtb'\\]"),
        ("", CheckpointError, "no such model file|no bundled model"),
        (".", CheckpointError, "no such model file"),
        ("a\0b", CheckpointError, "no name of a model file|no bundled model"),
        ("a" * 5000, CheckpointError, "no name of a model file"),
        ("none.safetensors", CheckpointError, "none.safetensors: no such model file"),
    ],
    ids=lambda value: str(value)[:20].replace("\0", "0"),
)
def test_what_is_no_model(model, error, said):
    with pytest.raises(error, match=said) as caught:
        fastlr.load(model)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_what_load_takes(tmp_path, monkeypatch):
    """Names and paths, PyTorch's devices and float types; None is the default. A file is read at once."""
    expected = energy(fastlr.load("aqueous-xtb", device="cpu"))
    Potential(small_model("nequip")).save(tmp_path / "model.safetensors")
    options = {"backend": None, "device": torch.device("cpu"), "dtype": torch.float32}
    assert energy(fastlr.load("aqueous-xtb", **options)) == expected
    assert fastlr.load("aqueous-xtb", dtype=torch.float64, backend="reference").config.dtype == "float64"
    for dtype in (torch.float16, "half", 32, float):
        with pytest.raises(InputError, match="dtype must be 'float32' or 'float64', got"):
            fastlr.load("aqueous-xtb", dtype=dtype)
    monkeypatch.chdir(tmp_path)
    potential = fastlr.load("model.safetensors")
    monkeypatch.chdir("/")
    assert np.isfinite(energy(potential.use("reference")))


@pytest.mark.parametrize("model", ["aqueous-xtb", None, torch.nn.Linear(2, 2), Atoms("H")], ids=repr)
def test_what_a_potential_is_not_made_of(model):
    with pytest.raises(FastlrError, match="a Potential is made of a model of fastlr, got"):
        Potential(model)


@pytest.mark.parametrize(
    "path",
    [None, 3, b"abc", "", ".", "/dev/full", "/proc/x", "no/such/folder/m.safetensors", "x\0y", 300 * "a"],
    ids=repr,
)
def test_where_no_model_can_be_saved(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        Potential(small_model("lr"), backend="reference").save(path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
