"""Model files: what is written comes back, and nothing else gets in."""

import json
import pickle
import resource
import struct
import sys
import time

import numpy as np
import pytest
import torch
from reference import structures
from reference.models import CONFIGS, MODELS, predict, small_model
from safetensors import safe_open
from safetensors.torch import save_file

import fastlr
from fastlr import Potential, checkpoint
from fastlr.checkpoint import load_checkpoint, load_state, read_header, save_checkpoint
from fastlr.errors import CheckpointError
from fastlr.models import build_model, expected_tensors, parse_config

CARD = {"name": "a small model", "errors": {"energy": 0.1}}


@pytest.fixture
def file(tmp_path):
    """A sound model file."""
    model = small_model("lr")
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model.config, model.state_dict(), CARD)
    return path


def rewrite(path, header=None, tensors=None):
    """The file with parts of its header or tensors replaced (None: left out)."""
    config, state, card = load_checkpoint(path)
    contents = {"format_version": 1, "config": config.model_dump(), "units": {}, "card": card}
    contents |= header or {}
    state = {name: t for name, t in (state | (tensors or {})).items() if t is not None}
    save_file(state, path, {"fastlr": json.dumps({k: v for k, v in contents.items() if v is not None})})


def refused(path, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        fastlr.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name, tmp_path):
    model = small_model(name)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model.config, model.state_dict(), CARD)
    config, state, card = load_checkpoint(path)
    assert config == model.config
    assert card == CARD
    assert read_header(path) == (model.config, CARD)
    for key, value in model.state_dict().items():
        assert state[key].dtype == value.dtype
        assert torch.equal(state[key], value)
    again = build_model(config)
    load_state(again, state, path)
    before, after = (predict(m, structures.water_cluster()) for m in (model, again))
    assert all((before[key] == after[key]).all() for key in ("energy", "forces"))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_missing(tmp_path):
    refused(tmp_path / "none.safetensors", "no such model file")
    refused(tmp_path, "no such model file")  # a folder
    with pytest.raises(CheckpointError, match="no bundled model is named 'unheard-of'"):
        fastlr.load("unheard-of")


@pytest.mark.parametrize("part", [0.0, 1e-4, 0.02, 0.5, 0.99, "all but one byte"])
def test_truncated(file, part):
    data = file.read_bytes()
    file.write_bytes(data[: len(data) - 1 if isinstance(part, str) else int(part * len(data))])
    refused(file, "not a complete safetensors file")


@pytest.mark.parametrize("length", [1, 7, 8, 9, 5000])
def test_garbage(tmp_path, length):
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(torch.randint(256, (length,), dtype=torch.uint8).numpy().tobytes())
    refused(path, "not a complete safetensors file")


class Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (self.trace, "w")


@pytest.mark.parametrize("kind", ["torch", "torch-legacy", "pickle"])
def test_pickle_is_never_opened(tmp_path, monkeypatch, kind):
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(str(trace))))
    else:
        torch.save(Bomb(str(trace)), path, _use_new_zipfile_serialization=kind == "torch")
    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, None)
    refused(path, "a PyTorch pickle, which fastlr never opens")
    assert not trace.exists()


def test_without_header(tmp_path):
    path = tmp_path / "weights.safetensors"
    for metadata in (None, {"format": "pt"}, {"fastlr": "{"}, {"fastlr": "[]"}, {"fastlr": "3"}, {"fastlr": "{}"}):
        save_file({"a": torch.zeros(2)}, path, metadata)
        refused(path, "not a fastlr model")


@pytest.mark.parametrize("key", ["format_version", "config", "card"])
def test_incomplete_header(file, key):
    rewrite(file, {key: None})
    refused(file, "not a fastlr model")


@pytest.mark.parametrize(
    "bomb",
    [
        "[" * 10**5,
        '{"config":' * 10**5,
        '{"format_version": ' + "9" * 10**5 + "}",
        '{"config": ' + "[" * 500 + "]" * 500 + "}",
    ],
    ids=["lists", "objects", "digits", "closed lists"],
)
def test_json_bombs(tmp_path, bomb):
    path = tmp_path / "bomb.safetensors"
    save_file({"a": torch.zeros(2)}, path, {"fastlr": bomb})
    refused(path, "not a fastlr model")


