"""The gate of one row in LLVM assembly, with its derivatives."""

from ..llvm import Emitter, chunk_plan, exponential
from .layout import SILU_SCALE, TANH_SCALE, GateLayout


def activation(e: Emitter, x, odd: bool, order: int = 0):
    """Scaled silu (tanh if ``odd``) of a vector, or its first or second derivative."""
    b, width = e.builder, x.type.count
    one = e.constant(1.0, width)
    size = e.intrinsic("fabs", x)
    negative = b.fcmp_ordered("<", x, e.constant(0.0, width))
    if odd:
        change = exponential(e, b.fmul(size, e.constant(-2.0, width)), less_one=True)
        value = b.fdiv(b.fneg(change), b.fadd(change, e.constant(2.0, width)))
        signed = b.select(negative, b.fneg(value), value)
        value, slope = signed, b.fsub(one, b.fmul(value, value))
        if order:
            value = slope if order == 1 else b.fmul(b.fmul(signed, slope), e.constant(-2.0, width))
    else:
        small = exponential(e, b.fneg(size))
        share = b.fdiv(one, b.fadd(one, small))
        rest = b.fmul(small, share)
        logistic, other = b.select(negative, rest, share), b.select(negative, share, rest)  # s and 1 - s
        value = b.fmul(x, logistic)
        if order == 1:  # s + x s (1 - s)
            value = e.fma(value, other, logistic)
        elif order == 2:  # s (1 - s) (2 + x (1 - 2 s))
            bent = e.fma(x, b.fsub(other, logistic), e.constant(2.0, width))
            value = b.fmul(b.fmul(logistic, other), bent)
    return b.fmul(value, e.constant(TANH_SCALE if odd else SILU_SCALE, width))


def gate(e: Emitter, layout: GateLayout, y, out) -> None:
    """out = gate(y) for one row."""
    for start_in, start_out, mul, odd in layout.scalars:
        for column, width, used in vectors(e, mul):
            value = e.load(y, e.add(column, start_in), width, used)
            e.store(activation(e, value, odd), out, e.add(column, start_out), used)
    for gates, start_in, start_out, dim, mul in layout.gated:
        for column, width, used in vectors(e, mul):
            factor = activation(e, e.load(y, e.add(column, gates), width, used), False)
            for k in range(dim):
                value = e.load(y, e.add(column, start_in + k * mul), width, used)
                e.store(e.builder.fmul(factor, value), out, e.add(column, start_out + k * mul), used)


def gate_backward(e: Emitter, layout: GateLayout, y, gradient, out) -> None:
    """out = the gradient by y, from that by gate(y), for one row."""
    b = e.builder
    for start_in, start_out, mul, odd in layout.scalars:
        for column, width, used in vectors(e, mul):
            slope = activation(e, e.load(y, e.add(column, start_in), width, used), odd, 1)
            value = e.load(gradient, e.add(column, start_out), width, used)
            e.store(b.fmul(slope, value), out, e.add(column, start_in), used)
    for gates, start_in, start_out, dim, mul in layout.gated:
        for column, width, used in vectors(e, mul):
            argument = e.load(y, e.add(column, gates), width, used)
            factor, slope = activation(e, argument, False), activation(e, argument, False, 1)
            total = None
            for k in range(dim):
                value = e.load(y, e.add(column, start_in + k * mul), width, used)
                g = e.load(gradient, e.add(column, start_out + k * mul), width, used)
                total = e.fma(value, g, total)
                e.store(b.fmul(factor, g), out, e.add(column, start_in + k * mul), used)
            e.store(b.fmul(slope, total), out, e.add(column, gates), used)


def gate_double_backward(e: Emitter, layout: GateLayout, y, gradient, change, by_y, by_gradient) -> None:
    """Derivatives of change . gate_backward(y, gradient) by y and by ``gradient``, for one row."""
    b = e.builder
    for start_in, start_out, mul, odd in layout.scalars:
        for column, width, used in vectors(e, mul):
            argument = e.load(y, e.add(column, start_in), width, used)
            g = e.load(gradient, e.add(column, start_out), width, used)
            v = e.load(change, e.add(column, start_in), width, used)
            bend = b.fmul(activation(e, argument, odd, 2), b.fmul(g, v))
            e.store(bend, by_y, e.add(column, start_in), used)
            e.store(b.fmul(activation(e, argument, odd, 1), v), by_gradient, e.add(column, start_out), used)
    for gates, start_in, start_out, dim, mul in layout.gated:
        for column, width, used in vectors(e, mul):
            argument, v = (e.load(t, e.add(column, gates), width, used) for t in (y, change))
            factor, slope, bend = (activation(e, argument, False, order) for order in range(3))
            along, across, turned = None, None, b.fmul(slope, v)
            for k in range(dim):
                place = e.add(column, start_in + k * mul)
                value, v_k = (e.load(t, place, width, used) for t in (y, change))
                g = e.load(gradient, e.add(column, start_out + k * mul), width, used)
                along, across = e.fma(value, g, along), e.fma(v_k, g, across)
                e.store(b.fmul(turned, g), by_y, place, used)
                total = e.fma(turned, value, b.fmul(factor, v_k))
                e.store(total, by_gradient, e.add(column, start_out + k * mul), used)
            total = e.fma(b.fmul(bend, v), along, b.fmul(slope, across))
            e.store(total, by_y, e.add(column, gates), used)


def vectors(e: Emitter, mul: int):
    """Loops over ``mul`` columns: (first column, lanes, lanes in use), inside the loop."""
    for start, count, width, used in chunk_plan(mul, e.lanes):
        with e.loop(0, count) as chunk:
            yield e.add(start, e.mul(chunk, width)), width, used
