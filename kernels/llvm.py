"""Kernels under construction: llvmlite's instruction builder with loops, memory in units of one float, and vectors."""

import math
from contextlib import contextmanager

from llvmlite import ir

from .native import vector_bytes

I32, I64 = ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()


class Emitter:
    """A kernel under construction: LLVM's instruction builder with loops, memory in units of one float, and vectors."""

    division = ()  # flags of the division of lanes

    def __init__(self, name: str, bits: int, num_tensors: int):
        self.float = {32: ir.FloatType(), 64: ir.DoubleType()}[bits]
        self.lanes = vector_bytes() * 8 // bits
        self.module = ir.Module(name)
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [POINTER, I64, I64]), name)
        # variables live in a block of their own at the entry, where LLVM turns them into registers
        self.variables = ir.IRBuilder(function.append_basic_block("variables"))
        self.start = function.append_basic_block("start")
        self.function, self.builder = function, ir.IRBuilder(self.start)
        self.begin, self.end = function.args[1:]
        self.tensors = [self.builder.load(self.at(function.args[0], i, I64), typ=POINTER) for i in range(num_tensors)]

    def source(self) -> str:
        self.builder.ret_void()
        self.variables.branch(self.start)
        return str(self.module)

    def integer(self, value) -> ir.Value:
        return value if isinstance(value, ir.Value) else ir.Constant(I64, value)

    def add(self, a, b):
        return self.builder.add(self.integer(a), self.integer(b))

    def mul(self, a, b):
        return self.builder.mul(self.integer(a), self.integer(b))

    def at(self, pointer, index, kind=None):
        """Address of element ``index`` of an array."""
        return self.builder.gep(pointer, [self.integer(index)], source_etype=kind or self.float)

    def load_int(self, pointer, index):
        return self.builder.load(self.at(pointer, index, I64), typ=I64)

    def load_float(self, pointer, index):
        return self.builder.load(self.at(pointer, index), typ=self.float)

    def vector(self, width: int):
        return ir.VectorType(self.float, width)

    def constant(self, value: float, width: int):
        kind = self.vector(width)
        return ir.Constant(kind, [ir.Constant(self.float, value)] * width)

    def variable(self, kind, count: int | None = None):
        pointer = self.variables.alloca(kind, size=None if count is None else ir.Constant(I64, count))
        pointer.type = POINTER
        return pointer

    def load(self, pointer, index, width: int, used: int | None = None):
        """A vector of ``width`` floats from memory, of which only the first ``used`` exist (the rest is zero)."""
        address = self.at(pointer, index)
        if used is None or used == width:
            return self.builder.load(address, typ=self.vector(width), align=self.float_bytes)
        kind = self.vector(width)
        name = f"llvm.masked.load.v{width}f{8 * self.float_bytes}.p0"
        function = self._declare(name, ir.FunctionType(kind, [POINTER, I32, self._mask_type(width), kind]))
        zero = self.constant(0.0, width)
        return self.builder.call(function, [address, I32(self.float_bytes), self._mask(width, used), zero])

    def store(self, value, pointer, index, used: int | None = None):
        """Store a vector, or its first ``used`` floats."""
        address, width = self.at(pointer, index), value.type.count
        if used is None or used == width:
            self.builder.store(value, address, align=self.float_bytes)
            return
        name = f"llvm.masked.store.v{width}f{8 * self.float_bytes}.p0"
        kinds = [value.type, POINTER, I32, self._mask_type(width)]
        function = self._declare(name, ir.FunctionType(ir.VoidType(), kinds))
        self.builder.call(function, [value, address, I32(self.float_bytes), self._mask(width, used)])

    @property
    def float_bytes(self) -> int:
        return 4 if isinstance(self.float, ir.FloatType) else 8

    def _mask_type(self, width):
        return ir.VectorType(ir.IntType(1), width)

    def _mask(self, width, used):
        return ir.Constant(self._mask_type(width), [ir.IntType(1)(lane < used) for lane in range(width)])

    def intrinsic(self, name: str, *values):
        """A function of LLVM from vectors to a vector of the same type."""
        kind = values[0].type
        full = f"llvm.{name}.v{kind.count}f{8 * self.float_bytes}"
        return self.builder.call(self._declare(full, ir.FunctionType(kind, [kind] * len(values))), values)

    def prefetch(self, pointer, index):
        """Ask for the cache line of a float that will be read soon."""
        kinds = [POINTER, *[I32] * 3]
        function = self._declare("llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), kinds))
        self.builder.call(function, [self.at(pointer, index), *(I32(hint) for hint in (0, 1, 1))])

    def _declare(self, name, kind):
        return self.module.globals.get(name) or ir.Function(self.module, kind, name)

    def broadcast(self, pointer, index, width: int):
        """One float from memory in all lanes."""
        return self.splat(self.load_float(pointer, index), width)

    def splat(self, scalar, width: int):
        kind = self.vector(width)
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, width), [I32(0)] * width)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def fma(self, a, b, c):
        """a * b + c; ``c`` None stands for zero."""
        if c is None:
            return self.builder.fmul(a, b)
        return self.intrinsic("fma", a, b, c)

    def value(self, variable):
        """What a variable holds."""
        return self.builder.load(variable, typ=variable.allocated_type)

    def accumulate(self, variable, a, b) -> None:
        """variable += a * b"""
        self.builder.store(self.fma(a, b, self.value(variable)), variable)

    def sum(self, a, b):
        return b if a is None else self.builder.fadd(a, b)

    def reduce(self, vector):
        """Sum of all lanes, by halves."""
        width = vector.type.count
        while width > 1:
            width //= 2
            halves = [
                self.builder.shuffle_vector(
                    vector,
                    ir.Constant(vector.type, ir.Undefined),
                    ir.Constant(ir.VectorType(I32, width), [I32(i) for i in lanes]),
                )
                for lanes in (range(width), range(width, 2 * width))
            ]
            vector = self.builder.fadd(*halves)
        return self.builder.extract_element(vector, I32(0))

    @contextmanager
    def loop(self, start, stop, step=1):
        """for i in range(start, stop, step)"""
        b = self.builder
        counter = self.variable(I64)
        b.store(self.integer(start), counter)
        head, body, done = (self.function.append_basic_block(name) for name in ("head", "body", "done"))
        b.branch(head)
        b.position_at_end(head)
        i = b.load(counter, typ=I64)
        b.cbranch(b.icmp_signed("<", i, self.integer(stop)), body, done)
        b.position_at_end(body)
        yield i
        b.store(b.add(i, self.integer(step)), counter)
        b.branch(head)
        b.position_at_end(done)

    def minimum(self, a, b):
        return self.builder.select(self.builder.icmp_signed("<", a, self.integer(b)), a, self.integer(b))


