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
from fastlr.bench import convolution, kernel_suites, kernels, models, report
from fastlr.bench.contestants import Backend, E3nn
from fastlr.bench.problems import PROBLEMS, Problem, adjacency, neighbours
from fastlr.bench.timing import alternate
from fastlr.kernels.ewald.rows import KINDS

from fastlr.cli import main

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


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


def without_the_interpreter(*command) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, *command]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def assert_small(rows: list[dict]) -> None:
    """No spills, little time."""
    assert {row["target"] for row in rows} == {"sm_90", "gfx942"}
    for row in rows:
        assert int(row["spilled_bytes"]) == 0, row
        assert int(row["registers"]) > 0
        assert float(row["compile_s"]) < 10.0, row


@needs_triton
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    output = tmp_path / "kernels.csv"
    command = ["-m", "fastlr", "bench", "kernels", "--problem", "nequip-S", "--dtype", "float32"]
    without_the_interpreter(*command, "--target", "sm_90", "--target", "gfx942", "-o", str(output))
    rows = list(csv.DictReader(output.open()))
    assert_small(rows)
    assert {row["problem"] for row in rows} == {"nequip-S", "edge basis, l_max 1", "radial table"}


LARGEST = {"coulomb": "change", "mesh": "gather, p 8, order 2", "charge solver": "conjugate gradients 128"}
COMPILE = """
import json, sys, torch
from fastlr.bench.kernel_suites import suites
from fastlr.bench.kernels import TARGETS, compile_for

largest = json.loads(sys.argv[1])
for name, suite in suites(list(largest), torch.float64):
    for target in ("sm_90", "gfx942"):
        [variant] = [variant for variant in suite(TARGETS[target][2]) if variant.name == largest[name]]
        print(json.dumps({"suite": name, "target": target} | compile_for(variant, target)))
"""


@needs_triton
def test_the_largest_kernel_of_each_suite_compiles():
    rows = [json.loads(line) for line in without_the_interpreter("-c", COMPILE, json.dumps(LARGEST)).splitlines()]
    assert_small(rows)
    assert {row["suite"] for row in rows} == set(LARGEST)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_suites_know_all_arguments(dtype):
    for problem, suite in kernel_suites.suites(["nequip-S", *kernel_suites.NAMED], dtype):
        names = set()
        for lanes in (32, 64):
            for variant in suite(lanes):
                assert {*variant.types, *variant.constants} == set(variant.kernel.arg_names), (problem, variant.name)
                assert variant.num_warps in (1, 2, 4, 8)
                names.add((lanes, variant.name))
        assert len(names) == 2 * len(list(suite(32)))


@needs_triton
def test_an_interrupted_table_is_resumed(tmp_path, monkeypatch, capsys):
    compiled, breaks = [], True

    def compile_for(variant, target):
        if breaks and len(compiled) == 3:
            raise KeyboardInterrupt
        compiled.append(variant.name)
        return {"shared_bytes": 0, "compile_s": 0.1, "registers": 8, "spilled_bytes": 0}

    monkeypatch.setattr(kernels, "compile_for", compile_for)
    output = tmp_path / "new" / "kernels.csv"
    with pytest.raises(KeyboardInterrupt):
        report.save_csv(output, kernels.table(["coulomb"], ["sm_90"], (torch.float64,)))
    assert not output.exists()
    assert len(report.saved_rows(output)) == 3
    breaks = False
    command = ["bench", "kernels", "--problem", "coulomb", "--target", "sm_90", "-o", str(output)]
    assert main([*command, "--resume"]) == 0
    assert compiled == [*KINDS, "product"]
    assert [row["kernel"] for row in report.saved_rows(output)] == compiled
    assert [path.name for path in output.parent.iterdir()] == ["kernels.csv"]
    assert f"{len(compiled)} compilations, 0 with spills" in capsys.readouterr().out
    assert main(command) == 2
    assert "kernels.csv: exists; --resume keeps its rows, --overwrite replaces it" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert compiled == 2 * [*KINDS, "product"]
    assert main([*command, "--dtype", "float32"]) == 2
    assert "the kernels of 'coulomb' are for float64" in capsys.readouterr().err
