"""What there is to compile: the Triton kernels of every operator, with the types of their arguments."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from fastlr.kernels.edge_basis.formulas import Basis
from fastlr.kernels.ewald.rows import KINDS
from fastlr.kernels.ewald_mesh.naive import ORDERS
from fastlr.kernels.ewald_mesh.op import HIGHEST
from fastlr.kernels.radial_table.naive import ROWS

from .problems import PROBLEMS

# The sums of products that the convolution's operators ask for, as numbered terms (w, Y, v).
ONE = ((0, 0, 0),)
DOUBLE = {"dg": ((0, 0, 0), (0, 1, 1), (1, 0, 1)), "dx": ((0, 0, 0), (1, 1, 0)), "edges": ((0, 0, 0), (1, 1, 1))}
# suites beside the convolutions
NAMED = ("edge basis", "node update", "radial table", "coulomb", "mesh", "charge solver")
POINTER = {torch.float32: "*fp32", torch.float64: "*fp64"}


class Variant(NamedTuple):
    """A kernel as it is launched.

    Attributes:
        types: of the arguments, as Triton writes them; "i32:16" is a number known to be a multiple of 16. Arrays begin
            at multiples of 16 bytes, as PyTorch's do.
        constants: what is compiled in.
    """

    name: str
    kernel: object
    types: dict[str, str]
    constants: dict[str, int]
    num_warps: int


Suite = Callable[[int], Iterator[Variant]]  # from the lanes of a warp


def suites(problems: list[str], dtype: torch.dtype) -> list[tuple[str, Suite]]:
    """The kernels of some problems and suites for one type of numbers; a problem brings those of its layers along."""
    convolutions = [name for name in problems if name in PROBLEMS]
    found = [(name, partial(convolution, PROBLEMS[name].program, dtype)) for name in convolutions]
    basis_of = PROBLEMS if "edge basis" in problems else convolutions
    degrees = sorted({max(ir.l for _, ir in PROBLEMS[name].program.irreps_edge) for name in basis_of})
    found += [(f"edge basis, l_max {l_max}", partial(edge_basis, l_max, dtype)) for l_max in degrees]
    if convolutions or "radial table" in problems:
        found.append(("radial table", partial(radial_table, dtype)))
    if "node update" in problems:
        found.append(("node update", partial(node_update, dtype)))
    if "coulomb" in problems and dtype == torch.float64:
        found.append(("coulomb", coulomb))
    if "mesh" in problems:
        found.append(("mesh", partial(mesh, dtype)))
    if "charge solver" in problems:
        found.append(("charge solver", partial(charge_solver, dtype)))
    return found


def convolution(program, dtype: torch.dtype, lanes: int) -> Iterator[Variant]:
    from fastlr.kernels.tabulated_product import triton as tabulated
    from fastlr.kernels.tensor_product import triton

    def variant(name: str, kernel, indices: list[str], block: int) -> Variant:
        numbers = [key for key in kernel.arg_names if key not in (*indices, "BLOCK")]
        return Variant(name, kernel, _all("*i64", indices) | _all(POINTER[dtype], numbers), {"BLOCK": block}, 1)

    gathers = (("forward", ONE, False), ("backward x", ONE, True), ("double backward g", DOUBLE["dg"], False),
               ("double backward x", DOUBLE["dx"], True))  # fmt: skip
    for prefix, weights, more in (("", triton.Streamed, []), ("tabulated ", tabulated.Interpolated, ["interval"])):
        for name, terms, transposed in gathers:
            for number, (mul, kernel) in enumerate(triton.gather_kernels(program, terms, transposed, dtype, weights)):
                indices = ["ptr", "edge", "node", *more]
                yield variant(f"{prefix}{name} {number}", kernel, indices, triton.candidates(mul)[0].block)
    by = {"by edge": ["destination", "node"], "by node": ["ptr", "edge", "node"]}
    for name, terms, keep, more in (
        ("backward edges", ONE, triton.WeightGradients, []),
        ("double backward edges", DOUBLE["edges"], triton.WeightGradients, []),
        ("backward weights", ONE, triton.WeightGradientsAlone, []),
        ("double backward weights", DOUBLE["edges"], triton.WeightGradientsAlone, []),
        ("tabulated backward edges", ONE, tabulated.CoefficientGradients, ["interval"]),
    ):
        for how, indices in by.items():
            kernels = triton.edge_gradients_kernels(program, terms, dtype, how == "by edge", keep)
            for number, kernel in enumerate(kernels):
                yield variant(f"{name} {how} {number}", kernel, [*indices, *more], triton.LANES)


def edge_basis(l_max: int, dtype: torch.dtype, lanes: int) -> Iterator[Variant]:
    from fastlr.kernels.edge_basis import triton

    tables = {
        "forward": ["d_angular", "d_radial"],
        "backward": ["angular", "radial"],
        "double_backward": ["angular", "radial", "d_angular", "d_radial"],
    }
    doubles = {
        "forward": ["vectors", "roots"],
        "backward": ["vectors", "roots", "d_vectors"],
        "double_backward": ["vectors", "roots", "h", "d_vectors"],
    }
    for name in tables:
        types = _all(POINTER[dtype], tables[name]) | _all("*fp64", doubles[name]) | {"num_edges": "i32"}
        kernel = triton.edge_basis_kernel(name, Basis(5.0, 6.0, l_max, 8), dtype)
        yield Variant(name, kernel, types, {"BLOCK": triton.BLOCK}, 4)


def radial_table(dtype: torch.dtype, lanes: int) -> Iterator[Variant]:
    from fastlr.kernels.radial_table import triton

    constants, width = {"ROWS": ROWS, "BLOCK": triton.BLOCK}, {"width": "i32"}
    types = _all(POINTER[dtype], ["out", "coefficients", "table"]) | {"interval": "*i64"} | width
    yield Variant("values", triton.values_kernel, types, constants, 4)
    types = _all(POINTER[dtype], ["out", "gradient", "table"]) | {"interval": "*i64"} | width
    yield Variant("coefficients", triton.coefficients_kernel, types, constants, 1)
    types = _all(POINTER[dtype], ["out", "coefficients", "gradient"]) | _all("*i64", ["order", "ptr"])
    yield Variant("rows", triton.rows_kernel, types | {"num_intervals": "i32"} | width, constants, 4)


def node_update(dtype: torch.dtype, lanes: int) -> Iterator[Variant]:
    """Gates of hidden features with one parity a degree, as NequIP's presets have them, and with both; linear maps."""
    from fastlr.kernels.gate import triton
    from fastlr.kernels.irreps_linear import triton as linear

    from fastlr.nn.gate import Gate

    for transposed in (False, True):
        types = _all(POINTER[dtype], ["out", "x", "weights", "scales"]) | _all("*i64", ["tasks", "sources"])
        types |= _all("i32", ["num_atoms", "width_in", "width_out"])
        name, constants = "linear" + ", transposed" * transposed, linear.TILE | {"TRANSPOSED": transposed}
        yield Variant(name, linear.linear_kernel, types, constants, linear.WARPS)
    for hidden in ("128x0e+64x1o+32x2e+32x3o", "32x0e+32x0o+32x1e+32x1o+32x2e+32x2o"):
        layout = Gate(hidden).layout
        for name in ("gate", "backward", "double_backward"):
            kernel = triton.gate_kernel(name, layout)
            types = _all(POINTER[dtype], [key for key in kernel.arg_names if key != "BLOCK"])
            yield Variant(f"{name}, {hidden}", kernel, types, {"BLOCK": triton.BLOCK}, 1)