def chunk_plan(mul: int, lanes: int) -> list[tuple[int, int, int, int]]:
    """(first channel, number of vectors, lanes of each, channels used of each) that cover ``mul`` channels."""
    plan = []
    if mul >= lanes:
        plan.append((0, mul // lanes, lanes, lanes))
    rest = mul % lanes
    if rest:
        width = 1 << (rest - 1).bit_length()
        plan.append((mul - rest, 1, width, rest))
    return plan


class Lanes:
    """A vector of floats with Python's arithmetic; products and sums may be fused."""

    def __init__(self, emitter: Emitter, value: ir.Value):
        self.emitter, self.value = emitter, value

    def _other(self, other) -> ir.Value:
        return other.value if isinstance(other, Lanes) else self.emitter.constant(float(other), self.value.type.count)

    def _new(self, value: ir.Value) -> "Lanes":
        return Lanes(self.emitter, value)

    def __add__(self, other):
        return self._new(self.emitter.builder.fadd(self.value, self._other(other), flags=("contract",)))

    def __sub__(self, other):
        return self._new(self.emitter.builder.fsub(self.value, self._other(other), flags=("contract",)))

    def __rsub__(self, other):
        return self._new(self.emitter.builder.fsub(self._other(other), self.value, flags=("contract",)))

    def __mul__(self, other):
        return self._new(self.emitter.builder.fmul(self.value, self._other(other), flags=("contract",)))

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other):
        return self._new(self.emitter.builder.fdiv(self.value, self._other(other), flags=self.emitter.division))

    def call(self, name: str, *others: "Lanes") -> "Lanes":
        """A function of LLVM that takes and gives vectors of this type, such as "sqrt"."""
        return self._new(self.emitter.intrinsic(name, self.value, *(self._other(other) for other in others)))

    def less(self, other) -> ir.Value:
        return self.emitter.builder.fcmp_ordered("<", self.value, self._other(other))

    def where(self, condition: ir.Value, other) -> "Lanes":
        """This where ``condition`` holds, else ``other``."""
        return self._new(self.emitter.builder.select(condition, self.value, self._other(other)))


class Operations:
    """What formulas ask of a target beside arithmetic, for lanes of float64."""

    def __init__(self, emitter: Emitter):
        self.emitter = emitter

    def constant(self, value: float) -> Lanes:
        return Lanes(self.emitter, self.emitter.constant(value, self.emitter.lanes))

    def rsqrt(self, x: Lanes) -> Lanes:
        return self.constant(1.0) / x.call("sqrt")

    def power(self, x: Lanes, exponent: float) -> Lanes:
        if exponent != int(exponent) or exponent < 0:
            return x.call("pow", self.constant(exponent))
        result, square, rest = self.constant(1.0), x, int(exponent)
        while rest:
            if rest % 2:
                result = result * square
            square, rest = square * square, rest // 2
        return result

    def floor(self, x: Lanes) -> Lanes:
        return x.call("floor")

    def step(self, x: Lanes) -> Lanes:
        """1 below one, else 0."""
        return self.constant(1.0).where(x.less(1.0), 0.0)

    def exp(self, x: Lanes) -> Lanes:
        """e^x for x <= 0, zero below -700: 2^n times a polynomial in what remains."""
        b = self.emitter.builder
        n = (x.call("maxnum", self.constant(-700.0)) * math.log2(math.e)).call("rint")
        rest = (x.call("maxnum", self.constant(-700.0)) - n * 0.693145751953125) - n * 1.42860682030941723212e-6
        value = self.constant(1.0 / math.factorial(13))
        for k in range(12, -1, -1):
            value = value * rest + 1.0 / math.factorial(k)
        kind = ir.VectorType(I64, self.emitter.lanes)

        def spread(number: int):
            return ir.Constant(kind, [I64(number)] * self.emitter.lanes)

        exponent = b.shl(b.add(b.fptosi(n.value, kind), spread(1023)), spread(52))
        power = Lanes(self.emitter, b.bitcast(exponent, self.emitter.vector(self.emitter.lanes)))
        return (value * power).where(Lanes(self.emitter, self.constant(-700.0).value).less(x), 0.0)


class NarrowOperations(Operations):
    """The same for lanes of float32; reciprocals may be estimates, refined to all but the last digit."""

    is_single = True

    def __init__(self, emitter: Emitter):
        super().__init__(emitter)
        emitter.division = ("fast",)

    def rsqrt(self, x: Lanes) -> Lanes:
        b = self.emitter.builder
        name = f"llvm.sqrt.v{x.value.type.count}f32"
        kind = ir.FunctionType(x.value.type, [x.value.type])
        root = b.call(self.emitter._declare(name, kind), [x.value], fastmath=("fast",))
        return Lanes(self.emitter, b.fdiv(self.constant(1.0).value, root, flags=("fast",)))

    def exp(self, x: Lanes) -> Lanes:
        """e^x for x <= 0."""
        return Lanes(self.emitter, exponential(self.emitter, x.value))


def exponential(e: Emitter, x, less_one: bool = False):
    """e^x of a vector, or e^x - 1 with all its digits, for x <= 0: 2^n times a polynomial in what remains."""
    b, bits, width = e.builder, 8 * e.float_bytes, x.type.count
    lowest, degree, bias, shift = (-87.0, 7, 127, 23) if bits == 32 else (-700.0, 13, 1023, 52)

    def constant(value: float):
        return e.constant(value, width)

    vanishes = b.fcmp_ordered("<", x, constant(lowest))
    x = e.intrinsic("maxnum", x, constant(lowest))
    n = e.intrinsic("rint", b.fmul(x, constant(math.log2(math.e))))
    rest = e.fma(n, constant(-0.693145751953125), x)
    rest = e.fma(n, constant(-1.42860682030941723212e-6), rest)
    value = constant(1.0 / math.factorial(degree))
    for k in range(degree - 1, 0, -1):
        value = e.fma(value, rest, constant(1.0 / math.factorial(k)))
    integer = ir.IntType(bits)
    kind = ir.VectorType(integer, width)
    biased = b.add(b.fptosi(n, kind), ir.Constant(kind, [integer(bias)] * width))
    power = b.bitcast(b.shl(biased, ir.Constant(kind, [integer(shift)] * width)), x.type)
    shifted = b.fsub(power, constant(1.0)) if less_one else power
    return b.select(vanishes, constant(-1.0 if less_one else 0.0), e.fma(b.fmul(value, rest), power, shifted))
