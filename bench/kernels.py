"""Every Triton kernel of the named problems, compiled for several GPUs without having one: registers, spills, time."""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from fastlr.kernels.edge_basis.formulas import Basis
from fastlr.kernels.radial_table.naive import ROWS

from .problems import PROBLEMS

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
INDICES = {"ptr", "edge", "node", "destination", "interval", "order"}
NUMBERS = {"num_edges", "num_intervals", "width"}

# The sums of products that the operators ask for, as numbered terms (w, Y, v).
ONE = ((0, 0, 0),)
DOUBLE = {"dg": ((0, 0, 0), (0, 1, 1), (1, 0, 1)), "dx": ((0, 0, 0), (1, 1, 0)), "edges": ((0, 0, 0), (1, 1, 1))}


def convolution_kernels(program, dtype: torch.dtype) -> Iterator[tuple[str, object, int]]:
    """(name, kernel, channels a program) of everything that a convolution and its derivatives run."""
    from fastlr.kernels.tensor_product import triton

    gathers = (("forward", ONE, False), ("backward x", ONE, True), ("double backward g", DOUBLE["dg"], False),
               ("double backward x", DOUBLE["dx"], True))  # fmt: skip
    for name, terms, transposed in gathers:
        for number, (mul, kernel) in enumerate(triton.gather_kernels(program, terms, transposed, dtype)):
            yield f"{name} {number}", kernel, triton.candidates(mul)[0].block
    for name, terms in (("backward edges", ONE), ("double backward edges", DOUBLE["edges"])):
        for per_edge in (True, False):
            kernel = triton.edge_gradients_kernel(program, terms, dtype, per_edge)
            yield f"{name} {'by edge' if per_edge else 'by node'}", kernel, triton.LANES


def edge_basis_kernels(l_max: int, dtype: torch.dtype) -> Iterator[tuple[str, object, int]]:
    from fastlr.kernels.edge_basis import triton

    for name in ("forward", "backward", "double_backward"):
        yield name, triton.edge_basis_kernel(name, Basis(5.0, 6.0, l_max, 8), dtype), triton.BLOCK


def radial_table_kernels() -> Iterator[tuple[str, object, int]]:
    from fastlr.kernels.radial_table import triton

    for name in ("values_kernel", "coefficients_kernel", "rows_kernel"):
        yield name.removesuffix("_kernel"), getattr(triton, name), triton.BLOCK


def compile_for(kernel, target: str, block: int, dtype: torch.dtype, num_warps: int) -> dict:
    """Compile one kernel for one GPU; registers and spills as the assembler reports them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in NUMBERS:
            return "i32"
        if name in INDICES:
            return "*i64"
        doubles = name in ("vectors", "roots", "h", "d_vectors") or dtype == torch.float64
        return "*fp64" if doubles else "*fp32"

    names = kernel.arg_names
    constants = {"BLOCK": block, "ROWS": ROWS}
    constants = {name: value for name, value in constants.items() if name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if kind(name).startswith("*")}
    source = ASTSource(fn=kernel, signature={name: kind(name) for name in names}, constexprs=constants, attrs=aligned)
    start = time.perf_counter()
    compiled = triton.compile(
        source, target=GPUTarget(*TARGETS[target]), options={"num_warps": num_warps, "enable_fp_fusion": True}
    )
    seconds = time.perf_counter() - start
    row = {"shared_bytes": compiled.metadata.shared, "compile_s": round(seconds, 2)}
    return row | (_nvidia(compiled.asm["cubin"]) if "cubin" in compiled.asm else _amd(compiled.asm["amdgcn"]))


def _nvidia(cubin: bytes) -> dict:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": found["REG"], "spilled_bytes": found["STACK"] + found["LOCAL"]}


def _amd(assembly: str) -> dict:
    found = {
        key: int(value) for key, value in re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", assembly)
    }
    return {"registers": found["vgpr_count"], "spilled_bytes": found["private_segment_fixed_size"]}


def table(problems: list[str], targets: list[str], dtypes: tuple[torch.dtype, ...], say=print) -> list[dict]:
    """One row a kernel and target."""
    os.environ.setdefault("TRITON_ALWAYS_COMPILE", "1")  # the time of a compilation, not of finding it in a cache
    rows = []
    for dtype in dtypes:
        suites = [(name, convolution_kernels(PROBLEMS[name].program, dtype), 1) for name in problems]
        degrees = sorted({max(ir.l for _, ir in PROBLEMS[name].program.irreps_edge) for name in problems})
        suites += [(f"edge basis, l_max {l}", edge_basis_kernels(l, dtype), 4) for l in degrees]
        suites.append(("radial table", radial_table_kernels(), 4))
        for suite, kernels, num_warps in suites:
            for name, kernel, block in kernels:
                for target in targets:
                    row = compile_for(kernel, target, block, dtype, num_warps)
                    float_type = str(dtype).removeprefix("torch.")
                    rows.append({"problem": suite, "kernel": name, "dtype": float_type, "target": target} | row)
                    say(", ".join(str(value) for value in rows[-1].values()))
    return rows
