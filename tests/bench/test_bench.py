"""The benchmarks check before they time, treat contestants alike, and write what they measured."""

import csv
import json
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch
from fastlr.bench import convolution, models, report
from fastlr.bench.contestants import Backend, E3nn
from fastlr.bench.problems import PROBLEMS, Problem, adjacency, neighbours
from fastlr.bench.timing import alternate

from fastlr.cli import main


def tiny_graph():
    from ase.build import molecule

    return neighbours([molecule("C6H6"), molecule("H2O")], 3.0)


@pytest.fixture
def tiny(monkeypatch):
    problem = Problem("tiny", "two molecules", ("3x0e+2x1o+1x2e", "0e+1o+2e", "0e+1o+1e+2e"), tiny_graph)
    monkeypatch.setitem(PROBLEMS, "tiny", problem)
    return problem


def test_sizes_of_the_named_problems():
    expected = {"nequip-l2-32": (512, 13_088), "mace-large": (1000, 158_000)}
    for name, (num_nodes, num_edges) in expected.items():
        edges = adjacency(PROBLEMS[name])
        assert (edges.row_ptr.shape[0] - 1, edges.source.shape[0]) == (num_nodes, num_edges)
        assert bool((edges.destination[1:] >= edges.destination[:-1]).all())
    assert adjacency(PROBLEMS["mace-large"], 11_000).source.shape[0] == 64 * 158


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convolution(tiny, dtype):
    lines = []
    result = convolution.run_problem(
        "tiny",
        wanted=("e3nn", "reference", "cpu", "triton", "openequivariance"),
        dtype=dtype,
        seconds=0.0,
        say=lines.append,
    )
    assert set(result["relative_errors"]) == {"e3nn", "reference", "cpu"}
    assert all(
        0.0 <= error < convolution.TOLERANCE[dtype]
        for row in result["relative_errors"].values()
        for error in row.values()
    )
    assert set(result["left_out"]) == {"triton", "openequivariance"}
    assert any("triton: left out, its kernels run on GPUs" in line for line in lines)
    for phase in convolution.PHASES:
        assert result["times"][phase]["cpu"]["speedup"]["over"] == "e3nn"
    assert "| tiny | double_backward |" in report.table([result])


class Wrong(Backend):
    """Off by a millionth in a quantity that only the weights' derivatives see."""

    def __call__(self, x, y, w, edges):
        return super().__call__(x, y, w, edges) + 1e-6 * (w**2 - w.detach() ** 2).mean()


def test_a_wrong_contestant_is_not_timed(tiny, monkeypatch):
    def contestants(program, device, dtype, wanted):
        return [E3nn(program, device, dtype), Wrong("cpu", program, device, dtype)], {}

    monkeypatch.setattr(convolution, "contestants", contestants)
    lines = []
    result = convolution.run_problem("tiny", seconds=0.0, dtype=torch.float64, say=lines.append)
    assert set(result["times"]["forward"]) == {"e3nn"}
    assert any("cpu: NOT TIMED" in line for line in lines)


def test_alternate_takes_turns():
    calls = []
    result = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0.0, rounds=5)
    assert result["a"]["rounds"] == result["b"]["rounds"] == 5
    assert "speedup" not in result["a"]
    turns = [name for k, name in enumerate(calls) if k == 0 or calls[k - 1] != name]
    assert turns == ["a", "b"] * (len(turns) // 2)


def test_training_step_checks_its_gradients():
    config = models.NEQUIP_LR | {"num_features": 4, "l_max": 1, "r_max": 3.5}
    result = models.training_step(config, repeat=1, copies=2, seconds=0.0)
    assert result["errors"]["cpu"]["gradient of all weights"] < 1e-5
    assert set(result["times"]["step"]) == {"reference", "cpu", "cpu, no tables"}


@pytest.mark.skipif(find_spec("nequip") is None, reason="nequip is not installed")
def test_whole_model():
    result = models.nequip_inference(repeat=1, r_max=3.5, seconds=0.0)
    assert torch.get_default_dtype() == torch.float32
    assert set(result["times"]["energy, forces, stress"]) == {"nequip", "fastlr reference", "fastlr cpu"}


def test_from_the_shell(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "fastlr.bench.machine.limits", lambda device: {"copy_GB_per_s": 20.0, "float32_GFLOP_per_s": 100.0}
    )
    output = tmp_path / "new" / "results.json"
    assert main(["bench", "convolution", "--problem", "tiny", "--seconds", "0", "-o", str(output)]) == 0
    record = json.loads(output.read_text())
    assert record["machine"]["versions"]["torch"] == version("torch")
    assert record["results"][0]["floor"]["forward"]["bytes_ms"] > 0.0
    assert "| tiny | forward |" in capsys.readouterr().out
    assert main(["bench", "convolution", "--problem", "nothing"]) == 2
    assert "there is no problem 'nothing'; there are nequip-l2-32" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    """In a process without the interpreter: no spills, little time."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    output = tmp_path / "kernels.csv"
    command = [sys.executable, "-m", "fastlr", "bench", "kernels", "--problem", "nequip-S", "--dtype", "float32"]
    command += ["--target", "sm_90", "--target", "gfx942", "-o", str(output)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    rows = list(csv.DictReader(output.open()))
    assert {row["target"] for row in rows} == {"sm_90", "gfx942"}
    assert {row["problem"] for row in rows} == {"nequip-S", "edge basis, l_max 1", "radial table"}
    for row in rows:
        assert int(row["spilled_bytes"]) == 0, row
        assert int(row["registers"]) > 0
        assert float(row["compile_s"]) < 10.0, row
