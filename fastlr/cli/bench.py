"""fastlr bench: measure this machine, beside the packages that are installed."""

from pathlib import Path
from typing import Annotated

import typer

from fastlr.errors import InputError

from .options import OverwriteOption, not_negative, positive

bench = typer.Typer(
    name="bench", help="Measure the kernels and models here, checked before they are timed.", no_args_is_help=True
)


def _present(device: str) -> str:
    import torch

    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"must be cpu or cuda, got '{device}'")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("cuda: PyTorch finds no GPU here")
    return device


BenchDeviceOption = Annotated[str, typer.Option(help="cpu or cuda.", callback=_present)]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the results.")]
SecondsOption = Annotated[float, typer.Option(help="Time for each comparison.", callback=not_negative)]


@bench.command()
def convolution(
    problem: Annotated[list[str] | None, typer.Option(help="Named problem, more than once for several.")] = None,
    against: Annotated[str, typer.Option(help="Contestants, the first being what the others are compared with.")] = "",
    device: BenchDeviceOption = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    memory: Annotated[
        float,
        typer.Option(
            help="GiB that e3nn may take; larger problems are made smaller, for all; 0: no limit.",
            callback=not_negative,
        ),
    ] = 8.0,
    seconds: SecondsOption = 3.0,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """The tensor-product convolution: forward, with gradients, and with second derivatives."""
    _check(output, overwrite)
    import torch

    from fastlr.backends import BACKENDS
    from fastlr.bench.convolution import run_problem
    from fastlr.bench.problems import PROBLEMS

    names = [name for name in against.split(",") if name]
    for what, wanted, known in (
        ("problem", problem or [], PROBLEMS),
        ("dtype", [dtype], ("float32", "float64")),
        ("contestant", names, ("e3nn", "openequivariance", *BACKENDS)),
    ):
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise InputError(f"there is no {what} '{unknown[0]}'; there are {', '.join(known)}")
    default = "e3nn,cpu" if device == "cpu" else "e3nn,cuequivariance,openequivariance,triton"
    results = []
    for name in problem or PROBLEMS:
        print(f"{name}: {PROBLEMS[name].about}")
        wanted = tuple((against or default).split(","))
        options = {"device": device, "dtype": getattr(torch, dtype), "memory": memory or None, "seconds": seconds}
        results.append(run_problem(name, wanted=wanted, **options))
    _finish("convolution", results, output, device)


@bench.command()
def electrostatics(
    repeat: Annotated[
        list[int] | None,
        typer.Option(
            help="Cells of NaCl along each axis, for several sizes more than once; default 8, 4,096 ions.", min=1
        ),
    ] = None,
    against: Annotated[
        str, typer.Option(help="Contestants by name, the first being what the others are compared with (default: all).")
    ] = "",
    device: BenchDeviceOption = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64; fastlr computes in float64.")] = "float64",
    tolerance: Annotated[
        float, typer.Option(help="Relative RMS error of forces that all are tuned to.", callback=positive)
    ] = 1e-4,
    seconds: SecondsOption = 10.0,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Energy and forces of point charges in NaCl, beside torch-pme and nvalchemi, all equally accurate."""
    _check(output, overwrite)
    import torch

    from fastlr.bench.coulomb import CONTESTANTS, run_coulomb
    from fastlr.bench.peers import named

    if dtype not in ("float32", "float64"):
        raise InputError(f"there is no dtype '{dtype}'; there are float32, float64")
    options = {"dtype": getattr(torch, dtype), "tolerance": tolerance, "seconds": seconds, "device": device}
    contestants, results = named(CONTESTANTS, against), []
    for size in repeat or [8]:
        print(f"NaCl, {8 * size**3:,} ions:")
        results.append(run_coulomb(size, contestants=contestants, **options))
    _finish("electrostatics", results, output, device)


@bench.command()
def equilibration(
    problem: Annotated[list[str] | None, typer.Option(help="molecules or cell (default: both).")] = None,
    against: Annotated[
        str, typer.Option(help="Contestants by name, the first being what the others are compared with (default: all).")
    ] = "",
    device: BenchDeviceOption = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64; fastlr computes in float64.")] = "float64",
    seconds: SecondsOption = 10.0,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Charges of 1,024 molecules at once or of a cell of 1,000 atoms, and their gradients, beside other solvers."""
    _check(output, overwrite)
    import torch

    from fastlr.bench.equilibration import CONTESTANTS, PROBLEMS, run_equilibration
    from fastlr.bench.peers import named

    for wanted, known in ((problem or [], tuple(PROBLEMS)), ([dtype], ("float32", "float64"))):
        unknown = [value for value in wanted if value not in known]
        if unknown:
            raise InputError(f"there is no '{unknown[0]}'; there are {', '.join(known)}")
    options = {"dtype": getattr(torch, dtype), "seconds": seconds, "device": device}
    contestants = named(CONTESTANTS, against)
    results = []
    for name in problem or PROBLEMS:
        print(f"{name}:")
        results.append(run_equilibration(PROBLEMS[name](), contestants=contestants, **options))
    _finish("equilibration", results, output, device)


@bench.command()
def scaling(
    repeat: Annotated[
        list[int] | None,
        typer.Option(
            help="Cells of NaCl along each axis, more than once for several (default: 5, 8, 12, 17, 24).", min=1
        ),
    ] = None,
    hardness: Annotated[
        list[float] | None,
        typer.Option(help="J in atomic units, more than once for several (default: 0.3).", callback=positive),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Root-mean-square error of charges, e.", callback=positive)] = 1e-8,
    seconds: SecondsOption = 10.0,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Iterations, time and memory of the charge solver in ever larger cells, and the exponent of its time."""
    _check(output, overwrite)
    from fastlr.bench.scaling import REPEATS, run_scaling

    results = run_scaling(repeat or REPEATS, hardness or (0.3,), tolerance=tolerance, seconds=seconds)
    _finish("scaling", results, output, "cpu")


@bench.command()
def model(
    repeat: Annotated[int, typer.Option(help="Cells of NaCl along each axis; 4 gives 512 atoms.", min=1)] = 4,
    seconds: SecondsOption = 20.0,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Energy, forces and stress of NequIP beside the nequip package with the same weights, and of NequIP-LR."""
    _check(output, overwrite)
    from fastlr.bench.models import nequip_inference, nequip_lr_inference

    results = [nequip_inference(repeat, seconds=seconds), nequip_lr_inference(repeat, seconds=seconds)]
    _finish("model", results, output, "cpu")


@bench.command()
def engine(
    repeat: Annotated[
        list[int] | None,
        typer.Option(help="Cells of NaCl along each axis, more than once for several (default: 4, 10).", min=1),
    ] = None,
    compiled: Annotated[bool, typer.Option(help="Compile nequip's model ahead of time, too (minutes).")] = True,
    seconds: SecondsOption = 20.0,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """The inference engine beside the nequip package on the same weights: 21, 512 and 8,000 atoms."""
    _check(output, overwrite)
    from fastlr.bench.engine import CUBES, run_engine

    _finish("engine", run_engine(repeat or CUBES, compiled, seconds), output, "cpu")


@bench.command()
def silicon(
    repeat: Annotated[
        list[int] | None,
        typer.Option(
            help="Cells of diamond along each axis, more than once for several (default: 1, 2; on a GPU 1, 5, 10, 17).",
            min=1,
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="Size of the model, as nequip names them: S, M, L or XL.")] = "L",
    device: BenchDeviceOption = "cpu",
    compiled: Annotated[bool, typer.Option(help="Compile nequip's models ahead of time, too (minutes).")] = True,
    seconds: SecondsOption = 10.0,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """A foundation model's size of NequIP on silicon, all included, beside the nequip package and its kernels."""
    _check(output, overwrite)
    from fastlr.bench.silicon import run_silicon

    if preset not in ("S", "M", "L", "XL"):
        raise InputError(f"there is no preset '{preset}'; there are S, M, L, XL")
    _finish("silicon", run_silicon(repeat, preset, device, compiled, seconds), output, device)


@bench.command()
def throughput(seconds: SecondsOption = 10.0, output: OutputOption = None, overwrite: OverwriteOption = False) -> None:
    """The engine alone: time an atom in growing cells, molecules in batches, NequIP-LR beside NequIP."""
    _check(output, overwrite)
    from fastlr.bench.throughput import batch, charges, growth

    _finish("throughput", [*growth(), batch(), *charges(seconds=seconds)], output, "cpu")


@bench.command()
def company(
    atoms: Annotated[int, typer.Option(help="Atoms of water.", min=3)] = 192,
    steps: Annotated[int, typer.Option(help="Steps of each run.", min=1)] = 2000,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Steps of dynamics beside a second run or a busy process, and with more threads than cores."""
    _check(output, overwrite)
    from fastlr.bench.company import run_company

    _finish("company", run_company(atoms, steps), output, "cpu")


@bench.command()
def soundness(output: OutputOption = None, overwrite: OverwriteOption = False) -> None:
    """The engine's differences from float64, its memory over 20,000 steps, and how long it takes to start."""
    _check(output, overwrite)
    from fastlr.bench.soundness import accuracy, startup, steady

    _finish("soundness", [*accuracy(), steady(), startup()], output, "cpu")


@bench.command()
def charges(
    seeds: Annotated[int, typer.Option(help="How many random structures.", min=1)] = 1000,
    largest: Annotated[int, typer.Option(help="Atoms, at most.", min=2)] = 800,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Errors of charges and forces in float32; bounds beside errors for random structures, by every solver."""
    _check(output, overwrite)
    from fastlr.bench.charge_bounds import bounds
    from fastlr.bench.charge_precision import precision

    _finish("charges", [*precision(), bounds(range(seeds), largest)], output, "cpu")


@bench.command()
def training(seconds: SecondsOption = 20.0, output: OutputOption = None, overwrite: OverwriteOption = False) -> None:
    """A training step of NequIP-LR with the backends reference and cpu."""
    _check(output, overwrite)
    from fastlr.bench.models import training_step

    _finish("training", [training_step(seconds=seconds)], output, "cpu")


@bench.command()
def kernels(
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file for the table.")] = Path("kernels.csv"),
    problem: Annotated[
        list[str] | None,
        typer.Option(
            help="Named problem, 'edge basis', 'node update', 'radial table', 'coulomb', 'mesh' or 'charge solver' "
            "(default: all)."
        ),
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="GPU architecture (default: all).")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32 or float64 (default: both).")] = None,
    resume: Annotated[bool, typer.Option(help="Keep the rows of an earlier run of the same sources.")] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Compile every Triton kernel for several GPUs, without one: registers, spills, shared memory, seconds."""
    import torch

    from fastlr.bench.kernels import COMPILED, TARGETS, table
    from fastlr.bench.report import save_csv, saved_rows

    for name, known in ((problem, COMPILED), (target, TARGETS), (dtype, ("float32", "float64"))):
        unknown = [value for value in name or [] if value not in known]
        if unknown:
            raise InputError(f"there is no '{unknown[0]}'; there are {', '.join(known)}")
    dtypes = tuple(getattr(torch, name) for name in dtype or ("float32", "float64"))
    if problem == ["coulomb"] and torch.float64 not in dtypes:
        raise InputError("the kernels of 'coulomb' are for float64")
    _check(output, overwrite or resume, "--resume keeps its rows, --overwrite replaces it")
    earlier = saved_rows(output) if resume else []
    rows = save_csv(output, table(problem or list(COMPILED), target or list(TARGETS), dtypes, earlier))
    spilled = [row for row in rows if int(row["spilled_bytes"])]
    print(f"{len(rows)} compilations, {len(spilled)} with spills; wrote {output}")


def _check(output: Path | None, *options) -> None:
    """Refuse an unwritable output before anything is measured, and make its folder."""
    from fastlr.files import check_writable

    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        check_writable(output, (), *options)


def _finish(name: str, results: list[dict], output: Path | None, device: str) -> None:
    from fastlr.bench.report import save, table

    print(table(results))
    if output:
        save(output, name, results, device)
        print(f"wrote {output}")
