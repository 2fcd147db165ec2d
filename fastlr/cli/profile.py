"""fastlr profile: where the time of an evaluation goes, stage by stage."""

from pathlib import Path
from typing import Annotated

import typer

from .options import BackendOption, DeviceOption, DtypeOption, ModelArgument, OverwriteOption, naming


def profile(
    model: ModelArgument,
    structure: Annotated[
        Path | None, typer.Argument(help="Structure file; default: a box with all elements of the model.")
    ] = None,
    atoms: Annotated[int, typer.Option(help="Atoms in that box, about.", min=1, max=10_000_000)] = 512,
    steps: Annotated[int, typer.Option(help="Evaluations.", min=1)] = 30,
    trace: Annotated[
        Path | None, typer.Option("--trace", "-o", help="Trace file (JSON), for Perfetto or chrome://tracing.")
    ] = None,
    overwrite: OverwriteOption = False,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
) -> None:
    """Time each stage of energy and forces, beside what its bytes and operations would take at the machine's limits."""
    from fastlr.files import check_writable

    if trace is not None:
        check_writable(trace, (structure, model), overwrite)

    from fastlr.checks.inference import box
    from fastlr.potential import load
    from fastlr.reading import read_structure

    potential = load(model, backend=backend, device=device, dtype=dtype)
    if structure is None:
        configuration = box(potential.species, potential.config.r_max, atoms)
    else:
        configuration = read_structure(structure)
    with naming(structure):
        graph = potential.graph(configuration)
    print(
        f"{potential.name}, {potential.config.dtype} on {potential.device}, backend '{potential.operations.backend}': "
        f"{graph.num_nodes:,} atoms, {graph.num_edges:,} edges"
    )
    if potential.plan is None:
        print(f"no inference plan: {potential.no_plan}; operators as PyTorch sees them:")
        _operators(potential, graph, steps, trace)
    else:
        _stages(potential, graph, steps, trace)
    if trace is not None:
        print(f"wrote {trace}; open it in https://ui.perfetto.dev or chrome://tracing")


def _stages(potential, graph, steps: int, trace: Path | None) -> None:
    from fastlr.bench.machine import limits
    from fastlr.engine.recording import Recorder

    from .tables import plain_table, show

    potential.plan.evaluate(graph)  # compile, allocate
    recorder = potential.plan.recorder = Recorder()
    try:
        for _ in range(steps):
            potential.plan.evaluate(graph)
    finally:
        potential.plan.recorder = None
    limit = limits()
    copy, peak = limit["copy_GB_per_s"], limit["float32_GFLOP_per_s"]
    table = plain_table("stage", "ms", "share", "GFLOP/s", "GB/s", "floor ms")
    rows = recorder.table()
    whole = rows[0][1]
    for name, seconds, cost in rows:
        cells = [f"{1e3 * seconds:.3f}", f"{seconds / whole:.0%}"]
        if cost is not None:
            floor = max(cost.operations / peak, cost.num_bytes / copy) / 1e6
            cells += [f"{cost.operations / seconds / 1e9:.1f}", f"{cost.num_bytes / seconds / 1e9:.1f}", f"{floor:.3f}"]
        table.add_row(name, *cells)
    show(table)
    print(
        f"this machine: copies {copy:.1f} GB/s, multiplies matrices at {peak:.0f} GFLOP/s in float32; the floor of a "
        "stage is the longer of what its bytes and its operations would take at that"
    )
    per_atom = 1e6 * whole / max(graph.num_nodes, 1)
    print(f"{1e3 * whole:.3g} ms an evaluation, {per_atom:.3g} µs an atom; {0.0864 / whole:.3g} ns/day at 1 fs")
    if trace is not None:
        recorder.save_trace(trace)


def _operators(potential, graph, steps: int, trace: Path | None) -> None:
    import torch
    from torch.profiler import ProfilerActivity

    from fastlr.models.derivatives import evaluate

    graph = graph.to(potential.device)
    evaluate(potential.model, graph)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if potential.device.type == "cuda" else [])]
    with torch.profiler.profile(activities=kinds) as recorded:
        for _ in range(steps):
            evaluate(potential.model, graph)
    key = "self_cuda_time_total" if potential.device.type == "cuda" else "self_cpu_time_total"
    print(recorded.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=40))
    if trace is not None:
        recorded.export_chrome_trace(str(trace))
