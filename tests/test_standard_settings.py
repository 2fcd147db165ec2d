"""What the caller has set in PyTorch and NumPy reaches no number, and is as it was afterwards."""

import pickle
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import partial
from threading import Event, Thread

import numpy as np
import pytest
import torch
from reference import models, structures

import fastlr
from fastlr.checkpoint import save_checkpoint
from fastlr.errors import InputError
from fastlr.models.derivatives import evaluate
from fastlr.potential import Potential
from fastlr.standard_settings import standard_settings


@contextmanager
def with_value(get, put, value):
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


@contextmanager
def place_with(name, value):
    """A finer setting of float32 products, where this PyTorch has them."""
    place = torch.backends
    for part in name.split("."):
        place = getattr(place, part, None)
    if not hasattr(place, "fp32_precision"):
        yield
        return
    before = place.fp32_precision
    place.fp32_precision = value
    try:
        yield
    finally:
        place.fp32_precision = before


SURROUNDINGS = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "no gradients": torch.no_grad,
    "gradients switched off": partial(torch.set_grad_enabled, False),
    "inference mode": torch.inference_mode,
    "float64 by default": partial(with_value, torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "bfloat16 by default": partial(with_value, torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "on another device": lambda: torch.device("meta"),
    "another default device": partial(with_value, torch.get_default_device, torch.set_default_device, "meta"),
    "deterministic": partial(
        with_value, torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "short products": partial(
        with_value, torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "short products of oneDNN": partial(place_with, "mkldnn.matmul", "bf16"),
    "short products of cuBLAS": partial(place_with, "cuda.matmul", "tf32"),
    "anomalies sought": torch.autograd.detect_anomaly,
    "arithmetic raises": partial(np.errstate, all="raise"),
    "other printing": partial(np.printoptions, precision=1),
}
surroundings = pytest.mark.parametrize("name", SURROUNDINGS)
pytestmark = pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")


def state() -> list:
    """All that the surroundings above change."""
    here = torch.empty(0)
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        precision = "mixed"
    places = (torch.backends, torch.backends.mkldnn, torch.backends.cuda.matmul)
    return [
        here.dtype,
        here.device.type,
        torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        precision,
        *[getattr(place, "fp32_precision", None) for place in places],
        getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None),
        torch.is_anomaly_enabled(),
        np.geterr(),
        np.get_printoptions(),
        torch.get_rng_state().tolist(),
    ]


@pytest.fixture(scope="module", params=["cpu", "reference"])
def potential(request):
    return Potential(models.small_model("lr", dtype="float32"), backend=request.param)


def in_field():
    atoms = structures.water()
    atoms.info["electric_field"] = [0.0, 0.0, 0.2]
    return atoms


def several():
    return [structures.water(), structures.salt(), structures.slab(), in_field(), structures.empty()]


def numbers(predictions) -> np.ndarray:
    found = []
    for prediction in predictions:
        found += [np.atleast_1d(prediction.energy), prediction.forces.ravel(), prediction.charges]
    return np.concatenate(found)


@surroundings
def test_predictions(name, potential):
    expected = numbers(potential.predict(several()))
    with SURROUNDINGS[name]():
        before = state()
        one_by_one = list(map(potential.predict, several()))
        together = potential.predict(several())
        assert state() == before
    np.testing.assert_array_equal(numbers(together), expected)
    np.testing.assert_allclose(numbers(one_by_one), expected, rtol=1e-5, atol=1e-6)


@surroundings
def test_predictions_one_at_a_time(name, potential):
    expected = potential.predict(several())
    with SURROUNDINGS[name]():
        before, found = state(), []
        for prediction in potential.iter_predict(several()):
            assert state() == before  # while the iterator waits
            found.append(prediction)
    np.testing.assert_array_equal(numbers(found), numbers(expected))


@surroundings
def test_the_calculator(name, potential):
    def forces():
        atoms = structures.salt()
        atoms.calc = potential.calculator()
        first = atoms.get_forces()
        atoms.positions += 0.01 * np.sin(np.arange(3 * len(atoms))).reshape(-1, 3)
        return np.stack([first, atoms.get_forces()])

    expected = forces()
    with SURROUNDINGS[name]():
        before = state()
        found = forces()
        assert state() == before
    np.testing.assert_array_equal(found, expected)


@surroundings
def test_loading(name, potential, tmp_path):
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, potential.config, potential.model.state_dict(), {})
    with SURROUNDINGS[name]():
        before = state()
        loaded = fastlr.load(path, backend=potential.operations.backend)
        assert state() == before
        loaded.use("reference")
        loaded.use(potential.operations.backend)
        assert state() == before
    assert {p.dtype for p in loaded.model.parameters()} == {p.dtype for p in potential.model.parameters()}
    np.testing.assert_array_equal(numbers(loaded.predict(several())), numbers(potential.predict(several())))


@pytest.mark.parametrize("name", [name for name in SURROUNDINGS if "inference" not in name])
def test_training_steps(name):
    """The gradient of forces by weights, which only inference mode cannot give."""

    def step():
        model = models.small_model("lr", dtype="float32")
        graph = models.graph_of(model, structures.water())
        with torch.enable_grad():
            out = evaluate(model, graph, create_graph=True)
            (out["forces"] ** 2).sum().backward()
        return torch.cat([p.grad.ravel() for p in model.parameters() if p.grad is not None])

    expected = step()
    with SURROUNDINGS[name]():
        if "device" in name or "default" in name:
            return  # building the model and the backward sweep are the caller's, where these decide
        found = step()
    tolerance = 2e-2 if "autocast" in name else 1e-6  # the sweep runs where the caller is
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_energies_of_a_model_itself():
    model = models.small_model("lr", dtype="float32")
    graph = models.graph_of(model, structures.salt())
    expected = model(graph)["energy"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(graph)["energy"]
    assert found.requires_grad
    assert torch.equal(found, expected)
    with torch.no_grad():
        assert not model(graph)["energy"].requires_grad


@surroundings
@pytest.mark.parametrize(
    "make", [deepcopy, copy, lambda p: pickle.loads(pickle.dumps(p))], ids=["deep", "shallow", "pickle"]
)
def test_copies(name, make, potential):
    with SURROUNDINGS[name]():
        before = state()
        made, calculator = make(potential), make(potential.calculator())
        assert state() == before
    np.testing.assert_array_equal(numbers(made.predict(several())), numbers(potential.predict(several())))
    assert calculator.get_potential_energy(structures.water()) == made.predict(structures.water()).energy


def test_errors_leave_everything_as_it_was(potential):
    bad = structures.water()
    bad.positions[1] = np.nan
    with torch.autocast("cpu"), torch.no_grad(), torch.device("meta"), np.errstate(all="raise"):
        before = state()
        with pytest.raises(InputError, match="atom 1 is not finite"):
            potential.predict(bad)
        iterator = potential.iter_predict([structures.water(), bad])
        with pytest.raises(InputError, match="atom 1 is not finite"):
            list(iterator)
        assert state() == before


def test_a_thread_of_its_own(potential):
    """Autocast and gradient modes belong to a thread."""
    found = []

    def work():
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            found.append(numbers(potential.predict(several())))

    with standard_settings():
        thread = Thread(target=work)
        thread.start()
        thread.join()
    np.testing.assert_array_equal(found[0], numbers(potential.predict(several())))


def test_threads_that_overlap_leave_the_process_as_it_was():
    entered, leave = Event(), Event()

    def stay():
        with standard_settings():
            entered.set()
            leave.wait(10)

    with SURROUNDINGS["float64 by default"](), SURROUNDINGS["short products"]():
        before = state()
        thread = Thread(target=stay)
        thread.start()
        entered.wait(10)
        with standard_settings():
            leave.set()
            thread.join()
            assert torch.get_default_dtype() == torch.float32  # though the first to come has left
            assert torch.get_float32_matmul_precision() == "highest"
        assert state() == before


def test_nested_settings_ask_once_more_for_gradients():
    with torch.inference_mode(), standard_settings(gradients=False):
        assert torch.is_inference_mode_enabled()
        with standard_settings():
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert torch.is_inference_mode_enabled()
