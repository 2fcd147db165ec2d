"""Triton kernels written line by line."""

import linecache

import torch
import triton
import triton.language as tl

FLOAT = {torch.float32: "tl.float32", torch.float64: "tl.float64"}


class Source:
    """The text of a kernel, written line by line."""

    def __init__(self, name: str, parameters: list[str]):
        self.name = name
        self.lines, self.depth = [f"def {name}({', '.join(parameters)}):"], 1

    def __call__(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    def indented(self):
        return self

    def __enter__(self):
        self.depth += 1

    def __exit__(self, *_):
        self.depth -= 1

    def kernel(self, **options):
        """The Triton function. Its text is kept where Python's ``inspect`` looks for it."""
        text = "\n".join(self.lines) + "\n"
        filename = f"<fastlr {self.name} {abs(hash(text)):x}>"
        linecache.cache[filename] = len(text), None, text.splitlines(keepends=True), filename
        scope = {"tl": tl}
        exec(compile(text, filename, "exec"), scope)
        function = triton.jit(scope[self.name], **options)
        function.text = text
        return function


class Name:
    """A variable of the kernel under construction; arithmetic with it writes a line."""

    def __init__(self, ops: "Operations", name: str):
        self.ops, self.name = ops, name

    def _binary(self, sign: str, other, reverse: bool = False) -> "Name":
        other = other.name if isinstance(other, Name) else repr(float(other))
        left, right = (other, self.name) if reverse else (self.name, other)
        return self.ops.named(f"{left} {sign} {right}")

    def __add__(self, other):
        return self._binary("+", other)

    def __sub__(self, other):
        return self._binary("-", other)

    def __rsub__(self, other):
        return self._binary("-", other, reverse=True)

    def __truediv__(self, other):
        return self._binary("/", other)

    def __mul__(self, other):
        return self._binary("*", other)

    __radd__, __rmul__ = __add__, __mul__


class Operations:
    """What formulas ask of a target beside arithmetic, for blocks of float64."""

    def __init__(self, body: Source):
        self.body, self.count = body, 0

    def named(self, expression: str) -> Name:
        self.count += 1
        self.body(f"t{self.count} = {expression}")
        return Name(self, f"t{self.count}")

    def constant(self, value: float) -> Name:
        return self.named(f"tl.full([BLOCK], {value!r}, tl.float64)")

    def rsqrt(self, x: Name) -> Name:
        return self.named(f"1.0 / tl.sqrt({x.name})")

    def power(self, x: Name, exponent: float) -> Name:
        if exponent != int(exponent) or exponent < 0:
            return self.named(f"tl.exp({exponent!r} * tl.log({x.name}))")
        result, square, rest = self.constant(1.0), x, int(exponent)
        while rest:
            if rest % 2:
                result = result * square
            square, rest = square * square, rest // 2
        return result

    def floor(self, x: Name) -> Name:
        return self.named(f"tl.floor({x.name})")

    def step(self, x: Name) -> Name:
        return self.named(f"tl.where({x.name} < 1.0, 1.0, 0.0)")

    def exp(self, x: Name) -> Name:
        return self.named(f"tl.exp({x.name})")
