"""Triton kernels compiled for several GPUs without having one: registers, spills, shared memory, time."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from .kernel_suites import NAMED, Variant, suites
from .problems import PROBLEMS

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
COMPILED = (*PROBLEMS, *NAMED)  # what ``table`` knows
KEY = ("problem", "kernel", "dtype", "target")


def compile_for(variant: Variant, target: str) -> dict:
    """Compile one kernel for one GPU; registers and spills as the assembler reports them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names, types = variant.kernel.arg_names, variant.types | dict.fromkeys(variant.constants, "constexpr")
    if set(types) != set(names):
        raise ValueError(f"{variant.name}: the kernel's arguments are {names}, not {list(types)}")
    multiple = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if re.search(r"^\*|:16$", types[name])}
    signature = {name: types[name].removesuffix(":16") for name in names}
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=variant.constants, attrs=multiple)
    options = {"num_warps": variant.num_warps, "enable_fp_fusion": True}
    start = _processor_seconds()
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    seconds = _processor_seconds() - start
    row = {"shared_bytes": compiled.metadata.shared, "compile_s": round(seconds, 2)}
    return row | (_nvidia(compiled.asm["cubin"]) if "cubin" in compiled.asm else _amd(compiled.asm["amdgcn"]))


def _processor_seconds() -> float:
    """Of this process and of assemblers that it has called: whatever else the machine does does not count."""
    return sum(os.times()[:4])


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


def table(
    problems: list[str],
    targets: list[str],
    dtypes: tuple[torch.dtype, ...],
    known: Sequence[dict] = (),
    say=print,
) -> Iterator[dict]:
    """One row a kernel and target, as they come; those of an earlier run that are ``known`` are not compiled again."""
    os.environ.setdefault("TRITON_ALWAYS_COMPILE", "1")  # the time of a compilation, not of finding it in a cache
    earlier = {tuple(row[key] for key in KEY): row for row in known}
    for dtype in dtypes:
        for problem, suite in suites(problems, dtype):
            for target in targets:
                for variant in suite(TARGETS[target][2]):
                    key = (problem, variant.name, str(dtype).removeprefix("torch."), target)
                    if key in earlier:
                        yield earlier[key]
                        continue
                    row = dict(zip(KEY, key, strict=True)) | compile_for(variant, target)
                    say(", ".join(str(value) for value in row.values()))
                    yield row
