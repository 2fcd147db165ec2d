"""The tensor-product convolution: fastlr's kernels beside e3nn and others, checked and then timed in turn."""

from collections.abc import Callable

import torch
from fastlr.kernels.adjacency import Adjacency
from fastlr.kernels.tensor_product.naive import NaiveConvolution
from fastlr.kernels.tensor_product.program import Program
from torch import Tensor

from fastlr.numerics import relative_rms

from .contestants import Contestant, contestants
from .problems import PROBLEMS, adjacency, inputs
from .timing import alternate

PHASES = ("forward", "backward", "double_backward")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
CHUNK = 4096  # edges of the reference at a time


def run_problem(
    name: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    wanted: tuple[str, ...] = ("e3nn", "cpu"),
    memory: float | None = 8.0,
    seconds: float = 3.0,
    say: Callable[[str], None] = print,
) -> dict:
    """Check and time one named problem; the first of ``wanted`` is what the others are compared with.

    Phases: ``forward``; ``backward``, which is forward and all three gradients; ``double_backward``, which adds the
    gradients of a probe of these by x, Y, w and the gradient that arrived at z, as training on forces needs them.
    A contestant that misses the tolerance is reported and not timed. Where e3nn would need more than ``memory`` GiB for
    its intermediate results, the graph is smaller, for all contestants.
    """
    problem = PROBLEMS[name]
    program = problem.program
    edges = adjacency(problem, None if memory is None else edges_within(program, memory, dtype), device)
    num_nodes, num_edges = edges.row_ptr.shape[0] - 1, edges.source.shape[0]
    x, y, w = inputs(program, num_nodes, num_edges, dtype, device)
    generator = torch.Generator().manual_seed(1)
    g, a, b, c = (
        torch.randn(shape, generator=generator, dtype=dtype).to(device)
        for shape in ((num_nodes, program.irreps_out.dim), x.shape, y.shape, w.shape)
    )
    running, absent = contestants(program, device, dtype, list(wanted))
    for peer, reason in absent.items():
        say(f"  {peer}: left out, {reason}")
    reference = exact_results(program, edges, (x, y, w), g, (a, b, c))
    errors, sound = {}, []
    for contestant in running:
        errors[contestant.name] = check(contestant, edges, (x, y, w), g, (a, b, c), reference)
        worst = max(errors[contestant.name].values())
        if worst <= TOLERANCE[dtype]:
            sound.append(contestant)
        else:
            say(f"  {contestant.name}: NOT TIMED, relative error {worst:.1e}")
    times = {}
    for phase in PHASES:
        runs = {peer.name: prepared(peer, phase, edges, (x, y, w), g, (a, b, c)) for peer in sound}
        times[phase] = alternate(runs, device, seconds)
        line = ", ".join(f"{peer} {row['ms']['median']:.3g} ms" for peer, row in times[phase].items())
        say(f"  {phase}: {line}")
    cost, size = program.cost, torch.finfo(dtype).bits // 8
    return {
        "problem": name,
        "about": problem.about,
        "signature": " ; ".join(problem.signature),
        "nodes": num_nodes,
        "edges": num_edges,
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "floor": {
            "forward_bytes": num_edges * size * cost.streamed + num_nodes * size * (x.shape[1] + g.shape[1]),
            "backward_bytes": num_edges * size * 3 * cost.streamed + num_nodes * size * 2 * (x.shape[1] + g.shape[1]),
            "forward_operations": num_edges * cost.forward,
            "backward_operations": num_edges * (cost.forward + cost.backward),
        },
        "left_out": absent,
        "relative_errors": errors,
        "times": times,
    }


def edges_within(program: Program, memory: float, dtype: torch.dtype) -> int:
    """Edges for which e3nn's second derivatives take about ``memory`` GiB: a dozen copies of all that an edge has."""
    floats = program.irreps_in.dim + program.irreps_out.dim + program.weight_numel
    return int(memory * 2**30 / (12 * floats * torch.finfo(dtype).bits // 8))


def prepared(peer: Contestant, phase: str, edges: Adjacency, leaves, g: Tensor, probes) -> Callable:
    """A call that does one phase, everything translated to the peer's layout beforehand."""
    x, y, w = leaves
    x, g = peer.x_in(x).contiguous(), peer.z_in(g).contiguous()
    a = peer.x_in(probes[0]).contiguous()
    if phase == "forward":

        def forward():
            with torch.no_grad():
                return (peer(x, y, w, edges),)

        return forward
    x, y, w, g = (tensor.clone().requires_grad_(True) for tensor in (x, y, w, g))

    def backward():
        z = peer(x, y, w, edges)
        return z, *torch.autograd.grad(z, (x, y, w), g.detach())

    def double_backward():
        z = peer(x, y, w, edges)
        first = torch.autograd.grad(z, (x, y, w), g, create_graph=True)
        return z, *first, *torch.autograd.grad(first, (x, y, w, g), (a, *probes[1:]))

    return {"backward": backward, "double_backward": double_backward}[phase]


def check(peer: Contestant, edges: Adjacency, leaves, g: Tensor, probes, reference: list[Tensor]) -> dict[str, float]:
    """Relative RMS error of every result of all phases."""
    z, dx, dy, dw, ddx, ddy, ddw, dg = prepared(peer, "double_backward", edges, leaves, g, probes)()
    values = (peer.z_out(z), peer.x_out(dx), dy, dw, peer.x_out(ddx), ddy, ddw, peer.z_out(dg))
    names = ("z", "dx", "dy", "dw", "ddx", "ddy", "ddw", "dg")
    return {
        name: relative_rms(value.detach(), expected.to(value.device))
        for name, value, expected in zip(names, values, reference, strict=True)
    }


def exact_results(program: Program, edges: Adjacency, leaves, g: Tensor, probes) -> list[Tensor]:
    """The specification in float64, some edges at a time, for every result is a sum over edges."""
    convolution = NaiveConvolution(program).to(g.device)
    x, y, w = (leaf.double() for leaf in leaves)
    a, b, c = (probe.double() for probe in probes)
    num_nodes = x.shape[0]
    totals: list = [0.0, 0.0, [], [], 0.0, [], [], 0.0]
    g = g.double()
    for start in range(0, y.shape[0], CHUNK) or [0]:
        some = slice(start, start + CHUNK)
        chunk = Adjacency.from_edges(torch.stack([edges.destination[some], edges.source[some]]), num_nodes)
        inputs = [tensor.clone().requires_grad_(True) for tensor in (x, y[some], w[some], g)]
        z = convolution(*inputs[:3], chunk)
        first = torch.autograd.grad(z, inputs[:3], inputs[3], create_graph=True)
        second = torch.autograd.grad(first, inputs, (a, b[some], c[some]))
        for k, value in enumerate((z.detach(), *(part.detach() for part in first), *second)):
            if isinstance(totals[k], list):
                totals[k].append(value)
            else:
                totals[k] = totals[k] + value
    return [torch.cat(total) if isinstance(total, list) else total for total in totals]