def test_safetensors_header_bombs(tmp_path):
    """The container's own header: nested too deep, or said to be larger than any file."""
    path = tmp_path / "bomb.safetensors"
    for length, header in ((10**5, b"[" * 10**5), (2**62, b"{}"), (10**8 + 1, b"{}")):
        path.write_bytes(struct.pack("<Q", length) + header)
        refused(path, "not a complete safetensors file")


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]], ids=repr)
def test_other_format_version(file, version):
    rewrite(file, {"format_version": version if version is not None else "none"})
    refused(file, "format version .*; this fastlr reads version 1")


def test_units_and_conventions_are_stated(file):
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["fastlr"])
    assert header["units"] == checkpoint.UNITS
    assert header["conventions"] == checkpoint.CONVENTIONS
    assert header["conventions"]["couplings"] == "e3nn 0.6"


def test_older_files_mean_the_same(file):
    """Those that state no units and conventions, or not all of them."""
    expected = fastlr.load(file, backend="reference").predict(structures.water())
    for stated in (None, {}, {"couplings": "e3nn 0.6"}):
        rewrite(file, {"units": None, "conventions": stated})
        result = fastlr.load(file, backend="reference").predict(structures.water())
        assert result.energy == expected.energy and (result.forces == expected.forces).all()


OTHER_CONVENTIONS = {
    "couplings": ({"conventions": {"couplings": "e3nn 0.4"}}, "conventions: 'couplings' is 'e3nn 0.4'; .* 'e3nn 0.6'"),
    "scale": ({"conventions": checkpoint.CONVENTIONS | {"silu_scale": 1.0}}, "conventions: 'silu_scale' is 1.0; this"),
    "unknown": ({"conventions": {"handedness": "left"}}, "'handedness' is 'left'; this fastlr does not know it"),
    "no number": ({"conventions": {"tanh_scale": float("nan")}}, "conventions: 'tanh_scale' is nan"),
    "no object": ({"conventions": ["e3nn 0.6"]}, "'conventions' of its header is no object"),
    "long": ({"conventions": {"k" * 10**5: "v" * 10**5}}, "this fastlr does not know it"),
    "units": ({"units": {"energy": "kcal/mol"}}, "units: 'energy' is 'kcal/mol'; this fastlr only knows 'eV'"),
    "one word": ({"units": "kcal/mol"}, "'units' of its header is no object but 'kcal/mol'"),
    "capitals": ({"units": {"Energy": "kcal/mol"}}, "units: 'Energy' is 'kcal/mol'; this fastlr does not know it"),
    "small letters": ({"units": {"energy": "ev"}}, "units: 'energy' is 'ev'; this fastlr only knows 'eV'"),
    "another key": ({"unit": {"energy": "kcal/mol"}}, "its header states 'unit', which this fastlr does not know"),
    "a key in capitals": ({"Units": {"energy": "kcal/mol"}}, "its header states 'Units', which this fastlr does not"),
    "in the card": ({"card": {"Unit": {"energy": "kcal"}}}, "Unit in the card: 'energy' is 'kcal'; this fastlr only"),
    "a word in the card": ({"card": {"units": "kcal"}}, "'units in the card' of its header is no object but 'kcal'"),
    "in the configuration": ({"config": CONFIGS["lr"] | {"units": {"energy": "eV"}}}, "model.units: this key is not"),
}


@pytest.mark.parametrize(("header", "message"), OTHER_CONVENTIONS.values(), ids=OTHER_CONVENTIONS.keys())
def test_other_units_and_conventions_are_refused(file, header, message):
    rewrite(file, header)
    refused(file, message)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file)
    assert "\n" not in str(caught.value)