def coulomb(lanes: int) -> Iterator[Variant]:
    from fastlr.kernels.ewald import triton

    constants = {"BLOCK": triton.BLOCK}
    for name, kind in KINDS.items():
        results = [f"out{k}" for k in range(max(1, len(kind.columns)))]
        types = _all("*fp64", [*results, *kind.by_atom, *kind.by_structure])
        types |= {"ptr": "*i64", "neighbour": "*i32", "shift": "*i8", "batch": "*i64"}
        yield Variant(name, triton.pair_kernel(name), types, constants, triton.warps(name, lanes))
    types = _all("*fp64", ["out", "values", "q"]) | {"ptr": "*i64", "neighbour": "*i32"}
    yield Variant("product", triton.product_kernel(), types, constants, triton.warps("product", lanes))


def mesh(dtype: torch.dtype, lanes: int) -> Iterator[Variant]:
    from fastlr.kernels.ewald_mesh import triton

    number, dims = POINTER[dtype], _all("i32", ["n1", "n2", "n3"])
    for p in ORDERS:
        for order in range(HIGHEST + 1):
            name = f"p {p}, order {order}"
            kernel, warps = triton.splines_kernel(p, order), triton.SPLINES_WARPS
            types = _all(number, ["out", "place"]) | {"count": "i32"}
            yield Variant(f"splines, {name}", kernel, types, {"BLOCK": triton.ATOMS}, warps)
            kernel, warps = triton.gather_kernel(p, order), triton.GATHER_WARPS
            types = _all(number, ["out", "mesh", "table"]) | _all("*i64", ["order", "start"]) | {"count": "i32"} | dims
            constants = {"ROWS": triton.ROWS, "P": 1 << (p - 1).bit_length()}
            yield Variant(f"gather, {name}", kernel, types, constants, warps)
            kernel, warps = triton.spread_kernel(p, order), triton.SPREAD_WARPS
            types = _all(number, ["out", "c", "table"]) | _all("*i64", ["order", "ptr", "start"]) | dims
            for block in (32, 64):  # but for the smallest meshes, segments have 32 to 63 points
                yield Variant(f"spread {block}, {name}", kernel, types | {"segments": "i32"}, {"BLOCK": block}, warps)


def charge_solver(dtype: torch.dtype, lanes: int) -> Iterator[Variant]:
    from fastlr.kernels.charge_solver import batched_triton as triton

    number, sizes = POINTER[dtype], {"sizes": "*i64", "n": "i32", "stride": "i32:16"}
    for block in (16, 32, 64, 128):
        types = _all(number, ["out", "weights", "weight_sums", "matrix"]) | sizes
        yield Variant(f"prepare {block}", triton.prepare_kernel, types, {"ROWS": 16, "BLOCK": block}, 4)
        arrays = ["charges", "multiplier", "norms", "matrix", "weights", "weight_sums", "rhs", "total"]
        types = _all(number, arrays) | sizes | {"steps": "*i32", "max_steps": "i32"}
        types |= _all("fp32", ["tolerance", "rounding"])
        warps = triton.warps(block, dtype, lanes)
        yield Variant(f"conjugate gradients {block}", triton.cg_kernel, types, {"BLOCK": block}, warps)


def _all(kind: str, names: list[str]) -> dict[str, str]:
    return dict.fromkeys(names, kind)