def repacked(path, change, metadata=None):
    """The file with its table of contents, as text, changed, and further metadata."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    table["__metadata__"] |= metadata or {}
    text = change(json.dumps(table)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_metadata_beside_the_header(file):
    repacked(file, lambda text: text, {"format": "pt"})  # which other programs write
    fastlr.load(file)
    repacked(file, lambda text: text, {"units": "kcal/mol"})
    refused(file, "its metadata states 'units', which this fastlr does not know")


SAID_TWICE = {
    "units": (r"\"units\":", r"\"units\": {\"energy\": \"kcal\"}, \"units\":", "'units' stands twice in its 'fastlr'"),
    "cutoff": (r"\"r_max\":", r"\"r_max\": 3.0, \"r_max\":", "'r_max' stands twice in its 'fastlr' header"),
    "metadata": ('"__metadata__":', '"__metadata__": {}, "__metadata__":', "'__metadata__' stands twice in the table"),
    "tensor": (
        '"scale_shift.shift":',
        '"scale_shift.shift": {}, "scale_shift.shift":',
        "'scale_shift.shift' stands twice",
    ),
}


@pytest.mark.parametrize(("once", "twice", "message"), SAID_TWICE.values(), ids=SAID_TWICE.keys())
def test_what_is_said_twice_is_refused(file, once, twice, message):
    """Of two values the last would win."""
    repacked(file, lambda text: text.replace(once, twice, 1))
    refused(file, message)


FAULTY_CONFIGS = {
    "unknown key": ({"colour": 3}, "model.colour: this key is not known"),
    "unknown kind": ({"kind": "mace"}, "'kind' must be"),
    "no species": ({"species": []}, "model.species"),
    "not an element": ({"species": ["H", "Qq"]}, "'Qq' is not a chemical symbol"),
    "element twice": ({"species": ["H", "H"]}, "listed twice"),
    "negative radius": ({"r_max": -1.0}, "model.r_max"),
    "infinite radius": ({"r_max": float("inf")}, "model.r_max"),
    "infinite range": ({"charge_range": float("inf")}, "model.charge_range"),
    "no number": ({"energy_scales": {"H": float("nan"), "O": 1.0, "Na": 1.0, "Cl": 1.0}}, "model.energy_scales"),
    "wrong list": ({"num_features": [4]}, "needs l_max \\+ 1 = 3 entries"),
    "species without entry": ({"hardness": {"H": 1.0}}, "hardness: needs an entry for each"),
    "degree": ({"l_max": 40}, "model.l_max"),
    "many species": ({"species": ["H"] * 10**4}, "at most 118 items"),
    "truth for a number": ({"r_max": True}, "model.r_max: must be a number, got True"),
    "long cutoff": ({"r_max": 100.0}, "model.r_max: .* less than or equal to 30, got 100.0"),
    "longer cutoff": ({"r_max": 1e9}, "model.r_max"),
    "no cutoff": ({"r_max": 1e-9}, "model.r_max: .* greater than or equal to 1.5"),
    "power": ({"cutoff_p": 1e300}, "model.cutoff_p"),
    "neighbours": ({"avg_num_neighbors": 1e-300}, "model.avg_num_neighbors: .* got 1e-300"),
    "scales": ({"energy_scales": 1e300}, "model.energy_scales: .* got 1e\\+300"),
    "shift": ({"energy_shifts": {"H": -1e300, "O": 0.0, "Na": 0.0, "Cl": 0.0}}, "model.energy_shifts.H: .* got -1e"),
    "soft": ({"hardness": 1e-300}, "model.hardness: .* got 1e-300"),
    "hard": ({"hardness": 1e300}, "model.hardness: .* got 1e\\+300"),
    "electronegativity": ({"electronegativity_shifts": 1e30}, "model.electronegativity_shifts"),
    "charges": ({"charge_range": 1e-30}, "model.charge_range"),
    "wide charges": ({"gaussian_widths": 1e6}, "model.gaussian_widths: .* got 1000000.0"),
    "points": ({"gaussian_widths": {"H": 1e-9, "O": 1.0, "Na": 1.0, "Cl": 1.0}}, "model.gaussian_widths.H"),
    "wide splitting": ({"ewald_eta": 1e6}, "model.ewald_eta"),
    "narrow splitting": ({"ewald_eta": 1e-9}, "model.ewald_eta"),
    "too exact": ({"ewald_accuracy": 1e-300}, "model.ewald_accuracy"),
    "too coarse": ({"ewald_accuracy": 0.1}, "model.ewald_accuracy"),
}


@pytest.mark.parametrize(("change", "message"), FAULTY_CONFIGS.values(), ids=FAULTY_CONFIGS.keys())
def test_invalid_configuration(file, change, message):
    rewrite(file, {"config": CONFIGS["lr"] | change})
    start = time.monotonic()
    refused(file, message)
    assert time.monotonic() - start < 2.0


EXTREMES = {
    "cutoff": {"r_max": 30.0},
    "short cutoff": {"r_max": 1.5},
    "wide": {"gaussian_widths": 4.0, "r_max": 1.5},
    "narrow": {"gaussian_widths": 0.01},
    "waves": {"ewald_eta": 0.2, "r_max": 30.0},
    "pairs": {"ewald_eta": 10.0, "r_max": 1.5},
    "exact": {"ewald_accuracy": 1e-15},
    "power": {"cutoff_p": 100.0},
}


@pytest.mark.parametrize("change", EXTREMES.values(), ids=EXTREMES.keys())
def test_the_ends_of_what_is_allowed_are_served(tmp_path, change):
    config = {"kind": "nequip-lr", "species": ["H", "O"], "num_features": 2, "l_max": 1, "radial_width": 4} | change
    model, path, start = build_model(parse_config(config)), tmp_path / "model.safetensors", time.monotonic()
    save_checkpoint(path, model.config, model.state_dict(), {})
    assert np.isfinite(fastlr.load(path, backend="reference").predict(structures.water()).energy)
    assert time.monotonic() - start < 5.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("accuracy", [1e-2, 1e-5])
def test_coarse_coulomb_sums_are_made_fine_enough(accuracy, dtype):
    """Else a model trains to the end and fails the check at load, and energies tell how the sums were split."""
    potential = Potential(small_model("lr", dtype=dtype, ewald_accuracy=accuracy))
    salt = structures.salt()
    assert potential.predict(salt * (3, 3, 3)).energy == pytest.approx(27 * potential.predict(salt).energy, abs=1e-4)


HOSTILE_CONFIGS = {
    "channels": {"num_features": 4096},
    "many layers": {"num_layers": 64, "num_charge_layers": 64, "num_features": 512},
    "charge stack": {"num_charge_layers": 64, "num_features": 2048, "l_max": 4},
    "last degree": {"num_features": [1, 1, 4096], "num_charge_layers": 64},
    "one layer": {"num_features": 4096, "reuse_features": False, "radial_width": 1},
    "type embedding": {"type_embedding_features": 4096, "radial_width": 4096, "l_max": 4, "num_features": 1},
    "wide self-connection": {"type_embedding_features": 512, "num_features": [1, 512, 512], "num_charge_layers": 9},
    "radial network": {"radial_depth": 64, "radial_width": 4096},
    "deep radial network": {"radial_depth": 10**9},
    "deep readout": {"readout_depth": 10**9},
    "wide readout": {"readout_depth": 64, "readout_width": 4096},
    "charge bins": {"charge_encoding": "gaussian", "num_charge_bins": 10**9},
    "beyond integers": {"num_features": 10**100},
}


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
@pytest.mark.parametrize("change", HOSTILE_CONFIGS.values(), ids=HOSTILE_CONFIGS.keys())
def test_hostile_configuration_fails_fast(file, change):
    """A small file that promises a huge model: refused before it is built."""
    rewrite(file, {"config": CONFIGS["lr"] | change})
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    refused(file, "the configuration needs|is missing|not part of this model|model\\.")
    assert time.monotonic() - start < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # kB


GRID = {
    "kind": ("nequip", "nequip-lr"),
    "num_layers": (1, 2, 3),
    "l_max": (0, 1, 2, 3),
    "parity": (True, False),
    "num_features": (1, 3),
    "type_embedding_features": (None, 2),
    "radial_depth": (0, 1, 2),
    "readout_depth": (0, 1, 2),
    "readout_width": (None, 4),
    "num_charge_layers": (1, 2, 3),
    "reuse_features": (True, False),
    "charge_encoding": ("scalar", "gaussian"),
    "bessel_trainable": (True, False),
    "energy_scales_trainable": (True, False),
    "energy_shifts_trainable": (True, False),
    "dtype": ("float32", "float64"),
}


def test_expected_tensors_are_those_of_the_model(rng):
    """Name by name, for configurations drawn from a grid of everything that decides about layers."""
    for number in range(150):
        drawn = {key: values[rng.integers(len(values))] for key, values in GRID.items()}
        if number % 3 == 0:  # channels for each degree
            drawn["num_features"] = rng.integers(1, 5, drawn["l_max"] + 1).tolist()
        if drawn["kind"] == "nequip":
            drawn = {key: value for key, value in drawn.items() if "charge" not in key and key != "reuse_features"}
        config = parse_config({"species": ["O", "H"], "radial_width": 3, "num_bessels": 2} | drawn)
        held = {name: (t.shape, t.dtype) for name, t in build_model(config).state_dict().items()}
        assert expected_tensors(config) == held, drawn


@pytest.mark.parametrize("kind", ["nequip", "nequip-lr"])
@pytest.mark.parametrize("change", [{}, {"type_embedding_features": 1}, {"radial_depth": 0}], ids=str)
@pytest.mark.parametrize("l_max", [0, 2])
def test_one_layer(tmp_path, kind, change, l_max):
    """Of which there is little: no self-connection, no hidden features."""
    model = build_model(parse_config({"kind": kind, "species": ["H", "O"], "num_layers": 1, "l_max": l_max} | change))
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model.config, model.state_dict(), {})
    assert fastlr.load(path).predict(structures.water()).energy == Potential(model).predict(structures.water()).energy


def first_tensor(file) -> str:
    return next(iter(load_checkpoint(file)[1]))


def test_missing_tensor(file):
    name = first_tensor(file)
    rewrite(file, tensors={name: None})
    refused(file, f"tensor '{name}' is missing")


def test_extra_tensor(file):
    rewrite(file, tensors={"stack.extra": torch.zeros(3)})
    refused(file, "tensor 'stack.extra' is not part of this model")


def test_misshapen_tensor(file):
    name = first_tensor(file)
    rewrite(file, tensors={name: torch.zeros(2, 2, 2, 2)})
    refused(file, f"tensor '{name}' has shape \\(2, 2, 2, 2\\), the configuration needs")


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1.0, torch.nan]),
        torch.tensor([torch.inf]),
        torch.tensor([1, 2]),
        torch.zeros(3).to(torch.float8_e4m3fn),
    ],
    ids=["nan", "inf", "integer", "float8"],
)
def test_weights_that_are_no_numbers(file, value):
    rewrite(file, tensors={"extra": value})
    with pytest.raises(CheckpointError, match="tensor 'extra'"):
        fastlr.load(file)


ODD_VALUES = {
    "soft": ("equilibration.log_hardness", -1e4, "holds a hardness of 0 eV/e\\^2; it must be between 0.001 and 10000"),
    "hard": ("equilibration.log_hardness", 1e3, "holds a hardness of inf eV"),
    "no width": ("equilibration.widths", 0.0, "holds a width of 0 Å"),
    "negative width": ("equilibration.widths", -1.0, "holds a width of -1 Å"),
    "another width": ("equilibration.widths", 1.25, "holds 1.25 where the configuration of the file says 0.31"),
    "infinite norm": ("charge_stack.norm", 0.0, "holds an average number of inf neighbours"),
    "another norm": ("energy_stack.norm", 0.5, "holds 0.5 where the configuration of the file says"),
    "shift": ("scale_shift.shift", 5.0, "holds 5 where the configuration of the file says"),
    "scale": ("electronegativity_scale_shift.scale", 1e300, "holds an electronegativity's scale of 1e\\+300 eV/e"),
    "roots": ("edge_embedding.roots", 0.0, "holds a Bessel root of 0"),
    "zeros": ("type_embedding.weight", 0.0, "holds nothing but zeros, so that all features would be zero"),
    "overflow": ("readout.weights.0", 1e200, "holds 1e\\+200, which is too large for float32"),
}


@pytest.mark.parametrize(("name", "value", "message"), ODD_VALUES.values(), ids=ODD_VALUES.keys())
def test_values_that_mean_nothing(tmp_path, name, value, message):
    """Refused by name of the tensor before anything is computed, when read and when written."""
    model = small_model("lr", dtype="float32")
    state = {key: tensor.double() for key, tensor in model.state_dict().items()}
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model.config, state, {})
    rewrite(path, tensors={name: torch.full_like(state[name], value)})
    refused(path, f"tensor '{name}' {message}")


def test_all_weights_zero(file):
    """The file is to blame, not a structure."""
    state = load_checkpoint(file)[1]
    rewrite(file, tensors={name: torch.zeros_like(tensor) for name, tensor in state.items()})
    refused(file, "tensor 'type_embedding.weight' holds nothing but zeros")


def test_no_forces(tmp_path):
    """A readout of zeros leaves a short-range model without forces."""
    path, model = tmp_path / "model.safetensors", small_model("nequip")
    torch.nn.init.zeros_(model.readout.weights[-1])
    save_checkpoint(path, model.config, model.state_dict(), {})
    refused(path, "its weights give no forces at all on a small box with H, O, .*: all numbers are zero in readout.wei")


@pytest.mark.parametrize("size", [1e20, 1e200])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_numbers_that_overflow(tmp_path, size, backend):
    """On the way, in float32 or in any float type."""
    path = tmp_path / "model.safetensors"
    model = small_model("nequip", dtype="float32" if size < 1e30 else "float64")
    with torch.no_grad():
        model.type_embedding.weight.mul_(size)
    save_checkpoint(path, model.config, model.state_dict(), {})
    with pytest.raises(CheckpointError, match=r"not finite|infinite") as caught:
        fastlr.load(path, backend=backend)
    assert str(path) in str(caught.value) and "structure" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_other_float_types_are_taken(file, dtype):
    expected = fastlr.load(file).predict(structures.water()).energy
    rewrite(file, tensors={name: tensor.to(dtype) for name, tensor in load_checkpoint(file)[1].items()})
    assert fastlr.load(file).predict(structures.water()).energy == pytest.approx(expected, rel=0.1)


def test_nothing_is_written_that_could_not_be_read(tmp_path):
    model, path = small_model("nequip"), tmp_path / "model.safetensors"
    state = model.state_dict()
    for faulty, message in (
        ({**state, "extra": torch.zeros(2)}, "tensor 'extra' is not part of this model"),
        ({**state, "readout.weights.0": state["readout.weights.0"][:1]}, "tensor 'readout.weights.0' has shape"),
        ({**state, "readout.weights.0": state["readout.weights.0"] * torch.nan}, "holds values that are not finite"),
        ({**state, "readout.weights.0": state["readout.weights.0"].int()}, "does not hold floating-point numbers"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_checkpoint(path, model.config, faulty, {})
    for card, message in (
        ({"a": object()}, "the model card cannot be written: Object of type object"),
        ({"units": {"energy": "Ha"}}, "units in the card: 'energy' is 'Ha'"),
        ({"a": "b" * 10**7}, "the model card of 10 MiB is too long"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_checkpoint(path, model.config, state, card)
    assert not list(tmp_path.iterdir())


def test_save_is_atomic(file, monkeypatch):
    """A failure half-way leaves the old file and nothing else."""
    before = file.read_bytes()

    def fail_half_way(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail_half_way)
    model = small_model("nequip")
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(file, model.config, model.state_dict(), {})
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_save_needs_a_folder(tmp_path):
    model = small_model("nequip")
    with pytest.raises(Exception, match=r"(?i)no such file"):
        save_checkpoint(tmp_path / "none" / "model.safetensors", model.config, model.state_dict(), {})


def test_loaded_in_another_float_type(file):
    potential = fastlr.load(file, dtype="float32")
    assert potential.config.dtype == "float32"
    assert parse_config(potential.config.model_dump()) == potential.config
    expected = fastlr.load(file).predict(structures.water()).energy
    assert potential.predict(structures.water()).energy == pytest.approx(expected, rel=1e-6)
